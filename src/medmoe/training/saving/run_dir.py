"""What a run leaves besides its model: the resolved config, its circumstances and its metrics.

A phase is opened before it trains (`open_run`), measures itself (`meter`) and is closed
(`close_run`), so that a run that was killed can be told from one that ended, and resumed.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from medmoe.files import write_json, write_text


def git_commit() -> tuple[str | None, bool]:
    """Return the commit of the source tree and whether it has changes; None outside a checkout."""
    source = Path(__file__).resolve().parent
    try:
        commit = _git(source, "rev-parse", "HEAD")
        tracked = _git(source, "ls-files", "--error-unmatch", Path(__file__).name)
    except (OSError, subprocess.CalledProcessError):
        return None, False
    assert tracked
    return commit, bool(_git(source, "status", "--porcelain", "--untracked-files=no"))


def hardware() -> dict[str, Any]:
    """Return what the run computed on."""
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
    }


def run_facts(
    seed: int, source: tuple[str | None, bool], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the circumstances of a run, as ``run.json`` holds them.

    Args:
        source: What `git_commit` said when the run began.
        data: What was read: names, hashes and counts.
    """
    commit, dirty = source
    packages = ("medmoe", "torch", "transformers", "accelerate", "tokenizers", "numpy")
    return {
        "seed": seed,
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": hardware(),
        "data": dict(data),
    }


def open_run(folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write ``config.yaml``, ``run.json`` and, of a changed checkout, ``dirty.diff``.

    Args:
        config: The resolved configuration; a recipe itself.
        facts: As `run_facts` gives them, with whatever else is known before training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
    if facts["dirty"]:
        source = Path(__file__).resolve().parent
        write_text(folder / "dirty.diff", _git(source, "diff", "HEAD") + "\n")
    write_json(folder / "run.json", {**facts, "finished": None})


def abandon_run(folder: Path) -> None:
    """Take back `open_run` of a run that ended before its first step: it can be tried again.

    What an earlier start has measured or saved stays, and so does what is not a run's.
    """
    if (folder / "metrics.jsonl").is_file() or any((folder / "checkpoints").glob("step-*")):
        return
    for name in ("config.yaml", "run.json", "dirty.diff"):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # it holds something else
        folder.rmdir()


def close_run(folder: Path, finished: Mapping[str, Any]) -> None:
    """Add to ``run.json`` how the run ended: counts, steps, seconds, last loss."""
    run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    write_json(folder / "run.json", {**run, "finished": dict(finished)})


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
