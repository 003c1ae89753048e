"""`medmoe expert ACTION MODEL …`: one expert, without touching the others."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from medmoe.cli import flags
from medmoe.cli.compare import WORSE
from medmoe.cli.console import tell
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError

#: Pictures of a domain; on fewer no loss but a total one is told from chance.
_ENOUGH = 20
_LINES = {
    "list": "Name the experts: modality, layers, parameters, SHA-256, origin",
    "export": "Write one expert as a pack: tensors, origin, licence, hash of its base, signature",
    "add": "Train one expert more on your own pictures, beside the others, which stay",
    "import": "Put an expert's pack into the model that it was trained beside",
    "swap": "Exchange an expert by its namesake in a pack",
    "remove": "Take an expert out; say where its tokens go",
}


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `expert`: an action, and behind it those of the action."""
    for name, inner in parser.add_actions(_LINES).items():
        inner.add_shared("model")
        if name == "add":
            _training_arguments(inner)
            continue
        if name in ("export", "remove"):
            inner.add_value("name NAME", "name of the expert, as `expert list` has it")
        if name in ("import", "swap"):
            inner.add_value("pack PACK", "folder that `expert export` has written", Path)
            inner.add_value(
                "--trust KEY", "refuse a pack that this public key has not signed", Path
            )
        if name == "remove":
            inner.add_choice(
                "--to", ("meta", "next"), "its tokens go to the meta expert, or the next best"
            )
        if name in ("list", "export"):
            inner.add_shared("--site")
        else:
            inner.add_value(
                "--site NAME",
                "change this site's experts, which lie beside MODEL; MODEL stays as it is",
                flags.reader(str, re.compile(r"[\w-]+").fullmatch, "a site's name, e.g. north"),
                dest="changed_site",
            )
        if name in ("export", "import", "swap"):
            _gate_arguments(inner)
        if name == "export":
            inner.add_value("--out DIR", "folder of the pack to write", Path)
            inner.add_value("--sign KEY", "sign it with this Ed25519 key (PEM)", Path)
        elif name != "list":
            inner.add_value(
                "--out DIR", "model folder to write (default: MODEL itself, replaced at once)", Path
            )
        inner.add_shared("--json")


def _gate_arguments(parser: Parser) -> None:
    parser.add_value(
        "--test TASK",
        "ask this task, as `eval --task`, with and without the expert; where a domain of the "
        "others is worse, end with 1 and write nothing; may be repeated",
        action="append",
        default=[],
        dest="task",
    )
    parser.add_shared("--split", "--limit", "--data", "--allow-outside")
    parser.add_shared("--seed", **flags.OF_MODEL)
    parser.set_defaults(calibrate=None)


def _training_arguments(parser: Parser) -> None:
    parser.add_value("name NAME", "its domain, e.g. ultrasound")
    parser.add_shared("--records")
    parser.add_value(
        "--old SET",
        "pictures of the other domains, which are to keep their decisions; may be repeated "
        "(default: what the model was trained on)",
        action="append",
        default=[],
    )
    parser.add_value(
        "--from-ffn PHASE2", "start as the FFNs of this phase-2 model, not as the meta expert", Path
    )
    parser.add_switch("--resume", "go on with a broken training")
    parser.add_shared("--data", "--on-bad-row", "--allow-outside")
    parser.add_value("--out DIR", "folder of the run; the model goes to DIR/model", Path)
    parser.add_shared("--seed", "--set", "--json")


def run(args: argparse.Namespace) -> int:
    """Do what is asked, and print what changed and what is proven to be the same."""
    from medmoe.model.locate import find_model

    result = _ACTIONS.get(args.action, _edit)(find_model(args.model), args)
    tell(FOOTER)
    flags.write_json(args.json, result | {"note": FOOTER})
    return WORSE if (result.get("evaluation") or {}).get("worse") else 0


