"""What an evaluation asks of which model, kept beside its answers so that nothing else joins them.

A folder takes up a run again only where model, tasks, records, seed and batches are the same. The
protocols and controls are not part of it: they may be added later.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medmoe.errors import ConfigError
from medmoe.evaluation.ask.plan import EvalPlan
from medmoe.files import write_json
from medmoe.model.checkpoint import identity

SETTINGS = "settings.json"


def hold_settings(plan: EvalPlan) -> dict[str, Any]:
    """Write the settings of a new run, or check that those in its folder are the same.

    Returns:
        What a resumed run must have in common, as it stands in the file: the model as its hash.

    Raises:
        ConfigError: The folder holds other files, or a run with other settings; one is named.
    """
    wanted, out = _settings_of(plan), plan.out
    path = out / SETTINGS
    if path.is_file() and any(out.rglob("*.jsonl")):  # a start that answered nothing binds nobody
        _check_same(path, wanted)
        return wanted
    others = sorted(file.name for file in out.iterdir() if not file.name.startswith("."))
    others = [name for name in others if name != SETTINGS]
    if others:
        raise ConfigError(
            f"{out} holds no evaluation but other files ({others[0]}); give another --out"
        )
    write_json(path, wanted)
    return wanted


def settings_sha256(settings: Mapping[str, Any]) -> str:
    """Return the hash of settings as `hold_settings` returns them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _settings_of(plan: EvalPlan) -> dict[str, Any]:
    tasks = {
        task.spec.name: {"split": task.split, "limit": task.limit, "records": task.sha256()}
        for task in plan.tasks
    }
    calibration = {
        name: {"split": task.split, "records": task.sha256()}
        for name, task in sorted(plan.calibration.items())
    }
    return {
        "version": 1,
        **({"calibration": calibration} if calibration else {}),
        "seed": plan.seed,
        "batch_size": plan.batch_size,
        "max_new_tokens": plan.max_new_tokens,
        "tasks": tasks,
        "model": identity(plan.model),
    }


def _check_same(path: Path, wanted: Mapping[str, Any]) -> None:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise ConfigError(f"{path} is not readable as JSON; give another --out")
    for key, value in wanted.items():
        if known.get(key) != value:
            raise ConfigError(
                f"{path.parent} holds another run (its {key}: {_shown(key, known.get(key))}; now: "
                f"{_shown(key, value)}); give another --out, or that run's flags to resume it"
            )


def _shown(key: str, value: object) -> str:
    if key == "model":
        return str(value)[:12]
    if key == "tasks" and isinstance(value, dict):
        return ", ".join(
            f"{name} {task.get('split')} limit {task.get('limit') or 'none'} "
            f"records {str(task.get('records'))[:8]}"
            for name, task in value.items()
        )
    return str(value)
