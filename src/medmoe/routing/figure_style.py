"""What all figures share: colours, hatches and markers of domains, text style, SVG and PNG.

Colours are those of Okabe and Ito (grey for yellow, which paper swallows), told apart with any
colour vision; a hatch and a marker go with each, so that a grey print can be read too. A domain
looks the same in every figure. The SVGs go inline into a page: text stays text, a title for screen
readers, no metadata, no date, ids of their own. Equal input gives equal bytes. Nothing is drawn
here (`medmoe.routing.figures`, `medmoe.routing.route_figures`) or written to a file.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from medmoe.domains import DOMAINS, MEMBERS, MODALITIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GREY, BLUE, ORANGE = "#1b1b1f", "#5f6368", "#0b5394", "#b45f06"
WIDTH = 3.55  # inches: 341 CSS pixels at 96 dpi
_RC: Any = {  # matplotlib types its keys as literals
    "svg.fonttype": "none",  # text stays text: searchable, read aloud, drawn in the reader's font
    "svg.hashsalt": "medmoe",  # ids from content, not from a random uuid
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9.0,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
}


@dataclass(frozen=True, slots=True)
class Look:
    """How a domain, modality or expert is drawn: colour, hatch of areas, marker of points."""

    colour: str
    hatch: str
    marker: str


_DOMAIN_LOOKS = (
    Look("#0072B2", "", "o"),
    Look("#E69F00", "////", "s"),
    Look("#009E73", "....", "^"),
    Look("#CC79A7", "xxxx", "D"),
)
_OTHER_LOOKS = (
    Look("#56B4E9", "\\\\\\\\", "v"),
    Look("#D55E00", "----", "P"),
    Look("#000000", "++++", "X"),
    Look("#999999", "oo", "*"),
)
_OTHERS = [*MEMBERS, *(name for name in MODALITIES if name not in DOMAINS)]


def look_of(name: str) -> Look:
    """Return how a domain or modality is drawn, the same in every figure."""
    if name in DOMAINS:
        return _DOMAIN_LOOKS[DOMAINS.index(name)]
    place = _OTHERS.index(name) if name in _OTHERS else sum(name.encode())
    return _OTHER_LOOKS[place % len(_OTHER_LOOKS)]


def expert_looks(names: Sequence[str]) -> dict[str, Look]:
    """Return how experts are drawn: as their domain, or in grey by number where they have none."""
    return {
        name: look_of(name) if name in DOMAINS or name in _OTHERS else numbered_look(number)
        for number, name in enumerate(names)
    }


def numbered_look(number: int) -> Look:
    """Return how an expert without a domain is drawn: a grey and a hatch, no domain's colour."""
    greys = ("#d2d5d9", "#c4c7c5", "#9aa0a6", "#dadce0")
    hatches = ("", "////", "....", "xxxx", "----", "++++")
    return Look(greys[number % len(greys)], hatches[number % len(hatches)], "o")


@contextmanager
def panel(height: float, **axes: Any) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure with its axes in our style, whatever the user's matplotlibrc says.

    Args:
        height: In inches.
        axes: How many, and how they stand: what matplotlib's `Figure.subplots` takes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure, figure.subplots(**axes)


def open_axes(axes: Any, *, grid: bool = True) -> None:
    """Leave the frame open above and on the right, with thin lines across to read values by."""
    if grid:
        axes.grid(axis="y", color="#dadce0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def label_cells(axes: Any, columns: Sequence[str], rows: Sequence[str], *, tilted: bool) -> None:
    """Name the columns and rows of a table that is drawn, which needs no frame."""
    axes.set_xticks(range(len(columns)), columns, rotation=30 if tilted else 0,
                    ha="right" if tilted else "center")  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def legend_below(figure: Figure, handles: Sequence[Any], columns: int, gap: float = 0.4) -> None:
    """Put a legend below the axes; the gap is that between a sign and its name."""
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(columns, len(handles)),
        columnspacing=1.0, handletextpad=gap,
    )  # fmt: skip


def to_svg(figure: Figure, description: str) -> str:
    """Save a figure and make it fit to stand inline in a page among others."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # drops the XML declaration and the DTD's web address
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)  # would style the whole page
    key = "s" + hashlib.sha256((description + svg).encode()).hexdigest()[:10]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    width, height = (float(v) for v in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" width="{width * 4 / 3:.0f}" '
        f'height="{height * 4 / 3:.0f}" role="img" aria-labelledby="{key}-title" '
        f'stroke-linejoin="round">\n <title id="{key}-title">{escape(description)}</title>'
    )
    return (head + svg[svg.index(">") + 1 :]).strip()


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure in both forms that `medmoe routes` writes."""

    svg: str
    png: bytes


def drawing(figure: Figure, description: str) -> Drawing:
    """Return a figure as SVG, with a description for screen readers, and as PNG.

    The PNG is for slides and papers that take no SVG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    svg, buffer = to_svg(figure, description), io.BytesIO()
    figure.set_dpi(200)
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return Drawing(svg, buffer.getvalue())
