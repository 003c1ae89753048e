"""Questions and pictures of records that a prediction file knows by id only.

Prediction files hold neither, so that they stay small and may be committed. They are looked up in
the data sets under ``--data``, drawn again (the phantom's), or, for any other model's records,
taken from a folder of pictures. A record is taken only where its answer is the same: another copy
of a set, or another seed of the phantom, must not put a wrong picture beside an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medmoe.data import registry
from medmoe.data.images import open_image
from medmoe.data.phantom import SPLITS, read_phantom
from medmoe.data.schema import Pixels, Record
from medmoe.errors import DataError, ImageError

PHANTOM = "phantom"
#: Beyond this, drawing every phantom picture up to the one looked for would take minutes.
_MAX_PHANTOM = 4000


def known_records(
    records: Sequence[Record], root: Path | None, phantom_seed: int
) -> dict[str, Record]:
    """Return the full record of each id that can be found, with its question and picture.

    Args:
        root: Folder of the data sets; None: only the phantom's records can be found.
        phantom_seed: The seed that the phantom's pictures were drawn with.
    """
    wanted = {record.id: record for record in records}
    sets: dict[str, list[Record]] = {}
    for record in records:
        sets.setdefault(record.image.id.partition("/")[0], []).append(record)
    full: dict[str, Record] = {}
    for name, own in sets.items():
        for record in _candidates(name, own, root, phantom_seed):
            known = wanted.get(record.id)
            if known and (known.answer, known.image.id) == (record.answer, record.image.id):
                full[record.id] = record
    return full


def _candidates(
    name: str, records: Sequence[Record], root: Path | None, phantom_seed: int
) -> Iterable[Record]:
    if name == PHANTOM:
        yield from _phantom([record.image.id for record in records], phantom_seed)
    elif root is not None and name in registry.READERS:
        for split in registry.READERS[name].SPLITS:
            try:
                yield from registry.read(name, root, split)
            except DataError:  # a split that this copy does not hold
                continue


def _phantom(images: Sequence[str], seed: int) -> Iterable[Record]:
    """Draw the splits of the phantom up to the last picture that is looked for."""
    for split in SPLITS:
        begin = f"{PHANTOM}/{split}/"
        indices = [image.removeprefix(begin) for image in images if image.startswith(begin)]
        counts = [int(index) + 1 for index in indices if index.isdecimal()]
        if counts and max(counts) <= _MAX_PHANTOM:
            yield from read_phantom(split, max(counts), seed=seed)


def picture_of(record: Record, known: Mapping[str, Record], folder: Path | None) -> Pixels | None:
    """Return the pixels of a record's picture, None where it cannot be found.

    Args:
        folder: Where else a file of the image's name is looked for, with and without the data set
            in front, or by its last part; files outside it are not read.
    """
    sources = [known[record.id].image.source] if record.id in known else []
    if folder is not None:
        name = Path(record.image.id)
        of_set = Path(*name.parts[1:])
        paths = [(folder / part).resolve() for part in (name, of_set, name.name)]
        sources += [
            path for path in paths if path.is_file() and path.is_relative_to(folder.resolve())
        ]
    for source in sources:
        try:
            return np.asarray(open_image(source).convert("RGB"), dtype=np.uint8)
        except ImageError:
            continue
    return None


def with_question(record: Record, known: Mapping[str, Record]) -> Record:
    """Return the record with its question where it is known."""
    return replace(record, question=known[record.id].question) if record.id in known else record
