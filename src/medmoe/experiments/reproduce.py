"""`medmoe reproduce`: the paper's tables and figures repeated, each row with its verdict.

By which recipes stands in ``recipes/reproduce/experiments.yaml``; here is how a kind of row is run,
asked and judged. Finished phases are found, and answers kept by the model's hash: a second call
trains and asks nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from medmoe.config.load import recipe
from medmoe.config.schema import PhaseName
from medmoe.domains import domain_of
from medmoe.errors import CheckpointError, ConfigError, DataError
from medmoe.evaluation.ask.asker import Progress as Asked
from medmoe.evaluation.ask.plan import TWIN, EvalPlan
from medmoe.evaluation.ask.records import TaskRecords, task_records
from medmoe.evaluation.compare import Difference, pooled
from medmoe.evaluation.evaluate import evaluate
from medmoe.evaluation.files.known_records import PHANTOM
from medmoe.evaluation.files.predictions import Prediction, read_predictions
from medmoe.evaluation.protocols import LABEL_SCORE
from medmoe.evaluation.routing_report import RoutesPlan, check_records, read_label_curve, routes
from medmoe.evaluation.score.rows import cells_of
from medmoe.evaluation.score.table import score_table
from medmoe.evaluation.tasks import paper_figures, paper_rows, task_spec
from medmoe.experiments.cost import PAPER_TABLE_8, cost_report, counted
from medmoe.experiments.finished import FinishedPhases
from medmoe.experiments.measure import measure
from medmoe.experiments.verdicts import Row, gain_verdict, judged
from medmoe.files import write_json
from medmoe.model.checkpoint import identity
from medmoe.model.locate import find_twin
from medmoe.training.saving.run_dir import git_commit, run_facts

#: Counts equal the paper's where they differ by no more than this share.
_NEAR = 0.1
#: Of what is drawn on real data: the bootstrap. Embedded pictures are drawn by the run's seed.
_SEED = 7
Answers = list[list[Prediction]]
Asking = Callable[[], AbstractContextManager[Asked]]


class _WouldRunError(ConfigError):
    """In a dry run: what is missing."""


@dataclass(frozen=True, slots=True)
class _Job:
    """An experiment on a family of recipes; ``about`` and ``of`` are their entries in the table."""

    number: int
    about: Mapping[str, Any]
    family: str
    of: Mapping[str, Any]
    seeds: Sequence[int]
    phases: FinishedPhases
    asking: Asking
    dry: bool
    train: bool

    def model(self, suffix: str, phase: PhaseName, seed: int) -> Path:
        """Return the model of a phase of the family's variant; trained where missing."""
        missing = self.phases.missing(self.family + suffix, phase, seed)
        if missing and self.of["size"] == "paper" and not torch.cuda.is_available():
            raise ConfigError("training at the paper's size needs a GPU, and there is none here")
        if missing and self.dry:
            todo = "; ".join(f"{name}: {', '.join(p)}" for name, p in missing.items())
            raise _WouldRunError(f"would train {todo} (seed {seed})")
        if missing and not self.train:
            raise ConfigError(f"{' and '.join(missing)} (seed {seed}) is not trained yet")
        return self.phases.run(self.family + suffix, phase, seed) / "model"

    def tasks(self) -> dict[str, str]:
        """Return the tasks that are scored, each with its recipe's suffix."""
        known: dict[str, str] = self.of[self.about.get("tasks", "vqa")]
        return known

    def records(self, task: str, seed: int) -> TaskRecords:
        """Return a task's records.

        Raises:
            DataError: Its data are not there, or phase 3 of its recipe does not train on them.
        """
        name, spec = self.family + self.tasks()[task], task_spec(task)
        recipe = self.phases.recipe(name).spec
        sizes = (recipe.data.phantom_images, recipe.data.phantom_test_images)
        drawn = seed if spec.dataset == PHANTOM else _SEED
        found = _records(task, self.phases.root, drawn, *sizes)
        if all(of.split("/")[0] != spec.dataset for of in recipe.phases["phase3_moe"].data):
            raise DataError(f"{name} does not train on {spec.dataset}")
        return found

    def asked(self, task: TaskRecords, model: Path, controls: Sequence[str] = ()) -> Answers:
        """Return what a model answers, and its blind twin if there is one; asked where missing."""
        out = self.phases.out / "reproduce" / f"{identity(model)[:12]}-{task.spec.name}"
        twin, (commit, _), answers = find_twin(model), git_commit(), out / task.spec.name
        if self.dry and not (out / "summary.json").is_file():
            raise _WouldRunError(f"would ask {model} {len(task.records)} questions")
        out.mkdir(parents=True, exist_ok=True)
        plan = EvalPlan(model, out, [task], controls=controls, seed=_SEED, commit=commit, twin=twin)
        with self.asking() as asked:
            evaluate(plan, asked)
        files = [answers / "predictions.jsonl"]
        files += [answers / TWIN / f"{identity(twin)[:12]}.jsonl"] if twin else []
        return [read_predictions(file) for file in files]

    def scores(self, phase: PhaseName, task: str) -> list[Any]:
        """Return of each seed: protocol → subset → metric → score."""
        found = []
        for seed in self.seeds:
            records = self.records(task, seed)
            model = self.model(self.tasks()[task], phase, seed)
            said, *twin = self.asked(records, model, ("blank",))
            wanted = ("strict", "reference") if records.spec.kind == "vqa" else (LABEL_SCORE,)
            blind = twin[0] if twin else None
            table = score_table(records.records, said, twin=blind, wanted=wanted, seed=_SEED)
            found.append(cells_of(table)["protocols"])
        return found

    def paired(self, a: str, b: str, task: str) -> list[Any]:
        """Return of each seed the records and what either side answers."""
        sets = []
        for seed in self.seeds:
            records = self.records(task, seed)
            first = self.model(a, "sft" if a == "_sft" else "phase3_moe", seed)
            both = (first, self.model(b, "phase3_moe", seed))
            sets.append((records.records, *(self.asked(records, model)[0] for model in both)))
        return sets


