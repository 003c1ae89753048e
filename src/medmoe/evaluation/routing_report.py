"""`medmoe routes` without its printing: observes a model's routing on tasks, and writes all of it.

The folder gets ``routes.html``, ``routes.json`` and ``figures/`` (SVG, PNG and CSV of each figure).
Models are loaded one after the other, so that only one is in memory.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, NonNegativeInt, TypeAdapter, ValidationError

from medmoe.data.schema import Record, images_of
from medmoe.domains import domain_of
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.ask.records import TaskRecords
from medmoe.evaluation.pages import routes_page as page
from medmoe.evaluation.pages.routes_page import RouteFigure
from medmoe.evaluation.routes import tables
from medmoe.evaluation.routes.embedding import Embedding, embed, mapped_images
from medmoe.evaluation.routes.observe import Observation, image_states, observe
from medmoe.files import csv_text, write_json, write_text
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import read_config, verify
from medmoe.model.committed import put_in_place, staging_of
from medmoe.notice import RESEARCH_ONLY

Progress = Callable[[str, int, int], None]  # which model, images done, images in all


_Percent = Annotated[float, Field(ge=0, le=100)]


class _Point(BaseModel):
    """A point of a label-count curve (paper, figure 6)."""

    labels: NonNegativeInt
    images: NonNegativeInt
    accuracy: _Percent
    low: _Percent
    high: _Percent
    n: NonNegativeInt


@dataclass(frozen=True, slots=True)
class RoutesPlan:
    """What is observed of the MoE model in a folder.

    Attributes:
        before: Folder of the phase-2 model, whose states stand before the router.
        learned: Folder of a model with a learned router, held beside in figure 5.
        curve: Rows of a label-count curve; empty for none.
    """

    model: Path
    tasks: Sequence[TaskRecords]
    before: Path | None = None
    learned: Path | None = None
    curve: Sequence[dict[str, Any]] = ()
    seed: int = 7


def check_models(model: Path, before: Path | None, learned: Path | None) -> None:
    """Refuse models that cannot be shown, before any of them is loaded.

    Raises:
        CheckpointError: A folder is incomplete or altered.
        ConfigError: MODEL is dense, or the others do not fit it.
    """
    for folder in filter(None, (model, before, learned)):
        verify(folder)
    config = read_config(model)
    if not config.moe_layers:
        raise ConfigError(
            f"{model}: a dense model has no router and no experts; give a model of phase 3"
        )
    if learned is not None:
        count = len(read_config(learned).moe_layers or [])
        if count != len(config.moe_layers):
            raise ConfigError(
                f"--learned {learned} has {count} MoE layers, {model} has "
                f"{len(config.moe_layers)}; give the learned-router model of the same recipe"
            )
    if before is not None:
        depth = read_config(before).text_config.num_hidden_layers
        if depth <= max(config.moe_layers):
            raise ConfigError(
                f"--before {before} has {depth} decoder layers, {model} routes in layer "
                f"{max(config.moe_layers)}; give the phase-2 model that it was made of"
            )


def check_records(tasks: Sequence[TaskRecords], domains: Sequence[str]) -> None:
    """Refuse data on which nothing about domains can be said.

    Raises:
        DataError: No image has a modality, or all are of one domain.
    """
    names = ", ".join(task.spec.name for task in tasks)
    images = images_of(_observed(tasks))
    if len({label for label in tables.labels_of(images, domains) if label}) < 2:
        known = sorted({image.modality for image in images if image.modality}) or ["none"]
        raise DataError(
            f"{names}: routing by domain needs images of two of the model's domains "
            f"({', '.join(domains)}), these {len(images)} have the modalities: {', '.join(known)}; "
            "give another --task or a larger --limit"
        )


def _observed(tasks: Sequence[TaskRecords]) -> list[Record]:
    """Return the questions about one image: those about several are no one's in a figure."""
    return [r for task in tasks for r in task.records if not r.further_images]


def routes(plan: RoutesPlan, out: Path, progress: Progress) -> dict[str, Any]:
    """Observe, draw and write; return the object of ``routes.json``.

    Args:
        plan: Checked by `check_models` and `check_records`.

    Raises:
        ImageError: A picture cannot be used.
        MedMoeError: A file cannot be written.
    """
    records = _observed(plan.tasks)
    domains = tuple(read_config(plan.model).domains or ())
    images = images_of(records)
    mapped = mapped_images(images, plan.seed)
    observation = _observe(plan.model, records, mapped, "model", progress)
    embedding = _embedding(plan, observation, progress)
    learned = None
    if plan.learned is not None:
        learned = _observe(plan.learned, records, (), "learned router", progress)
    modalities = tables.modalities_of(observation, domains)
    shown = _figures(plan, observation, embedding, learned, modalities, domains)
    result = _result(plan, observation, embedding, shown, domains)
    _write_figures(out / "figures", shown)
    write_json(out / "routes.json", result)
    parts = plan.model.resolve().parts  # a folder named ``model`` is called by its run
    called = "/".join(parts[-3:-1]) if parts[-1] == "model" else parts[-1]
    write_text(out / "routes.html", page.render_routes(called, result, shown))
    return result


