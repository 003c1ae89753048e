"""The common flags: their values, their limits, and where a result may be written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import pytest

from medmoe.cli import flags
from medmoe.cli.main import parser_of
from medmoe.cli.parser import Parser
from medmoe.errors import ConfigError, GuardError


@pytest.fixture
def parser() -> Parser:
    made = Parser(prog="medmoe probe")
    made.add_shared("--data", "--seed", "--json")
    made.add_shared("--out", default=Path("runs/probe"))
    return made


def test_defaults_are_those_that_the_help_names(parser: Parser) -> None:
    values = parser.parse_strictly([])
    assert vars(values) == {"data": None, "out": Path("runs/probe"), "seed": 7, "json": None}
    assert "runs/probe" in parser.format_help()


@pytest.mark.parametrize("text", ["0", "7", "4294967295"])
def test_seed_takes_every_number_that_numpy_takes(text: str) -> None:
    assert flags.seed(text) == int(text)


@pytest.mark.parametrize("text", ["-1", "4294967296", "1.5", "seven", ""])
def test_seed_refuses_what_numpy_refuses(text: str, parser: Parser) -> None:
    with pytest.raises(ConfigError, match="is not a whole number from 0 to 4294967295"):
        parser.parse_strictly([f"--seed={text}"])


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "x"])
def test_positive_int_refuses(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="whole number of at least 1"):
        flags.positive_int(text)


@pytest.mark.parametrize("text", ["0", "-0.1", "nan", "inf", "x"])
def test_positive_float_refuses(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a number above 0"):
        flags.positive_float(text)


def test_positive_numbers_are_read() -> None:
    assert flags.positive_int("12") == 12
    assert flags.positive_float("0.5") == 0.5


@pytest.mark.parametrize(
    "words",
    [
        ["chat", "M", "I", "--frame", "3"],
        ["chat", "M", "--frame", "3", "I"],
        ["chat", "--frame", "3", "M", "I"],
        ["score", "P", "--protocol", "strict", "T"],
        ["ask", "M", "--window=-600,1500", "I", "--frame", "2", "Q"],
        ["data", "audit", "A", "--seed", "3", "B"],
        ["data", "--seed", "3", "audit", "A", "B"],
        ["weights", "--to", "D", "get", "N"],
        ["audit", "--json", "F", "verify", "--anchor", "1:a", "L"],
    ],
)
def test_flags_stand_before_between_and_behind_positionals(words: list[str]) -> None:
    verb, *rest = words
    flags_first = sorted(rest, key=lambda word: word in ("M", "I", "Q", "P", "T", "A", "B", "L"))
    values = parser_of(verb).parse_strictly(rest)
    assert values == parser_of(verb).parse_strictly(flags_first)
    assert None not in [getattr(values, name, "") for name in ("image", "truth", "question")]


def test_behind_two_dashes_a_question_may_begin_with_one() -> None:
    values = parser_of("ask").parse_strictly(["--frame", "2", "M", "I", "--", "-x?"])
    assert (values.question, values.frame) == ("-x?", 2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data"], "required: ACTION"),
        (["data", "lst"], "invalid choice: 'lst'"),
        (["data", "--json", "F", "audit"], "required: SET"),
        (["data", "--sed", "3", "audit", "A"], "'--sed'; did you mean --seed"),
        (["chat", "M", "I", "--frame", "3", "extra"], "unexpected argument 'extra'"),
    ],
)
def test_what_is_missing_or_too_much_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parser_of(words[0]).parse_strictly(words[1:])


def test_unexpected_word_is_named(parser: Parser) -> None:
    with pytest.raises(
        ConfigError, match=r"unexpected argument 'extra'; see `medmoe probe --help`"
    ):
        parser.parse_strictly(["extra"])


def test_out_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    assert flags.make_out_dir(tmp_path / "a" / "b").is_dir()
    assert flags.make_out_dir(tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == [], "the probe is gone"


def test_two_processes_never_write_to_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = (
        "import sys; from pathlib import Path; from medmoe.cli import flags\n"
        "with flags.alone_in(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", program, str(out)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, **pipes) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == b"in\n"
        who = f"process {first.pid}" if sys.platform == "linux" else "another process"
        with pytest.raises(ConfigError, match=f"{who} is writing to .*out"), flags.alone_in(out):
            pass
        first.kill()
    with flags.alone_in(out):
        assert list(out.iterdir()) == [], "nothing stands there for the lock"


def test_a_refused_start_leaves_none_of_the_folders_that_it_made(tmp_path: Path) -> None:
    flags.make_out_dir(tmp_path / "a" / "b" / "c")
    flags.remove_empty_folders()
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(
        ConfigError, match=r"cannot write to .*file.*; give another folder by --out"
    ):
        flags.make_out_dir(file)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc on this system")
def test_out_that_takes_no_file_is_refused_even_for_root() -> None:
    with pytest.raises(ConfigError, match=r"write to '/proc/self' .*another folder by --out"):
        flags.make_out_dir(Path("/proc/self"))


@pytest.mark.parametrize(
    ("number", "kind", "fix"),
    [
        (errno.EROFS, ConfigError, "; give another folder by --out DIR"),
        (errno.ENOSPC, GuardError, "; free some space, or give another folder by --out DIR"),
    ],
)
def test_out_on_a_read_only_or_full_disk_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[Exception],
    fix: str,
) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refused)
    with pytest.raises(kind) as caught:
        flags.make_out_dir(tmp_path)
    assert str(caught.value) == f"cannot write to {str(tmp_path)!r} ({os.strerror(number)}){fix}"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_json_on_a_full_disk_stops_as_a_guard(tmp_path: Path) -> None:
    # By a link: what renames a file into place would else replace the device itself.
    (tmp_path / "x.json").symlink_to("/dev/full")
    with pytest.raises(GuardError, match=r"cannot write .*x\.json.*; free some space") as caught:
        flags.write_json(tmp_path / "x.json", {"a": 1})
    assert caught.value.exit_code == 3


def test_json_is_written_where_asked_and_nowhere_else(tmp_path: Path) -> None:
    flags.write_json(None, {"a": 1})
    flags.write_json(tmp_path / "new" / "x.json", {"a": "é"})
    assert json.loads((tmp_path / "new" / "x.json").read_text(encoding="utf-8")) == {"a": "é"}
    assert list(tmp_path.iterdir()) == [tmp_path / "new"]


def test_json_on_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*; give another file by --json FILE"):
        flags.write_json(tmp_path, {})


def test_json_holds_no_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        flags.write_json(tmp_path / "x.json", {"a": float("nan")})
