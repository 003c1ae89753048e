"""Which expert did what, drawn for `medmoe routes`: the paper's figures 3, 4, 5, 6, 10 and 11.

Also what is measured per layer. Each function takes the rows that stand in the figure's CSV
(`medmoe.evaluation.routes`) and shows nothing else. All of it can be read without colour: hatches,
markers and printed numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medmoe.routing.figure_style import (
    BLUE,
    GREY,
    ORANGE,
    Drawing,
    Look,
    drawing,
    label_cells,
    legend_below,
    look_of,
    open_axes,
    panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = Sequence[Mapping[str, Any]]
_LABELLED = 12  # percent: narrower parts of a bar have no room for their number
_ROOM = 38  # letters that stand side by side over the width of a table
_KIND_LOOKS = {"image": (BLUE, "o", "-"), "text": (ORANGE, "s", "--")}


def embedding_map(side: str, points: Rows, silhouettes: Mapping[str, Any]) -> Drawing:
    """Draw one side (``before`` or ``after``) of figure 3 or 10: one point per image, by modality.

    Args:
        points: Per image ``modality``, ``<side>_x``, ``<side>_y``.
        silhouettes: Of all layers side by side: ``<side>`` with ``<side>_low``, ``<side>_high``.
    """
    value, low, high = (silhouettes[key] for key in (side, f"{side}_low", f"{side}_high"))
    silhouette = f"silhouette {value:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")
    modalities = list(dict.fromkeys(point["modality"] for point in points))
    with panel(3.5) as (figure, axes):
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
        axes.set_title(f"{side} the router")
        axes.set_xlabel(silhouette)
        legend_below(figure, axes.collections, 4, gap=0.2)
        words = f"Map of {len(points)} images by modality {side} the router: {silhouette}"
        return drawing(figure, words)


def token_shares(modality: str, rows: Rows, looks: Mapping[str, Look]) -> Drawing:
    """Draw figure 4 or 11 for one modality: who gets its image tokens and its text tokens.

    Args:
        rows: Of this modality, as `tables.token_shares` gives them; without ``text_share`` the
            image tokens alone are drawn.
        looks: Experts, in order, with how each is drawn.
    """
    layers, kinds = _layers(rows), [k for k in ("image", "text") if f"{k}_share" in rows[0]]
    share = {(r["layer"], r["expert"], k): r[f"{k}_share"] for r in rows for k in kinds}
    with panel(1.05 + 0.56 * len(layers)) as (figure, axes):
        for place, layer in enumerate(layers):
            for down, kind in zip((-0.21, 0.21), kinds, strict=False):
                parts = [(share[layer, expert, kind], look) for expert, look in looks.items()]
                _stacked(axes, place + down, parts)
                axes.text(-1.5, place + down, kind, ha="right", va="center", fontsize=8)
        axes.set(xlim=(0, 100), ylim=(len(layers) - 0.5, -0.5), yticks=range(len(layers)))
        axes.set_yticklabels([f"layer {layer}" for layer in layers])
        axes.tick_params(axis="y", length=0, pad=30)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(f"{modality} images")
        axes.set_xlabel("% of the tokens of that kind")
        _legend(figure, looks)
        words = "; ".join(
            f"layer {layer}, {kind} tokens: "
            + ", ".join(f"{e} {_percent(share[layer, e, kind])} %" for e in looks)
            for layer in layers
            for kind in kinds
        )
        return drawing(figure, f"Share of {modality} tokens by expert. {words}")


def most_used(router: str, rows: Rows, looks: Mapping[str, Look]) -> Drawing:
    """Draw figure 5 for one router: the expert that most image tokens chose.

    Args:
        rows: Of this router, as `tables.most_used` gives them.
    """
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    layers = _layers(rows)
    crowded = max(map(len, looks)) * len(modalities) > _ROOM
    height = 0.85 + 0.42 * len(layers) + _tilted(modalities) + 0.35 * crowded
    with panel(height) as (figure, axes):
        for row in rows:
            x, y = modalities.index(row["modality"]), layers.index(row["layer"])
            _cell(axes, x, y, looks[row["expert"]])
            # Without room for names the legend tells what the hatches are.
            name = "" if crowded else f"{row['expert']}\n"
            _on_white(axes, x, y, f"{name}{_percent(row['share'])} %")
        if crowded:
            _legend(figure, looks)
        axes.set(xlim=(-0.5, len(modalities) - 0.5), ylim=(len(layers) - 0.5, -0.5))
        names = [f"layer {layer}" for layer in layers]
        label_cells(axes, modalities, names, tilted=_tilted(modalities) > 0)
        axes.set_title(router)
        words = "; ".join(
            f"layer {r['layer']}, {r['modality']}: {r['expert']} {_percent(r['share'])} %"
            for r in rows
        )
        return drawing(figure, f"Most-used expert by layer and modality, {router}. {words}")


def load_entropy(rows: Rows) -> Drawing:
    """Draw the load entropy over the layers, image and text tokens apart."""
    unit = "0 one expert … 1 all alike"
    return _by_layer(rows, "load_entropy", "load entropy", unit, 1.0, "Load entropy by layer")


def specialisation(rows: Rows) -> Drawing:
    """Draw the mutual information of domain and expert over the layers, and what chance gives."""
    most = max(row["domain_bits"] for row in rows)
    unit, described = "of domain and expert, bits", "Mutual information of domain and expert, bits"
    return _by_layer(rows, "bits", "mutual information", unit, most, described, chance=True)


def _by_layer(
    rows: Rows, column: str, title: str, unit: str, top: float, described: str, chance: bool = False
) -> Drawing:
    """Draw a column over the layers, from 0 to at most ``top``, image and text tokens apart.

    Args:
        chance: Draw what chance gives, and the most that there can be, too.
    """
    layers, words = _layers(rows), []
    with panel(2.7) as (figure, axes):
        for kind in _KIND_LOOKS:
            _line(axes, rows, kind, column)
            if chance:
                _line(axes, rows, kind, "by_chance", linestyle=":", color=GREY, marker="d", ms=3,
                      label="by chance" if kind == "text" else "")  # fmt: skip
        if chance:
            axes.axhline(top, color=GREY, lw=1, label="entropy of domains")
        open_axes(axes)
        axes.margins(x=0.12)
        axes.set(ylim=(-0.05 * top, 1.06 * top), xlabel="MoE layer", ylabel=unit, title=title)
        axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
        legend_below(figure, axes.get_legend_handles_labels()[0], 2)
        for row in rows:
            by_chance = f", by chance {row['by_chance']:.2f}" if chance else ""
            words.append(
                f"layer {row['layer']}, {row['tokens']} tokens {row[column]:.2f}{by_chance}"
            )
        return drawing(figure, f"{described}. {'; '.join(words)}")


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
    with panel(2.9) as (figure, axes):
        axes.errorbar(labels, accuracy, yerr=spread, color=BLUE, marker="o", ms=4, lw=1.6,
                      elinewidth=1, capsize=2.5, ecolor=ORANGE)  # fmt: skip
        roots = (lambda x: np.sqrt(np.maximum(x, 0)), np.square)
        axes.set_xscale("function", functions=roots)
        axes.set_xlim(left=0, right=max(labels) * 1.06 or 1)
        axes.set_xticks(_spaced(labels))
        axes.minorticks_off()
        axes.set_ylim(min(40.0, min(row["low"] for row in rows)) - 2, 102)
        axes.set_xlabel("labelled images (axis even in the square root)")
        axes.set_ylabel("router accuracy, %")
        open_axes(axes)
        words = ", ".join(f"{row['labels']} labels {row['accuracy']:.1f} %" for row in rows)
        return drawing(figure, f"Router accuracy by labelled images: {words}")


def _stacked(axes: Axes, y: float, parts: Sequence[tuple[float | None, Look]]) -> None:
    """Draw one bar of percents; a bar without tokens stays empty."""
    left = 0.0
    for share, look in parts:
        if not share:
            continue
        axes.barh(
            y, share, height=0.36, left=left, color=look.colour, hatch=look.hatch,
            edgecolor="white", linewidth=0.8,
        )  # fmt: skip
        if share >= _LABELLED:
            _on_white(axes, left + share / 2, y, _percent(share))
        left += share


def _on_white(axes: Axes, x: float, y: float, text: str) -> None:
    """Write on a hatched area so that it can be read."""
    box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.15"}
    axes.text(x, y, text, ha="center", va="center", fontsize=7.5, bbox=box, linespacing=1.05)


def _cell(axes: Axes, x: float, y: float, look: Look) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (x - 0.47, y - 0.45), 0.94, 0.9, facecolor=look.colour, hatch=look.hatch,
            edgecolor="white", linewidth=0.5,
        )
    )  # fmt: skip


def _legend(figure: Any, looks: Mapping[str, Look]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", label=name)
        for name, look in looks.items()
    ]
    legend_below(figure, handles, 4)


def _layers(rows: Rows) -> list[int]:
    return list(dict.fromkeys(row["layer"] for row in rows))


def _line(axes: Axes, rows: Rows, kind: str, name: str, **look: Any) -> None:
    """Draw one column of the rows of a kind of token over the layers."""
    layers, of_kind = _layers(rows), [row for row in rows if row["tokens"] == kind]
    colour, marker, linestyle = _KIND_LOOKS[kind]
    places, values = [layers.index(row["layer"]) for row in of_kind], [r[name] for r in of_kind]
    known = {"color": colour, "marker": marker, "linestyle": linestyle, "ms": 5}
    axes.plot(places, values, **{**known, "label": f"{kind} tokens", **look})


def _tilted(columns: Sequence[str]) -> float:
    """Return the height, in inches, that names of columns need where they have to be tilted."""
    return 0.4 if max(map(len, columns)) * len(columns) > _ROOM else 0.0


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _spaced(labels: Sequence[int]) -> list[int]:
    """Return the labels that have room on the axis, the largest among them."""
    top = max(labels)
    kept: list[int] = []
    for label in sorted(set(labels), reverse=True):
        if not kept or kept[-1] ** 0.5 - label**0.5 >= 0.07 * top**0.5:
            kept.append(label)
    return kept[::-1]
