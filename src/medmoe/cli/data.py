"""`medmoe data …`: which sets there are, what is in them, what is wrong with them.

It lists, counts, fetches, shows, audits and exports; nothing is trained or scored here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmoe.cli import flags
from medmoe.cli.parser import FOOTER, Parser
from medmoe.errors import ConfigError
from medmoe.files import write_json, write_text


def add_arguments(parser: Parser) -> None:
    """Add the arguments of `data`: an action, and behind it those of the action."""
    lines = {name: str(action.__doc__).rstrip(".") for name, action in _ACTIONS.items()}
    for name, inner in parser.add_actions(lines).items():
        _add_action(name, inner)


def _add_action(name: str, parser: Parser) -> None:
    if name != "list":
        or_path = (
            ", or the path of a table, JSON, Parquet or folder; one split of it as vqa_rad/test or "
            "clinic/data.csv:test"
        )
        what = f"a name of `data list`{or_path if name != 'get' else ''}"
        parser.add_value("sets SET", what, nargs="+")
    parser.add_shared("--data")
    if name in ("info", "show", "audit", "export"):
        parser.add_shared("--on-bad-row", "--allow-outside")
    if name in ("show", "audit", "export"):
        parser.add_shared("--out", default=Path(f"runs/{_FOLDERS[name]}"))
    if name in ("show", "audit"):
        parser.add_shared("--seed")
    if name in ("list", "audit"):
        parser.add_shared("--format")
    if name == "info":
        parser.add_switch("--check-images", "also decode every picture once")
    elif name == "show":
        parser.add_value("--count N", "pictures (20)", flags.positive_int, default=20)
    elif name == "audit":
        parser.add_choice(
            "--fix", ("image-disjoint",), "write a split without shared pictures", default=None
        )
    elif name == "export":
        parser.add_choice("--format", ("jsonl", "parquet"), "file format")
        parser.add_choice("--target", ("llama_factory", "swift", "trl"), "whose chat form")
    parser.add_shared("--json")


def run(args: argparse.Namespace) -> int:
    """Do what the action says and write `--json`."""
    result: dict[str, Any] = _ACTIONS[args.action](args)
    flags.write_json(args.json, result)
    print(FOOTER)
    return 0


def _root(args: argparse.Namespace) -> Path | None:
    from medmoe.data.registry import find_data

    return find_data(args.data)


def _list(args: argparse.Namespace) -> dict[str, Any]:
    """Name the known sets, and which of them are here."""
    from medmoe.cli.tables import draw_words
    from medmoe.data.registry import READERS, is_there

    root = _root(args)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "there": root is not None and is_there(reader, root),
            "splits": list(reader.SPLITS),
            "tried": reader.TRIED,
            "licence": reader.LICENCE,
            "hub": reader.SOURCE.hub,
            "revision": reader.SOURCE.revision,
            "home": reader.SOURCE.home,
        }
        for name, reader in READERS.items()
    ]
    draw_words(
        ("set", "here", "tried", "fetched by", "licence"),
        [
            (
                r["name"],
                "yes" if r["there"] else "–",
                "yes" if r["tried"] else "layout only",
                "data get" if r["hub"] or READERS[r["name"]].SOURCE.web else "hand",
                r["licence"].removeprefix("LicenseRef-"),
            )
            for r in rows
        ],
    )
    print(
        "tried: whether the real files were read, or the reader knows the documented layout only."
    )
    print("Your own data: give the path of a CSV, JSONL or Parquet file, or a folder of classes.")
    return {"version": 1, "sets": rows}


def _info(args: argparse.Namespace) -> dict[str, Any]:
    """Count rows, pictures, answers and modalities; list bad rows."""
    from medmoe.data.bad_rows import BadRows, readable
    from medmoe.experiments.data_audit import counts, read_parts

    bad = BadRows("skip")
    parts = read_parts(args.sets, _root(args), bad, allow_outside=args.allow_outside)
    if args.check_images:
        parts = {name: readable(records, bad) for name, records in parts.items()}
    found = {name: counts(records) for name, records in parts.items()}
    for name, content in found.items():
        more = content["turns"] - content["n"]
        talk = f", {more:,} further turns of conversations" if more else ""
        print(f"{name}: {content['n']:,} rows on {content['images']:,} images{talk}")
        for key, values in content.items():
            if isinstance(values, Mapping) and values:
                print(f"  {key.replace('_', ' ')}: {_few(values)}")
    _print_met(bad)
    result = {"version": 1, "splits": found, "bad_rows": bad.reasons, "notes": bad.notes}
    flags.write_json(args.json, result)
    bad.policy = args.on_bad_row
    bad.settle()
    return result | {"known_faults": dict(bad.known_faults)}


def _get(args: argparse.Namespace) -> dict[str, Any]:
    """Fetch known sets from the hub, or where they are published, into the folder of --data."""
    from medmoe.data.bad_rows import BadRows
    from medmoe.data.fetch import fetch
    from medmoe.data.registry import READERS
    from medmoe.errors import DataError, one_of

    if args.data is None:
        raise ConfigError("data get needs --data DIR, the folder to put the set into")
    folders, bad = {}, BadRows()
    for given in args.sets:
        # One published set may be several here: llava_med is its captions and its instructions.
        names = [given] if given in READERS else [n for n in READERS if n.startswith(f"{given}_")]
        if not names:
            raise DataError(one_of(given, READERS, "data set"))
        for name in names:
            source = READERS[name].SOURCE
            folders[name] = str(fetch(name, source, flags.make_out_dir(args.data), bad))
            print(f"{name}: {folders[name]}")
    _print_met(bad)
    return {"version": 1, "folders": folders, "known_faults": dict(bad.known_faults)}


def _show(args: argparse.Namespace) -> dict[str, Any]:
    """Draw a sheet of pictures with their questions and answers."""
    from medmoe.data.sheet import contact_sheet

    out = flags.make_out_dir(args.out)
    written = {}
    for name, records in _parts(args).items():
        path = out / f"{name.replace('/', '-')}.png"
        title = f"{name}: {min(args.count, len(records))} of {len(records):,} rows"
        contact_sheet(records, title, args.count, args.seed).save(path)
        written[name] = str(path)
        print(path)
    return {"version": 1, "sheets": written}


def _audit(args: argparse.Namespace) -> dict[str, Any]:
    """Find pictures that splits share, bad rows, and what the answers give away."""
    from medmoe.cli.tables import draw_words
    from medmoe.data.bad_rows import BadRows
    from medmoe.experiments import data_audit

    out = flags.make_out_dir(args.out)
    bad = BadRows(args.on_bad_row)
    found = data_audit.audit(
        data_audit.read_parts(args.sets, _root(args), bad, allow_outside=args.allow_outside), bad
    )
    write_text(out / "audit.html", data_audit.page(found))
    flags.write_json(out / "audit.json", found.result)
    shared = [o for o in found.overlaps if o.shared_images]
    rows: list[tuple[str, ...]] = [
        (o.left, o.right, f"{o.left_images:,}", f"{o.right_images:,}", f"{o.shared_images:,}")
        for o in shared
    ]
    if rows:
        draw_words(("left", "right", "left images", "right images", "shared"), rows)
    print(f"{len(found.overlaps) - len(rows)} of {len(found.overlaps)} pairs share no picture")
    _print_met(bad)
    print(f"{out / 'audit.html'}\n{out / 'audit.json'}")
    if args.fix:
        path = out / "image_disjoint.json"
        split = data_audit.clean_split(found, args.seed)
        write_json(path, split)
        sizes = ", ".join(f"{len(v):,} {k}" for k, v in split.items() if isinstance(v, list))
        print(f"{path}: {sizes}")
    return found.result


def _export(args: argparse.Namespace) -> dict[str, Any]:
    """Write a set in the chat form of TRL, LLaMA-Factory or ms-swift."""
    from datasets import disable_progress_bars

    from medmoe.data.exchange import write_jsonl, write_parquet

    disable_progress_bars()
    out = flags.make_out_dir(args.out)
    files = {}
    for name, records in _parts(args).items():
        stem = name.replace("/", "-")
        if args.format == "jsonl":
            path = write_jsonl(records, out, stem, args.target)
        else:
            path = write_parquet(records, out / f"{stem}.parquet", args.target)
        files[name] = str(path)
        print(f"{path}: {len(records):,} rows")
    return {"version": 1, "files": files}


#: Where the actions write that write.
_FOLDERS = {"show": "data", "audit": "audit", "export": "export"}
_ACTIONS = {
    "list": _list,
    "info": _info,
    "get": _get,
    "show": _show,
    "audit": _audit,
    "export": _export,
}


def _parts(args: argparse.Namespace) -> dict[str, Any]:
    from medmoe.data.bad_rows import BadRows, readable
    from medmoe.experiments.data_audit import read_parts

    bad = BadRows(args.on_bad_row)
    parts = read_parts(args.sets, _root(args), bad, allow_outside=args.allow_outside)
    if args.action == "export":  # every picture is decoded: nothing is left half-written
        parts = {name: readable(records, bad) for name, records in parts.items()}
        bad.settle()
    _print_met(bad)
    return parts


def _print_met(bad: Any) -> None:
    for note in bad.notes:
        print(note)
    if bad.reasons:
        print(f"left out: {len(bad.reasons)} rows")
        for reason in bad.reasons[:20]:
            print(f"  {reason}")
        if len(bad.reasons) > 20:
            print(f"  … and {len(bad.reasons) - 20} more (all of them in --json FILE)")
    for what, count in bad.known_faults.items():
        print(f"left out: {count} rows of the official set: {what}")


def _few(values: Mapping[str, int]) -> str:
    shown = [f"{name} {count:,}" for name, count in list(values.items())[:8]]
    more = len(values) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
