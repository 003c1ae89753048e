"""`medmoe demo`: a recipe's phases as `train` runs them, then MoE and SFT evaluated and compared.

    OUT/<phase>/  as `medmoe train` writes them       OUT/model/  the MoE model
    OUT/eval/<system>/  as `medmoe eval` writes them  OUT/predictions/  their answers, by name
    OUT/blind_twin/  its phases, where it was asked for
    OUT/examples/<domain>.png  summary.json  report.html  applied_card.html

A second call goes on where the first one ended.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medmoe.data.images import open_image
from medmoe.data.schema import ImageRecord, Record, images_of
from medmoe.domains import DOMAINS
from medmoe.errors import ConfigError
from medmoe.evaluation.ask.asker import Progress as Asked
from medmoe.evaluation.ask.plan import TWIN, EvalPlan
from medmoe.evaluation.ask.records import TaskRecords, task_of, task_records
from medmoe.evaluation.compare import pooled
from medmoe.evaluation.evaluate import evaluate
from medmoe.evaluation.files.predictions import read_predictions
from medmoe.evaluation.pages.cards import APPLIED_CARD, with_results, write_applied_card
from medmoe.evaluation.pages.report import write_report
from medmoe.evaluation.pages.routes_page import share_figure
from medmoe.evaluation.pages.run_report import report_of_run
from medmoe.evaluation.routes.routed_images import RoutedImages, route_images
from medmoe.evaluation.routes.router_score import router_score
from medmoe.evaluation.tasks import TASKS, task_spec
from medmoe.experiments.data import HELD_OUT, read_sets, sources_of
from medmoe.experiments.handover import is_finished, link_or_copy, publish_card
from medmoe.experiments.plan import TrainPlan, plan_train
from medmoe.experiments.recipe import STANDARD, blind_twin, load_recipe
from medmoe.experiments.run import RunListener, run_train
from medmoe.files import write_json, write_text
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import provenance
from medmoe.model.locate import find_twin
from medmoe.training.context import Progress
from medmoe.training.saving.run_dir import git_commit

#: System → the run directory of its model, and the controls that it is asked under.
SYSTEMS = {"moe": ("phase3_moe", ("blank",)), "sft": ("sft", ())}
#: Of a paired difference, what stands in ``summary.json``.
_COMPARED = ("subset", "difference", "low", "high", "p", "n")
_PROTOCOLS = ("strict", "reference", "label_score")


def plan_demo(
    root: Path | None,
    out: Path,
    split: str,
    minutes: int,
    seed: int,
    settings: Sequence[str] = (),
    *,
    records: Sequence[str] = (),
    allow_outside: bool = False,
) -> TrainPlan:
    """Settle the recipe of a demonstration, and check all that needs no data.

    Args:
        root: Folder of the real data sets, None for the embedded phantom.
        records: A user's own sets, instead of both.

    Raises:
        ConfigError: The recipe has no such split or preset, a setting breaks a rule, or ``out``
            holds a run of other values.
        DataError: A set of ``records`` is neither there nor known by name.
    """
    name = "demo_real" if records or root is not None else "demo_phantom"
    if records and split != STANDARD:
        raise ConfigError(f"--split {split} is of VQA-RAD; leave it out with --records")
    recipe = load_recipe(name, settings, split=split, minutes=minutes, records=records)
    return plan_train(recipe, (), root, out, seed, resume=True, allow_outside=allow_outside)


def blind_plan(plan: TrainPlan) -> TrainPlan:
    """Return the training of a demonstration's blind twin, in ``OUT/blind_twin``."""
    recipe, out, outside = blind_twin(plan.recipe), plan.out / "blind_twin", plan.allow_outside
    return plan_train(recipe, (), plan.root, out, plan.seed, resume=True, allow_outside=outside)


def train_demo(plan: TrainPlan, progress: Progress, listener: RunListener | None = None) -> None:
    """Run the phases that are not finished; scores of an earlier model are taken away first."""
    if not all(is_finished(plan.out / phase) for phase in plan.phases):
        for name in ("summary.json", "report.html", APPLIED_CARD):
            (plan.out / name).unlink(missing_ok=True)
        for name in ("eval", "predictions", "examples"):
            shutil.rmtree(plan.out / name, ignore_errors=True)
    run_train(plan, progress, listener)


