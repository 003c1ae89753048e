"""`medmoe eval MODEL --task T`: ask a model all questions of a task and score its answers."""

from __future__ import annotations

import argparse
import hashlib
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from medmoe.cli import flags
from medmoe.cli.console import asking_bar
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError
from medmoe.processes import is_main

if TYPE_CHECKING:
    from medmoe.evaluation.ask.plan import Other
    from medmoe.evaluation.ask.records import TaskRecords
    from medmoe.evaluation.tasks import TaskSpec


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `eval`."""
    parser.add_shared("model", "--site")
    parser.add_value(
        "--model-api URL",
        "ask the MODEL of an OpenAI-compatible endpoint, which is sent the pictures, e.g. "
        "http://localhost:8000/v1; its key stands in $MEDMOE_API_KEY",
        flags.address,
    )
    parser.add_shared(*flags.TASKS, "--protocol")
    _add_tests(parser)
    parser.add_count("--batch-size", 64, "questions answered together")
    parser.add_shared("--dtype")
    parser.add_shared("--max-new-tokens")
    parser.add_shared("--data", "--allow-outside")
    parser.add_shared("--out", default=Path("runs/eval"))
    parser.add_shared("--seed", **flags.OF_MODEL)
    parser.add_shared("--format", "--json")


_severities = flags.reader(
    lambda text: tuple(sorted(set(flags.whole_numbers(text)))),
    lambda each: set(each) <= {1, 2, 3, 4, 5},
    "a list of 1 to 5, e.g. 1,3,5",
)


def _add_tests(parser: Parser) -> None:
    for flag, what in (
        ("--control", "with other pictures: blank, noise, shuffled"),
        (
            "--corruption",
            "about worse pictures at five severities: gaussian_noise, gaussian_blur, "
            "jpeg_compression, …",
        ),
        (
            "--pairs",
            "in other words whose answers must agree: negated, swapped_options, swapped_words",
        ),
    ):
        names = f"{flag} NAME[,NAME]", f"also ask {what}, or all"
        parser.add_value(*names, lambda text: text.split(","), default=[])
    parser.add_value(
        "--severity K[,K]",
        "severities of --corruption, 1 (mild) to 5 (default: 1,2,3,4,5)",
        _severities,
    )
    parser.add_value(
        "--calibrate SPLIT",
        "also ask this split, e.g. validation, and choose temperature and abstention on it",
    )
    parser.add_shared("--target-risk")
    parser.add_value(
        "--blind-twin MODEL",
        "what `medmoe train CONFIG --blind` left (default: found beside the model's run)",
        Path,
    )


def run(args: argparse.Namespace) -> int:
    """Ask, score, print and write; a run that was cut off is taken up where it stopped."""
    from medmoe.cli.tables import Screen
    from medmoe.evaluation.ask.controls import CONTROLS
    from medmoe.evaluation.ask.corruptions import CORRUPTIONS, SEVERITIES
    from medmoe.evaluation.ask.plan import EvalPlan, check_names
    from medmoe.evaluation.evaluate import evaluate, questions_of
    from medmoe.evaluation.pairs.rewriting import PAIRS
    from medmoe.evaluation.protocols import ALL_PROTOCOLS
    from medmoe.training.saving.run_dir import git_commit

    protocols = check_names(args.protocol or ["all"], ALL_PROTOCOLS, "protocol")
    controls = check_names(args.control, CONTROLS, "control")
    corruptions = check_names(args.corruption, CORRUPTIONS, "corruption")
    pairs = check_names(args.pairs, PAIRS, "kind of pair")
    _check_flags(args)
    other = _other(args)
    model, twin = (args.model, None) if other else _ours(args)
    seed, tasks, calibration = read_tasks(args, model)
    plan = EvalPlan(
        model=model,
        out=args.out,
        tasks=list(tasks.values()),
        protocols=protocols,
        controls=controls,
        corruptions=corruptions,
        severities=args.severity or SEVERITIES,
        pairs=pairs,
        calibration=calibration,
        target_risk=args.target_risk or 0.1,
        seed=seed,
        batch_size=args.batch_size,
        dtype=args.dtype,
        max_new_tokens=args.max_new_tokens,
        commit=git_commit()[0],
        twin=twin,
        other=other,
    )
    for note in other.notes if other and is_main() else ():
        print(note, flush=True)
    with flags.alone_in(args.out), asking_bar(questions_of(plan)) as update:
        summary = evaluate(plan, update)
    if not is_main():  # of several processes one speaks
        return 0
    calibrated = {
        task: kept
        for task, kept in summary["reliability"].items()
        if any("after" in entry for entry in kept.values())
    }
    Screen().results(summary | {"reliability": calibrated})
    print(f"asked {summary['asked']} questions; answers, scores and report.html in {args.out}")
    print(FOOTER)
    flags.write_json(args.json, summary)
    return 0


def _ours(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return the folders of a model of ours, verified, and of its blind twin."""
    from medmoe.model.checkpoint import verify
    from medmoe.model.locate import find_model

    model = find_model(args.model)
    verify(model)
    return model, _twin(args, model)


