"""Which expert did what, drawn: the paper's figures 4, 5 and 11, and what is measured per layer.

Each function takes the rows that stand in the figure's CSV (`medmoe.evaluation.routes.tables`) and
shows nothing else. All of it can be read without colour: hatches, markers and printed numbers. The
map of images and the label-count curve are `medmoe.routing.map_figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medmoe.routing.figure_style import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    Drawing,
    Look,
    drawing,
    new_figure,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
_LABELLED = 12  # percent: narrower parts of a bar have no room for their number
_ROOM = 38  # letters that stand side by side over the width of a table
_KIND_LOOKS = {"image": (BLUE, "o", "-"), "text": (ORANGE, "s", "--")}


def token_shares(modality: str, rows: Rows, looks: Mapping[str, Look]) -> Drawing:
    """Draw figure 4 or 11 for one modality: who gets its image tokens and its text tokens.

    Args:
        rows: Of this modality, as `tables.token_shares` gives them.
        looks: Experts, in order, with how each is drawn.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    share = {(r["layer"], r["expert"], k): r[f"{k}_share"] for r in rows for k in ("image", "text")}
    with style():
        figure = new_figure(1.05 + 0.56 * len(layers))
        axes = figure.subplots()
        for place, layer in enumerate(layers):
            for down, kind in ((-0.21, "image"), (0.21, "text")):
                parts = [(share[layer, expert, kind], look) for expert, look in looks.items()]
                _stacked(axes, place + down, parts)
                axes.text(-1.5, place + down, kind, ha="right", va="center", fontsize=8)
        axes.set(xlim=(0, 100), ylim=(len(layers) - 0.5, -0.5), yticks=range(len(layers)))
        axes.set_yticklabels([f"layer {layer}" for layer in layers])
        axes.tick_params(axis="y", length=0, pad=30)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(f"{modality} images", loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("% of the tokens of that kind")
        _legend(axes, looks)
        words = "; ".join(
            f"layer {layer}, {kind} tokens: "
            + ", ".join(f"{e} {_percent(share[layer, e, kind])} %" for e in looks)
            for layer in layers
            for kind in ("image", "text")
        )
        return drawing(figure, f"Share of {modality} tokens by expert. {words}")


def most_used(router: str, rows: Rows, looks: Mapping[str, Look]) -> Drawing:
    """Draw figure 5 for one router: the expert that most image tokens chose.

    Args:
        rows: Of this router, as `tables.most_used` gives them.
        looks: Its experts with how each is drawn.
    """
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    with style():
        crowded = max(map(len, looks)) * len(modalities) > _ROOM
        height = 0.85 + 0.42 * len(layers) + _tilted(modalities) + 0.35 * crowded
        figure = new_figure(height)
        axes = figure.subplots()
        for row in rows:
            x, y = modalities.index(row["modality"]), layers.index(row["layer"])
            _cell(axes, x, y, looks[row["expert"]])
            # Without room for names the legend tells what the hatches are.
            name = "" if crowded else f"{row['expert']}\n"
            _on_white(axes, x, y, f"{name}{_percent(row['share'])} %", 7.5)
        if crowded:
            _legend(axes, looks)
        _grid(axes, modalities, [f"layer {layer}" for layer in layers])
        axes.set_title(router, loc="left", fontsize=10, fontweight="bold")
        words = "; ".join(
            f"layer {r['layer']}, {r['modality']}: {r['expert']} {_percent(r['share'])} %"
            for r in rows
        )
        return drawing(figure, f"Most-used expert by layer and modality, {router}. {words}")


def load_entropy(rows: Rows) -> Drawing:
    """Draw the load entropy over the layers, image and text tokens apart.

    Args:
        rows: As `tables.by_layer` gives them.
    """
    with style():
        figure, axes = _over_layers(rows, "load_entropy", 1.0)
        axes.set_title("load entropy", loc="left", fontsize=10, fontweight="bold")
        axes.set_ylabel("0 one expert … 1 all alike")
        words = "; ".join(
            f"layer {r['layer']}, {r['tokens']} tokens {r['load_entropy']:.2f}" for r in rows
        )
        return drawing(figure, f"Load entropy by layer. {words}")


def specialisation(rows: Rows) -> Drawing:
    """Draw the mutual information of domain and expert over the layers, and what chance gives.

    Args:
        rows: As `tables.by_layer` gives them.
    """
    most = max(row["domain_bits"] for row in rows)
    with style():
        figure, axes = _over_layers(rows, "bits", most)
        axes.set_title("mutual information", loc="left", fontsize=10, fontweight="bold")
        axes.set_ylabel("of domain and expert, bits")
        words = "; ".join(
            f"layer {r['layer']}, {r['tokens']} tokens {r['bits']:.2f}, by chance "
            f"{r['by_chance']:.2f}"
            for r in rows
        )
        return drawing(figure, f"Mutual information of domain and expert, bits. {words}")


def norm_shares(rows: Rows) -> Drawing:
    """Draw the meta expert's share of the output norm: layer and token kind by modality.

    Args:
        rows: As `tables.norm_shares` gives them.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    lines = list(dict.fromkeys((row["layer"], row["kind"]) for row in rows))
    with style():
        figure = new_figure(0.95 + 0.3 * len(lines) + _tilted(modalities))
        axes = figure.subplots()
        for row in rows:
            x, y = modalities.index(row["modality"]), lines.index((row["layer"], row["kind"]))
            share = row["meta_share"] / 100
            shade = colormaps["Blues"](0.02 + 0.9 * share)
            _cell(axes, x, y, Look(to_hex(shade), "", ""))
            axes.text(
                x, y, _percent(row["meta_share"]), ha="center", va="center",
                color="white" if share > 0.65 else INK,
            )  # fmt: skip
        _grid(axes, modalities, [f"layer {layer}, {kind}" for layer, kind in lines])
        axes.set_xlabel("‖meta‖ ÷ (‖meta‖ + ‖routed‖), %")
        words = "; ".join(
            f"layer {r['layer']}, {r['kind']}, {r['modality']} {_percent(r['meta_share'])} %"
            for r in rows
        )
        return drawing(figure, f"Meta expert's share of the output norm. {words}")


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
            _on_white(axes, left + share / 2, y, _percent(share), 7.5)
        left += share


def _on_white(axes: Axes, x: float, y: float, text: str, size: float) -> None:
    """Write on a hatched area so that it can be read."""
    box = {"facecolor": "white", "edgecolor": "none", "boxstyle": "round,pad=0.15"}
    axes.text(x, y, text, ha="center", va="center", fontsize=size, bbox=box, linespacing=1.05)


def _cell(axes: Axes, x: float, y: float, look: Look) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle(
            (x - 0.47, y - 0.45), 0.94, 0.9, facecolor=look.colour, hatch=look.hatch,
            edgecolor="white", linewidth=0.5,
        )
    )  # fmt: skip


def _legend(axes: Axes, looks: Mapping[str, Look]) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", label=name)
        for name, look in looks.items()
    ]
    assert axes.figure is not None
    axes.figure.legend(
        handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False,
        fontsize=8, columnspacing=1.0, handletextpad=0.4,
    )  # fmt: skip


def _over_layers(rows: Rows, name: str, top: float) -> tuple[Figure, Axes]:
    """Return a figure of one column of rows over the layers; bits also get what bounds them."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    figure = new_figure(2.7)
    axes = figure.subplots()
    for kind, (colour, marker, line) in _KIND_LOOKS.items():
        of_kind = [row for row in rows if row["tokens"] == kind]
        places = [layers.index(row["layer"]) for row in of_kind]
        label = f"{kind} tokens"
        values = [row[name] for row in of_kind]
        axes.plot(places, values, line, color=colour, marker=marker, ms=5, label=label)
        if name == "bits":
            chance = [row["by_chance"] for row in of_kind]
            label = "by chance" if kind == "text" else ""
            axes.plot(places, chance, ":", color=GREY, marker="d", ms=3, label=label)
    if name == "bits":
        axes.axhline(top, color=GREY, lw=1, label="entropy of domains")
    axes.grid(axis="y", color="#dadce0", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    axes.set_ylim(-0.05 * top, 1.06 * top)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_xlabel("MoE layer")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2,
                  frameon=False, fontsize=8, columnspacing=1.0, handletextpad=0.4)  # fmt: skip
    return figure, axes


def _tilted(columns: Sequence[str]) -> float:
    """Return the height, in inches, that names of columns need where they have to be tilted."""
    return 0.4 if max(map(len, columns)) * len(columns) > _ROOM else 0.0


def _grid(axes: Axes, columns: Sequence[str], rows: Sequence[str]) -> None:
    """Label the cells of a table that is drawn."""
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    tilt = _tilted(columns) > 0
    axes.set_xticks(range(len(columns)), columns, rotation=30 if tilt else 0,
                    ha="right" if tilt else "center")  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
