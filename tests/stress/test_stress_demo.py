"""The shortest demonstration in processes of its own: killed at random moments, and run twice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.experiments.micro import comparable
from tests.stress.kills import half_written, is_mixed
from tests.stress.ledger import Ledger

KILLS, SEED = 20, 7
KILLED, TWICE, REUSED = "demo_killed", "demo_same_seed_twice", "demo_in_a_killed_folder"
COUNTED = "counted already for this source"
#: A run on a machine that is busy otherwise.
LIMIT_SECONDS = 1200


def start(out: Path) -> subprocess.Popen[bytes]:
    """Start ``medmoe demo --minutes 1`` as the leader of a group of its own."""
    words = ["demo", "--minutes", "1", "--seed", str(SEED), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "medmoe", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if k != "MEDMOE_DATA"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, err = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0, err.decode(errors="replace")


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Kill a process with SIGKILL and return whether it still ran."""
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return running


def wait_for_change(path: Path, before: int | None, process: subprocess.Popen[bytes]) -> None:
    """Wait until a file is written anew, or its process has ended."""
    while process.poll() is None and modified(path) == before:
        time.sleep(0.02)


def modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def summary(out: Path) -> dict[str, Any]:
    """Return a summary less what a clock or a checkout says."""
    return comparable(json.loads((out / "summary.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def finished(ledger: Ledger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; how long it took in all, and after ``run.json``, is kept in the ledger."""
    if ledger.done(KILLED) >= KILLS and ledger.done(TWICE):
        pytest.skip(COUNTED)
    out = tmp_path_factory.mktemp("finished") / "out"
    process, began = start(out), time.monotonic()
    wait_for_change(out / "run.json", None, process)
    wrote = time.monotonic()
    finish(process)
    ended = time.monotonic()
    ledger.note(KILLED, seconds=round(ended - began, 1), writing=round(ended - wrote, 2))
    return out


def test_a_killed_run_leaves_nothing_half_written(
    ledger: Ledger, finished: Path, tmp_path: Path
) -> None:
    """Half of the kills at any moment, half while files are written; half over a broken run."""
    times = ledger.facts(KILLED)
    faults: list[str] = []
    while (number := ledger.done(KILLED)) < KILLS:
        rng = random.Random(f"kill {number}")
        out = tmp_path / f"out{number}"
        if number % 2:
            shutil.copytree(finished, out)
            shutil.rmtree(out / "sft")
        before = modified(out / "run.json")
        process = start(out)
        if number < KILLS // 2:
            time.sleep(rng.uniform(0, times["seconds"]))
        else:
            wait_for_change(out / "run.json", before, process)
            time.sleep(rng.uniform(0, times["writing"]))
        running = kill(process)
        found = half_written(out)
        faults += [f"kill {number}: {line}" for line in found]
        ledger.add(
            KILLED,
            wanted=KILLS,
            faults=bool(found),
            ended_before=not running,
            summary_present=(out / "summary.json").exists(),
            model_present=(out / "model").exists(),
            summary_of_another_model=is_mixed(out),
        )
        if number < KILLS - 1:
            shutil.rmtree(out, ignore_errors=True)  # killed before it made a folder
    assert not faults
    assert ledger.runs[KILLED]["faults"] == 0
    assert ledger.runs[KILLED]["ended_before"] < KILLS / 2, "too few runs were met alive"


def test_a_killed_run_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    if ledger.done(REUSED):
        pytest.skip(COUNTED)
    out = tmp_path / "out"
    process = start(out)
    wait_for_change(out / "run.json", None, process)
    kill(process)
    process = start(out)
    finish(process)
    assert not half_written(out)
    assert not is_mixed(out)
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    ledger.add(REUSED, wanted=1)


def test_same_seed_in_two_processes_gives_equal_scores(
    ledger: Ledger, finished: Path, tmp_path: Path
) -> None:
    if ledger.done(TWICE):
        assert ledger.runs[TWICE]["equal"] == 1
        pytest.skip(COUNTED)
    out = tmp_path / "again"
    finish(start(out))
    equal = summary(out) == summary(finished)
    for file in (finished / "predictions").iterdir():
        equal = equal and (out / "predictions" / file.name).read_bytes() == file.read_bytes()
    ledger.add(TWICE, wanted=1, equal=equal)
    assert summary(out) == summary(finished)
    assert equal, "summaries are equal, predictions are not"
