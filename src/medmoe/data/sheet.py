"""A contact sheet: some pictures of a set with a question and its answer under each.

Drawn by a seed, spread over the modalities. The text is small on purpose: it is there to check a
reader or a folder at a glance, not to read a case. Chinese needs a font of the system, and where
there is none the sheet says so.
"""

from __future__ import annotations

import io
import random
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from PIL import Image

from medmoe.data.images import open_record
from medmoe.data.schema import Record
from medmoe.notice import RESEARCH_ONLY

_COLUMNS, _DOTS, _WIDTH = 5, 100, 34
_NO_FONT = "No font here has Chinese letters: install one, e.g. fonts-noto-cjk."
#: Common fonts with Chinese letters: of Linux distributions, macOS and Windows.
CHINESE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    *("Droid Sans Fallback", "PingFang SC", "STHeiti", "Microsoft YaHei", "SimSun"),
)


def contact_sheet(records: Sequence[Record], title: str, count: int, seed: int) -> Image.Image:
    """Return up to ``count`` pictures of records as one picture.

    Raises:
        ImageError: A picture cannot be opened.
    """
    from matplotlib import font_manager, rc_context
    from matplotlib.figure import Figure

    chosen = _spread(records, count, seed)
    columns = min(_COLUMNS, max(1, len(chosen)))
    rows = -(-max(1, len(chosen)) // columns)
    installed = {*font_manager.get_font_names()}.intersection(CHINESE_FONTS)
    lacks = _chinese(f"{r.question}{r.answer}" for r in chosen) and not installed
    fonts: dict[Any, Any] = {
        "font.family": ["DejaVu Sans", *sorted(installed)],
        "text.parse_math": False,
    }
    with rc_context(fonts), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no font has: the foot says it
        size = 2.3 * max(columns, 2), 3.1 * rows + 0.5
        figure = Figure(size, _DOTS, layout="constrained")
        figure.suptitle(title, fontsize=10)
        figure.supxlabel(f"{RESEARCH_ONLY} {_NO_FONT}" if lacks else RESEARCH_ONLY, fontsize=7)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis in axes:
            axis.set_axis_off()
        for axis, record in zip(axes, chosen, strict=False):
            axis.imshow(open_record(record.image), interpolation="nearest")
            text = "\n".join(_caption(record))
            axis.text(0, -0.03, text, fontsize=6, va="top", transform=axis.transAxes)
        figure.savefig(drawn := io.BytesIO())
    return Image.open(drawn).convert("RGB")


def _caption(record: Record) -> list[str]:
    """Return question, answer and facts in four lines at most."""
    lines = _wrapped(f"Q: {record.question}", 2)
    lines += _wrapped(f"A: {record.answer}", 3 - len(lines))
    turns = f" · {1 + len(record.further)} turns" if record.further else ""
    return [*lines, f"{record.image.modality or 'unknown modality'} · {record.answer_type}{turns}"]


def _wrapped(text: str, lines: int) -> list[str]:
    """Return a text in at most so many lines; a Chinese letter is about two others wide."""
    width = _WIDTH // 2 if _chinese(text) else _WIDTH
    return textwrap.wrap(text, width, max_lines=lines, placeholder=" …")


def _chinese(texts: Iterable[str]) -> bool:
    return any("\u2e80" <= letter <= "\uffef" for text in texts for letter in text)


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
