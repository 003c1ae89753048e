"""Pages of the documentation site that are written from the code: verbs, recipes, data sets."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from medmoe.backbones.registry import LANGUAGE_BACKBONES, VISION_BACKBONES
from medmoe.cli.main import VERBS, parser_of
from medmoe.config.load import recipe, recipe_names
from medmoe.data.registry import READERS


def pages() -> dict[str, str]:
    """Return the text of each page by its file name."""
    return {
        "command_line.md": "\n".join(_command_line()),
        "recipes.md": "\n".join(_recipes()),
        "data_sets.md": "\n".join(_data_sets()),
    }


def _command_line() -> Iterator[str]:
    yield "# Command line\n"
    yield "Every verb and flag, as `medmoe VERB --help` prints them.\n"
    yield (
        "The TAB key completes verbs, flags, recipes and files after `eval "
        '"$(register-python-argcomplete medmoe)"` in bash and zsh, or '
        "`register-python-argcomplete --shell fish medmoe | source` in fish; put that line where "
        "your shell begins.\n"
    )
    for verb in VERBS:
        parser = parser_of(verb)
        yield f"## `medmoe {verb}`\n\n{parser.description}\n"
        inner = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        if not inner:
            yield from _arguments(parser)
        for action in inner:
            for name, other in action.choices.items():
                yield f"### `medmoe {verb} {name}`\n\n{other.description}\n"
                yield from _arguments(other)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "| argument | meaning |\n|---|---|"
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = " ".join([*action.option_strings[-1:], _value(action)]).strip()
        meaning = str(action.help) % {"default": action.default}
        yield f"| `{_cell(name)}` | {_cell(_escaped(meaning))} |"
    yield ""


def _value(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    metavar = action.metavar or action.dest.upper()
    return metavar if isinstance(metavar, str) else " ".join(metavar)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("*", r"\*").replace("_", r"\_").replace("$", r"\$")


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _recipes() -> Iterator[str]:
    yield "# Recipes and backbones\n"
    yield "`medmoe train NAME` takes one of these; a file of your own may begin from any.\n"
    yield "| recipe | what it is | phases |\n|---|---|---|"
    for name in recipe_names("experiments"):
        content = recipe("experiments", name)
        phases = ", ".join(content.get("phases", ()))
        yield f"| `{name}` | {_cell(content['description'])} | {phases} |"
    for title, registry in (
        ("Language models", LANGUAGE_BACKBONES),
        ("Vision encoders", VISION_BACKBONES),
    ):
        yield f"\n## {title}\n\n| name | hub id |\n|---|---|"
        for name, entry in registry.items():
            yield f"| `{name}` | {entry.hub_id or 'none: trained from nothing'} |"
    yield ""


def _data_sets() -> Iterator[str]:
    yield "# Data sets\n"
    yield "Those that are read by name; pictures of your own need none of them.\n"
    yield "| set | splits | licence | tried on the real files | on the hub |\n|---|---|---|---|---|"
    for name, reader in READERS.items():
        splits = ", ".join(reader.SPLITS)
        tried = "yes" if reader.TRIED else "no, on the documented layout"
        licence = reader.LICENCE.removeprefix("LicenseRef-")
        yield f"| `{name}` | {splits} | {licence} | {tried} | {reader.SOURCE.hub or '–'} |"
    yield ""