@lru_cache(maxsize=16)
def _records(task: str, root: Path | None, seed: int, train: int, test: int) -> TaskRecords:
    sizes = {"train": train, "validation": test, "test": test}
    spec = task_spec(task)
    return task_records(spec, root, split=None, limit=None, seed=seed, phantom_images=sizes)


def experiments() -> dict[str, Any]:
    """Return the table's experiments by name."""
    found: dict[str, Any] = recipe("reproduce", "experiments")["experiments"]
    return found


def reproduce(
    name: str,
    size: str,
    seeds: Sequence[int],
    phases: FinishedPhases,
    asking: Asking,
    dry: bool,
    train: bool = True,
) -> dict[str, Any]:
    """Run what is missing of an experiment, judge it, and write ``OUT/reproduce/NAME-SIZE.json``.

    Args:
        size: ``rehearsal`` runs the recipes of the paper's size on whatever there is, and gives no
            verdict on a score.
        asking: Opened around what is asked; what it gives is told every answer.
        dry: Train, ask and write nothing; the verdicts then say what would be.
        train: What is missing; else its rows are not run.

    Raises:
        MedMoeError: Training was stopped, or ended by a guard.
    """
    about, number = experiments()[name], int("".join(filter(str.isdigit, name)))
    tiny = "tiny_phantom" if phases.root is None else "tiny_real"
    rows: list[Row] = []
    for family, of in recipe("reproduce", "experiments")["families"].items():
        wanted = of["size"] == ("paper" if size == "rehearsal" else size)
        if wanted and (size != "tiny" or family == tiny):
            named = {**of, "size": size}
            job = _Job(number, about, family, named, seeds, phases, asking, dry, train)
            rows += [{"family": family, **row} for row in _KINDS[about["kind"]](job)]
    for row in rows:  # which are passed on
        row["verdict"] = row["verdict"].replace(str(phases.root), "DIR")
        if size == "rehearsal" and "value" in row and row["value"] is not None:
            row["verdict"] = "rehearsed"
            for key in ("difference", "low", "high"):  # of a score that means nothing
                row.pop(key, None)
    said = {"name": name, "size": size, "title": about["title"], "note": about.get("note", "")}
    facts = run_facts(seeds[0], git_commit(), {})
    result = {"version": 1, **said, **facts, "seeds": list(seeds), "rows": rows}
    if not dry:
        write_json(phases.out / "reproduce" / f"{name}-{size}.json", result)
    return result


