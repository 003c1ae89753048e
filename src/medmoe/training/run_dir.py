"""What a run leaves besides its model: the resolved config, its circumstances and its metrics."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from medmoe.training.trainer import PhaseResult


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


def write_run(
    folder: Path,
    config: Mapping[str, Any],
    seed: int,
    source: tuple[str | None, bool],
    data: Mapping[str, Any],
    phases: Mapping[Any, PhaseResult],
) -> None:
    """Write ``config.yaml``, ``run.json`` and ``metrics.jsonl`` into a run directory.

    Args:
        config: The resolved configuration.
        source: What `git_commit` said when the run began.
        data: What was read: names and counts.
    """
    commit, dirty = source
    packages = ("medmoe", "torch", "transformers", "accelerate", "tokenizers", "numpy")
    run = {
        "seed": seed,
        "commit": commit,
        "dirty": dirty,
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "hardware": hardware(),
        "data": dict(data),
        "weights": {
            phase: {"trainable": result.counts.trainable, "frozen": result.counts.frozen}
            for phase, result in phases.items()
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    (folder / "run.json").write_text(json.dumps(run, indent=1) + "\n")
    lines = [
        json.dumps({"phase": phase, "step": step, "loss": loss})
        for phase, result in phases.items()
        for step, loss in result.curve
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
