"""Learning curves, expert heat maps and the router confusion matrix, each as one SVG string.

The heat map is the paper's figures 4 and 5 (which expert serves which modality, per MoE layer), for
the report of a run; those of `medmoe routes` are `medmoe.routing.route_figures`. Figures are about
340 px wide so that their text stays readable on a phone: draw one panel per figure and let the page
arrange them, or pass several panels to get them in one column. How they look and become SVG is
`medmoe.routing.figure_style`.
Nothing here computes statistics (`medmoe.routing.statistics`) or writes files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medmoe.errors import DataError
from medmoe.routing.figure_style import BLUE, INK, ORANGE, new_figure, style, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Matrix = npt.NDArray[np.float64]


Points = Sequence[tuple[int, float]]


def learning_curves(
    curves: Mapping[str, Points],
    validation: Mapping[str, Points] | None = None,
    strict: Mapping[str, Points] | None = None,
) -> str:
    """Draw the loss of each phase over its steps, one panel under the other.

    Points are drawn thin, their running median thick; the last median is written out. Points that
    are not finite are left out and their number is said in the panel.

    Args:
        curves: Panel title → (step, loss) points in order of step.
        validation: The same of the validation loss, drawn beside.
        strict: Panel title → (step, percent) points of the strict score, which gets its own panel.

    Returns:
        One SVG element.
    """
    _need(curves, "learning_curves")
    what = "; ".join(f"{name}, {_curve_in_words(points)}" for name, points in curves.items())
    scores = {name: points for name in curves if (points := (strict or {}).get(name))}
    what += "".join(f"; {n}, strict score at the end {p[-1][1]:.1f} %" for n, p in scores.items())
    with style():
        figure = new_figure(2.25 * (len(curves) + len(scores)))
        panels = iter(figure.subplots(len(curves) + len(scores), 1, squeeze=False)[:, 0])
        for name, points in curves.items():
            axes = next(panels)
            _draw_curve(axes, name, np.asarray(points, dtype=np.float64).reshape(-1, 2))
            if beside := (validation or {}).get(name):
                _draw_measured(axes, beside, "validation loss")
            if name in scores:
                loss, axes = axes, next(panels)
                axes.set_ylabel("% right")
                _draw_measured(axes, scores[name], "strict score on validation")
                # The steps of the loss above, and room for a marker at 100.
                axes.set(xlim=loss.get_xlim(), ylim=(0, 105))
        return to_svg(figure, f"Learning curve: loss by training step. {what}")


def expert_heatmap(
    shares: Mapping[int, npt.ArrayLike], modalities: Sequence[str], domains: Sequence[str]
) -> str:
    """Draw, for each MoE layer, the share of a modality's tokens that each expert got.

    The cell of a modality's own domain expert is outlined.

    Args:
        shares: MoE layer index → shares (modalities, experts), 0 to 1; a row of NaN had no tokens.
        modalities: Row labels.
        domains: Column labels, in the order of the experts.

    Returns:
        One SVG element.

    Raises:
        DataError: A matrix does not fit the labels.
    """
    _need(shares, "expert_heatmap")
    matrices = {
        layer: _matrix(share, f"expert share of layer {layer}", modalities, domains)
        for layer, share in shares.items()
    }
    words = "; ".join(
        f"layer {layer}: {_most_used(matrix, modalities, domains)}"
        for layer, matrix in matrices.items()
    )
    with style():
        figure = new_figure((1.05 + 0.4 * len(modalities)) * len(matrices))
        panels = figure.subplots(len(matrices), 1, squeeze=False)[:, 0]
        for axes, (layer, matrix) in zip(panels, matrices.items(), strict=True):
            cells = [[_percent(v) for v in row] for row in matrix]
            _draw_cells(axes, matrix, cells, modalities, domains)
            axes.set_title(f"layer {layer}", loc="left", fontsize=10, fontweight="bold")
            axes.set_xlabel("domain expert (% of the row's tokens)")
        return to_svg(figure, f"Share of tokens by domain expert and modality. {words}")


def confusion_matrix(counts: npt.ArrayLike, domains: Sequence[str]) -> str:
    """Draw the router's confusion matrix: images by true domain (row) and chosen domain (column).

    Cells hold counts; the shade is the share of the row.

    Args:
        counts: Counts (D, D).
        domains: The D labels.

    Returns:
        One SVG element.

    Raises:
        DataError: The matrix does not fit the labels.
    """
    matrix = _matrix(counts, "router confusion matrix", domains, domains)
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.full_like(matrix, np.nan), where=total > 0)
    right, n = int(np.trace(matrix)), int(matrix.sum())
    with style():
        figure = new_figure(1.2 + 0.45 * len(domains))
        axes = figure.subplots()
        _draw_cells(axes, share, [[f"{v:.0f}" for v in row] for row in matrix], domains, domains)
        axes.set_xlabel("domain chosen by the router")
        axes.set_ylabel("true domain")
        return to_svg(figure, f"Router confusion matrix: {right} of {n} images on the diagonal")


def _draw_curve(axes: Axes, name: str, points: Matrix) -> None:
    """Draw one panel of `learning_curves`."""
    finite = points[np.isfinite(points).all(axis=1)]
    dropped = len(points) - len(finite)
    axes.set_title(name, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("step" + (f" ({dropped} non-finite points left out)" if dropped else ""))
    axes.set_ylabel("loss")
    axes.spines[["top", "right"]].set_visible(False)
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
    axes.grid(axis="y", color="#dadce0", linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_measured(axes: Axes, points: Points, name: str) -> None:
    """Draw what was measured now and then, each point of it."""
    steps, values = zip(*points, strict=True)
    axes.plot(steps, values, color=ORANGE, linewidth=1.4, marker="o", markersize=3, label=name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("step")
    axes.legend(loc="best", frameon=False, fontsize=8)


def _draw_cells(
    axes: Axes,
    shade: Matrix,
    cells: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
) -> None:
    """Draw a labelled grid, white to dark blue for 0 to 1, outlining where row = column label."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    colours = colormaps["Blues"]
    for r, c in np.ndindex(shade.shape):
        value = shade[r, c]
        own = rows[r] == columns[c]
        axes.add_patch(
            Rectangle(
                (c - 0.47, r - 0.47), 0.94, 0.94, edgecolor=ORANGE if own else "#c4c7c5",
                facecolor="#f1f3f4" if np.isnan(value) else colours(0.02 + 0.9 * float(value)),
                linewidth=2.0 if own else 0.5,
            )
        )  # fmt: skip
        axes.text(
            c, r, cells[r][c], ha="center", va="center", fontweight="bold" if own else "normal",
            color="white" if value > 0.55 else INK,
        )  # fmt: skip
    axes.set(xlim=(-0.55, len(columns) - 0.45), ylim=(len(rows) - 0.45, -0.55))
    tilt = sum(map(len, columns)) > 34  # labels this long would run into each other
    axes.set_xticks(range(len(columns)), columns, rotation=30 if tilt else 0,
                    ha="right" if tilt else "center")  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


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


def _most_used(matrix: Matrix, modalities: Sequence[str], domains: Sequence[str]) -> str:
    """Say per modality which expert got most of its tokens: the picture for a screen reader."""
    parts = []
    for name, row in zip(modalities, matrix, strict=True):
        if np.isnan(row).all():
            parts.append(f"{name} no tokens")
        else:
            best = int(np.nanargmax(row))
            parts.append(f"{name} mostly {domains[best]} {_percent(row[best])} %")
    return ", ".join(parts)


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.0f}"


def _need(panels: Mapping[str, object] | Mapping[int, object], what: str) -> None:
    if not panels:
        raise DataError(f"{what} got nothing to draw; give at least one panel")


def _matrix(
    values: npt.ArrayLike, what: str, rows: Sequence[str], columns: Sequence[str]
) -> Matrix:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.shape != (len(rows), len(columns)):
        raise DataError(
            f"{what} has shape {matrix.shape} but there are {len(rows)} row and {len(columns)} "
            "column labels; give one label for each row and column"
        )
    return matrix
