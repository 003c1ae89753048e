"""All five real data sets in miniature, in their official layouts, with pictures of their own.

The readers' tests write files that are never opened; these can be, and hashed, and trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

RAD_IMAGES, RAD_TEST_IMAGES = 20, 6
#: The image-disjoint split of the miniature, by number of the image.
RAD_PARTS = {"train": range(14), "val": range(14, 16), "test": range(16, 20)}
#: VQA-Med pictures that are copies of VQA-RAD pictures.
MED_BANNED_TRAIN, MED_BANNED_VALIDATION = 15006, 17664
MED_TRAIN = (*range(1, 8), MED_BANNED_TRAIN)
MED_VALIDATION = (*range(21, 24), MED_BANNED_VALIDATION)
PNEUMONIA = {"train": 12, "val": 4, "test": 6}
MEDNIST, TILES = 60, 12
CLASSES = ("AbdomenCT", "BreastMRI", "CXR", "ChestCT", "Hand", "HeadCT")
_STEMS = {
    "modality": ("C1_Modality", "what is the modality?", ("ct", "mr - flair")),
    "plane": ("C2_Plane", "what is the plane?", ("axial", "coronal")),
    "organ": ("C3_Organ", "what organ is this?", ("lung", "skull and contents")),
    "abnormality": ("C4_Abnormality", "is this normal?", ("yes", "meningioma")),
}


def picture(seed: int, side: int = 48) -> Pixels:
    """Return a picture of smooth blobs, far from those of all other seeds by its hash."""
    rng = np.random.default_rng([9, seed])
    coarse = Image.fromarray(rng.integers(0, 256, (10, 10), dtype=np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def write_all(root: Path, copies: Mapping[str, str] | None = None) -> Path:
    """Write every data set.

    Args:
        copies: Picture to make a copy of another one, both as ``rad/3`` or ``train/5`` (VQA-Med).
    """
    copies = copies or {}
    write_rad(root, copies)
    write_med(root, copies)
    write_arrays(root)
    write_tiles(root)
    return root


def _seed(name: str) -> int:
    kind, number = name.split("/")
    return {"rad": 1000, "train": 2000, "val": 2000}[kind] + int(number)


def _save(path: Path, name: str, copies: Mapping[str, str]) -> None:
    """Save the picture of a name; a copy of another one is smaller and compressed harder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture(_seed(copies.get(name, name)), 96))
    if name in copies:
        image.resize((80, 80)).save(path, quality=80)
    else:
        image.save(path, quality=95)


def rad_name(number: int) -> str:
    """Return the file name of a VQA-RAD picture."""
    return f"synpic{number}.jpg"


def _rad_row(qid: int, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "qid": qid,
        "image_name": rad_name(number),
        "image_organ": ("CHEST", "HEAD", "ABD")[number % 3],
        "question": "Is there a mass?",
        "answer": ("Yes", "No")[qid % 2],
        "answer_type": "CLOSED",
        "question_type": "PRES",
        **changes,
    }


def write_rad(root: Path, copies: Mapping[str, str]) -> None:
    """Write VQA-RAD: as in the real one, every test picture stands in train as well."""
    folder = root / "vqa-rad"
    for number in range(RAD_IMAGES):
        _save(folder / "images" / rad_name(number), f"rad/{number}", copies)
    train = []
    for number in range(RAD_IMAGES):
        train.append(_rad_row(10 * number, number))
        train.append(
            _rad_row(
                10 * number + 1,
                number,
                question="What modality is this?",
                answer=("CT", "MRI")[number % 2],
                answer_type="OPEN",
                question_type="MODALITY",
            )
        )
    tested = range(RAD_IMAGES - RAD_TEST_IMAGES, RAD_IMAGES)
    test = [_rad_row(10 * n + 2, n, question="Is it large?", question_type="SIZE") for n in tested]
    parts = {part: [rad_name(n) for n in numbers] for part, numbers in RAD_PARTS.items()}
    for name, content in (("trainset", train), ("testset", test), ("image_disjoint", parts)):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def write_med(root: Path, copies: Mapping[str, str]) -> None:
    """Write VQA-Med 2019 with one banned picture in each part."""
    folder = root / "vqa-med-2019"
    for split, numbers in (("train", MED_TRAIN), ("val", MED_VALIDATION)):
        for number in numbers:
            path = folder / split / "images" / f"synpic{number}.jpg"
            _save(path, f"{split}/{number}", copies)
        (folder / split / "QAPairsByCategory").mkdir()
        for stem, question, answers in _STEMS.values():
            rows = [f"synpic{n}|{question}|{answers[n % 2]}" for n in numbers]
            path = folder / split / "QAPairsByCategory" / f"{stem}_{split}.txt"
            path.write_text("\n".join(rows), encoding="utf-8")
    (folder / "train" / "All_QA_Pairs_train.txt").write_text("", encoding="utf-8")


def write_arrays(root: Path) -> None:
    """Write PneumoniaMNIST and MedNIST."""
    arrays: dict[str, Any] = {}
    for place, (part, count) in enumerate(PNEUMONIA.items()):
        stack = [picture(5000 + 100 * place + k, 28) for k in range(count)]
        arrays[f"{part}_images"] = np.stack(stack)
        arrays[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    np.savez(root / "pneumoniamnist.npz", **arrays)
    np.savez(
        root / "mednist-6k.npz",
        images=np.stack([picture(6000 + k, 64) for k in range(MEDNIST)]),
        labels=np.arange(MEDNIST, dtype=np.uint8) % len(CLASSES),
        classes=np.array(CLASSES),
    )


def write_tiles(root: Path) -> None:
    """Write the LC25000 tiles."""
    for place, name in enumerate(("lung_aca", "lung_n", "lung_scc")):
        folder = root / "lc25000-lung" / name
        folder.mkdir(parents=True)
        for number in range(TILES):
            grey = picture(7000 + 100 * place + number, 64)
            colour = np.stack([grey, grey // 2, 255 - grey // 2], axis=-1)
            Image.fromarray(colour).save(folder / f"{name.replace('_', '')}{number}.jpeg")
