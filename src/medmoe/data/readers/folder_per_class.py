"""A folder with one folder of pictures per class: ``<root>/[<split>/]<class>/*.png``.

The folders of splits may be spelt in any usual way (``train``, ``Training``, ``val``, ``valid``,
``dev``, ``test``, …); without them the set is parted. The name of a class folder, with spaces for
underscores, is the answer; every question has the classes of all splits as options. Pictures in
folders of patients inside a class are read too. What lies there besides is named, not read. The
folder says nothing of modality, organ or licence.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common
from medmoe.data.readers.checker import Checker
from medmoe.data.readers.own_set import Content, OwnSet, with_classes
from medmoe.errors import DataError, first_few

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".webp", ".bmp"),
    *(".dcm", ".dicom", ".nii", ".gz"),
)
#: What systems, cameras and notebooks leave in folders; names with a dot in front are such too.
_SYSTEM = ("__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found")
_PATIENT = re.compile(r"(patient|subject|pat|sub|case|p|s)[-_ ]?\d+", re.IGNORECASE)


@dataclass(frozen=True)
class FolderPerClass(OwnSet):
    """A user's folder of classes; its name is the name of the set."""

    def content(self, bad: BadRows) -> Content:
        """Return one classification record per picture."""
        splits = _splits(self.path) or {"": [self.path]}
        classes = [
            (split, folder)
            for split, folders in splits.items()
            for inside in folders
            for folder in _folders(inside)
            if folder not in (f for others in splits.values() for f in others)
        ]
        self._say_what_is_not_read(splits, classes, bad)
        above = self.path.resolve().parent
        of_above = [split for split, ones in _splits(above).items() if self.path.resolve() in ones]
        if of_above:
            bad.say(
                f"{self.path}: read alone, with its own classes as options; give {above}:"
                f"{of_above[0]} for the split of a set with the classes of all"
            )
        files = {folder: list(_files(folder)) for _, folder in classes}
        labels = self._labels([folder for _, folder in classes if files[folder]])
        checker = Checker(self.NAME, self.LICENCE, self.allow_outside)
        records = []
        for split, folder in classes:
            for file in files[folder]:
                with bad.row():
                    if file.suffix.lower() not in SUFFIXES:
                        raise DataError(
                            f"{file}: not an image that can be read ({', '.join(SUFFIXES)}); "
                            "convert it to PNG or remove it"
                        )
                    name = file.relative_to(self.path).as_posix()
                    row = {"id": name, "image": name, "split": split, "label": labels[folder.name]}
                    inner = file.relative_to(folder).parts[:-1]
                    if inner and _PATIENT.fullmatch(inner[0]):
                        row["patient"] = inner[0].lower()
                    records.append(checker.record(row, str(file), self.path, ""))
        return Content(with_classes(list(filter(None, records)), self.path), checker.patients)

    def _labels(self, folders: list[Path]) -> dict[str, str]:
        """Return name of a class folder -> class; two names must not differ in spelling only."""
        names: defaultdict[str, set[str]] = defaultdict(set)
        for folder in folders:
            names[_label(folder.name).casefold()].add(folder.name)
        for spellings in names.values():
            if len(spellings) > 1:
                raise DataError(
                    f"{self.path}: class folders {', '.join(map(repr, sorted(spellings)))} name "
                    "one class; give them one name, or names that differ"
                )
        return {name: _label(name) for spellings in names.values() for name in spellings}

    def _say_what_is_not_read(
        self, splits: dict[str, list[Path]], classes: list[tuple[str, Path]], bad: BadRows
    ) -> None:
        for split, folders in splits.items():
            if len(folders) > 1:
                names = " and ".join(sorted(folder.name for folder in folders))
                bad.say(f"{self.path}: {names} are read together, as {split}")
        beside = dict.fromkeys((self.path, *(f for folders in splits.values() for f in folders)))
        inside = dict.fromkeys(folder for _, folder in classes)
        entries = [e for place in (*beside, *inside) for e in sorted(place.iterdir())]
        other = [e for e in entries if e.parent in beside and e not in beside and e not in inside]
        for what, listed in (
            ("files of systems are ignored", [e for e in entries if _of_system(e)]),
            ("not read, beside the classes", [e for e in other if not _of_system(e)]),
        ):
            if listed:
                names = first_few(str(entry.relative_to(self.path)) for entry in listed)
                bad.say(f"{self.path}: {what}: {names}")
        for _, folder in classes:
            if not any(_files(folder)):
                bad.say(f"{folder}: holds no picture, is no class")


def looks_like_one(path: Path) -> bool:
    """Return whether a folder holds classes: folders with a file that has a picture's suffix."""
    places = [folder for folders in _splits(path).values() for folder in folders] or [path]
    return any(
        file.suffix.lower() in SUFFIXES
        for place in places
        for folder in _folders(place)
        for file in _files(folder)
    )


def _splits(path: Path) -> dict[str, list[Path]]:
    """Return the folders of each split; one that holds pictures itself is a class of that name."""
    folders_of: defaultdict[str, list[Path]] = defaultdict(list)
    for folder in _folders(path):
        name = common.split_name(folder.name)
        if name in common.SPLITS and any(_folders(folder)):
            folders_of[name].append(folder)
    return {split: folders_of[split] for split in common.SPLITS if split in folders_of}


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not _of_system(entry))


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a class, those of the folders in it too."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not _of_system(entry):
            yield from _files(entry)
        elif not _of_system(entry):
            yield entry


def _of_system(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name.lower() in _SYSTEM


def _label(folder: str) -> str:
    return folder.replace("_", " ").strip()
