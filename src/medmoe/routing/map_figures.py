"""The map of images before and after the router, and router accuracy by number of labels, drawn.

The paper's figures 3, 10 and 6. Rows come from `medmoe.evaluation.routes`; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medmoe.routing.figure_style import (
    BLUE,
    ORANGE,
    Drawing,
    drawing,
    look_of,
    new_figure,
    style,
)

Rows = Sequence[Mapping[str, Any]]


def embedding_map(side: str, points: Rows, silhouettes: Mapping[str, Any]) -> Drawing:
    """Draw one side of figure 3 or 10: one point per image, by modality.

    Args:
        side: ``before`` or ``after`` the router.
        points: Per image ``modality``, ``<side>_x``, ``<side>_y``.
        silhouettes: Of all layers side by side: ``<side>`` with ``<side>_low``, ``<side>_high``.
    """
    value, low, high = (silhouettes[key] for key in (side, f"{side}_low", f"{side}_high"))
    silhouette = f"silhouette {value:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")
    modalities = list(dict.fromkeys(point["modality"] for point in points))
    with style():
        figure = new_figure(3.5)
        axes = figure.subplots()
        for modality in modalities:
            shown = [point for point in points if point["modality"] == modality]
            look = look_of(modality)
            axes.scatter(
                [p[f"{side}_x"] for p in shown], [p[f"{side}_y"] for p in shown], s=16,
                c=look.colour, marker=look.marker, linewidths=0.4, edgecolors="black",
                label=modality, alpha=0.85,
            )  # fmt: skip
        axes.set(xticks=[], yticks=[])
        axes.margins(0.06)
        axes.set_title(f"{side} the router", loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel(silhouette)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center",
                      ncols=min(4, len(modalities)), frameon=False, fontsize=8,
                      columnspacing=1.0, handletextpad=0.2)  # fmt: skip
        words = f"Map of {len(points)} images by modality {side} the router: {silhouette}"
        return drawing(figure, words)


def label_curve(rows: Rows) -> Drawing:
    """Draw figure 6: router accuracy with interval by the number of labelled images.

    The axis of labels is even in the square root: it holds 0, and small numbers keep apart.

    Args:
        rows: ``labels``, ``accuracy``, ``low``, ``high`` (percent) and ``n``, in order of labels.
    """
    labels = [row["labels"] for row in rows]
    accuracy = [row["accuracy"] for row in rows]
    spread = [
        [row["accuracy"] - row["low"] for row in rows],
        [row["high"] - row["accuracy"] for row in rows],
    ]
    with style():
        figure = new_figure(2.9)
        axes = figure.subplots()
        axes.errorbar(labels, accuracy, yerr=spread, color=BLUE, marker="o", ms=4, lw=1.6,
                      elinewidth=1, capsize=2.5, ecolor=ORANGE)  # fmt: skip
        axes.set_xscale("function", functions=(_root, _square))
        axes.set_xlim(left=0, right=max(labels) * 1.06 or 1)
        axes.set_xticks(_spaced(labels))
        axes.minorticks_off()
        axes.set_ylim(min(40.0, min(row["low"] for row in rows)) - 2, 102)
        axes.set_xlabel("labelled images (axis even in the square root)")
        axes.set_ylabel("router accuracy, %")
        axes.grid(axis="y", color="#dadce0", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        words = ", ".join(f"{row['labels']} labels {row['accuracy']:.1f} %" for row in rows)
        return drawing(figure, f"Router accuracy by labelled images: {words}")


def _root(values: Any) -> Any:
    import numpy as np

    return np.sqrt(np.maximum(values, 0))


def _square(values: Any) -> Any:
    return values**2


def _spaced(labels: Sequence[int]) -> list[int]:
    """Return the labels that have room on the axis, the largest among them."""
    top = max(labels)
    kept: list[int] = []
    for label in sorted(set(labels), reverse=True):
        if not kept or kept[-1] ** 0.5 - label**0.5 >= 0.07 * top**0.5:
            kept.append(label)
    return kept[::-1]