def _tried(function: Callable[..., Any], *args: Any) -> tuple[Any, str]:
    """Return what a function gives, and empty; or None and why it gives nothing."""
    try:
        return function(*args), ""
    except _WouldRunError as error:
        return None, str(error)
    except (CheckpointError, ConfigError, DataError) as error:
        return None, f"not run because {' '.join(str(error).split())}"


def _scores(job: _Job) -> Iterable[Row]:
    """Score systems on tasks: the mean over the seeds of value, interval and share."""
    for task in job.tasks():
        figures = {
            (row.table, row.system, row.subset, row.our_protocol, row.metric): row.value
            for row in paper_rows(task)
        }
        for system, about in job.about["systems"].items():
            runs, reason = _tried(job.scores, about.get("phase", "phase3_moe"), task)
            theirs = (job.number, f"{job.of['paper']}{about.get('paper', '')}")
            for subset, protocol, metric in job.about["metrics"]:
                paper = figures.get((*theirs, subset, protocol, metric))
                what = f"{system}, {task} {subset} {protocol} {metric}"
                found = {} if reason else _mean([run[protocol][subset][metric] for run in runs])
                yield judged(what, reason, paper, **found)


def _mean(scores: Sequence[Mapping[str, Any]]) -> Row:
    of = {key: [score[key] for score in scores] for key in ("value", "low", "high")}
    found: Row = {k: None if None in each else sum(each) / len(each) for k, each in of.items()}
    if "n" in scores[0]:
        found["n"] = scores[0]["n"]
    if all(score.get("share") for score in scores):
        found["share"] = _mean([score["share"] for score in scores])
    return found


def _differences(job: _Job) -> Iterable[Row]:
    """Compare two variants, paired: on each task, and on all of them together."""
    claims = [row.value for _, row in paper_figures() if row.table == job.number]
    least, most = claims or (None, None)

    def gain(what: str, row: Difference) -> Row:
        ends = {"low": row.low, "high": row.high}
        found = {"paper": least, "highest": most, "value": row.difference, "n": row.n, **ends}
        return judged(f"{what}, {row.name} {row.subset}", gain_verdict(least, **ends), **found)

    for name, (a, b) in job.about["pairs"].items():
        for variant in job.of["lora"] if b == "lora" else [b]:
            sets: list[Any] = []
            what = name.replace("LoRA", variant.strip("_"))
            for task in job.tasks():
                own, reason = _tried(job.paired, a, variant, task)
                if reason:
                    yield judged(f"{what}, {task}", reason, least, highest=most)
                else:
                    yield from (gain(what, row) for row in pooled(task, own, _SEED))
                    sets += own
            for row in pooled("all sets", sets, _SEED, whole=True) if sets else ():
                yield gain(what, row)


def _values(job: _Job) -> Iterable[Row]:
    """Hold a recipe's values against the paper's."""
    for key, paper in job.about["values"].items():
        value: Any = job.phases.recipe(job.family).config
        for part in key.split("."):
            value = (value or {}).get(part)
        yield judged(key, "reproduced" if value == paper else "not reproduced", paper, value)


