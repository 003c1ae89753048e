"""ROCOv2 (Rückert et al. 2024): radiology pictures of PubMed Central with captions and concepts.

For phase 1. Each split is ``<split>/captions.csv``, ``concepts_manual.csv`` and ``images/``, or as
it is unpacked from its archive: ``<split>_captions.csv``, ``<split>_concepts_manual.csv`` and a
folder of images. The modality is the one that the manual concepts name; a picture with none or two
of them has none. Concepts are read for the modality only.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, tables
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

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


class Rocov2(KnownSet):
    """The folder ``rocov2/`` or ``rocov2-sample/``."""

    NAME = "rocov2"
    MARKERS = (
        *("rocov2/train/captions.csv", "rocov2/train_captions.csv"),
        *("rocov2-sample/train/captions.csv", "ROCOv2/train_captions.csv"),
    )
    TRIED = True
    LICENCE = "LicenseRef-ROCOv2-per-image-CC-BY-or-CC-BY-NC"
    SOURCE = common.Source("https://zenodo.org/records/10821435", "rocov2")

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return one caption record per image."""
        part = _PARTS[split]
        flat = marker.name.startswith("train_")
        folder = marker.parent if flat else marker.parents[1] / part
        prefix = f"{part}_" if flat else ""
        path = common.require_part(folder, f"{prefix}captions.csv", self.NAME)
        images_dir = common.image_folder(folder, (f"{part}_images", part) if flat else ("images",))
        names = {Path(name).stem: name for name in common.file_names(images_dir)}
        modalities = _modalities(folder / f"{prefix}concepts_manual.csv", bad)

        def record(row: tables.Row, where: str) -> Record:
            text = common.fields(row, ("ID", "Caption"), where)
            name = text["ID"]
            if name not in names:
                raise DataError(f"{where}: image file {name}.jpg is missing in {images_dir}")
            image = ImageRecord(
                f"{self.NAME}/{name}", images_dir / names[name], modalities.get(name)
            )
            return self.caption(image, text["Caption"], split, where)

        return common.usable(bad.made(tables.rows(path, bad), record), path, bad)


def _modalities(path: Path, bad: BadRows) -> dict[str, str]:
    """Return image -> modality by the concepts, for images with exactly one."""
    if not path.is_file():
        return {}

    def named(row: tables.Row, where: str) -> list[tuple[str, str]]:
        image = common.fields(row, ("ID",), where)["ID"]
        concepts = str(row.get("CUIs") or "").split(";")
        return [(image, _MODALITIES[concept]) for concept in concepts if concept in _MODALITIES]

    rows = bad.made(tables.rows(path, bad), named)
    return common.only_values(itertools.chain.from_iterable(rows))


SET = Rocov2()
