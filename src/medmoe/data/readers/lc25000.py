"""LC25000 lung tiles (Borkowski et al. 2019): the pathology domain of a small run.

The tiles are augmentations of few original slides, so a split by file holds twins on both sides.
The set therefore serves the modality only: ``train`` has captions and tissue questions,
``validation`` and ``test`` have captions alone, and no tissue score can be computed from them.
"""

from __future__ import annotations

from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

_QUESTION = "Which tissue does this histology image show?"
_FOLDERS = {
    "lung_aca": "lung adenocarcinoma",
    "lung_n": "benign lung tissue",
    "lung_scc": "lung squamous cell carcinoma",
}
_SUFFIXES = (".jpeg", ".jpg", ".png")


class Lc25000(KnownSet):
    """The folder ``lc25000-lung/<class>/*.jpeg``; files are split by a hash of their name."""

    NAME = "lc25000"
    MARKERS = ("lc25000-lung/lung_aca",)
    TRIED = True
    LICENCE = "LicenseRef-LC25000-free-for-AI-researchers"
    SOURCE = common.Source("https://github.com/tampapath/lung_colon_image_set", "lc25000-lung")

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the caption records of a split; ``train`` also has the tissue questions."""
        questions, captions = [], []
        for name, tissue in _FOLDERS.items():
            for path in _tiles(common.require_part(marker.parent, name, self.NAME)):
                if common.hash_split(path.name) != split:
                    continue
                image_id, labels = f"{self.NAME}/{name}/{path.name}", {"tissue": tissue}
                image = ImageRecord(image_id, path, "pathology", "lung", labels)
                options = tuple(_FOLDERS.values())
                questions.append(self.labelled(image, _QUESTION, tissue, options, split))
                captions.append(self.caption(image, f"A histology image of {tissue}.", split))
        return questions + captions if split == "train" else captions


def _tiles(folder: Path) -> list[Path]:
    """Return the image files of a class folder by name; hidden files are no data."""
    files = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    for path in files:
        if path.suffix.lower() not in _SUFFIXES:
            raise DataError(f"{path}: not an image ({', '.join(_SUFFIXES)}); remove the file")
    if not files:
        raise DataError(f"{folder}: no image in it; unpack the tiles there")
    return files


SET = Lc25000()
