"""Runs the phases of a recipe in order, each in its own run directory under one folder.

    OUT/<phase>/  config.yaml run.json metrics.jsonl checkpoints/step-N/ model/
    OUT/summary.json report.html

A phase starts from the run directories of earlier phases: this run's own, or those that the recipe
names under `starts`.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medmoe.backbones.published import PUBLISHED
from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import TrainSpec
from medmoe.data.bad_rows import BadRows
from medmoe.data.schema import images_of
from medmoe.evaluation.files.known_records import PHANTOM
from medmoe.evaluation.pages.report import write_report
from medmoe.evaluation.pages.run_report import report_of_run
from medmoe.experiments.data import TrainData, read_data
from medmoe.experiments.handover import check_input, is_finished, publish_model
from medmoe.experiments.job import Job
from medmoe.experiments.outlook import Outlook, outlook
from medmoe.experiments.phases import PHASE_FUNCTIONS
from medmoe.experiments.plan import TrainPlan
from medmoe.experiments.recipe import twin_key
from medmoe.files import write_json
from medmoe.model.adapter import merged_note
from medmoe.model.blueprint import meta_model
from medmoe.model.card import licence_in
from medmoe.model.checkpoint import check_replaceable, provenance, read_config
from medmoe.model.cost.parameters import activated_parameters, total_parameters
from medmoe.model.locate import is_adapter
from medmoe.model.pretrained import language_of, vision_of
from medmoe.notice import RESEARCH_ONLY
from medmoe.processes import is_main
from medmoe.training.context import Progress, RunSettings
from medmoe.training.guards import named_out_of_memory
from medmoe.training.meter import Measured, Meter, Validated
from medmoe.training.saving.run_dir import abandon_run, close_run, git_commit, open_run, run_facts
from medmoe.training.trackers import tracker_folders
from medmoe.training.trainer import PhaseResult

logger = logging.getLogger(__name__)


#: Is told what a run will do, and then every point of its course.
RunListener = Callable[[Outlook | Measured | Validated], None]


def run_train(plan: TrainPlan, progress: Progress, listener: RunListener | None) -> dict[str, Any]:
    """Train the phases of a plan and return the object of ``summary.json``.

    Args:
        progress: Is told every step.
        listener: Is told the steps of all phases, and then every point of the learning curve, with
            speeds and routing, and every validation.

    Raises:
        MedMoeError: Bad input, a guard, or a stop; finished phases and checkpoints stay.
    """
    todo = [phase for phase in plan.phases if not is_finished(plan.out / phase)]
    for phase in plan.phases:
        if phase not in todo:
            logger.info("%s: finished before, skipped", phase)
    check_replaceable(plan.out / "model")  # before an hour of training, not after it
    source = git_commit()
    data = read_data(
        plan.recipe.spec,
        todo,
        plan.root,
        plan.seed,
        allow_leak=plan.allow_leak,
        allow_outside=plan.allow_outside,
        bad=BadRows(plan.on_bad_row),
    )
    for name, leak in data.leaks.items():
        logger.warning("%s: %s", name, leak)
    if data.bad.reasons:
        logger.warning("left out: %d rows: %s", len(data.bad.reasons), data.bad.first_reasons())
    notes = data.check(todo, plan.label_counts, plan.seed)
    for phase, note in notes.items():
        logger.warning("%s: %s", phase, note)
    if listener is not None:
        listener(outlook(plan.recipe.spec, todo, data, plan.seed))
    for phase in todo:
        _run_phase(plan, phase, data, notes.get(phase, ""), source, progress, listener)
    if is_main():
        publish_model(plan.out)
    summary = _summary(plan, source)
    if is_main():
        write_json(plan.out / "summary.json", summary)
        title = f"medmoe train {plan.recipe.name}"
        write_report(plan.out / "report.html", report_of_run(plan.out, title=title))
    return summary


def _run_phase(
    plan: TrainPlan,
    phase: PhaseName,
    data: TrainData,
    note: str,
    source: tuple[str | None, bool],
    progress: Progress,
    listener: RunListener | None,
) -> None:
    """Train one phase into its run directory."""
    spec, out = plan.recipe.spec, plan.out / phase
    values = spec.phases[phase]
    inputs = {
        name: check_input(plan.where(name, phase), name, phase, plan.recipe)
        for name in spec.inputs(phase)
    }
    hashes = data.hashes(phase)
    read = _apart(plan, phase, data, inputs)
    facts = run_facts(plan.seed, source, {"sha256": hashes, **read}) | {
        "phase": phase,
        "recipe": plan.recipe.name,
        "config_sha256": plan.recipe.sha256,
        "starts": {name: str(path) for name, path in inputs.items()},
    }
    if is_main():
        open_run(out, plan.recipe.config, facts)
    modalities = {image.id: image.modality for image in images_of(data.records(phase))}
    meter = Meter(phase, out / "metrics.jsonl", modalities, spec.model.domains, listener)
    settings = _settings(plan, phase, (meter,), hashes)
    told = _provenance(plan, phase, facts, data, note, inputs)
    job = Job(plan, phase, inputs, data, settings, progress, told)
    start = time.perf_counter()
    try:
        with (
            named_out_of_memory(phase, values.batch_size, settings),
            tracker_folders(settings.trackers, out / "logs"),
        ):
            result = PHASE_FUNCTIONS[phase](job)
    except BaseException:
        if is_main():
            abandon_run(out)
        raise
    finally:
        meter.detach()
    if is_main():
        close_run(out, _finished(result, time.perf_counter() - start) | job.found)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # the next phase reads what the first process has written


def _finished(result: PhaseResult, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "steps": result.curve[-1][0] if result.curve else 0,
        "loss": result.curve[-1][1] if result.curve else None,
        "kept_step": result.kept_step,
        "validation": _measured(result),
        "trains": result.counts.trains,
        "trainable": result.counts.trainable,
        "frozen": result.counts.frozen,
        "resumed_from": result.resumed_from,
        "damaged_checkpoints": list(result.damaged),
    }


def _measured(result: PhaseResult) -> dict[str, Any] | None:
    """Return what was measured at the step whose weights the model has."""
    for step, loss, score in reversed(result.validation):
        if result.kept_step in (None, step):
            return {"step": step, "loss": loss, "strict_score": score}
    return None


def _apart(
    plan: TrainPlan, phase: PhaseName, data: TrainData, inputs: Mapping[PhaseName, Path]
) -> dict[str, Any]:
    """Return what kept training apart from scoring, and how many pictures stand on both sides.

    Of a phase trained in another call only its number is known: the greater one is the least that
    both can have seen together.
    """
    shared = data.shared_images(phase)
    for path in inputs.values():
        for name, count in provenance(path).get("shared_images", {}).items():
            shared[name] = max(count, shared.get(name, 0))
    return {
        "dropped_near_duplicates": data.dropped,
        "allow_leak": plan.allow_leak or plan.recipe.spec.data.literature,
        "bad_rows": data.bad.reasons,
        "known_faults": dict(data.bad.known_faults),
        "shared_images": shared,
    }


def _provenance(
    plan: TrainPlan,
    phase: PhaseName,
    facts: Mapping[str, Any],
    data: TrainData,
    note: str,
    inputs: Mapping[PhaseName, Path],
) -> dict[str, Any]:
    """Return what the model directory says about its training, with that of what it starts from."""
    before = [provenance(path) for path in inputs.values()]
    phases = {name: steps for known in before for name, steps in known.get("phases", {}).items()}
    licences = {name: text for known in before for name, text in known.get("licences", {}).items()}
    base = next((known["base_model"] for known in before if known.get("base_model")), None)
    dropped = sum(data.dropped.get(name, 0) for name in data.trained(phase))
    notes = [text for known in before for text in known.get("notes", ())]
    notes += [merged_note(path) for path in inputs.values() if is_adapter(path)] + [note]
    if plan.recipe.spec.model.blind:
        notes.append("A blind twin: it never saw a picture, and answers from the question alone.")
    if dropped:
        notes.append(
            f"{dropped} training records dropped: their pictures nearly equal scored ones."
        )
    if data.bad.reasons:
        notes.append(f"{len(data.bad.reasons)} rows left out: they or their pictures are unusable.")
    experts = {name: told for known in before for name, told in known.get("experts", {}).items()}
    twin = twin_key(plan.recipe)
    twin = twin or next((known["blind_twin"] for known in before if "blind_twin" in known), None)
    kept = ("recipe", "config_sha256", "seed", "commit", "dirty", "starts")
    return {
        "phase": phase,
        **{name: facts[name] for name in kept},
        "data": ", ".join(data.trained(phase)),
        "data_sha256": facts["data"]["sha256"],
        **_phantom(plan.recipe.spec, phase, before),
        "licences": licences | {r.dataset: r.licence for r in data.records(phase)},
        "base_model": base or _base_model(plan.recipe.spec),
        **({"blind": True} if plan.recipe.spec.model.blind else {}),
        **({"blind_twin": twin} if twin else {}),
        "phases": phases,
        **({"experts": experts} if experts else {}),
        "notes": list(dict.fromkeys(filter(None, notes))),
        "shared_images": facts["data"]["shared_images"],
        "use": RESEARCH_ONLY,
    }


def _phantom(
    spec: TrainSpec, phase: PhaseName, before: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return how many embedded pictures the splits have, where one is trained on."""
    if not any(name.startswith(f"{PHANTOM}/") for name in spec.phases[phase].data):
        return {k: v for known in before for k, v in known.items() if k == "phantom_images"}
    tests = dict.fromkeys(("validation", "test"), spec.data.phantom_test_images)
    return {"phantom_images": {"train": spec.data.phantom_images} | tests}