def score_demo(plan: TrainPlan, asked: Asked) -> dict[str, Any]:
    """Evaluate both systems, compare them, write the report; return ``summary.json``."""
    out, spec = plan.out, plan.recipe.spec
    trained = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    tests = spec.router.test if spec.router else ()
    taught = {of: _taught(plan, name, of) for name, of in spec.scored.items()}
    names = dict.fromkeys([*taught, *filter(None, taught.values()), *tests])
    sets = read_sets(spec, names, plan.root, plan.seed, plan.allow_outside)
    tasks = [
        _task(plan, name, of, sets[of], sets.get(taught[of] or ""))
        for name, of in spec.scored.items()
    ]
    evaluated = {system: _evaluated(plan, tasks, system, asked) for system in SYSTEMS}
    known = (record for name in tests for record in sets[name] if record.image.modality)
    routed = route_images(MedMoe.load(out / "model"), images_of(known))
    router = router_score(
        routed.pictures(),
        routed.domains,
        per_domain=spec.router.test_per_domain if spec.router else None,
        seed=plan.seed,
        sources=sources_of(spec),
    )
    told = trained["router"] or {}  # of the router's own phase
    _gather_predictions(out, tasks, routed)
    notes = [*spec.notes, *provenance(out / "model").get("notes", ())]
    notes += [note for run in evaluated.values() for note in run["notes"]]
    seconds = {"eval": sum(run["seconds"]["eval"] for run in evaluated.values())}
    summary = {
        **trained,
        "seconds": trained["seconds"] | seconds,
        "router": router | {k: v for k, v in told.items() if k == "out_of_domain"},
        "comparisons": [row for task in tasks for row in _compared(out, task, plan.seed)],
        "notes": list(dict.fromkeys(notes)),
        "reliability": evaluated["moe"]["reliability"],
        "scores": [row for run in evaluated.values() for row in run["scores"]],
    }
    scored = images_of(record for task in tasks for record in task.records)
    _example_pictures([*scored, *routed.images], (*DOMAINS, *routed.domains), out / "examples")
    write_json(out / "summary.json", summary)
    report = replace(
        report_of_run(
            out,
            title=f"Med-MoE on {data_of(plan)}",
            records=[record for task in tasks for record in task.records],
        ),
        experts=[*share_figure(routed.token_shares(), routed.domains).drawings.values()],
        next_steps=next_steps(plan),
    )
    write_report(out / "report.html", report)
    write_applied_card(out)
    publish_card(out, lambda card: with_results(card, summary))
    return summary


def next_steps(plan: TrainPlan) -> list[str]:
    """Return what a user may try next; commands stand in backticks."""
    out = plan.out
    pictures = sorted((out / "examples").glob("*.png")) or [out / "examples" / "ct.png"]
    question = "Is there any nodule?" if _phantom(plan) else "What imaging modality is this?"
    question = "QUESTION" if _own(plan) else question
    steps = [f'Ask: `medmoe ask {out / "model"} {pictures[0]} "{question}"`.']
    if _phantom(plan):
        steps.append("Train on real pictures: `medmoe demo --data DIR --minutes 60`.")
    elif _own(plan):
        steps.append(f"Answer a table: `medmoe predict {out / 'model'} SET --out answers.csv`.")
        steps.append(f"Train longer: `--minutes 60 --out {out}-60`.")
    else:
        command = f"medmoe demo --data DIR --split disjoint --minutes {plan.recipe.minutes}"
        steps.append(f"Score the image-disjoint split: `{command}`.")
    again = f"--seed {plan.seed + 1} --out {out}-{plan.seed + 1}"
    return [*steps, f"See the spread of the scores with another seed: `{again}`."]


def data_of(plan: TrainPlan) -> str:
    """Return in words what a demonstration trains on."""
    if _own(plan):
        return ", ".join(plan.recipe.spec.scored)
    return "the embedded phantom" if _phantom(plan) else f"real data ({plan.recipe.split} split)"


def _phantom(plan: TrainPlan) -> bool:
    return plan.recipe.name == "demo_phantom"


