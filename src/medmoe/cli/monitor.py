"""`medmoe monitor ACTION …`: has what a server is asked about drifted from a reference?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medmoe.cli import flags
from medmoe.cli.console import asking_bar, tell
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError

if TYPE_CHECKING:
    from medmoe.data.schema import Record

ALARM = 1
_LINES = {
    "reference": "Ask a model about validation pictures, and write what its days are held against",
    "report": "Tell day by day what has drifted from the reference",
}


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `monitor`: an action, and behind it those of the action."""
    actions = parser.add_actions(_LINES)
    reference, report = actions["reference"], actions["report"]
    split = "split to read (default: %(default)s)"
    reference.add_shared("model", "--site", "--task", "--limit", "--data")
    reference.add_shared("--split", default="validation", help=split)
    reference.add_shared("--seed", **flags.OF_MODEL)
    reference.add_value("--out FILE", "file for serve --monitor; a new one", Path, required=True)
    report.add_value("file FILE", "file given to serve --monitor", Path)
    report.add_switch("--fail-on-alarm", "end with 1 if the last day that is over has an alarm")
    report.add_shared("--format", "--json")


def run(args: argparse.Namespace) -> int:
    """Write a reference, or print what was found.

    Returns:
        1 where the last day has an alarm and `--fail-on-alarm` was said, else 0.

    Raises:
        MedMoeError: A file, a model or a set cannot be used.
    """
    return _reference(args) if args.action == "reference" else _report(args)


def _reference(args: argparse.Namespace) -> int:
    from medmoe.data.images import open_record
    from medmoe.data.schema import question_text
    from medmoe.files import write_text
    from medmoe.inference.engine import MedMoe
    from medmoe.model.checkpoint import identity
    from medmoe.model.locate import find_seeing
    from medmoe.serving.drift import LEAST, reference_of, seen
    from medmoe.serving.settings import ServerSettings

    if args.out.exists():
        raise ConfigError(f"{args.out} is there already; give another --out, or delete it")
    folder = find_seeing(args.model)
    flags.make_out_dir(args.out.parent)
    records = _one_a_picture(args, folder)
    longest, batch = ServerSettings().usual_new_tokens, 16  # answers as long as the server's
    engine = MedMoe.load(folder, batch_size=batch, max_new_tokens=longest)
    pictures = []
    with asking_bar() as update:
        for start in range(0, len(records), batch):
            part = records[start : start + batch]
            images = [open_record(record.image) for record in part]
            asked = list(zip(images, map(question_text, part), strict=True))
            for image, answer in zip(images, engine.answer_batch(asked), strict=True):
                confidence = None if answer.cut else answer.confidence
                pictures.append(seen(image, answer.routing, confidence))
            update("reference", len(pictures), len(records))
    watch = reference_of(identity(folder), pictures, engine.domains)
    write_text(args.out, watch.model_dump_json(), "file by --out FILE")
    for domain, edges in watch.edges.items():
        few = (
            "" if edges else f" (too few: about {2 * LEAST} are needed, only its share is watched)"
        )
        tell(f"{domain}, pictures: {watch.reference.mix[domain]:,}{few}")
    tell(f"next: medmoe serve {args.model} --monitor {args.out}")
    tell(FOOTER)
    return 0


def _one_a_picture(args: argparse.Namespace, folder: Path) -> Sequence[Record]:
    """Return one question about each picture of the tasks, drawn by a hash."""
    from medmoe.data.readers.common import hash_share
    from medmoe.data.registry import find_data
    from medmoe.evaluation.ask.records import as_trained, task_records
    from medmoe.evaluation.tasks import task_spec

    specs = [task_spec(name) for name in dict.fromkeys(args.task)]
    seed, images = as_trained(folder, specs, args.seed)
    known = {"limit": args.limit, "seed": seed, "phantom_images": images}
    drawn: dict[str, Record] = {}
    for spec in specs:
        task = task_records(spec, find_data(args.data), split=args.split, **known)
        for record in sorted(task.records, key=lambda record: hash_share(record.id)):
            if not (record.earlier or record.further_images):
                drawn.setdefault(record.image.id, record)
    return list(drawn.values())


def _report(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from medmoe.cli.tables import Screen
    from medmoe.evaluation.pages.table import Table
    from medmoe.serving.drift import FALSE_ALARM_DAYS, judge
    from medmoe.serving.monitor import by_utc, read_watch

    watch, today = read_watch(args.file), by_utc()
    rows, days, alarm = [], [], False
    notes = [f"false alarms: at most {FALSE_ALARM_DAYS:g} day a year on average (docs/drift.md)"]
    for day, tally in sorted(watch.days.items()):
        state, told = "not over yet", {"day": f"{day}", "pictures": tally.mix}
        if day < today:
            verdict = judge(watch, day)
            found = [one.sentence() for one in verdict.alarms]
            alarm, few = bool(found), ", ".join(verdict.too_few)
            said = [f"alarms: {len(found)}" if found else "no alarm" * bool(verdict.compared)]
            state = "; ".join(filter(None, [*said, f"too few: {few}" * bool(few)]))
            told |= asdict(verdict) | {"day": f"{day}", "alarms": found}
            notes += [f"{day} {sentence}" for sentence in found]
        mix = ", ".join(f"{name} {n:,}" for name, n in sorted(tally.mix.items()))
        rows.append([f"{day}", mix, state, f"{tally.left_out:,}"])
        days.append(told | {"left_out": tally.left_out})
    if not rows:
        notes.append(f"no day yet: medmoe serve MODEL --monitor {args.file}")
    columns = ("Day", "Pictures", "Found", "Left out")
    Screen().table(Table(columns, rows, text_columns=3, notes=notes))
    tell(FOOTER)
    result = {"version": 1, "model": watch.model, "alarm": alarm, "days": days}
    flags.write_json(args.json, result | {"false_alarm_days_a_year": FALSE_ALARM_DAYS})
    return ALARM if alarm and args.fail_on_alarm else 0
