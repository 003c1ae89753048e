"""Learning curve and router confusion matrix of a run's report, each as one SVG.

Which expert serves which modality is drawn by `medmoe.routing.route_figures`. Figures are about 340
px wide so that their text stays readable on a phone: the page arranges them. How they look and
become SVG is `medmoe.routing.figure_style`.
Nothing here computes statistics (`medmoe.routing.statistics`) or writes files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medmoe import numbers
from medmoe.routing.figure_style import (
    BLUE,
    INK,
    ORANGE,
    label_cells,
    open_axes,
    panel,
    to_svg,
)
from medmoe.routing.statistics import expert_share

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Matrix = npt.NDArray[np.float64]
Points = Sequence[tuple[int, float]]


def learning_curve(name: str, points: Points, validation: Points = (), strict: Points = ()) -> str:
    """Draw the loss of a phase over its steps, as one SVG element.

    Points are drawn thin, their running median thick; the last median is written out. Points that
    are not finite are left out and their number is said in the figure.

    Args:
        points: (step, loss) in order of step.
        validation: The same of the validation loss, drawn beside.
        strict: (step, percent) of the strict score, which gets a panel of its own below.
    """
    words = f"{name}, {_curve_in_words(points)}"
    if strict:
        words += f"; {name}, strict score at the end {numbers.percent(strict[-1][1])} %"
    panels = 2 if strict else 1
    with panel(2.25 * panels, nrows=panels, squeeze=False) as (figure, grid):
        loss, *below = grid[:, 0]
        _draw_curve(loss, name, np.asarray(points, dtype=np.float64).reshape(-1, 2))
        if validation:
            _draw_measured(loss, validation, "validation loss")
        for axes in below:
            axes.set_ylabel("% right")
            _draw_measured(axes, strict, "strict score on validation")
            # The steps of the loss above, and room for a marker at 100.
            axes.set(xlim=loss.get_xlim(), ylim=(0, 105))
        return to_svg(figure, f"Learning curve: loss by training step. {words}")


def confusion_matrix(counts: npt.ArrayLike, names: Sequence[str], of: str = "Router") -> str:
    """Draw a confusion matrix (D, D): images by what is true (row) and what was chosen (column).

    Cells of this one SVG element hold counts, and below them percent of the row; so does the shade.
    """
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    matrix = np.asarray(counts, dtype=np.float64)
    right, n = int(np.trace(matrix)), int(matrix.sum())
    with panel(1.2 + 0.45 * len(names)) as (figure, axes):
        for (row, column), share in np.ndenumerate(expert_share(matrix)):
            own, colour = row == column, colormaps["Blues"](0.02 + 0.9 * float(share))
            axes.add_patch(
                Rectangle(
                    (column - 0.47, row - 0.47), 0.94, 0.94,
                    facecolor="#f1f3f4" if np.isnan(share) else colour,
                    edgecolor=ORANGE if own else "#c4c7c5", linewidth=2.0 if own else 0.5,
                )
            )  # fmt: skip
            below = numbers.percent(None if np.isnan(share) else 100 * float(share))
            axes.text(
                column, row, f"{numbers.count(int(matrix[row, column]))}\n{below}",
                ha="center", va="center", fontsize=min(9.0, 64 / len(names)),
                fontweight="bold" if own else "normal", color="white" if share > 0.55 else INK,
            )  # fmt: skip
        ends = (-0.55, len(names) - 0.45)
        axes.set(xlim=ends, ylim=ends[::-1])
        # Labels this long would run into each other.
        label_cells(axes, names, names, tilted=sum(map(len, names)) > 34)
        axes.set(xlabel="chosen", ylabel="true")
        words = f"{of} confusion matrix: {numbers.count(right)} of {numbers.count(n)} images"
        return to_svg(figure, f"{words} on the diagonal")


def _draw_curve(axes: Axes, name: str, points: Matrix) -> None:
    """Draw the loss of `learning_curve`."""
    finite = points[np.isfinite(points).all(axis=1)]
    dropped = len(points) - len(finite)
    axes.set_title(name)
    axes.set_xlabel("step" + (f" ({dropped} non-finite points left out)" if dropped else ""))
    axes.set_ylabel("loss")
    open_axes(axes, grid=len(finite) > 0)
    if not len(finite):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no points", ha="center", va="center", transform=axes.transAxes)
        return
    from matplotlib.ticker import MaxNLocator

    steps, losses = finite.T
    smooth = _running_median(losses)
    axes.plot(
        steps, losses, color=BLUE, alpha=0.35, linewidth=0.8, marker="o" if len(steps) == 1 else ""
    )
    axes.plot(steps, smooth, color=BLUE, linewidth=1.8)
    axes.annotate(
        f"{smooth[-1]:.3g}", (1.0, 1.0), xycoords="axes fraction", ha="right", va="bottom",
        color=BLUE, fontweight="bold",
    )  # fmt: skip
    axes.set_ylim(bottom=min(0.0, float(losses.min())), top=_top(losses))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
    axes.set_axisbelow(True)


def _draw_measured(axes: Axes, points: Points, name: str) -> None:
    """Draw what was measured now and then, each point of it."""
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=ORANGE, linewidth=1.4, marker="o", markersize=3, label=name)
    open_axes(axes, grid=False)
    axes.set_xlabel("step")
    axes.legend(loc="best")


def _running_median(values: Matrix) -> Matrix:
    """Median over a window of about a twentieth of the curve, shrunk evenly at both ends."""
    half = len(values) // 40
    reach = np.minimum(half, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    return np.array([np.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)])


def _top(losses: Matrix) -> float:
    """Upper limit of the loss axis: room above the highest point, never an empty axis."""
    low, high = min(0.0, float(losses.min())), float(losses.max())
    return high + 0.06 * (high - low) if high > low else low + 1.0


def _curve_in_words(points: Sequence[tuple[int, float]]) -> str:
    if not len(points):
        return "no points"
    (first, start), (last, end) = points[0], points[-1]
    return f"from {start:.3g} at step {first} to {end:.3g} at step {last}"
