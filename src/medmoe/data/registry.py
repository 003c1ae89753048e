"""Which data sets can be read, where they are, and how validation images are held out.

The location is ``--data``, else ``$MEDMOE_DATA``, else none, which means the embedded phantom. This
module downloads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from medmoe.data.readers import common, lc25000, mednist, pneumoniamnist, vqa_med_2019, vqa_rad
from medmoe.data.schema import Record
from medmoe.errors import DataError, one_of

ENVIRONMENT_VARIABLE = "MEDMOE_DATA"


class Reader(Protocol):
    """What every reader module offers."""

    @property
    def NAME(self) -> str:
        """Name of the data set in records, recipes and results."""
        ...

    @property
    def SPLITS(self) -> tuple[str, ...]:
        """The splits that can be read."""
        ...

    @property
    def MARKER(self) -> str:
        """File or folder looked for under the data folder."""
        ...

    @property
    def LICENCE(self) -> str:
        """Licence of the images and texts."""
        ...

    def read(self, root: Path, split: str) -> list[Record]:
        """Return the records of one split of the set under ``root``."""
        ...


READERS: dict[str, Reader] = {
    "lc25000": lc25000,
    "mednist": mednist,
    "pneumoniamnist": pneumoniamnist,
    "vqa_med_2019": vqa_med_2019,
    "vqa_rad": vqa_rad,
}


def read(name: str, root: Path, split: str) -> list[Record]:
    """Return the records of one split of a data set.

    Raises:
        DataError: The name or the split is unknown, or the files are missing or malformed.
    """
    if name not in READERS:
        raise DataError(one_of(name, READERS, "data set"))
    return READERS[name].read(root, split)


def available(root: Path) -> dict[str, bool]:
    """Return, for every data set, whether its marker file is under ``root``."""
    return {name: (root / reader.MARKER).exists() for name, reader in READERS.items()}


def find_data(explicit: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder with real data, or None for the embedded phantom.

    Args:
        explicit: The value of ``--data``, which goes before the environment.
        environ: Where ``MEDMOE_DATA`` is looked up; an empty value counts as unset.

    Raises:
        DataError: The folder does not exist or holds none of the data sets.
    """
    if explicit is not None:
        root, origin = explicit, "--data"
    elif environ.get(ENVIRONMENT_VARIABLE):
        root, origin = Path(environ[ENVIRONMENT_VARIABLE]), f"${ENVIRONMENT_VARIABLE}"
    else:
        return None
    root = root.expanduser()
    if not root.is_dir():
        raise DataError(
            f"{origin} {root}: no such folder; give the folder that holds the data sets, or leave "
            "it out to use the embedded phantom"
        )
    if not any(available(root).values()):
        markers = ", ".join(reader.MARKER for reader in READERS.values())
        raise DataError(f"{origin} {root}: holds none of the data sets; looked for {markers}")
    return root


def hold_out(
    records: Sequence[Record], fraction: float, seed: int
) -> tuple[list[Record], list[Record]]:
    """Split off about ``fraction`` of the images, with all their records, for validation.

    An image goes by a hash of its id and the seed, so the choice does not depend on the order or
    on the other records. Hyperparameters are chosen on these images, never on a test split.

    Returns:
        The training and the validation records, in their order; ``split`` of the latter still
        says where they come from.

    Raises:
        DataError: The fraction is not between 0 and 1.
    """
    if not 0.0 <= fraction < 1.0:
        raise DataError(f"hold_out fraction ({fraction}) must be at least 0 and below 1")
    train: list[Record] = []
    validation: list[Record] = []
    for record in records:
        held = common.hash_share(record.image.id, seed) < fraction
        (validation if held else train).append(record)
    return train, validation