def _costs(job: _Job) -> Iterable[Row]:
    """Count sizes and memory, and measure load memory and time where a model is trained."""
    name = job.of.get("cost")
    model, reason = _tried(job.model, "", "phase3_moe", job.seeds[0])
    paper, other = PAPER_TABLE_8[name or "stablelm2_1_6b"], "" if name else "another size"
    if name or model:
        system = cost_report(name or str(model)).systems[0]
        yield judged("weights in all, 10⁹", other, value=system.total / 1e9)
        for what, (key, ours) in counted(system).items():
            near = abs(ours / paper[key] - 1) <= _NEAR
            verdict = other or ("reproduced" if near else "not reproduced")
            yield judged(f"{what}, 10⁹, counted", verdict, paper[key] / 1e9, ours / 1e9)
    if job.about.get("measured"):
        found = measure(model, 3) if model and not job.dry else None
        load, seconds = (found.load_bytes / 1e9, found.seconds(32)) if found else (None, None)
        verdict = reason or other
        yield judged("load, 10⁹ bytes, measured", verdict, paper["load_bytes"] / 1e9, load)
        yield judged("seconds an answer, measured", verdict, paper["seconds_per_answer"], seconds)


def _routes(job: _Job) -> Iterable[Row]:
    """Draw the routing figures, and give a number that each shows."""
    result, reason = _tried(_routed, job)
    if reason:
        yield judged(job.about["rows"], reason)
    elif "paper" in job.about:
        for every in result["silhouettes"][:1]:
            verdict = gain_verdict(0.0, every["difference_low"], every["difference_high"])
            for key, paper in job.about["paper"].items():
                ends = {"low": every[f"{key}_low"], "high": every[f"{key}_high"]}
                yield judged(f"silhouette, {key}", verdict, paper, every[key], **ends)
    else:
        of: dict[str, list[tuple[bool, int]]] = {}
        for row in result["figures"][job.about["rows"]]:
            own = row["expert"] == domain_of(row["modality"], result["domains"])
            weighed = (own, row.get("image_tokens", 1))
            of.setdefault(row.get("router", "this router"), []).append(weighed)
        for router, cells in of.items():
            own_share = sum(n for own, n in cells if own) / sum(n for _, n in cells)
            yield judged(router, "", value=100 * own_share)


def _routed(job: _Job) -> Row:
    seed, about = job.seeds[0], job.about
    tried = [_tried(job.records, task, seed) for task in job.tasks()]
    tasks = [records for records, reason in tried if not reason]
    if not tasks:
        raise DataError(tried[0][1].removeprefix("not run because "))
    check_records(tasks, job.phases.recipe(job.family).spec.model.domains)
    model, before = (job.model("", p, seed) for p in ("phase3_moe", "phase2_instruction"))
    learned = job.model("_learned_router", "phase3_moe", seed) if "learned" in about else None
    kind = "routes-learned" if learned else "routes"
    out = job.phases.out / "reproduce" / f"{identity(model)[:12]}-{kind}"
    if not (out / "routes.json").is_file():
        if job.dry:
            raise _WouldRunError(f"would observe {model}")
        out.mkdir(parents=True, exist_ok=True)
        with job.asking() as asked:
            routes(RoutesPlan(model, tasks, before, learned, (), _SEED), out, asked)
    found: Row = json.loads((out / "routes.json").read_text(encoding="utf-8"))
    return found


def _curve(job: _Job) -> Iterable[Row]:
    """Give the router's accuracy by number of labels."""

    def curves() -> list[list[Row]]:
        models = [job.model("_label_curve", "phase2_router", seed) for seed in job.seeds]
        return [read_label_curve(model.parent) for model in models]

    found, reason = _tried(curves)
    if reason:
        yield judged("router accuracy", reason, 98.1)
    for each in zip(*found or [], strict=True):
        labels, paper = each[0]["labels"], job.about["paper"].get(each[0]["labels"])
        yield judged(
            f"{labels:,} labels", "", paper, **_mean([{**p, "value": p["accuracy"]} for p in each])
        )


_KINDS: Mapping[str, Callable[[_Job], Iterable[Row]]] = {
    "scores": _scores,
    "differences": _differences,
    "values": _values,
    "cost": _costs,
    "routes": _routes,
    "curve": _curve,
}
