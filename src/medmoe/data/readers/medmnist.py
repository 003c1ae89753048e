"""The twelve 2-D MedMNIST sets (Yang et al. 2023), as questions about the labels.

PneumoniaMNIST and OrganCMNIST are the paper's (table 3). Reads the npz files as published, at 28
pixels a side (``<name>.npz``), else the largest of 224, 128 and 64 that is there. Options stand in
the order of the official labels. ChestMNIST is officially 14 binary tasks: one yes-or-no question
for each finding and image, whose mean AUC over the findings is the official score. RetinaMNIST's
grades are read as classes; their order is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medmoe.data.bad_rows import BadRows
from medmoe.data.readers import common, npz
from medmoe.data.readers.known_set import KnownSet
from medmoe.data.schema import ImageRecord, Pixels, Record

_KEYS = {"train": "train", "validation": "val", "test": "test"}
_SIZES = ("", "_224", "_128", "_64")


@dataclass(eq=False)
class MedMnist(KnownSet):
    """One set: what is asked, and the label texts in their official order."""

    NAME: str
    question: str
    options: tuple[str, ...]
    modality: str
    organ: str | None
    findings: tuple[str, ...] = ()
    LICENCE: str = "CC-BY-4.0"
    SOURCE = common.Source("https://zenodo.org/records/10519652")

    def __post_init__(self) -> None:
        """Name the npz files, of any size."""
        self.MARKERS = tuple(f"{self.NAME}{size}.npz" for size in _SIZES)
        self.TRIED = self.NAME == "pneumoniamnist"

    def records(self, marker: Path, split: str, bad: BadRows) -> list[Record]:
        """Return the classification records of a split, in the order of the file."""
        pictures, truth = (f"{_KEYS[split]}_{what}" for what in ("images", "labels"))
        arrays = npz.load(marker, (pictures, truth))
        pixels = npz.images(marker, pictures, arrays)

        def image(index: int, picture: Pixels, labels: dict[str, str]) -> ImageRecord:
            name = f"{self.NAME}/{split}/{index}"
            return ImageRecord(name, picture, self.modality, self.organ, labels)

        if not self.findings:
            labels = npz.labels(marker, truth, arrays, len(pixels), len(self.options))
            answers = [self.options[label] for label in labels]
            images = [
                image(index, picture, {"finding": answer})
                for index, (picture, answer) in enumerate(zip(pixels, answers, strict=True))
            ]
            return [
                self.labelled(one, self.question, answer, self.options, split)
                for one, answer in zip(images, answers, strict=True)
            ]
        rows = npz.flags(marker, truth, arrays, len(pixels), len(self.findings))
        images = [image(index, picture, {}) for index, picture in enumerate(pixels)]
        asked = [(finding, self.question.format(finding=finding)) for finding in self.findings]
        return [
            self.labelled(one, question, self.options[flag], self.options, split, finding)
            for one, flags in zip(images, rows, strict=True)
            for (finding, question), flag in zip(asked, flags, strict=True)
        ]


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
