"""`medmoe routes MODEL --task T`: the paper's routing figures of a model, with their data."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from medmoe.cli import flags
from medmoe.cli.console import asking_bar, tell
from medmoe.cli.parser import FOOTER, Parser


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `routes`."""
    parser.add_shared("model", "--site", *flags.TASKS)
    parser.add_value(
        "--before DIR",
        "phase-2 model or its run: the states before the router are its (default: MODEL's)",
        Path,
    )
    parser.add_value(
        "--learned DIR",
        "model or run with a learned router (…_learned_router), to hold beside in figure 5",
        Path,
    )
    parser.add_value(
        "--label-curve FILE",
        "label_curve.csv or .json of `medmoe train …_label_curve`: draws figure 6",
        Path,
    )
    parser.add_shared("--data")
    parser.add_shared("--out", default=Path("runs/routes"))
    parser.add_shared("--seed", **flags.OF_MODEL)
    parser.add_shared("--format", "--json")


def run(args: argparse.Namespace) -> int:
    """Observe, draw and write; print what the page says first."""
    from medmoe.data.registry import find_data
    from medmoe.evaluation.ask.records import as_trained, task_records
    from medmoe.evaluation.routing_report import (
        RoutesPlan,
        check_models,
        check_records,
        read_label_curve,
        routes,
    )
    from medmoe.evaluation.tasks import task_spec
    from medmoe.model.checkpoint import read_config
    from medmoe.model.locate import find_model, find_seeing

    specs = {spec.name: spec for spec in map(task_spec, args.task)}.values()
    before, learned = (
        None if folder is None else find_model(folder) for folder in (args.before, args.learned)
    )
    model = find_seeing(args.model)
    check_models(model, before, learned)
    curve = read_label_curve(args.label_curve) if args.label_curve else []
    root = find_data(args.data)
    seed, phantom_images = as_trained(model, specs, args.seed)
    read = partial(task_records, split=args.split, limit=args.limit, seed=seed)
    tasks = [read(spec, root, phantom_images=phantom_images) for spec in specs]
    check_records(tasks, read_config(model).domains or ())
    plan = RoutesPlan(model, tasks, before, learned, curve, seed)
    out = flags.make_out_dir(args.out)
    with asking_bar() as update:
        result = routes(plan, out, update)
    _show(result)
    tell(f"page: {out / 'routes.html'}")
    tell(FOOTER)
    flags.write_json(args.json, result)
    return 0


def _show(result: dict[str, Any]) -> None:
    from medmoe.cli.tables import Screen
    from medmoe.evaluation.pages.routes_page import load_table

    screen = Screen()
    modalities = ", ".join(f"{name} {count}" for name, count in result["modalities"].items())
    screen.line(f"{result['images']} images: {modalities}")
    screen.table(load_table(result["figures"]["load_and_specialisation"]))
    for row in result["silhouettes"][:1]:
        screen.line(
            f"silhouette ({row['metric']}): {row['before']:.2f} before the router, "
            f"{row['after']:.2f} after"
        )
    for note in result["notes"]:
        screen.line(f"note: {note}")
