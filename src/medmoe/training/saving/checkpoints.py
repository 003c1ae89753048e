"""The folder of one phase's checkpoints: ``step-N/``, each whole or not there.

The newest one that verifies is resumed; at least two are kept, since the newest may be damaged
later. What stands in a checkpoint is `state`'s; nothing here knows tensors.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmoe.errors import CheckpointError, first_few
from medmoe.model.committed import (
    check_files,
    committed,
    read_manifest,
    remove_directory,
    replaced_by,
    staging_of,
)

_STEP = re.compile(r"step-(\d+)")
_FIX = "the one before it is used"


@dataclass(slots=True)
class CheckpointFolder:
    """Saves, finds and clears away the checkpoints of one phase.

    Attributes:
        path: Holds ``step-N`` directories and nothing else of ours.
        best: The step whose checkpoint stays besides, None for none.
        damaged: What was passed over when the newest was looked for, one line each.
    """

    path: Path
    keep: int = 2
    best: int | None = None
    damaged: list[str] = field(default_factory=list)
    _bad: set[int] = field(default_factory=set)

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, whole or damaged, in order."""
        if not self.path.is_dir():
            return []
        matches = [_STEP.fullmatch(path.name) for path in self.path.iterdir() if path.is_dir()]
        return sorted(int(match[1]) for match in matches if match)

    def at(self, step: int) -> Path:
        """Return where the checkpoint of a step stands."""
        return self.path / f"step-{step}"

    def newest(self) -> Path | None:
        """Return the newest checkpoint that verifies, None where there is none at all.

        Raises:
            CheckpointError: There are checkpoints, but every one is damaged.
        """
        for step in reversed(self.steps()):
            try:
                verify_checkpoint(self.at(step))
            except CheckpointError as error:
                self._bad.add(step)
                self.damaged.append(str(error))
                continue
            return self.at(step)
        if self.damaged:
            raise CheckpointError(
                f"{self.path}: none of its {len(self.damaged)} checkpoints is whole "
                f"({self.damaged[0]}); delete the folder to start anew"
            )
        return None

    def refuse_used(self) -> None:
        """Refuse a folder that already holds checkpoints: a new run must not mix with them.

        Raises:
            CheckpointError: There are some.
        """
        if steps := self.steps():
            raise CheckpointError(
                f"{self.path}: holds checkpoints up to step {steps[-1]}; "
                "go on from them with --resume, or give another folder by --out"
            )

    @contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """Yield a directory to fill; then it is the checkpoint of ``step``, and old ones go."""
        with committed(self.at(step)) as staging:
            yield staging
        self._bad.discard(step)
        self._clear(step)

    def sweep(self) -> None:
        """Remove what a killed run left behind: nothing of it was ever a checkpoint."""
        if not self.path.is_dir():
            return
        for path in self.path.iterdir():
            name = path.name.removeprefix(".").rpartition(".")[0]
            if _STEP.fullmatch(name) and path in (
                staging_of(self.path / name),
                replaced_by(self.path / name),
            ):
                shutil.rmtree(path, ignore_errors=True)

    def _clear(self, newest: int) -> None:
        """Keep the newest ones that are not known to be damaged."""
        older = [step for step in self.steps() if step < newest and step not in self._bad]
        kept = {newest, self.best, *sorted(older, reverse=True)[: self.keep - 1]}
        for step in self.steps():
            if step not in kept:
                remove_directory(self.at(step))


def verify_checkpoint(directory: Path) -> None:
    """Check every byte of a checkpoint against its manifest.

    Raises:
        CheckpointError: Names the file that is missing, unlisted or altered.
    """
    check_files(directory, read_manifest(directory, _FIX), _FIX)


def refuse_changed(then: Mapping[str, Any], now: Mapping[str, Any], directory: Path) -> None:
    """Refuse to resume a run whose circumstances differ from the checkpoint's.

    Raises:
        CheckpointError: Names the first few values that differ, as they were and as they are.
    """
    changed = list(_changes(then, now))
    if changed:
        raise CheckpointError(
            f"{directory}: {len(changed)} values differ from those it was trained with "
            f"({first_few(changed, 3)}); set them back, or use --allow-changed"
        )


def _changes(then: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    """Yield a text for each value that differs; of mappings, for each of their values."""
    for key in sorted(then.keys() | now.keys()):
        old, new = then.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{within}{key}.")
        elif old != new:
            yield f"{within}{key}: {old!s:.80} then, {new!s:.80} now"
