"""PMC-VQA (Zhang et al. 2023): multiple-choice questions about figures of PubMed Central.

Reads the official CSV files (``train_2.csv`` and ``test_2.csv`` are the second version without
compound figures, ``test_clean.csv`` the checked test) and the folder of figures. A record carries
its four choices as options, so the question lists them; the answer is the text of the right one.
The set names no modality.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, tables
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.errors import DataError

_FOLDERS = ("images", "figures", "images/images", "figures/figures", "images_2")
_LETTERS = "ABCD"


class PmcVqa(KnownSet):
    """The folder ``pmc-vqa/``."""

    NAME = "pmc_vqa"
    SPLITS = ("train", "test", "test_clean", "train_2", "test_2")
    MARKERS = tuple(f"pmc-vqa/{n}.csv" for n in ("train", "test", "test_clean", "test_2"))
    LICENCE = "CC-BY-SA-4.0"
    SOURCE = common.Source(
        "https://github.com/xiaoman-zhang/PMC-VQA",
        "pmc-vqa",
        hub="RadGenome/PMC-VQA",
        files=("*.csv", "images.zip", "images_2.zip"),
        archives=("images.zip", "images_2.zip"),
    )

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of a split."""
        path = common.require_part(marker.parent, f"{split}.csv", self.NAME)
        figures = _figures(marker.parent)
        images: dict[str, ImageRecord] = {}
        numbers = itertools.count(1)

        def record(row: tables.Row, where: str) -> Record:
            number = next(numbers)
            choices = [f"Choice {letter}" for letter in _LETTERS]
            text = common.fields(row, ("Figure_path", "Question", *choices), where)
            options = [_choice(text[f"Choice {c}"], c, where) for c in _LETTERS]
            name = text["Figure_path"]
            if name not in figures:
                raise DataError(f"{where}: image file {name!r} is missing; add it")
            image = images.setdefault(name, ImageRecord(f"{self.NAME}/{name}", figures[name]))
            answer = _answer(row, options, where)
            facts = common.choices(options, answer, "multiple_choice", where)
            asked = (f"{self.NAME}/{split}/{number}", image, text["Question"], answer, split)
            return self.record(*asked, **facts)

        return common.usable(bad.made(tables.rows(path, bad), record), path, bad)


def _figures(folder: Path) -> dict[str, Path]:
    """Return figure name -> file over all folders that archives are unpacked to."""
    paths: dict[str, Path] = {}
    for name in _FOLDERS:
        if (folder / name).is_dir():
            paths |= {file: folder / name / file for file in common.file_names(folder / name)}
    if not paths:
        raise DataError(
            f"{folder}: no folder of images, looked for {', '.join(_FOLDERS)}; unpack images.zip"
        )
    return paths


def _choice(text: str, letter: str, where: str) -> str:
    """Return a choice without its letter (`` B:Focal uptake `` is ``Focal uptake``)."""
    choice = text.removeprefix(f"{letter}:").strip()
    if not choice:
        raise DataError(f"{where}: empty Choice {letter}; fill it in or remove the row")
    return choice


def _answer(row: tables.Row, options: list[str], where: str) -> str:
    """Return the text of the right choice: by its letter, which either of two columns holds."""
    texts = [str(row.get(column) or "").strip() for column in ("Answer_label", "Answer")]
    letter = next((text for text in texts if text in tuple(_LETTERS.lower() + _LETTERS)), None)
    return texts[1] if letter is None else common.by_letter(letter, options, where)


SET = PmcVqa()
