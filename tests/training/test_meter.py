"""The meter: it counts what passes the model, by expert and domain, and changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.tiny import DOMAINS, MOE_LAYERS
from tests.training import toy

from medmoe.training.context import RunSettings
from medmoe.training.load_balance import is_token
from medmoe.training.meter import NO_DOMAIN, Measured, Meter
from medmoe.training.packed import train_packed


def measured(
    path: Path, steps: int = 4, domains: tuple[str, ...] = DOMAINS, **settings: object
) -> tuple[list[Measured], torch.nn.Module]:
    """Train phase 3 under a meter and return its points and the model."""
    model = toy.moe()
    context = toy.context(model, steps=steps)
    modalities = {r.image.id: r.image.modality for r in context.records}
    points: list[Measured] = []
    meter = Meter("phase3_moe", path, modalities, domains, points.append)
    run = RunSettings(callbacks=(meter,), log_every=1, **settings)  # type: ignore[arg-type]
    train_packed(replace(context, settings=run))
    return points, model


def test_a_run_with_it_gives_the_weights_of_one_without(tmp_path: Path) -> None:
    _, model = measured(tmp_path / "m.jsonl")
    plain = toy.moe()
    train_packed(toy.context(plain, steps=4))
    assert not toy.changed(toy.weights(plain), toy.weights(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_shares_are_those_of_the_routers_on_the_step_s_pictures(tmp_path: Path) -> None:
    """Counted again by hand, from the batches that passed and the routers' own choices."""
    model = toy.moe()
    context = toy.context(model, steps=1)
    modality = {r.image.id: r.image.modality for r in context.records}
    counts = {name: torch.zeros(len(DOMAINS)) for name in DOMAINS}
    batches: list[torch.Tensor] = []
    chosen: list[torch.Tensor] = []
    rows = {row: name for name, row in context.rows.items()}
    features: list[torch.Tensor] = []

    def before(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        batches.append(is_token(kwargs["attention_mask"]))
        features.append(kwargs["vision_features"])

    model.register_forward_pre_hook(before, with_kwargs=True)
    for index in MOE_LAYERS:
        model.moe_blocks[index].gate.register_forward_hook(lambda _, __, out: chosen.append(out[2]))
    points: list[Measured] = []
    meter = Meter("phase3_moe", tmp_path / "m.jsonl", modality, DOMAINS, points.append)
    train_packed(replace(context, settings=RunSettings(callbacks=(meter,), log_every=1)))
    for row in range(len(batches[0])):
        same = [
            i
            for i in range(len(context.features))
            if torch.equal(context.features[i], features[0][row])
        ]
        name = str(modality[rows[same[0]]])
        for index_BSK in chosen:
            flat = index_BSK[row][batches[0][row]].flatten()
            counts[name] += torch.bincount(flat, minlength=len(DOMAINS))
    wanted = {name: (c / c.sum()).tolist() for name, c in counts.items() if c.sum() > 0}
    assert points[0].experts.keys() == wanted.keys()
    for name, shares in wanted.items():
        assert points[0].experts[name] == pytest.approx(shares, abs=1e-4)  # written so rounded


@pytest.mark.parametrize(
    "settings", [{"gradient_accumulation": 2}, {"gradient_checkpointing": True}]
)
def test_parts_and_recomputation_do_not_count_twice(
    settings: dict[str, object], tmp_path: Path
) -> None:
    plain, _ = measured(tmp_path / "a.jsonl")
    other, _ = measured(tmp_path / "b.jsonl", **settings)
    assert [p.experts for p in other] == [p.experts for p in plain]


def test_pictures_of_no_domain_stand_apart(tmp_path: Path) -> None:
    points, _ = measured(tmp_path / "m.jsonl", domains=("ct", "mri", "pathology", "ultrasound"))
    assert NO_DOMAIN in {name for point in points for name in point.experts}


def test_every_point_is_a_line(tmp_path: Path) -> None:
    points, _ = measured(tmp_path / "m.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [point.step for point in points] == [1, 2, 3, 4]
    assert lines[0]["loss"] == points[0].loss
    assert lines[-1]["seconds_left"] == 0


def test_a_resumed_run_drops_what_it_will_measure_again(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    folder = tmp_path / "checkpoints"
    measured(path, checkpoints=folder, save_every=2)
    whole = [json.loads(line)["loss"] for line in path.read_text().splitlines()]
    # As a kill leaves it: no last checkpoint, points after the one before, a torn line.
    for file in (folder / "step-4").iterdir():
        file.unlink()
    (folder / "step-4").rmdir()
    path.write_text(path.read_text() + '{"phase": "phase3_moe", "st')
    points, _ = measured(path, checkpoints=folder, save_every=2, resume=True)
    assert [point.step for point in points] == [3, 4]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["loss"] for line in lines] == whole


def test_a_dense_model_has_no_shares(tmp_path: Path) -> None:
    context = toy.context(toy.dense(), steps=2)
    points: list[Measured] = []
    meter = Meter("phase1_alignment", tmp_path / "m.jsonl", {}, DOMAINS, points.append)
    settings = RunSettings(callbacks=(meter,), log_every=1)
    train_packed(replace(context, settings=settings))
    assert [point.experts for point in points] == [{}, {}]
    assert all(point.images_per_second > 0 for point in points)


def test_a_batch_of_questions_is_counted_by_the_pictures_of_its_rows(tmp_path: Path) -> None:
    model = toy.moe()
    context = toy.context(model, steps=3)
    spec = context.spec.model_copy(update={"batch_of": "questions", "batch_size": 6})
    modality = {r.image.id: r.image.modality for r in context.records}
    ids = {row: name for name, row in context.rows.items()}
    seen: list[list[str | None]] = []

    def before(module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        rows = [
            next(i for i, table in enumerate(context.features) if torch.equal(table, row))
            for row in kwargs["vision_features"]
        ]
        seen.append([modality[ids[row]] for row in rows])

    model.register_forward_pre_hook(before, with_kwargs=True)
    meter = Meter("phase3_moe", tmp_path / "m.jsonl", modality, DOMAINS)
    told: list[list[str]] = []

    def after(*_: object) -> None:
        assert meter._batch_rows is not None
        told.append([DOMAINS[row] for row in meter._batch_rows.tolist()])

    model.register_forward_hook(after)
    settings = RunSettings(callbacks=(meter,), log_every=1)
    train_packed(replace(context, spec=spec, settings=settings))
    assert told == seen
    assert any(len(rows) < 6 for rows in seen)
