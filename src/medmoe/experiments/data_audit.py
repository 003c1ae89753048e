"""`medmoe data audit`: pictures shared by splits and sets, and what the answers give away.

It joins `medmoe.data.leakage` and `medmoe.evaluation.score.answer_audit` into one JSON object
and one page. It changes no data; a clean split is written beside the report on demand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmoe.data import registry
from medmoe.data.bad_rows import BadRows, without_faults
from medmoe.data.disjoint import disjoint_split, split_content
from medmoe.data.images import open_image
from medmoe.data.leakage import Overlap, find_overlaps
from medmoe.data.schema import Pixels, Record, images_of
from medmoe.errors import DataError
from medmoe.evaluation.pages.page import render_page
from medmoe.evaluation.score.answer_audit import audit_answers
from medmoe.notice import RESEARCH_ONLY

_SHOWN_PAIRS = 12
_THUMB = 132


@dataclass(frozen=True, slots=True)
class Audit:
    """An audit and what its page needs besides.

    Attributes:
        parts: Name and records of each split.
        result: The JSON object.
        overlaps: Of every pair of parts.
    """

    parts: Mapping[str, Sequence[Record]]
    result: dict[str, Any]
    overlaps: Sequence[Overlap]


def read_parts(
    names: Sequence[str], root: Path | None, bad: BadRows, *, allow_outside: bool = False
) -> dict[str, list[Record]]:
    """Read sets as a user names them, all splits of those that name none, as ``name/split``.

    Splits that are not there are left out; a set without any is an error.

    Raises:
        DataError: A set is unknown or not there, or rows are bad and may not be skipped.
    """
    parts: dict[str, list[Record]] = {}
    for name in names:
        readers, split = registry.parse_sets(name, allow_outside=allow_outside)
        for reader in readers:
            for part, records in registry.read_splits(reader, split, root, bad).items():
                if (label := f"{reader.NAME}/{part}") in parts:
                    raise DataError(f"{label} is given twice; name each set once")
                parts[label] = records
    bad.settle()
    return parts


def audit(parts: Mapping[str, Sequence[Record]], bad: BadRows) -> Audit:
    """Compare all pictures and count all answers.

    Raises:
        DataError: A picture cannot be opened, and its rows may not be skipped.
    """
    overlaps, faults = find_overlaps(parts)
    parts = {name: without_faults(records, faults, bad) for name, records in parts.items()}
    bad.settle()
    result = {
        "version": 1,
        "overlaps": [overlap.to_dict() for overlap in overlaps],
        "answers": audit_answers(parts),
        "unreadable_images": faults,
        "bad_rows": list(bad.reasons),
        "known_faults": dict(bad.known_faults),
        "notes": list(bad.notes),
        "note": RESEARCH_ONLY,
    }
    return Audit(parts, result, overlaps)


def counts(records: Sequence[Record]) -> dict[str, Any]:
    """Return what `medmoe data info` shows of one split."""
    images = images_of(records)
    return {
        "n": len(records),
        "images": len(images),
        "turns": sum(1 + len(record.further) for record in records),
        "tasks": _counted(record.task for record in records),
        "answer_types": _counted(r.answer_type for r in records if r.task != "caption"),
        "question_types": _counted(r.question_type for r in records if r.task != "caption"),
        "modalities": _counted(image.modality or "unknown" for image in images),
        "organs": _counted(image.organ or "unknown" for image in images),
        "licences": _counted(record.licence for record in records),
    }


def _counted(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def clean_split(found: Audit, seed: int) -> dict[str, Any]:
    """Return an image-disjoint split of all pictures of an audit, as its file holds it."""
    images = images_of([record for records in found.parts.values() for record in records])
    pairs = [pair for overlap in found.overlaps for pair in overlap.pairs]
    alike = [(pair.left_id, pair.right_id) for pair in pairs if pair.kind != "same_id"]
    return split_content(disjoint_split(images, alike, seed), seed)


def page(found: Audit) -> str:
    """Return the report as one HTML page, pictures included."""
    every = images_of(record for records in found.parts.values() for record in records)
    images = {image.id: image for image in every}
    shown = [
        {
            "overlap": overlap,
            "kinds": _counted(pair.kind for pair in overlap.pairs),
            "pairs": [
                (pair, *(_thumbnail(images[name].source) for name in pair[:2]))
                for pair in sorted(overlap.pairs, key=lambda p: -p.distance)[:_SHOWN_PAIRS]
            ],
        }
        for overlap in found.overlaps
        if overlap.pairs
    ]
    return render_page(
        "data_audit",
        parts=found.parts,
        overlaps=found.overlaps,
        shown=shown,
        result=found.result,
    )


def _thumbnail(source: Any) -> Pixels:
    """Return a small picture."""
    picture = open_image(source)
    picture.thumbnail((_THUMB, _THUMB))
    return np.asarray(picture)
