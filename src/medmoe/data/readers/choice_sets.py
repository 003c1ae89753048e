"""Multiple-choice benchmarks: PMC-VQA, OmniMedVQA, MMMU-Med, MedXpertQA MM.

The pictures of a question about several stand before it, in the order of the row.
"""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path
from typing import Any

from medmoe.data.bad_rows import BadRows
from medmoe.data.exchange import read_rows
from medmoe.data.readers import common, tables
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Record
from medmoe.domains import modality_name
from medmoe.errors import DataError

_SUBJECTS = (
    *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
    *("Pharmacy", "Public_Health"),
)
_PMC_FOLDERS = ("images", "figures", "images/images", "figures/figures", "images_2")
_PMC_ZIPS = ("images.zip", "images_2.zip")
_IMAGE = r"<image (\d+)>"
Row = dict[str, Any]


class PmcVqa(KnownSet):
    """PMC-VQA (Zhang et al. 2023), figures of PubMed Central: the CSV files and folders of figures.

    ``train_2`` and ``test_2`` are the second version, without compound figures; ``test_clean`` is
    the checked test. A choice may begin with its letter (`` B:Focal uptake ``).
    """

    NAME = "pmc_vqa"
    SPLITS = ("train", "test", "test_clean", "train_2", "test_2")
    MARKERS = tuple(f"pmc-vqa/{n}.csv" for n in ("train", "test", "test_clean", "test_2"))
    LICENCE = "CC-BY-SA-4.0"
    SOURCE = common.Source(
        "https://github.com/xiaoman-zhang/PMC-VQA", "pmc-vqa", "RadGenome/PMC-VQA",
        files=("*.csv", *_PMC_ZIPS), archives=_PMC_ZIPS,
    )  # fmt: skip

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of a split."""
        path = common.require_part(marker.parent, f"{split}.csv", self.NAME)
        folders = [marker.parent / name for name in _PMC_FOLDERS if (marker.parent / name).is_dir()]
        figures = {name: folder / name for folder in folders for name in common.file_names(folder)}
        if not figures:
            looked = ", ".join(_PMC_FOLDERS)
            raise DataError(
                f"{marker.parent}: no folder of images, looked for {looked}; unpack images.zip"
            )
        images: dict[str, ImageRecord] = {}
        numbers = itertools.count(1)

        def record(row: Row, where: str) -> Record:
            number, names = next(numbers), [f"Choice {letter}" for letter in "ABCD"]
            name, question, *texts = common.fields(
                row, ("Figure_path", "Question", *names), where
            ).values()
            lettered = zip("ABCD", texts, strict=True)
            options = [text.removeprefix(f"{letter}:").strip() for letter, text in lettered]
            if "" in options:
                empty = names[options.index("")]
                raise DataError(f"{where}: empty {empty}; fill it in or remove the row")
            if name not in figures:
                raise DataError(f"{where}: image file {name!r} is missing; add it")
            image = images.setdefault(name, ImageRecord(f"{self.NAME}/{name}", figures[name]))
            # A letter in either of two columns, else the text.
            given = [str(row.get(c) or "").strip() for c in ("Answer_label", "Answer")]
            letters = [text for text in given if text.upper() in tuple("ABCD")]
            answer = common.by_letter(letters[0], options, where) if letters else given[1]
            facts = common.choices(options, answer, "multiple_choice", where)
            name = f"{self.NAME}/{split}/{number}"
            return self.record(name, image, question, answer, split, **facts)

        return common.usable(bad.made(tables.rows(path, bad), record), path, bad)


class OmniMedVqa(KnownSet):
    """OmniMedVQA (Hu et al. 2024), its open part: 88,996 questions of 42 data sets, for testing.

    ``QA_information/Open-access/<data set>.json`` beside ``Images/``.
    """

    NAME = "omnimed_vqa"
    SPLITS = ("test",)
    MARKERS = tuple(
        f"{folder}/QA_information/Open-access"
        for folder in ("omnimed-vqa", "omnimed-vqa/OmniMedVQA", "OmniMedVQA")
    )
    LICENCE = "LicenseRef-OmniMedVQA-per-data-set"
    SOURCE = common.Source(
        "https://github.com/OpenGVLab/Multi-Modality-Arena",
        "omnimed-vqa", "foreverbeliever/OmniMedVQA", None, ("OmniMedVQA.zip",), ("OmniMedVQA.zip",)
    )  # fmt: skip

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of all files; an image's modality is that of its first row."""
        images: dict[str, ImageRecord] = {}

        def record(row: Row, where: str) -> Record:
            names = ("question_id", "question", "gt_answer", "image_path")
            name, question, answer, path = common.fields(row, names, where).values()
            if path not in images:
                # One file has another key; "CT(Computed Tomography)", "Microscopy Images".
                raw = str(row.get("modality_type") or row.get("modality") or "")
                known = re.sub(r"\(.*|(?<=Fundus) Photography| Images", "", raw).strip()
                source = common.image_file(marker.parents[1], path, where)
                modality = modality_name(known) or None
                images[path] = ImageRecord(f"{self.NAME}/{path}", source, modality)
            options = [str(row.get(f"option_{letter}") or "") for letter in "ABCD"]
            facts = common.choices(options, answer, row.get("question_type"), where)
            name = f"{self.NAME}/{name}"
            return self.record(name, images[path], question, answer, split, **facts)

        rows = (row for path in sorted(marker.glob("*.json")) for row in common.json_rows(path))
        return common.usable(bad.made(rows, record), marker, bad)


