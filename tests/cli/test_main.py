"""The front door: verbs, exit codes and one-line errors."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from tests.cli.running import in_a_process

from medmoe import __version__
from medmoe.cli import main as cli
from medmoe.cli.console import tell
from medmoe.errors import ConfigError, DataError, GuardError, ImageError, MedMoeError


@pytest.fixture
def verb_that(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Namespace], int]], None]:
    """Add a verb `probe`, with a flag `--size`, which runs the given function."""

    def add(run: Callable[[Namespace], int]) -> None:
        def add_arguments(parser: ArgumentParser) -> None:
            parser.add_argument("--size", type=int, default=1)

        module = ModuleType("medmoe_probe_verb")
        module.__dict__.update(add_arguments=add_arguments, run=run)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.VERBS, "probe", (module.__name__, "probe the front door"))

    return add


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line on stderr; nothing may stand on stdout."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb_and_says_research_use(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    for verb, (_, line) in cli.VERBS.items():
        assert f"  {verb}" in text
        assert line in text
    assert text.endswith("Research use only, not a medical device.\n")


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"medmoe {__version__}\n"


@pytest.mark.parametrize(
    ("verb", "hint"), [("dmeo", "did you mean 'demo'"), ("doktor", "did you mean 'doctor'")]
)
def test_unknown_verb_is_one_line_with_the_nearest(
    verb: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([verb]) == 2
    line = one_line(capsys)
    assert line.startswith(f"medmoe: error: unknown verb '{verb}'; choose one of: ")
    assert hint in line


def test_a_verb_far_from_all_others_gets_the_list_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["zzzzzz"]) == 2
    assert "did you mean" not in one_line(capsys)


def test_unknown_flag_is_one_line_with_the_nearest(
    verb_that: Callable[[Callable[[Namespace], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(lambda args: 0)
    assert cli.main(["probe", "--sise=3"]) == 2
    line = one_line(capsys)
    assert "unexpected argument '--sise'; did you mean --size?" in line
    assert "`medmoe probe --help`" in line


def test_a_flag_is_never_guessed_from_its_beginning(
    verb_that: Callable[[Callable[[Namespace], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(lambda args: 0)
    assert cli.main(["probe", "--siz", "3"]) == 2
    assert "unexpected argument '--siz'" in one_line(capsys)


def test_malformed_value_is_one_line_without_usage(
    verb_that: Callable[[Callable[[Namespace], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    verb_that(lambda args: 0)
    assert cli.main(["probe", "--size", "big"]) == 2
    line = one_line(capsys)
    assert "argument --size: invalid int value: 'big'" in line
    assert "usage" not in line


def test_the_verb_gets_its_flags_and_gives_the_exit_code(
    verb_that: Callable[[Callable[[Namespace], int]], None],
) -> None:
    verb_that(lambda args: args.size)
    assert cli.main(["probe"]) == 1
    assert cli.main(["probe", "--size", "0"]) == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MedMoeError("size (9) is too big"), 2),
        (ConfigError("size (9) is too big"), 2),
        (DataError("size (9) is too big"), 2),
        (ImageError("bad_size", "size (9) is too big"), 2),
        (GuardError("size (9) is too big"), 3),
    ],
)
def test_a_users_mistake_is_one_line_and_its_exit_code(
    verb_that: Callable[[Callable[[Namespace], int]], None],
    capsys: pytest.CaptureFixture[str],
    error: MedMoeError,
    code: int,
) -> None:
    def run(args: Namespace) -> int:
        raise error

    verb_that(run)
    assert cli.main(["probe"]) == code
    assert one_line(capsys) == "medmoe: error: size (9) is too big\n"


@pytest.mark.parametrize(
    ("number", "code", "fix"),
    [
        (errno.ENOSPC, 3, "free some space on the disk and run the command again"),
        (errno.EDQUOT, 3, "free some space on the disk and run the command again"),
        (errno.EROFS, 2, "check that it exists, is of the right kind and may be used"),
        (errno.ENOTDIR, 2, "check that it exists, is of the right kind and may be used"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_file(
    verb_that: Callable[[Callable[[Namespace], int]], None],
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
    fix: str,
) -> None:
    def run(args: Namespace) -> int:
        raise OSError(number, os.strerror(number), "runs/x")

    verb_that(run)
    assert cli.main(["probe"]) == code
    assert one_line(capsys) == f"medmoe: error: 'runs/x': {os.strerror(number)}; {fix}\n"


def test_a_refusal_without_number_or_file_keeps_its_words(
    verb_that: Callable[[Callable[[Namespace], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        raise OSError("no such\nthing")

    verb_that(run)
    assert cli.main(["probe"]) == 2
    assert one_line(capsys).startswith("medmoe: error: no such thing; check that")


def test_a_file_in_the_way_of_a_verb_is_one_line(
    verb_that: Callable[[Callable[[Namespace], int]], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    file = tmp_path / "file"
    file.touch()

    def run(args: Namespace) -> int:
        (file / "model").mkdir()
        return 0

    verb_that(run)
    assert cli.main(["probe"]) == 2
    assert f"'{file}/model': Not a directory; " in one_line(capsys)


@pytest.mark.parametrize("verb", cli.VERBS)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_help_is_printed_in_any_encoding(
    verb: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    screen.flush()
    assert f"usage: medmoe {verb}" in screen.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def test_a_word_that_the_terminal_cannot_show_is_still_one_line(
    verb_that: Callable[[Callable[[Namespace], int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(args: Namespace) -> int:
        tell("Größe \u2265 5 \udcf6")
        raise ConfigError("no such model: Größe\udcf6")

    verb_that(run)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["--size", "3", "probe"]) == 2
    out.flush()
    assert out.buffer.getvalue() == b"Gr??e ? 5 ?\n"  # type: ignore[attr-defined]
    err.flush()
    assert err.buffer.getvalue() == b"medmoe: error: no such model: Gr??e?\n"  # type: ignore[attr-defined]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_under_stdout_ends_with_3_and_one_line() -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = in_a_process("--help", stdout=full)
    assert done.returncode == 3
    assert done.stderr.startswith("medmoe: error: No space left on device; free some space")
    assert done.stderr.count("\n") == 1


def test_a_message_of_several_lines_is_printed_as_one(
    verb_that: Callable[[Callable[[Namespace], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        raise ConfigError("first\n  second")

    verb_that(run)
    assert cli.main(["probe"]) == 2
    assert one_line(capsys) == "medmoe: error: first second\n"


def test_interruption_ends_with_130(
    verb_that: Callable[[Callable[[Namespace], int]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(args: Namespace) -> int:
        raise KeyboardInterrupt

    verb_that(run)
    assert cli.main(["probe"]) == 130
    assert one_line(capsys) == "medmoe: interrupted\n"


def test_our_own_bug_keeps_its_traceback(
    verb_that: Callable[[Callable[[Namespace], int]], None],
) -> None:
    def run(args: Namespace) -> int:
        raise ZeroDivisionError

    verb_that(run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["probe"])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = in_a_process("--help", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_weights_load_without_bars_but_a_download_has_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import logging

    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    monkeypatch.setattr(logging, "_tqdm_active", True)
    assert cli.main(["weights", "list"]) == 0
    assert logging.is_progress_bar_enabled()
    assert "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ
    assert cli.main(["cost", "no-such-model"]) == 2
    assert not logging.is_progress_bar_enabled()
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    capsys.readouterr()


def test_in_a_cell_of_a_notebook_figures_are_drawn_and_bars_are_not(
    verb_that: Callable[[Callable[[Namespace], int]], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def probe(_: Namespace) -> int:
        from rich.console import Console

        sys.stdout.write(f"{os.environ['MPLBACKEND']} {Console().is_terminal}\n")
        return 0

    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("FORCE_COLOR", "1")
    verb_that(probe)
    assert cli.main(["probe"]) == 0
    assert capsys.readouterr().out == "agg False\n"


def test_no_thread_of_pyarrow_blocks_the_signals_of_a_verb() -> None:
    """Its failure would end the process in silence: it blocks the signal that would be reported."""
    threads = "__import__('glob').glob('/proc/self/task/*/comm')"
    code = (
        "from medmoe.cli.main import main; main(['--version']); import pyarrow; "
        f"print(*(open(name).read() for name in {threads}))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JE_ARROW_MALLOC_CONF"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True
    )
    assert "jemalloc" not in done.stdout
