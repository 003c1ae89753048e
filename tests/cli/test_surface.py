"""The verbs and flags are a contract: a change shows here, and belongs into CHANGELOG.md."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from medmoe.cli.main import VERBS, main, parser_of
from medmoe.cli.parser import Parser

SURFACE = json.loads(Path(__file__).with_name("surface.json").read_text(encoding="utf-8"))


def all_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every verb, and of every action of one (``data audit``)."""
    found: dict[str, argparse.ArgumentParser] = {}
    for verb in VERBS:
        found[verb] = parser_of(verb)
        for action in found[verb]._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{verb} {name}": inner for name, inner in action.choices.items()}
    return found


PARSERS = all_parsers()


def words_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the positionals, as the help names them, and the long flags of a parser."""
    words = []
    for action in parser._actions:
        name = str(action.metavar or action.dest)
        words.append(action.option_strings[-1] if action.option_strings else name.upper())
    return sorted(words, key=lambda word: (word.startswith("-"), word))


def test_verbs_are_those_of_the_contract() -> None:
    assert sorted(PARSERS) == sorted(SURFACE)


@pytest.mark.parametrize("verb", sorted(PARSERS))
def test_flags_are_those_of_the_contract(verb: str) -> None:
    assert words_of(PARSERS[verb]) == SURFACE[verb]


@pytest.mark.parametrize("verb", sorted(PARSERS))
def test_every_verb_explains_every_flag_and_says_research_use(verb: str) -> None:
    parser = PARSERS[verb]
    assert isinstance(parser, Parser)
    assert all(action.help for action in parser._actions)
    assert parser.format_help().rstrip().endswith("Research use only, not a medical device.")


@pytest.mark.parametrize("verb", sorted(PARSERS))
def test_help_of_a_verb_ends_with_0(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: medmoe {verb}")