def _base_model(spec: TrainSpec) -> dict[str, Any]:
    """Return where the backbones come from; a stand-in has no hub id."""
    model, found = spec.model, dict[str, dict[str, Any]]()
    for kind, entry, source in (
        ("language_model", language_of(model), model.language_source),
        ("vision_encoder", vision_of(model), model.vision_source),
    ):
        known = {"name": entry.name, "hub_id": entry.hub_id, "revision": entry.revision}
        found[kind] = known | ({} if source is None else {"source": source})
        name = getattr(model, kind)
        licence = PUBLISHED[name].licence if name in PUBLISHED else None
        if licence := (source and licence_in(Path(source))) or licence:
            found[kind]["licence"] = licence  # which is passed on with what is made of it
    return found


def _settings(
    plan: TrainPlan, phase: PhaseName, callbacks: tuple[Any, ...], hashes: Mapping[str, str]
) -> RunSettings:
    run, values = plan.recipe.spec.run, plan.recipe.spec.phases[phase]
    out = plan.out / phase
    # Features on demand are encoded where the encoder is, and a loader process has none.
    workers = run.loader_workers if values.keep_features else 0
    parts = 1 if PHASE_TABLE[phase].whole_batch else run.gradient_accumulation
    changed = {"loader_workers": workers, "gradient_accumulation": parts}
    return RunSettings(
        **(run.model_dump() | changed),
        checkpoints=out / "checkpoints",
        resume=plan.resume,
        allow_changed=plan.allow_changed,
        facts={"data": dict(hashes)},
        run_name=f"{plan.recipe.name}/{phase}",
        callbacks=callbacks,
    )