def _other(args: argparse.Namespace) -> Other | None:
    """Return what is asked where MODEL is no model of ours: of an endpoint, or one of the hub's."""
    from medmoe.evaluation.ask.plan import Other
    from medmoe.inference.endpoint import Endpoint
    from medmoe.inference.other_model import OtherModel
    from medmoe.model.locate import find_other, name_of

    name, size, url = str(args.model), args.batch_size, args.model_api
    if url is not None:
        key = os.environ.get("MEDMOE_API_KEY")
        here = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        note = f"Pictures and questions {'go to' if here else 'leave this machine for'} {url}."
        return Other(name, f"{name} of {url}", partial(Endpoint, url, name, key, size), (note,))
    folder = find_other(args.model)
    if folder is None:
        return None
    if args.blind_twin is not None:
        raise ConfigError(f"{name} can have no blind twin; leave --blind-twin out")
    files = [(path.name, *path.stat()[6:9:2]) for path in sorted(folder.iterdir())]  # size, time
    identity = hashlib.sha256(repr(files).encode()).hexdigest()
    return Other(name_of(folder), identity, partial(OtherModel, folder, size, args.dtype))


def _twin(args: argparse.Namespace, model: Path) -> Path | None:
    """Return the blind twin that scores are held against, None where none is found.

    Raises:
        ConfigError: The one named has seen pictures, or is another training's.
    """
    from medmoe.model.checkpoint import provenance, verify
    from medmoe.model.locate import find_model, find_twin

    twin = find_twin(model)
    if args.blind_twin is not None:
        twin, facts = find_model(args.blind_twin), provenance(model)
        known = provenance(twin)
        if not known.get("blind") or known.get("blind_twin") != facts.get("blind_twin"):
            what = "of another training" if known.get("blind") else "no blind twin"
            raise ConfigError(
                f"--blind-twin {args.blind_twin} is {what}; train that of {args.model} by `medmoe "
                f"train {facts.get('recipe', 'CONFIG')} --blind`"
            )
    if twin is not None:
        verify(twin)
    return twin


def read_tasks(
    args: argparse.Namespace, model: Path
) -> tuple[int, dict[str, TaskRecords], dict[str, TaskRecords]]:
    """Return the seed, and by task the records to ask and those to calibrate on."""
    from medmoe.data.registry import find_data
    from medmoe.evaluation.ask.records import as_trained, task_records
    from medmoe.evaluation.files.truth import check_apart

    specs = _specs(args)
    seed, phantom_images = as_trained(model, specs.values(), args.seed)
    read = partial(
        task_records,
        root=find_data(args.data),
        limit=args.limit,
        seed=seed,
        phantom_images=phantom_images,
    )
    tasks = {name: read(spec, split=args.split) for name, spec in specs.items()}
    calibrating = specs if args.calibrate else {}
    calibration = {name: read(spec, split=args.calibrate) for name, spec in calibrating.items()}
    for name in calibration:
        where = f"task {name!r}: --calibrate {args.calibrate}"
        check_apart(tasks[name].records, calibration[name].records, where)
    return seed, tasks, calibration


def _specs(args: argparse.Namespace) -> dict[str, TaskSpec]:
    """Return the tasks by name."""
    from medmoe.evaluation.tasks import task_spec

    specs: dict[str, TaskSpec] = {}
    for name in dict.fromkeys(args.task):
        spec = task_spec(name, allow_outside=args.allow_outside)
        if spec.name in specs:
            raise ConfigError(f"two tasks are called {spec.name}; ask them in runs of their own")
        specs[spec.name] = spec
    return specs


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse a flag that means nothing without another."""
    if args.severity is not None and not args.corruption:
        raise ConfigError("--severity needs worse pictures; add --corruption all")
    unfit = (args.calibrate, args.corruption, args.dtype, args.blind_twin)
    if args.model_api is not None and any(unfit):
        raise ConfigError(
            "--calibrate and --corruption need confidences, which an endpoint does not give; it "
            "can have no blind twin, and --dtype is its own matter; leave them out"
        )
    if args.target_risk is not None and args.calibrate is None:
        raise ConfigError("--target-risk needs a split to choose on; add --calibrate validation")