def _observe(
    model: Path, records: Sequence[Record], mapped: Sequence[str], name: str, progress: Progress
) -> Observation:
    return observe(
        MedMoe.load(model), records, mapped, lambda done, total: progress(name, done, total)
    )


def _embedding(plan: RoutesPlan, observation: Observation, progress: Progress) -> Embedding | None:
    if not observation.points:
        return None
    images = [observation.images[i] for i in observation.points]
    before = observation.states
    if plan.before is not None:
        progress("before", 0, len(images))
        before = image_states(MedMoe.load(plan.before), images, observation.layers)
        progress("before", len(images), len(images))
    return embed(images, observation.layers, before, observation.logits, plan.seed)


def _figures(
    plan: RoutesPlan,
    observation: Observation,
    embedding: Embedding | None,
    learned: Observation | None,
    modalities: Sequence[str],
    domains: Sequence[str],
) -> list[RouteFigure]:
    shown = []
    if embedding is not None:
        shown.append(page.map_figure(embedding))
    shares = tables.token_shares(observation, modalities, domains)
    shown.append(page.share_figure(shares, domains))
    shown.append(page.most_used_figure(observation, learned, modalities, domains))
    if plan.curve:
        shown.append(page.curve_figure(list(plan.curve)))
    shown.append(page.layer_figure(tables.by_layer(observation, domains, plan.seed)))
    return shown


def _result(
    plan: RoutesPlan,
    observation: Observation,
    embedding: Embedding | None,
    shown: Sequence[RouteFigure],
    domains: Sequence[str],
) -> dict[str, Any]:
    sizes = Counter(image.modality or "unknown" for image in observation.images)
    config = read_config(plan.model)
    notes = []
    if not any(domain_of(image.modality, domains) for image in observation.images):
        notes.append(
            "No image is of a domain that this model's experts are named after: modalities stand "
            "for domains in the specialisation index."
        )
    if left := sum(len(task.records) for task in plan.tasks) - len(_observed(plan.tasks)):
        notes.append(f"{left} questions about several images are in no figure.")
    if "unknown" in sizes:
        notes.append(f"{sizes['unknown']} images have no known modality and are in no figure.")
    if embedding is None:
        notes.append("No map of images: too few images of two modalities.")
    return {
        "version": 1,
        "model": str(plan.model),
        "before": None if plan.before is None else str(plan.before),
        "learned": None if plan.learned is None else str(plan.learned),
        "seed": plan.seed,
        "tasks": [
            {
                "task": task.spec.name,
                "split": task.split,
                "questions": len(task.records),
                "records_sha256": task.sha256(),
            }
            for task in plan.tasks
        ],
        "images": len(observation.images),
        "modalities": dict(sorted(sizes.items())),
        "domains": list(domains),
        "layers": list(observation.layers),
        "num_experts_per_tok": config.num_experts_per_tok,
        "silhouettes": [] if embedding is None else embedding.silhouettes,
        "figures": {figure.stem: figure.rows for figure in shown},
        "notes": notes,
        "use": RESEARCH_ONLY,
    }


def _write_figures(folder: Path, shown: Sequence[RouteFigure]) -> None:
    """Write all files of the figures, and only then put them in the place of older ones."""
    staging = staging_of(folder)
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        for figure in shown:
            for stem, rows in {figure.stem: figure.rows, **(figure.more or {})}.items():
                (staging / f"{stem}.csv").write_text(csv_text(rows), encoding="utf-8", newline="")
            for stem, drawn in figure.drawings.items():
                (staging / f"{stem}.svg").write_text(drawn.svg + "\n", encoding="utf-8")
                (staging / f"{stem}.png").write_bytes(drawn.png)
        put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_label_curve(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a label curve in order of ``labels``.

    Args:
        path: ``label_curve.csv`` or ``label_curve.json``, or a folder that holds one.

    Raises:
        DataError: The file cannot be read, or a row is no point of a curve; the row is named.
    """
    if path.is_dir():
        path = path / "label_curve.json"
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            json.loads(text) if path.suffix == ".json" else list(csv.DictReader(text.split("\n")))
        )
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the label_curve.csv or .json that "
            "`medmoe train …_label_curve` writes"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON or UTF-8 text; write it again") from error
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{path}: holds no rows; give a label_curve.csv or .json with one at least")
    try:
        points = TypeAdapter(list[_Point]).validate_python(rows)
    except ValidationError as error:
        (number, *names), fault = error.errors()[0]["loc"], error.errors()[0]
        where = " ".join([f"row {int(number) + 1}:", *map(str, names)])
        raise DataError(f"{path}: {where} is {fault['input']!r}: {fault['msg']}") from None
    return sorted((point.model_dump() for point in points), key=lambda point: point["labels"])