def _own(plan: TrainPlan) -> bool:
    """Return whether a user's own set is scored: its name is that of no known task."""
    return any(name not in TASKS for name in plan.recipe.spec.scored)


def _evaluated(
    plan: TrainPlan, tasks: Sequence[TaskRecords], system: str, asked: Asked
) -> dict[str, Any]:
    """Ask one system all tasks, as `medmoe eval` does; return its summary."""
    phase, controls = SYSTEMS[system]
    folder = plan.out / "eval" / system
    folder.mkdir(parents=True, exist_ok=True)
    model = plan.out / phase / "model"
    # The twin is asked once for all systems.
    for answers in (plan.out / "eval" / "moe").glob(f"*/{TWIN}/*.jsonl"):
        task = folder / answers.relative_to(plan.out / "eval" / "moe")
        if not task.exists():
            task.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(answers, task)
    evaluation = EvalPlan(
        model=model,
        out=folder,
        tasks=tasks,
        protocols=_PROTOCOLS,
        controls=controls,
        seed=plan.seed,
        commit=git_commit()[0],
        twin=find_twin(model),
    )
    return evaluate(evaluation, lambda name, *counts: asked(f"{system}: {name}", *counts))


def _taught(plan: TrainPlan, name: str, of: str) -> str | None:
    """Return the set that a task's baselines learn from, None for what `task_records` takes."""
    if name not in TASKS:
        return f"{of.removesuffix(task_spec(of).split)}train"
    held_out = plan.recipe.spec.data.held_out if of.endswith(f"/{HELD_OUT}") else ()
    return next((w for w in held_out if w.partition("/")[0] == of.partition("/")[0]), None)


def _task(
    plan: TrainPlan, name: str, of: str, records: Sequence[Record], train: Sequence[Record] | None
) -> TaskRecords:
    """Return a task on the set that the recipe scores it on."""
    data = plan.recipe.spec.data
    if train is not None:
        spec = task_spec(name if name in TASKS else of)
        return task_of(spec, "held-out" if name in TASKS else spec.split, records, train)
    counts = dict.fromkeys(("validation", "test"), data.phantom_test_images)
    return task_records(
        task_spec(name),
        plan.root,
        split=of.partition("/")[2],
        limit=None,
        seed=plan.seed,
        phantom_images=counts | {"train": data.phantom_images},
    )


def _gather_predictions(out: Path, tasks: Sequence[TaskRecords], routed: RoutedImages) -> None:
    """Give all answers a name in ``predictions/``: ``<system>-<task>[-<control>].jsonl``."""
    folder = out / "predictions"
    folder.mkdir(exist_ok=True)
    for system, (_, controls) in SYSTEMS.items():
        for task in tasks:
            answers = out / "eval" / system / task.spec.name
            named = {"": answers / "predictions.jsonl"}
            named |= {f"-{name}": answers / "controls" / f"{name}.jsonl" for name in controls}
            for suffix, path in named.items():
                link_or_copy(path, folder / f"{system}-{task.spec.name}{suffix}.jsonl")
    for answers in (out / "eval" / "moe").glob(f"*/{TWIN}/*.jsonl"):
        link_or_copy(answers, folder / f"blind_twin-{answers.parents[1].name}.jsonl")
    write_text(folder / "moe-router.jsonl", routed.lines())


def _compared(out: Path, task: TaskRecords, seed: int) -> list[dict[str, Any]]:
    """Return MoE against SFT on one task, paired."""
    name, folder = task.spec.name, out / "predictions"
    sft, moe = (read_predictions(folder / f"{system}-{name}.jsonl") for system in ("sft", "moe"))
    known = {"task": name, "split": task.split, "a": "sft", "b": "moe"}
    rows = [row.to_dict() for row in pooled(name, [(task.records, sft, moe)], seed)]
    return [known | {key: row[key] for key in _COMPARED} for row in rows]


def _example_pictures(images: Sequence[ImageRecord], domains: Sequence[str], folder: Path) -> None:
    """Write one picture of every domain as ``<domain>.png``, to ask the model about."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = {image.modality: image for image in reversed(images) if image.modality in domains}
    for name, image in shown.items():
        open_image(image.source).save(folder / f"{name}.png")