class MmmuMed(KnownSet):
    """The five medical subjects of MMMU (Yue et al. 2024): ``<subject>/<split>-*.parquet``.

    Its ``dev`` is ``train`` here; ``validation`` (30 questions a subject) is what everyone scores;
    the answers of its test are not public. ``<image 1>`` in a sentence becomes "the image", and
    "image 1" where there are several.
    """

    NAME = "mmmu_med"
    SPLITS = ("train", "validation")
    MARKERS = ("mmmu/Clinical_Medicine",)
    LICENCE = "Apache-2.0"
    SOURCE = common.Source(
        "https://mmmu-benchmark.github.io", "mmmu", "MMMU/MMMU",
        files=tuple(f"{s}/{part}-*.parquet" for s in _SUBJECTS for part in ("dev", "validation")),
    )  # fmt: skip

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of all subjects; those without options are open."""
        folder, part = marker.parent, "dev" if split == "train" else split
        files = [path for s in _SUBJECTS for path in sorted((folder / s).glob(f"{part}-*.parquet"))]
        if {path.parent.name for path in files} != {*_SUBJECTS}:
            raise common.MissingPart(
                f"{folder}: not each of {', '.join(_SUBJECTS)} has its {part}-*.parquet; add it"
            )

        def record(row: Row, where: str) -> Record:
            name, question, right = common.fields(row, ("id", "question", "answer"), where).values()
            numbers = [n for n in range(1, 8) if row.get(f"image_{n}")]
            images = [
                ImageRecord(f"{self.NAME}/{name}{f'#{i}' * (i > 1)}", row[f"image_{n}"]["bytes"])
                for i, n in enumerate(numbers, 1)
            ]
            if len(images) == 1:
                question = re.sub(rf"^(\s*{_IMAGE})+|({_IMAGE}\s*)+$", "", question)
            question = _in_words(question, numbers, where).strip()
            options = [_in_words(o, numbers, where) for o in _listed(row.get("options"), where)]
            kind = Path(where).parent.name.replace("_", " ").lower()
            if options:
                answer = common.by_letter(right, options, where)
                facts = common.choices(options, answer, kind, where)
            else:
                answer, *more = _listed(right, where) or [right]
                facts = {"question_type": kind, "references": tuple(more), "place": where}
            facts |= {"further_images": _further(images, where)}
            return self.record(f"{self.NAME}/{name}", images[0], question, answer, split, **facts)

        rows = (
            (f"{path} row {n}", row) for path in files for n, row in enumerate(read_rows(path), 1)
        )
        return common.usable(bad.made(rows, record), folder, bad)


class MedXpertQaMm(KnownSet):
    """MedXpertQA MM (Zuo et al. 2025): ``MM/dev.jsonl`` (``train`` here) and ``MM/test.jsonl``.

    The options also stand at the end of the question and are cut off there.
    """

    NAME = "medxpertqa_mm"
    SPLITS = ("train", "test")
    MARKERS = ("medxpertqa/MM",)
    LICENCE = "MIT"
    SOURCE = common.Source(
        "https://github.com/TsinghuaC3I/MedXpertQA", "medxpertqa", "TsinghuaC3I/MedXpertQA",
        files=("MM/*.jsonl", "images.zip"), archives=("images.zip",),
    )  # fmt: skip

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the questions of a split."""
        part = "dev" if split == "train" else split
        path = common.require_part(marker, f"{part}.jsonl", self.NAME)
        folder = common.image_folder(marker.parent, ("images", "images/images"))
        images: dict[str, ImageRecord] = {}

        def record(row: Row, where: str) -> Record:
            name, question, right = common.fields(row, ("id", "question", "label"), where).values()
            pictures, by_letter = row.get("images"), row.get("options")
            if not isinstance(pictures, list) or not isinstance(by_letter, dict):
                raise DataError(f"{where}: needs a list of images and options by letter")
            for key in dict.fromkeys(map(str, pictures)):
                if key not in images:
                    source = common.image_file(folder, key, where)
                    images[key] = ImageRecord(f"{self.NAME}/{key}", source)
            shown = [images[str(key)] for key in pictures]
            question = question.partition("\nAnswer Choices:")[0]
            options = [str(by_letter[letter]) for letter in sorted(by_letter)]
            answer = common.by_letter(right, options, where)
            facts = common.choices(options, answer, row.get("medical_task"), where)
            facts |= {"further_images": _further(shown, where)}
            name = f"{self.NAME}/{name}"
            return self.record(name, shown[0], question, answer, split, **facts)

        return common.usable(bad.made(tables.rows(path, bad), record), path, bad)


def _further(images: list[ImageRecord], where: str) -> tuple[tuple[int, ImageRecord], ...]:
    """Return the images of a question after its first."""
    if not images:
        raise DataError(f"{where}: no image in the row; fetch the file again")
    return tuple((0, image) for image in images[1:])


def _in_words(text: str, numbers: list[int], where: str) -> str:
    """Return a text with words in the place of marks: which of a row's images is meant."""

    def words(mark: re.Match[str]) -> str:
        if len(numbers) < 2:
            return "the image"
        if int(mark[1]) not in numbers:
            raise DataError(f"{where}: {mark[0]} is not in the row; fetch the file again")
        return f"image {1 + numbers.index(int(mark[1]))}"

    return re.sub(_IMAGE, words, text)


def _listed(value: object, where: str) -> list[str]:
    """Return a list that the set holds as its Python text; empty where it is none."""
    try:
        return [str(each) for each in ast.literal_eval(str(value))]
    except (SyntaxError, ValueError, TypeError):
        if str(value).startswith("["):
            raise DataError(f"{where}: {value!r:.40} is no list; fetch the file again") from None
        return []


PMC_VQA, OMNIMED_VQA = PmcVqa(), OmniMedVqa()
MMMU_MED, MEDXPERTQA_MM = MmmuMed(), MedXpertQaMm()
