"""`medmoe train CONFIG`: train the phases of a recipe, resume them, or say what they would cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medmoe.cli import flags
from medmoe.cli.parser import Parser
from medmoe.errors import ConfigError
from medmoe.processes import is_main


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `train`."""
    parser.add_value("config CONFIG", "name of a recipe, or a YAML file")
    parser.add_value(
        "--phase PHASE",
        "train this phase only; may be given more than once (default: all of the recipe)",
        action="append",
        default=[],
        dest="phases",
    )
    parser.add_switch("--plan", "print phases, weights, steps, memory and time, and train nothing")
    parser.add_value(
        "--hardware COUNTxGPU",
        "with --plan: memory and time on these GPUs, e.g. 1xH100 or 8x24GB, not here",
    )
    parser.add_switch("--resume", "skip finished phases, go on with a broken one")
    parser.add_switch("--allow-changed", "resume although values differ from the run's")
    parser.add_switch(
        "--allow-leak",
        "train on pictures that will be scored; the run, the model and every score say so",
    )
    parser.add_value(
        "--label-counts N,N,…",
        "with phase2_router: also its accuracy at these numbers of labelled images",
        flags.counts,
        default=(),
    )
    parser.add_shared("--data", "--on-bad-row", *flags.OWN_DATA)
    parser.add_value(
        "--from MODEL",
        "go on with a trained model (folder, LoRA adapter or hub id): a dense one from any "
        "phase, or a Med-MoE in phase 3",
        Path,
        dest="origin",
    )
    parser.add_switch(
        "--blind",
        "train the blind twin: the same training without pictures, which `eval` holds every "
        "score against (default folder: runs/blind_twin-HASH-SEED)",
    )
    parser.add_value("--out DIR", "folder to write to (default: runs/CONFIG)", Path)
    parser.add_shared("--seed")
    parser.add_choice(
        "--save-dtype",
        ("float32", "bf16"),
        "of the trained model's files (default: the recipe's run.save_dtype)",
        default=None,
    )
    parser.add_shared("--set", "--format", "--json")


def run(args: argparse.Namespace) -> int:
    """Train, or with `--plan` estimate; print where the results went."""
    from medmoe.cli.train_display import Display, show_plan
    from medmoe.data.registry import find_data
    from medmoe.experiments.plan import plan_train
    from medmoe.experiments.recipe import blind_twin, load_recipe, origin_settings, twin_key

    if args.hardware and not args.plan:
        raise ConfigError("--hardware belongs to --plan; add it")
    settings = flags.own_settings(args)
    if args.save_dtype is not None:
        settings.append(f"run.save_dtype={args.save_dtype}")
    recipe = load_recipe(args.config, settings, records=args.records)
    if args.origin is not None:
        settings += origin_settings(recipe, args.origin, args.phases)
        recipe = load_recipe(args.config, settings, records=args.records)
    name = recipe.name
    if args.blind:
        recipe = blind_twin(recipe)
        name = f"blind_twin-{str(twin_key(recipe))[:12]}-{args.seed}"
    root = find_data(args.data)
    if args.plan:
        from medmoe.experiments.estimate import estimate

        found = estimate(
            recipe,
            args.phases,
            root,
            args.seed,
            allow_outside=args.allow_outside,
            on_bad_row=args.on_bad_row,
            hardware=args.hardware,
        )
        show_plan(recipe.name, found)
        flags.write_json(args.json, found)
        return 0
    out = args.out or Path("runs") / name
    plan = plan_train(
        recipe,
        args.phases,
        root,
        out,
        args.seed,
        resume=args.resume or args.blind,  # named by its hash: what stands there is the same
        allow_changed=args.allow_changed,
        label_counts=args.label_counts,
        allow_leak=args.allow_leak,
        allow_outside=args.allow_outside,
        on_bad_row=args.on_bad_row,
    )
    with flags.alone_in(out):
        summary = train_shown(plan, Display(plan))
    flags.write_json(args.json, summary)
    return 0


def train_shown(plan: Any, display: Any) -> dict[str, Any]:
    """Run a plan with a display, which the first of several processes has; return its summary."""
    from medmoe.experiments.run import run_train

    if not is_main():  # of several processes one speaks
        return run_train(plan, lambda *_: None, None)
    display.opening()
    with display:
        summary: dict[str, Any] = run_train(plan, display.progress, display.measured)
    display.closing(summary)
    return summary
