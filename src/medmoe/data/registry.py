"""Which data sets can be read, where they are, and how validation images are held out.

The location is ``--data``, else ``$MEDMOE_DATA``, else none, which means the embedded phantom. This
module downloads nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.disjoint import groups_of
from medmoe.data.readers import (
    choice_sets,
    common,
    folder_per_class,
    iu_xray,
    lc25000,
    llava_med,
    medmnist,
    mednist,
    own,
    path_vqa,
    rocov2,
    slake,
    vqa_med_2019,
    vqa_rad,
)
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.readers.own_set import OwnSet
from medmoe.data.schema import Record, images_of
from medmoe.errors import DataError, one_of

ENVIRONMENT_VARIABLE = "MEDMOE_DATA"


@dataclass(frozen=True)
class _Located:
    """A known set whose place is known: the data folder is not asked for."""

    reader: KnownSet
    root: Path
    path: Path

    def __getattr__(self, name: str) -> Any:
        """Return what is known of the set wherever it lies."""
        return getattr(self.reader, name)

    def read(self, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
        """Return the records of a split, and say what the folder was taken for."""
        del root
        if bad is not None:
            bad.say(f"{self.path}: read as {self.reader.NAME}")
        return self.reader.read(self.root, split, bad)


#: What every reader is: a set known by name, the same where it lies, or a user's own.
Reader = KnownSet | _Located | OwnSet

_READERS: tuple[KnownSet, ...] = (
    vqa_rad.SET,
    vqa_rad.HUB,
    slake.ENGLISH,
    slake.CHINESE,
    path_vqa.SET,
    vqa_med_2019.SET,
    choice_sets.PMC_VQA,
    choice_sets.OMNIMED_VQA,
    choice_sets.MMMU_MED,
    choice_sets.MEDXPERTQA_MM,
    llava_med.ALIGNMENT,
    llava_med.INSTRUCT,
    rocov2.SET,
    iu_xray.SET,
    *medmnist.SETS.values(),
    mednist.SET,
    lc25000.SET,
)
#: The sets that are known by name.
READERS: dict[str, KnownSet] = {reader.NAME: reader for reader in _READERS}
#: Those that the demonstration on real data needs, all of them.
DEMO_SETS = ("vqa_rad", "vqa_med_2019", "pneumoniamnist", "mednist", "lc25000")


def read(name: str | Path, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return the records of one split of a data set.

    Args:
        name: A name of `READERS`, or the path of a set.
        root: The data folder; not looked at for a path.
        split: The split.
        bad: Receives the bad rows, which are then left out; without it they are an error.

    Raises:
        DataError: The name or the split is unknown, or the files are missing or malformed.
    """
    return parse_set(name)[0].read(root, common.split_name(split), bad)


def read_splits(
    reader: Reader, split: str | None, root: Path | None, bad: BadRows | None = None
) -> dict[str, list[Record]]:
    """Return the records of one split of a set, or of all that are there.

    Args:
        reader: Of `parse_set`.
        split: None for all; the image-disjoint ones of VQA-RAD must be named.
        root: The data folder, None where there is none; not looked at for a path.
        bad: As in `read`.

    Raises:
        DataError: There is no data folder or no such split, or the files are malformed.
    """
    if root is None and reader is READERS.get(reader.NAME):
        raise DataError(
            f"{reader.NAME}: where is it? give the data folder with --data or "
            f"${ENVIRONMENT_VARIABLE}, or the path of the set itself"
        )
    if split is not None:
        return {split: reader.read(root or Path(), split, bad)}
    parts, missing = {}, None
    for one in reader.SPLITS:
        try:
            if not one.startswith("disjoint_"):
                parts[one] = reader.read(root or Path(), one, bad)
        except common.MissingPart as error:
            missing = error
    if not parts and missing is not None:
        raise missing
    return parts


