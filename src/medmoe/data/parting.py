"""The parts of a user's own set that names no split: 80 / 10 / 10, the same on every machine.

A patient goes by a hash of the patient's name where a column gives it, else a picture by a hash of
its pixels; pictures that show one picture, of one patient or of one row stay together. No seed and
no file name takes part, so a set can be moved, and `eval` never scores a picture that `train` saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from medmoe.data.bad_rows import BadRows, without_faults
from medmoe.data.disjoint import groups_of
from medmoe.data.near_duplicates import fingerprints, repeated_pictures
from medmoe.data.readers.common import SPLITS, hash_share, hash_split
from medmoe.data.schema import Record, images_of

#: A group with more than this share of the pictures is trained on: no other part could hold it.
_LARGEST_SHARE = 0.2


def part(
    records: Sequence[Record], patients: Mapping[str, str], bad: BadRows
) -> tuple[dict[str, list[Record]], str]:
    """Return the records of each part, and a sentence on how they were parted.

    Args:
        records: Of a whole set.
        patients: Image id -> patient, where it is known.
        bad: Receives the rows whose picture cannot be opened; they belong to no part.
    """
    faults: dict[str, str] = {}
    known = fingerprints(images_of(records), faults)
    records = without_faults(records, faults, bad)
    known = known.of([image.id for image in images_of(records)])
    patients = {name: patients[name] for name in known.ids if name in patients}
    keys = dict(zip(known.ids, known.digests, strict=True))
    keys |= {name: f"patient {patient}" for name, patient in patients.items()}
    alike = [(pair.left_id, pair.right_id) for pair in repeated_pictures(known)]
    first_of: dict[str, str] = {}
    alike += [(first_of.setdefault(patient, name), name) for name, patient in patients.items()]
    alike += [(r.image.id, other.id) for r in records for _, other in r.further_images]
    groups = {min(keys[name] for name in names): names for names in groups_of(keys, alike)}
    part_of = {name: part for key, part in _dealt(groups).items() for name in groups[key]}
    parts: dict[str, list[Record]] = {split: [] for split in SPLITS}
    for record in records:
        split = part_of[record.image.id]
        parts[split].append(replace(record, split=split))
    counts = ", ".join(f"{len(images_of(members))} {split}" for split, members in parts.items())
    what = "patient" if patients else "picture"
    said = f"no split is named: parted by {what}, copies together, into {counts} pictures"
    if len(groups) < len(SPLITS):
        said += f"; only {len(groups)} can be told apart, name a split in every row for more parts"
    return {split: members for split, members in parts.items() if members}, said


def _dealt(groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the part of each group, by key; no part stays empty where there are three groups."""
    if len(groups) < len(SPLITS):
        return dict(zip(sorted(groups, key=hash_share), ("train", "test"), strict=False))
    largest = max(1, _LARGEST_SHARE * sum(map(len, groups.values())))
    dealt = {key: hash_split(key) if len(groups[key]) <= largest else "train" for key in groups}
    for empty in ("train", "test", "validation"):
        groups_in = Counter(dealt.values())
        if not groups_in[empty]:
            spare = [key for key in groups if groups_in[dealt[key]] > 1]
            dealt[min(spare, key=lambda key: (len(groups[key]), -hash_share(key)))] = empty
    return dealt
