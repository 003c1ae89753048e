"""Which data sets can be read, where they are, and how validation images are held out.

The location is ``--data``, else ``$MEDMOE_DATA``, else none, which means the embedded phantom. This
module downloads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import (
    common,
    folder_per_class,
    lc25000,
    llava_med,
    medmnist,
    mednist,
    own,
    path_vqa,
    pmc_vqa,
    rocov2,
    slake,
    vqa_med_2019,
    vqa_rad,
)
from medmoe.data.schema import Record
from medmoe.errors import DataError, one_of

ENVIRONMENT_VARIABLE = "MEDMOE_DATA"


class Reader(Protocol):
    """What every reader offers: a module, or an object where several sets share one."""

    @property
    def NAME(self) -> str:
        """Name of the data set in records, recipes and results."""
        ...

    @property
    def SPLITS(self) -> tuple[str, ...]:
        """The splits that can be read."""
        ...

    @property
    def MARKERS(self) -> tuple[str, ...]:
        """Files or folders looked for under the data folder; one of them is enough."""
        ...

    @property
    def LICENCE(self) -> str:
        """Licence of the images and texts."""
        ...

    @property
    def SOURCE(self) -> common.Source:
        """Where the set comes from."""
        ...

    def read(self, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
        """Return the records of one split of the set under ``root``."""
        ...


_READERS: tuple[Reader, ...] = (
    vqa_rad,
    slake.ENGLISH,
    slake.CHINESE,
    path_vqa,
    vqa_med_2019,
    pmc_vqa,
    llava_med.ALIGNMENT,
    llava_med.INSTRUCT,
    rocov2,
    *medmnist.SETS.values(),
    mednist,
    lc25000,
)
#: The sets that are known by name.
READERS: dict[str, Reader] = {reader.NAME: reader for reader in _READERS}
#: Those that the demonstration on real data needs, all of them.
DEMO_SETS = ("vqa_rad", "vqa_med_2019", "pneumoniamnist", "mednist", "lc25000")


def read(name: str | Path, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return the records of one split of a data set.

    Args:
        name: A name of `READERS`, or the path of a user's own table or folder of classes.
        root: The data folder; not looked at for a user's own data.
        split: The split.
        bad: Receives the bad rows, which are then left out; without it the first is an error.

    Raises:
        DataError: The name or the split is unknown, or the files are missing or malformed.
    """
    return reader_of(name).read(root, split, bad)


def reader_of(name: str | Path) -> Reader:
    """Return the reader of a set by name, or of a user's own table or folder by path.

    Raises:
        DataError: It is neither.
    """
    if str(name) in READERS:
        return READERS[str(name)]
    path = Path(name).expanduser()
    if not path.exists():
        if isinstance(name, Path) or os.sep in str(name) or path.suffix in own.SUFFIXES:
            raise DataError(f"{path}: no such file or folder; give your table or folder of classes")
        raise DataError(one_of(str(name), READERS, "data set"))
    table = own.find(path)
    if table is not None:
        return own.Own(table)
    if path.is_dir() and folder_per_class.looks_like_one(path):
        return folder_per_class.FolderPerClass(path)
    raise DataError(
        f"{path}: neither a table ({', '.join(own.SUFFIXES)}) nor a folder with one folder of "
        "pictures per class; see docs/your_own_data.md"
    )


def is_there(reader: Reader, root: Path) -> bool:
    """Return whether one of a set's markers is under ``root``."""
    return any((root / marker).exists() for marker in reader.MARKERS)


def available(root: Path) -> dict[str, bool]:
    """Return, for every data set, whether one of its markers is under ``root``."""
    return {name: is_there(reader, root) for name, reader in READERS.items()}


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
        markers = ", ".join(reader.MARKERS[0] for reader in READERS.values())
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
