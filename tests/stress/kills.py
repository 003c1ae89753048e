"""Killing a process that writes a run folder, and looking at what it left."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from medmoe.errors import CheckpointError
from medmoe.model.checkpoint import load_model

SUMMARY_KEYS = {
    "version", "seed", "data", "commit", "config_sha256", "seconds", "parameters", "router",
    "model", "scores",
}  # fmt: skip


def half_written(out: Path) -> list[str]:
    """Return what in a run folder is neither absent nor whole."""
    found = []
    summary, report, model = out / "summary.json", out / "report.html", out / "model"
    if summary.exists():
        try:
            content = json.loads(summary.read_text(encoding="utf-8"))
            if not content.keys() >= SUMMARY_KEYS:
                found.append(f"summary.json lacks {sorted(SUMMARY_KEYS - content.keys())}")
        except ValueError as error:
            found.append(f"summary.json: {error}")
    if report.exists() and not report.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        found.append("report.html does not end with </html>")
    if model.exists():
        try:
            load_model(model)
        except CheckpointError as error:
            found.append(f"model/: {error}")
    return found


def is_mixed(out: Path) -> bool:
    """Return whether summary and model, both whole, are of different runs."""
    summary, facts = out / "summary.json", out / "model" / "medmoe.json"
    if not (summary.exists() and facts.exists()):
        return False
    seed = json.loads(facts.read_text(encoding="utf-8"))["training"]["seed"]
    return bool(json.loads(summary.read_text(encoding="utf-8"))["seed"] != seed)


def fork_and_kill(work: Callable[[], object], delay: float | None) -> bool:
    """Run ``work`` in a copy of this process and kill it after ``delay`` seconds (None: never).

    Returns:
        Whether the work ended before it was killed.

    Raises:
        AssertionError: The work failed by itself.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"the work ended with {code} before it was killed"
    return code == 0
