"""What the stress runs have counted so far, for one state of the source: ``results/stress.json``.

A stress run that was stopped goes on where it stopped; another commit, or a changed source file,
starts from nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmoe import __version__

VERSION = 1


@dataclass
class Ledger:
    """Counts by name of the run, written to disk after every change."""

    path: Path
    head: dict[str, Any]
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, repository: Path) -> Ledger:
        """Return the ledger of this state of the source, with what it counts already."""
        ledger = cls(path, head_of(repository))
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return ledger
        same = all(content.get(key) == ledger.head[key] for key in ("version", "commit", "source"))
        if same:
            ledger.runs = content["runs"]
        return ledger

    def done(self, name: str) -> int:
        """Return how many cases of a run are counted."""
        return int(self.runs.get(name, {}).get("done", 0))

    def add(self, name: str, *, wanted: int, done: int = 1, **counts: int) -> None:
        """Count cases of a run and, by name, what they gave; then write."""
        run = self.runs.setdefault(name, {"wanted": wanted, "done": 0})
        run["wanted"] = wanted
        run["done"] += done
        for key, number in counts.items():
            run[key] = run.get(key, 0) + number
        self.write()

    def note(self, name: str, **facts: Any) -> None:
        """Keep facts of a run that are no counts; then write."""
        self.runs.setdefault(name, {"wanted": 0, "done": 0}).setdefault("facts", {}).update(facts)
        self.write()

    def facts(self, name: str) -> dict[str, Any]:
        """Return the facts kept of a run."""
        return dict(self.runs.get(name, {}).get("facts", {}))

    def write(self) -> None:
        """Write the file, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staging = self.path.with_name(f".{self.path.name}.staging")
        text = json.dumps(self.head | {"runs": self.runs}, indent=1, sort_keys=True)
        staging.write_text(text + "\n", encoding="utf-8")
        os.replace(staging, self.path)


def head_of(repository: Path) -> dict[str, Any]:
    """Return which state of the source runs, and on what kind of machine."""
    import torch

    return {
        "version": VERSION,
        "medmoe": __version__,
        "commit": _commit(repository),
        "source": _source_hash(repository / "src"),
        "hardware": {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        },
    }


def _commit(repository: Path) -> str | None:
    done = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def _source_hash(folder: Path) -> str:
    """Return a hash of every source file and recipe, so that uncommitted changes count too."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
