"""TensorBoard, trackio and W&B by name: is the package there, and where does it write.

The Trainer's own callbacks do the reporting (`RunSettings.trackers`); they take their folders from
the environment, which is set for a phase and put back.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate.utils import patch_environment

from medmoe.errors import ConfigError

#: Tracker, which is a package of that name → the variable that names its folder.
TRACKERS = {
    "tensorboard": "TENSORBOARD_LOGGING_DIR",
    "trackio": "TRACKIO_DIR",
    "wandb": "WANDB_DIR",
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is missing.

    Raises:
        ConfigError: With the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"run.trackers names {name}, whose package is not installed; "
                f"run: pip install {name}, or use --set run.trackers=[]"
            )


@contextmanager
def tracker_folders(names: Sequence[str], folder: Path) -> Iterator[None]:
    """Have trackers write under ``folder/<tracker>`` inside the context; a user's choice stays."""
    wanted = {TRACKERS[name]: folder / name for name in names if TRACKERS[name] not in os.environ}
    for path in wanted.values():
        path.mkdir(parents=True, exist_ok=True)
    with patch_environment(**wanted):
        yield
