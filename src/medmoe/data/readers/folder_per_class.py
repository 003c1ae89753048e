"""A folder with one folder of pictures per class: ``<root>/[<split>/]<class>/*.png``.

Splits are the folders ``train``, ``validation`` or ``val``, and ``test`` where they exist; else all
pictures are ``train``. The name of a class folder, with spaces for underscores, is the answer. The
folder says nothing of modality, organ or licence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers.own_set import Content, OwnSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

QUESTION = "Which class does this image belong to?"
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".gz")
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}


@dataclass(frozen=True)
class FolderPerClass(OwnSet):
    """A user's folder of classes; its name is the name of the set."""

    def content(self, bad: BadRows) -> Content:
        """Return one classification record per picture."""
        splits = _splits(self.path) or {"": self.path}
        classes = [
            (split, folder) for split, inside in splits.items() for folder in _classes(inside)
        ]
        options = tuple(sorted({_label(folder.name) for _, folder in classes}))
        records = []
        for split, folder in classes:
            for file in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
                with bad.row():
                    records.append(self._record(file, _label(folder.name), options, split))
        return Content(records)

    def _record(self, file: Path, answer: str, options: tuple[str, ...], split: str) -> Record:
        if not file.is_file() or file.suffix.lower() not in SUFFIXES:
            raise DataError(f"{file}: not an image ({', '.join(SUFFIXES)}); remove the file")
        name = f"{self.NAME}/{file.relative_to(self.path).as_posix()}"
        return Record(
            id=name,
            image=ImageRecord(name, file, labels={"class": answer}),
            question=QUESTION,
            answer=answer,
            answer_type="closed",
            question_type="classification",
            task="classification",
            dataset=self.NAME,
            split=split,
            licence=self.LICENCE,
            options=options,
            place=str(file),
        )


def looks_like_one(path: Path) -> bool:
    """Return whether a folder holds classes: folders that hold files with a picture's suffix."""
    folders = [*_splits(path).values()] or [path]
    return any(
        file.suffix.lower() in SUFFIXES
        for folder in folders
        for inner in folder.iterdir()
        if inner.is_dir() and not inner.name.startswith(".")
        for file in inner.iterdir()
    )


def _splits(path: Path) -> dict[str, Path]:
    return {
        split: path / name
        for split, names in _SPLIT_FOLDERS.items()
        for name in names
        if (path / name).is_dir()
    }


def _classes(path: Path) -> list[Path]:
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise DataError(f"{path}: no class folder in it; make one folder of pictures per class")
    return folders


def _label(folder: str) -> str:
    return folder.replace("_", " ").strip()