def _list(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from medmoe.model.experts import MoeFolder
    from medmoe.model.locate import sites_of

    experts = MoeFolder(folder).experts()
    for entry in experts:
        if "tokens_go_to" in entry:
            tell(f"{entry['name']:12}  removed; its tokens go to {entry['tokens_go_to']}")
            continue
        known, layers = entry["provenance"], ", ".join(map(str, entry["layers"]))
        origin = known["origin"] + (f" on {known['data']}" if known.get("data") else "")
        tell(
            f"{entry['name']:12}  {', '.join(entry['modality'])}; {entry['parameters']:,} "
            f"parameters in layers {layers}; {origin}; sha256 {entry['sha256']}"
        )
    if sites := sites_of(folder):
        tell(f"sites: {', '.join(sites)}")
    return {"experts": experts, "sites": sites}


def _export(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from medmoe.model.expert_pack import export_expert
    from medmoe.model.experts import MoeFolder, take_out, whole_model

    if args.out is None:
        raise ConfigError("export writes a folder of its own; name it: --out DIR")
    model, tested = MoeFolder(folder), None
    if args.task:
        with TemporaryDirectory(prefix="medmoe-") as name:
            without = Path(name) / "without"
            take_out(model, without, args.name, "next", base=whole_model(folder))
            tested = _tested(without, folder, args.name, args)
        if tested["worse"]:
            return {"evaluation": tested}
    facts = export_expert(model, args.name, args.out, args.sign, tested)
    tell(f"written: {args.out}, expert {args.name}, sha256 {facts['sha256']}")
    tell(f"base: {facts['base']}; licence: {facts['licence'] or 'not recorded'}")
    tell("signed" if args.sign else "not signed; sign it by --sign KEY")
    tell("tested: its report is in the pack" if tested else "not tested; do it by --test TASK")
    return facts | {"out": str(args.out)}


def _add(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from medmoe.cli.train import train_shown
    from medmoe.cli.train_display import Display
    from medmoe.data.registry import find_data
    from medmoe.experiments.expert import expert_recipe
    from medmoe.experiments.plan import plan_train

    if args.out is None or not args.records:
        raise ConfigError("add trains and writes a run; name both: --records SET --out DIR")
    recipe = expert_recipe(
        args.model, args.name, args.records, args.old, args.from_ffn, args.settings
    )
    shared = {name: getattr(args, name) for name in ("resume", "allow_outside", "on_bad_row")}
    plan = plan_train(recipe, (), find_data(args.data), args.out, args.seed, **shared)
    with flags.alone_in(args.out):
        summary = train_shown(plan, Display(plan))
    told = summary["phases"]["phase4_expert"]["expert"]
    kept = told["calibration"]
    tell(
        f"old pictures keep {kept['kept']:,} of {kept['decisions']:,} decisions "
        f"({100 * kept['kept'] / kept['decisions']:.2f} %); of {kept['rows']:,} rows of questions "
        f"{kept['all_kept']:,} keep all, and their answers' probabilities differ by "
        f"{kept['difference']:.1g} at most"
    )
    tell(f"of the new pictures' decisions {100 * kept['chosen']:.1f} % go to {args.name}")
    _show(args.out / "model", told)
    return summary


def _edit(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from medmoe.model.expert_pack import read_pack
    from medmoe.model.experts import MoeFolder, put_in, take_out, whole_model
    from medmoe.model.locate import BASE, site_folder

    if args.out is None and not args.model.exists():
        raise ConfigError(f"{args.model} lies in the hub's cache; name a folder by --out DIR")
    out, base, site = args.out or folder, None, None
    if args.changed_site is not None:
        if args.out is not None or (folder / BASE).is_file():
            raise ConfigError(
                "a site lies beside a whole model; give that, and --site without --out"
            )
        out, base = site_folder(folder, args.changed_site), folder.resolve()
        site = out if (out / BASE).is_file() else None
    with flags.alone_in(out):
        model = MoeFolder(site or folder)
        if args.action == "remove":
            told = take_out(model, out, args.name, args.to, base=base)
        else:
            pack, swap = read_pack(args.pack, model, args.trust), args.action == "swap"
            tested, makers = None, pack.facts["imported"]["evaluation"]
            if args.task:
                with TemporaryDirectory(prefix="medmoe-") as name:
                    put_in(model, Path(name) / "with", pack, swap=swap, base=whole_model(folder))
                    tested = _tested(site or folder, Path(name) / "with", pack.name, args)
                if tested["worse"]:
                    return {"evaluation": tested}
            told = put_in(model, out, pack, swap=swap, base=base) | {"evaluation": tested}
            tell(_said_of(makers))
    _show(out, told)
    return told | {"out": str(out)}


def _tested(without: Path, model: Path, name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Ask both models, print what differs domain by domain, and return the report."""
    from medmoe.cli.console import asking_bar
    from medmoe.cli.eval import read_tasks
    from medmoe.cli.tables import Screen
    from medmoe.evaluation.expert_gate import gate
    from medmoe.evaluation.pages.compare_page import difference_table, verdict
    from medmoe.training.saving.run_dir import git_commit

    seed, tasks, _ = read_tasks(args, model)
    questions = 2 * sum(len(task.records) for task in tasks.values())
    with TemporaryDirectory(prefix="medmoe-") as out, asking_bar(questions) as asked:
        report, compared = gate(
            without, model, name, [*tasks.values()], Path(out), seed, git_commit()[0], asked
        )
    for comparison in compared:
        Screen().table(difference_table(comparison))
    tell(f"A is the model without {name}, B with it")
    for row, comparison in zip(report["rows"], compared, strict=True):
        what = "new" if row["new"] else "old"
        few = " Too few pictures to show a loss." if row["images"] < _ENOUGH else ""
        tell(
            f"{row['task']}, {row['domain']} ({what}; {row['images']:,} pictures): "
            f"{row['same_answers']:,} of {row['n']:,} answers are the same. "
            f"{verdict(comparison.differences)}{few}"
        )
    if report["worse"]:
        tell("an old domain is worse: nothing is written")
        flags.remove_empty_folders()
    return report


def _said_of(report: dict[str, Any] | None) -> str:
    """Return what a pack says of its own test."""
    if report is None:
        return "the pack says of no test; test it here by --test TASK"
    try:
        rows = [f"{row['task']} {row['domain']} ({row['images']:,})" for row in report["rows"]]
    except (KeyError, TypeError, ValueError):
        return "what the pack says of its test is not readable; test it here by --test TASK"
    return f"tested by its maker, no old domain worse; pictures: {', '.join(rows)}"


def _show(out: Path, told: dict[str, Any]) -> None:
    """Print what of a model folder changed, and what is proven to be the same."""
    tensors = told["tensors"]
    parts = ", ".join(f"{len(tensors[k])} {k}" for k in ("came", "changed", "went") if tensors[k])
    tell(f"written: {out}: {parts or 'no tensor changed'}")
    tell(f"proven by SHA-256: the other {tensors['same']:,} tensors and rows are the same bytes")
    for key, values in told["config"].items():
        before, after = (json.dumps(value, ensure_ascii=False) for value in values)
        tell(f"config.json: {key}: {before} → {after}")
    tell(f"MANIFEST.json: other hashes of {', '.join(told['files'])}")


_ACTIONS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "add": _add,
    "export": _export,
    "list": _list,
}
