"""A folder with one folder of pictures per class: ``<root>/[<split>/]<class>/*.png``.

Splits are the folders ``train``, ``validation`` or ``val``, and ``test`` where they exist; else all
pictures are ``train``. The name of a class folder, with spaces for underscores, is the answer. The
folder says nothing of modality, organ or licence.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medmoe.data.bad_rows import BadRows, collector
from medmoe.data.readers import common
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

QUESTION = "Which class does this image belong to?"
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".nii", ".gz")
_SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}

_SOURCE = common.Source("your own folder")


@dataclass(frozen=True, slots=True)
class FolderPerClass:
    """A user's folder of classes; its name is the name of the set."""

    path: Path
    SOURCE: common.Source = _SOURCE
    LICENCE: str = "unknown"

    @property
    def NAME(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def MARKERS(self) -> tuple[str, ...]:
        """The folder itself."""
        return (str(self.path),)

    @property
    def SPLITS(self) -> tuple[str, ...]:
        """The splits that have a folder, else ``train``."""
        return tuple(_splits(self.path)) or ("train",)

    def read(self, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
        """Return one classification record per picture of a split.

        Raises:
            DataError: There is no class folder, or a file in one is no picture.
        """
        del root
        common.check_split(self.NAME, split, self.SPLITS)
        bad = collector(bad)
        classes = _classes(_splits(self.path).get(split, self.path))
        options = tuple(_label(folder.name) for folder in classes)
        records = []
        for folder in classes:
            for file in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
                with bad.row():
                    records.append(self._record(file, _label(folder.name), options, split))
        return common.some(records, self.path)

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
