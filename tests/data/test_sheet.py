"""The contact sheet: the pictures asked for, spread over the modalities, the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from tests.data.pictures import record

from medmoe.data.schema import ImageRecord, Record
from medmoe.data.sheet import CHINESE_FONTS, _spread, contact_sheet


def shades(count: int) -> list[Record]:
    """Nine of ten pictures are CT, the others MRI; two questions on each."""
    kinds = ["mri" if n % 10 == 0 else "ct" for n in range(count)]
    grey = [np.full((40, 20 + n), 10 + n, np.uint8) for n in range(count)]
    images = [
        ImageRecord(f"set/{n}", g, k) for n, (g, k) in enumerate(zip(grey, kinds, strict=True))
    ]
    return [record(image, name) for image in images for name in ("a", "b")]


def test_modalities_take_turns_and_no_picture_comes_twice() -> None:
    chosen = _spread(shades(60), 10, seed=1)
    assert len({r.image.id for r in chosen}) == 10
    assert sum(r.image.modality == "mri" for r in chosen) == 5


def test_the_sheet_shows_the_chosen_pictures() -> None:
    records = shades(30)
    drawn = np.asarray(contact_sheet(records, "set/train", 4, seed=1))
    assert drawn.ndim == 3
    for chosen in _spread(records, 4, seed=1):
        source = chosen.image.source
        assert isinstance(source, np.ndarray)
        # 40 x 20 at least, drawn 208 high: far more than a hundred pixels of its shade.
        assert (drawn == source[0, 0]).all(axis=2).sum() > 10_000


@pytest.mark.parametrize("count", [1, 7])
def test_the_same_seed_gives_the_same_sheet(count: int) -> None:
    records = shades(30)
    one = contact_sheet(records, "set", count, seed=1)
    assert contact_sheet(records[::-1], "set", count, seed=1).tobytes() == one.tobytes()
    assert contact_sheet(records, "set", count, seed=2).tobytes() != one.tobytes()


@pytest.mark.parametrize("there", [True, False])
def test_the_sheet_says_where_no_font_has_chinese_letters(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = ["DejaVu Sans", *(CHINESE_FONTS[:1] if there else ())]
    monkeypatch.setattr(font_manager, "get_font_names", lambda: installed)
    feet: list[str] = []
    monkeypatch.setattr(Figure, "supxlabel", lambda _, text, **__: feet.append(text))
    image = ImageRecord("set/1", np.zeros((20, 20), np.uint8), "ct")
    asked = record(image, "a", question="图像中有什么器官?", answer="肝脏")
    contact_sheet([asked], "set", 1, seed=1)
    assert ("fonts-noto-cjk" in feet[0]) != there
