"""The contact sheet: the pictures asked for, spread over the modalities, the same each time."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageDraw
from tests.data.pictures import record

from medmoe.data import sheet
from medmoe.data.schema import ImageRecord, Record
from medmoe.data.sheet import _spread, contact_sheet


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
def test_chinese_is_drawn_in_a_font_that_has_it_or_the_sheet_says_that_none_has(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fonts = sheet._CHINESE_FONTS if there else ()
    monkeypatch.setattr(sheet, "_CHINESE_FONTS", fonts)
    sheet._chinese_font.cache_clear()
    found = sheet._chinese_font()
    if there and found is None:
        pytest.skip("no font with Chinese letters is installed")
    drawn: list[tuple[str, object]] = []
    text = ImageDraw.ImageDraw.text

    def noted(self: ImageDraw.ImageDraw, at: object, line: str, fill: object, font: object) -> None:
        drawn.append((line, font))
        text(self, at, line, fill, font)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    image = ImageRecord("set/1", np.zeros((20, 20), np.uint8), "ct")
    contact_sheet(
        [record(image, "a", question="图像中有什么器官?", answer="肝脏")], "set", 1, seed=1
    )
    sheet._chinese_font.cache_clear()
    chinese = [font for line, font in drawn if "肝脏" in line or "图像" in line]
    assert len(chinese) == 2
    assert all((font is found) == there for font in chinese)
    assert any("fonts-noto-cjk" in line for line, _ in drawn) != there
