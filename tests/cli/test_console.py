"""Lines in a terminal are broken at words; in a pipe they are not broken at all."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout

import pytest

from medmoe.cli.console import asking_bar, tell, tell_pieces
from medmoe.cli.main import main

TEXT = "The left lung shows a consolidation of the lower lobe, without an effusion."


Shown = Callable[[Callable[[], object]], str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Return what an action shows on a terminal of 20 columns."""
    monkeypatch.setenv("COLUMNS", "20")

    def show(action: Callable[[], object]) -> str:
        with redirect_stdout(Terminal()) as screen, redirect_stderr(screen):
            action()
        return screen.getvalue()

    return show


def test_a_line_in_a_terminal_is_broken_between_words(shown: Shown) -> None:
    lines = shown(lambda: tell(TEXT)).splitlines()
    assert all(len(line) <= 20 for line in lines)
    assert " ".join(line.strip() for line in lines) == TEXT


def test_a_line_in_a_pipe_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    tell(TEXT)
    tell_pieces([TEXT[:9], TEXT[9:]])
    assert capsys.readouterr().out == f"{TEXT}\n{TEXT}\n"


def test_a_second_column_goes_on_under_itself(shown: Shown) -> None:
    assert (
        shown(lambda: tell("  ct    dense bone and air")) == "  ct    dense bone\n        and air\n"
    )


@pytest.mark.parametrize("size", [1, 3, 80])
def test_an_answer_that_comes_in_pieces_breaks_no_word(shown: Shown, size: int) -> None:
    pieces = [TEXT[start : start + size] for start in range(0, len(TEXT), size)]
    lines = shown(lambda: tell_pieces(pieces)).splitlines()
    assert all(len(line.rstrip()) <= 20 for line in lines)
    assert "".join(lines) == TEXT


def test_what_came_before_an_error_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Iterator[str]:
        yield "The left"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tell_pieces(pieces())
    assert capsys.readouterr().out == "The left\n"


@pytest.mark.parametrize("words", [["--help"], ["nonsense"]])
def test_help_and_errors_are_broken_at_words_too(
    shown: Shown, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    on_screen = shown(lambda: main(words))
    assert max(map(len, on_screen.splitlines())) < 50  # names of verbs and flags stay whole
    main(words)
    assert on_screen.split() == "".join(capsys.readouterr()).split()


def test_how_long_the_questions_take_is_said_once_by_those_answered_now(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([5.0, 6.0, 7.0, 9.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    with asking_bar(1000) as update:
        update("known", 40, 40)  # by an earlier start
        update("vqa", 10, 60)
        assert capsys.readouterr().err == ""
        update("vqa", 30, 60)
        update("vqa", 60, 60)
        update("vqa, blank", 0, 60)
    assert capsys.readouterr().err == "1,000 questions in all: about 46 s left\n"