def parse_set(name: str | Path, *, allow_outside: bool = False) -> tuple[Reader, str | None]:
    """Return the reader of a set as a user names it, and the split where one is named.

    Args:
        name: ``vqa_rad``, ``vqa_rad/test``, ``clinic/data.csv`` or ``clinic/data.csv:test``.
        allow_outside: A user's own table may name pictures outside its folder.

    Raises:
        DataError: It is none of these, or a folder that holds several known sets.
    """
    readers, split = parse_sets(name, allow_outside=allow_outside)
    if len(readers) > 1:
        names = ", ".join(reader.NAME for reader in readers)
        raise DataError(f"{name} holds {names}; give it as --data and name one of them")
    return readers[0], split


def parse_sets(name: str | Path, *, allow_outside: bool = False) -> tuple[list[Reader], str | None]:
    """Return what `parse_set` does, and every known set of a folder that holds several."""
    text = str(name)
    known, _, split = text.partition("/")
    if known in READERS:
        return [READERS[known]], common.split_name(split) or None
    path, split = Path(text).expanduser(), ""
    before, _, after = text.rpartition(":")
    if before and not path.exists() and not {"/", os.sep} & set(after):
        path, split = Path(before).expanduser(), after
    if not path.exists():
        if text.count("/") == 1 and common.split_name(path.name) in common.SPLITS:
            raise DataError(one_of(known, READERS, "data set"))
        if isinstance(name, Path) or {"/", os.sep} & set(text) or path.suffix in own.SUFFIXES:
            raise DataError(f"{path}: no such file or folder; give a table or a folder of pictures")
        raise DataError(one_of(text, READERS, "data set"))
    return _at(path, allow_outside), common.split_name(split) or None


def _at(path: Path, allow_outside: bool) -> list[Reader]:
    """Return the readers of what lies at a path: known sets, a table, or a folder of classes."""
    if known := [_Located(reader, root, path) for reader, root in _known_at(path)]:
        return [*known]
    table = own.find(path, allow_outside)
    classes = path.is_dir() and folder_per_class.looks_like_one(path)
    if table is not None and not (classes and not own.asks(table)):
        return [table]
    if classes:
        return [folder_per_class.FolderPerClass(path, allow_outside)]
    raise DataError(
        f"{path}: neither a table ({', '.join(own.SUFFIXES)}) nor a folder with one folder of "
        "pictures per class; see docs/your_own_data.md"
    )


#: What the folders of other sets hold too: these tell a known set by its folder's name only.
_COMMON_MARKERS = (
    *("data", "qas", "train.json", "train.csv", "test.csv", "train/captions.csv"),
    *("train_captions.csv", "lung_aca"),
)


def _known_at(path: Path) -> list[tuple[KnownSet, Path]]:
    """Return the known sets whose own folder or file a path is, else those in it, each with root.

    The root of a set is the folder that its markers are looked for in: the data folder, or a set's
    own folder under another name.
    """
    path = path.resolve()
    own_folder, below = [], []
    for reader in READERS.values():
        named = [m for m in reader.MARKERS if m.split("/")[0] == path.name]
        inner = [m.partition("/")[2] for m in reader.MARKERS]
        if any((path.parent / marker).exists() for marker in named):
            own_folder.append((reader, path.parent))
        elif any(m not in _COMMON_MARKERS and (path / m).exists() for m in inner if m):
            own_folder.append((reader, path))
        elif is_there(reader, path):
            below.append((reader, path))
    return own_folder or below


def is_there(reader: KnownSet, root: Path) -> bool:
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
    on the other records; images of one record stay together. Hyperparameters are chosen on these
    images, never on a test split.

    Returns:
        The training and the validation records, in their order; ``split`` of the latter still
        says where they come from.

    Raises:
        DataError: The fraction is not between 0 and 1.
    """
    if not 0.0 <= fraction < 1.0:
        raise DataError(f"hold_out fraction ({fraction}) must be at least 0 and below 1")
    together = [(r.image.id, other.id) for r in records for _, other in r.further_images]
    held: set[str] = set()
    for names in groups_of((image.id for image in images_of(records)), together):
        held.update(names if common.hash_share(names[0], seed) < fraction else ())
    train = [record for record in records if record.image.id not in held]
    return train, [record for record in records if record.image.id in held]
