"""A contact sheet: some pictures of a set with a question and its answer under each.

Drawn by a seed, spread over the modalities. The text is small on purpose: it is there to check a
reader or a folder at a glance, not to read a case. Chinese needs a font of the system, and where
there is none the sheet says so.
"""

from __future__ import annotations

import random
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from medmoe.data.images import open_record
from medmoe.data.schema import Record

_SIDE, _TEXT, _GAP, _COLUMNS = 208, 62, 12, 5
_LINE, _LINES, _WIDTH = 15, 4, 34
_FOOT = "Research use only, not a medical device."
_NO_FONT = "No font here has Chinese letters: install one, e.g. fonts-noto-cjk."
#: Files of common fonts with Chinese letters: of Linux distributions, macOS and Windows.
_CHINESE_FONTS = (
    *("NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc"),
    *("DroidSansFallbackFull.ttf", "PingFang.ttc", "STHeiti Light.ttc", "msyh.ttc", "simsun.ttc"),
)


def contact_sheet(records: Sequence[Record], title: str, count: int, seed: int) -> Image.Image:
    """Return up to ``count`` pictures of records as one picture.

    Raises:
        ImageError: A picture cannot be opened.
    """
    chosen = _spread(records, count, seed)
    columns = min(_COLUMNS, max(1, len(chosen)))
    rows = -(-len(chosen) // columns)
    width = max(columns, 3) * (_SIDE + _GAP) + _GAP
    height = 2 * 28 + rows * (_SIDE + _TEXT + _GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 8), title, "black", ImageFont.load_default(15))
    for number, record in enumerate(chosen):
        left = _GAP + (number % columns) * (_SIDE + _GAP)
        top = 32 + (number // columns) * (_SIDE + _TEXT + _GAP)
        _tile(sheet, draw, record, left, top)
    asked = "".join(f"{record.question}{record.answer}" for record in chosen)
    foot = f"{_FOOT} {_NO_FONT}" if _chinese(asked) and _chinese_font() is None else _FOOT
    draw.text((_GAP, height - 20), foot, "#54585d", ImageFont.load_default(12))
    return sheet


def _tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, record: Record, x: int, y: int) -> None:
    picture = open_record(record.image)
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BOX)
    draw.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), "#f4f6f8", "#d5d8dc")
    sheet.paste(picture, (x + (_SIDE - size[0]) // 2, y + (_SIDE - size[1]) // 2))
    lines = _wrapped(f"Q: {record.question}", 2)
    lines += _wrapped(f"A: {record.answer}", _LINES - 1 - len(lines))
    turns = f" · {1 + len(record.further)} turns" if record.further else ""
    turns += f" · 1 of {len(record.images)} pictures" if record.further_images else ""
    lines.append(f"{record.image.modality or 'unknown modality'} · {record.answer_type}{turns}")
    for number, line in enumerate(lines[:_LINES]):
        draw.text((x, y + _SIDE + 2 + number * _LINE), line, "#1b1b1f", _font(line))


def _wrapped(text: str, lines: int) -> list[str]:
    """Return a text in at most so many lines; a Chinese letter is about two others wide."""
    width = _WIDTH // 2 if _chinese(text) else _WIDTH
    return textwrap.wrap(text, width, max_lines=lines, placeholder=" …")


def _font(text: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return (_chinese_font() if _chinese(text) else None) or ImageFont.load_default(11)


@cache
def _chinese_font() -> ImageFont.FreeTypeFont | None:
    """Return a font of the system with Chinese letters, None where none is installed."""
    for name in _CHINESE_FONTS:
        try:
            return ImageFont.truetype(name, 12)
        except OSError:
            continue
    return None


def _chinese(letters: Iterable[str]) -> bool:
    return any("\u2e80" <= letter <= "\uffef" for letter in letters)


def _spread(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return records on different images, taking the modalities in turn."""
    one: dict[str, Record] = {}
    for record in sorted(records, key=lambda r: r.task == "caption"):
        one.setdefault(record.image.id, record)
    pools: defaultdict[str, list[Record]] = defaultdict(list)
    rng = random.Random(seed)
    for record in rng.sample(sorted(one.values(), key=lambda r: r.id), len(one)):
        pools[record.image.modality or ""].append(record)
    chosen: list[Record] = []
    while pools and len(chosen) < count:
        for name in sorted(pools):
            chosen.append(pools[name].pop())
            if not pools[name]:
                del pools[name]
    return sorted(chosen[:count], key=lambda r: r.image.modality or "~")
