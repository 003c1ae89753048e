"""The regions an answer rests on, drawn over the picture: in its own shape, with a scale.

Readable without colour: the regions that speak most for the answer are framed and numbered.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medmoe.inference.attribution import Attribution

FOR, AGAINST = "#b45f06", "#0b5394"
FRAMED = 3
_INCHES = 4.2  # the longer side of the picture on the page


def region_picture(image: Image.Image, attribution: Attribution) -> bytes:
    """Return a PNG: the picture on the left, the same with the regions' shares on the right.

    Args:
        image: Upright RGB, as the engine opens it.
        attribution: Its grid covers the picture padded to a square.
    """
    from matplotlib import rc_context, rcdefaults
    from matplotlib.figure import Figure

    width, height = image.size
    scale = _INCHES / max(width, height)
    cells = np.asarray(attribution.cells)
    with rc_context():
        rcdefaults()
        size = (2 * width * scale + 1.2, height * scale + 0.45)
        figure = Figure(figsize=size, dpi=110, layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, title in ((left, "picture"), (right, "regions of the answer")):
            axes.imshow(image, extent=(0, width, height, 0), interpolation="nearest")
            axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
            axes.set_title(title, fontsize=9)
        _draw_cells(figure, right, cells, square_of(width, height))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def square_of(width: int, height: int) -> tuple[float, float, float]:
    """Return left, top and side of the square that a picture is padded to, in its own pixels."""
    side = max(width, height)
    return (width - side) / 2, (height - side) / 2, side


def _draw_cells(
    figure: Any, axes: Any, cells: npt.NDArray[np.float64], square: tuple[float, float, float]
) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    left, top, side = square
    top_value = max(float(np.abs(cells).max()), 1e-12)
    colours = LinearSegmentedColormap.from_list("shares", [AGAINST, "#ffffff", FOR])
    shown = axes.imshow(
        cells, cmap=colours, vmin=-top_value, vmax=top_value,
        alpha=0.15 + 0.6 * np.abs(cells) / top_value, interpolation="nearest",
        extent=(left, left + side, top + side, top),
    )  # fmt: skip
    cell = side / len(cells)
    for rank, flat in enumerate(np.argsort(-cells, axis=None, kind="stable")[:FRAMED], 1):
        row, column = divmod(int(flat), len(cells))
        if cells[row, column] <= 0:
            break
        x, y = left + column * cell, top + row * cell
        for colour, line in (("black", 3.2), ("white", 1.4)):  # seen on dark and on light
            axes.add_patch(Rectangle((x, y), cell, cell, fill=False, edgecolor=colour, lw=line))
        axes.text(
            x + cell / 2, y + cell / 2, str(rank), ha="center", va="center", fontsize=9,
            fontweight="bold", color="white", bbox={"facecolor": "black", "pad": 1.2, "lw": 0},
        )  # fmt: skip
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.03)
    bar.solids.set_alpha(1)
    bar.set_label("share in the log-probability\n(against ← 0 → for the answer)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