def _summary(plan: TrainPlan, source: tuple[str | None, bool]) -> dict[str, Any]:
    """Return what the finished phases say of themselves."""
    phases: dict[PhaseName, dict[str, Any]] = {}
    sets: list[str] = []
    for phase in plan.phases:
        run = json.loads((plan.out / phase / "run.json").read_text(encoding="utf-8"))
        sets += run["data"]["sha256"]
        phases[phase] = {"model": f"{phase}/model/", **(run["finished"] or {})}
    seconds: dict[str, float] = {}
    for name, ended in phases.items():
        short = "router" if PHASE_TABLE[name].leaves == "router" else name.partition("_")[0]
        seconds[short] = round(seconds.get(short, 0.0) + ended.get("seconds", 0.0), 1)
    model = plan.out / "model"
    return {
        "version": 1,
        "recipe": plan.recipe.name,
        "description": plan.recipe.spec.description,
        "split": plan.recipe.split,
        "minutes": plan.recipe.minutes,
        "seed": plan.seed,
        "data": ", ".join(dict.fromkeys(name.partition("/")[0] for name in sets)),
        "commit": source[0],
        "config_sha256": plan.recipe.sha256,
        "seconds": seconds,
        "parameters": _parameters(model) if model.is_dir() else None,
        "router": phases.get("phase2_router", {}).get("router"),
        "model": "model/" if model.is_dir() else f"{plan.phases[-1]}/model/",
        "phases": phases,
        "scores": [],
        "note": RESEARCH_ONLY,
    }


def _parameters(directory: Path) -> dict[str, int]:
    """Return the weights of a model in all and those that a token passes."""
    model = meta_model(read_config(directory))
    return {"total": total_parameters(model), "activated": activated_parameters(model)}
