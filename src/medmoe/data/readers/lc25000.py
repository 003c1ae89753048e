"""LC25000 lung tiles (Borkowski et al. 2019): the pathology domain of a small run.

The tiles are augmentations of few original slides, so a split by file holds twins on both sides.
The set therefore serves the modality only: ``train`` has captions and tissue questions,
``validation`` and ``test`` have captions alone, and no tissue score can be computed from them.
"""

from __future__ import annotations

from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

NAME = "lc25000"
SPLITS = ("train", "validation", "test")
MARKERS = ("lc25000-lung/lung_aca",)
LICENCE = "LicenseRef-LC25000-free-for-AI-researchers"
SOURCE = common.Source("https://github.com/tampapath/lung_colon_image_set", "lc25000-lung")

QUESTION = "Which tissue does this histology image show?"
_FOLDERS = {
    "lung_aca": "lung adenocarcinoma",
    "lung_n": "benign lung tissue",
    "lung_scc": "lung squamous cell carcinoma",
}
OPTIONS = tuple(_FOLDERS.values())
_SUFFIXES = (".jpeg", ".jpg", ".png")


def read(root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
    """Return the caption records of a split; ``train`` also has the tissue questions.

    Args:
        root: The data folder, which holds ``lc25000-lung/<class>/*.jpeg``.
        split: One of `SPLITS`; files are split by a hash of their name (80/10/10).
        bad: Unused: there are no rows, only files.

    Raises:
        DataError: A class folder is missing or holds no image, or a file is no image.
    """
    common.check_split(NAME, split, SPLITS)
    folder = common.require(root, MARKERS[0], NAME).parent
    questions, captions = [], []
    for name, tissue in _FOLDERS.items():
        for path in _tiles(common.require_part(folder, name, NAME)):
            if common.hash_split(path.name) != split:
                continue
            image = ImageRecord(
                id=f"{NAME}/{name}/{path.name}",
                source=path,
                modality="pathology",
                organ="lung",
                labels={"tissue": tissue},
            )
            questions.append(_question(image, tissue, split))
            text = f"A histology image of {tissue}."
            captions.append(common.caption_record(image, text, NAME, split, LICENCE))
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


def _question(image: ImageRecord, tissue: str, split: str) -> Record:
    return Record(
        id=image.id,
        image=image,
        question=QUESTION,
        answer=tissue,
        answer_type="closed",
        question_type="classification",
        task="classification",
        dataset=NAME,
        split=split,
        licence=LICENCE,
        options=OPTIONS,
    )
