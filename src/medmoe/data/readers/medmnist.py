"""The twelve 2-D MedMNIST sets (Yang et al. 2023), as questions about the labels.

PneumoniaMNIST and OrganCMNIST are the paper's (table 3). Reads the npz files as published, at 28
pixels a side (``<name>.npz``), else the largest of 224, 128 and 64 that is there. Options stand in
the order of the official labels. ChestMNIST is officially 14 binary tasks: one yes-or-no question
for each finding and image, whose mean AUC over the findings is the official score. RetinaMNIST's
grades are read as classes; their order is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, npz
from medmoe.data.schema import ImageRecord, Pixels, Record

_KEYS = {"train": "train", "validation": "val", "test": "test"}
_SIZES = ("", "_224", "_128", "_64")
_HOME = common.Source("https://zenodo.org/records/10519652")


@dataclass(frozen=True, slots=True)
class MedMnist:
    """One set: what is asked, and the label texts in their official order."""

    NAME: str
    question: str
    options: tuple[str, ...]
    modality: str
    organ: str | None
    findings: tuple[str, ...] = ()
    LICENCE: str = "CC-BY-4.0"
    SPLITS: tuple[str, ...] = tuple(_KEYS)
    SOURCE: common.Source = _HOME

    @property
    def MARKERS(self) -> tuple[str, ...]:
        """The npz files, of any size."""
        return tuple(f"{self.NAME}{size}.npz" for size in _SIZES)

    def read(self, root: Path, split: str, bad: BadRows | None = None) -> list[Record]:
        """Return the classification records of a split, in the order of the file.

        Args:
            root: The data folder, which holds the npz file.
            split: One of ``train``, ``validation``, ``test``.
            bad: Unused: arrays are right or wrong as a whole.

        Raises:
            DataError: The file is missing or broken, or a label is none of the set's.
        """
        del bad
        common.check_split(self.NAME, split, self.SPLITS)
        path = common.require(root, self.MARKERS[0], self.NAME, *self.MARKERS[1:])
        key = _KEYS[split]
        arrays = npz.load(path, (f"{key}_images", f"{key}_labels"))
        pictures = npz.images(path, f"{key}_images", arrays)
        if self.findings:
            flags = npz.flags(path, f"{key}_labels", arrays, len(pictures), len(self.findings))
            pairs = zip(pictures, flags, strict=True)
            return [r for i, (p, f) in enumerate(pairs) for r in self._flagged(p, f, split, i)]
        labels = npz.labels(path, f"{key}_labels", arrays, len(pictures), len(self.options))
        return [
            self._labelled(picture, label, split, index)
            for index, (picture, label) in enumerate(zip(pictures, labels, strict=True))
        ]

    def _image(
        self, picture: Pixels, split: str, index: int, labels: dict[str, str]
    ) -> ImageRecord:
        name = f"{self.NAME}/{split}/{index}"
        return ImageRecord(name, picture, self.modality, self.organ, labels)

    def _labelled(self, picture: Pixels, label: int, split: str, index: int) -> Record:
        answer = self.options[label]
        image = self._image(picture, split, index, {"finding": answer})
        return self._record(image, image.id, self.question, answer, "classification", split)

    def _flagged(
        self, picture: Pixels, flags: Sequence[int], split: str, index: int
    ) -> list[Record]:
        image = self._image(picture, split, index, {})
        return [
            self._record(
                image,
                f"{image.id}/{finding}",
                self.question.format(finding=finding),
                self.options[flag],
                finding,
                split,
            )
            for finding, flag in zip(self.findings, flags, strict=True)
        ]

    def _record(
        self, image: ImageRecord, name: str, question: str, answer: str, kind: str, split: str
    ) -> Record:
        return Record(
            id=name,
            image=image,
            question=question,
            answer=answer,
            answer_type="closed",
            question_type=kind,
            task="classification",
            dataset=self.NAME,
            split=split,
            licence=self.LICENCE,
            options=self.options,
        )


_ORGANS = (
    *("bladder", "left femur", "right femur", "heart", "left kidney", "right kidney", "liver"),
    *("left lung", "right lung", "pancreas", "spleen"),
)
_ORGAN_QUESTION = "Which organ does this abdominal CT image show?"

_ALL = (
    MedMnist(
        "pathmnist",
        "Which tissue does this colon histology image show?",
        (
            *("adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle"),
            *("normal colon mucosa", "cancer-associated stroma"),
            "colorectal adenocarcinoma epithelium",
        ),
        "pathology",
        "colon",
    ),
    MedMnist(
        "chestmnist",
        "Does this chest X-ray show {finding}?",
        ("no", "yes"),
        "xray",
        "chest",
        findings=(
            *("atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule"),
            *("pneumonia", "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis"),
            *("pleural thickening", "hernia"),
        ),
    ),
    MedMnist(
        "dermamnist",
        "Which skin lesion does this dermatoscopic image show?",
        (
            *("actinic keratosis or intraepithelial carcinoma", "basal cell carcinoma"),
            *("benign keratosis-like lesion", "dermatofibroma", "melanoma", "melanocytic nevus"),
            "vascular lesion",
        ),
        "dermoscopy",
        "skin",
        LICENCE="CC-BY-NC-4.0",
    ),
    MedMnist(
        "octmnist",
        "What does this retinal OCT image show?",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        "oct",
        "retina",
    ),
    MedMnist(
        "pneumoniamnist",
        "Does this chest X-ray show pneumonia?",
        ("normal", "pneumonia"),
        "xray",
        "chest",
    ),
    MedMnist(
        "retinamnist",
        "Which grade of diabetic retinopathy does this fundus image show?",
        tuple(f"grade {number}" for number in range(5)),
        "fundus",
        "retina",
    ),
    MedMnist(
        "breastmnist",
        "Is the finding in this breast ultrasound malignant?",
        ("malignant", "normal or benign"),
        "ultrasound",
        "breast",
    ),
    MedMnist(
        "bloodmnist",
        "Which blood cell does this microscope image show?",
        (
            *("basophil", "eosinophil", "erythroblast", "immature granulocyte"),
            *("lymphocyte", "monocyte", "neutrophil", "platelet"),
        ),
        "microscopy",
        "blood",
    ),
    MedMnist(
        "tissuemnist",
        "Which kidney cortex cell does this microscope image show?",
        (
            *("collecting duct or connecting tubule", "distal convoluted tubule"),
            *("glomerular endothelial cell", "interstitial endothelial cell", "leukocyte"),
            *("podocyte", "proximal tubule segment", "thick ascending limb"),
        ),
        "microscopy",
        "kidney",
    ),
    MedMnist("organamnist", _ORGAN_QUESTION, _ORGANS, "ct", "abdomen"),
    MedMnist("organcmnist", _ORGAN_QUESTION, _ORGANS, "ct", "abdomen"),
    MedMnist("organsmnist", _ORGAN_QUESTION, _ORGANS, "ct", "abdomen"),
)

#: The sets by name.
SETS: dict[str, MedMnist] = {one.NAME: one for one in _ALL}
