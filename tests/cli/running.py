"""How tests run verbs: here, where a refusal is one line and exit code 2, or in a process."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Protocol

import pytest

from medmoe.cli.main import main


class Refused(Protocol):
    """Runs a verb that must refuse its words; returns the line that says why."""

    def __call__(self, capsys: pytest.CaptureFixture[str], *words: object) -> str: ...


def refused_by(verb: str) -> Refused:
    def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
        assert main([verb, *map(str, words)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("medmoe: error: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err

    return refused


def in_a_process(
    *words: object, stdout: Any = subprocess.PIPE, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run `medmoe` in a process of its own: no library may add lines or a traceback at its end."""
    return subprocess.run(
        [sys.executable, "-m", "medmoe", *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=timeout,
    )
