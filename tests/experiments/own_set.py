"""A user's own sets in miniature: a table with modalities, one without, a folder per class."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tests.experiments.miniature import picture

#: Pictures of each modality, in the order of the rows.
MODALITIES = ("ct", "mri", "xray")


def write_pictures(folder: Path, numbers: Iterable[int]) -> list[str]:
    """Write pictures that differ in every hash; return their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:03d}.png" for number in numbers]
    for name in names:
        Image.fromarray(picture(int(name[:3]), 64)).save(folder / name)
    return names


def write_table(folder: Path, count: int = 30, *, modality: bool = True) -> Path:
    """Write ``data.csv`` of two questions a picture, without a split."""
    names = write_pictures(folder / "images", range(count))
    lines = ["image,question,answer" + ",modality" * modality]
    for number, name in enumerate(names):
        said = f",{MODALITIES[number % 3]}" if modality else ""
        lines.append(f"images/{name},Is there a mass?,{('yes', 'no')[number % 2]}{said}")
        lines.append(f"images/{name},Which side?,{('left', 'right')[number % 2]}{said}")
    path = folder / "data.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_classes(folder: Path, count: int = 12) -> Path:
    """Write a folder of two classes of pictures."""
    write_pictures(folder / "benign", range(100, 100 + count))
    write_pictures(folder / "malignant_tumour", range(200, 200 + count))
    return folder
