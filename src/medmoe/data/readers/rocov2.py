"""ROCOv2 (Rückert et al. 2024): radiology pictures of PubMed Central with captions and concepts.

For phase 1. Each split is ``<split>/captions.csv``, ``concepts_manual.csv`` and ``images/``, or as
it is unpacked from its archive: ``<split>_captions.csv``, ``<split>_concepts_manual.csv`` and a
folder of images. The modality is the one that the manual concepts name; a picture with none or two
of them has none. Concepts are read for the modality only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medmoe.data.bad_rows import BadRows, collector
from medmoe.data.readers import common, tables
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

NAME = "rocov2"
SPLITS = ("train", "validation", "test")
MARKERS = (
    *("rocov2/train/captions.csv", "rocov2/train_captions.csv"),
    *("rocov2-sample/train/captions.csv", "ROCOv2/train_captions.csv"),
)
LICENCE = "LicenseRef-ROCOv2-per-image-CC-BY-or-CC-BY-NC"
SOURCE = common.Source("https://zenodo.org/records/10821435", "rocov2")
_PARTS = {"train": "train", "validation": "valid", "test": "test"}
#: UMLS concept -> modality.
_MODALITIES = {
    "C0002978": "angiography",
    "C0024485": "mri",
    "C0032743": "nuclear",
    "C0040405": "ct",
    "C0041618": "ultrasound",
    "C1306645": "xray",
    "C1699633": "pet-ct",
}


def read(root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return one caption record per image.

    Args:
        root: The data folder, which holds ``rocov2/`` or ``rocov2-sample/``.
        split: One of `SPLITS`.
        bad: Receives the bad rows; without it the first one is an error.

    Raises:
        DataError: A file is missing, or a row is malformed (file and row are named).
    """
    common.check_split(NAME, split, SPLITS)
    bad = collector(bad)
    marker = common.require(root, MARKERS[0], NAME, *MARKERS[1:])
    part = _PARTS[split]
    flat = marker.name.startswith("train_")
    folder = marker.parent if flat else marker.parents[1] / part
    prefix = f"{part}_" if flat else ""
    path = common.require_part(folder, f"{prefix}captions.csv", NAME)
    images_dir = common.image_folder(folder, (f"{part}_images", part) if flat else ("images",))
    names = {Path(name).stem: name for name in common.file_names(images_dir)}
    modalities = _modalities(folder / f"{prefix}concepts_manual.csv", bad)
    records = []
    for where, row in tables.rows(path, bad):
        with bad.row():
            text = common.fields(row, ("ID", "Caption"), where)
            if text["ID"] not in names:
                raise DataError(f"{where}: image file {text['ID']}.jpg is missing in {images_dir}")
            image = ImageRecord(
                id=f"{NAME}/{text['ID']}",
                source=images_dir / names[text["ID"]],
                modality=modalities.get(text["ID"]),
            )
            records.append(
                common.caption_record(image, text["Caption"], NAME, split, LICENCE, where)
            )
    return common.some(common.unique(records, path, bad), path)


def _modalities(path: Path, bad: BadRows) -> Mapping[str, str]:
    """Return image -> modality by the concepts, for images with exactly one."""
    if not path.is_file():
        return {}
    modality_of = {}
    for where, row in tables.rows(path, bad):
        with bad.row():
            text = common.fields(row, ("ID",), where)
            concepts = str(row.get("CUIs") or "").split(";")
            named = {_MODALITIES[c] for c in concepts if c in _MODALITIES}
            if len(named) == 1:
                modality_of[text["ID"]] = named.pop()
    return modality_of
