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

Rows = Sequence[Mapping[str, Any]]
_LABELLED = 12  # percent: narrower parts of a bar have no room for their number
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


def most_used(rows: Rows, looks: Mapping[str, Mapping[str, Look]]) -> Drawing:
    """Draw figure 5: per router, layer and modality the expert that most image tokens chose.

    Args:
        rows: As `tables.most_used` gives them, of one router or more.
        looks: Router → its experts with how each is drawn.
    """
    modalities = list(dict.fromkeys(row["modality"] for row in rows))
    layers = {
        router: list(dict.fromkeys(r["layer"] for r in rows if r["router"] == router))
        for router in looks
    }
    with style():
        heights = [max(1, len(found)) for found in layers.values()]
        figure = new_figure(sum(0.85 + 0.42 * h for h in heights))
        panels = figure.subplots(len(looks), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (router, experts) in zip(panels, looks.items(), strict=True):
            for row in rows:
                if row["router"] == router:
                    x, y = modalities.index(row["modality"]), layers[router].index(row["layer"])
                    _cell(axes, x, y, experts[row["expert"]])
                    _on_white(axes, x, y, f"{row['expert']}\n{_percent(row['share'])} %", 7.5)
            axes.set(xlim=(-0.5, len(modalities) - 0.5), ylim=(len(layers[router]) - 0.5, -0.5))
            _tick_names(axes, modalities)
            axes.set_yticks(range(len(layers[router])), [f"layer {n}" for n in layers[router]])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            axes.set_title(router, loc="left", fontsize=10, fontweight="bold")
        words = "; ".join(
            f"{r['router']}, layer {r['layer']}, {r['modality']}: {r['expert']} "
            f"{_percent(r['share'])} %"
            for r in rows
        )
        return drawing(figure, f"Most-used expert by layer and modality. {words}")


def by_layer(rows: Rows) -> Drawing:
    """Draw load entropy and specialisation index over the layers, image and text tokens apart.

    Args:
        rows: As `tables.by_layer` gives them.
    """
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    titles = {
        "load_entropy": "load entropy (1: all experts take alike)",
        "bits": "mutual information of domain and expert, bits",
    }
    with style():
        figure = new_figure(4.3)
        panels = figure.subplots(2, 1, sharex=True)
        for axes, (name, title) in zip(panels, titles.items(), strict=True):
            for kind, (colour, marker, line) in _KIND_LOOKS.items():
                found = [row for row in rows if row["tokens"] == kind]
                x, y = [layers.index(r["layer"]) for r in found], [r[name] for r in found]
                axes.plot(x, y, line, color=colour, marker=marker, label=f"{kind} tokens")
                if name == "bits":
                    chance = [row["by_chance"] for row in found]
                    axes.plot(x, chance, ":", color=GREY, marker=marker, ms=3, mfc="white")
            axes.set_title(title, loc="left", fontsize=9)
            axes.grid(axis="y", color="#dadce0", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.margins(x=0.12)
            top = 1.0 if name == "load_entropy" else max(row["domain_bits"] for row in rows)
            axes.set_ylim(-0.05 * top, 1.06 * top)
        panels[1].axhline(rows[0]["domain_bits"], color=GREY, lw=1, label="entropy of domains")
        panels[1].plot([], [], ":", color=GREY, marker="o", ms=3, mfc="white", label="by chance")
        panels[1].set_xticks(range(len(layers)), [str(layer) for layer in layers])
        panels[1].set_xlabel("MoE layer")
        figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                      frameon=False, fontsize=8, columnspacing=1.0, handletextpad=0.4)  # fmt: skip
        words = "; ".join(
            f"layer {r['layer']}, {r['tokens']} tokens: entropy {r['load_entropy']:.2f}, "
            f"{r['bits']:.2f} bits"
            for r in rows
        )
        return drawing(figure, f"Load entropy and specialisation by layer. {words}")


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
        figure = new_figure(0.95 + 0.3 * len(lines))
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
        axes.set(xlim=(-0.5, len(modalities) - 0.5), ylim=(len(lines) - 0.5, -0.5))
        _tick_names(axes, modalities)
        axes.set_yticks(range(len(lines)), [f"layer {layer}, {kind}" for layer, kind in lines])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
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


def _tick_names(axes: Axes, names: Sequence[str]) -> None:
    tilt = sum(map(len, names)) > 34  # labels this long would run into each other
    axes.set_xticks(range(len(names)), names, rotation=30 if tilt else 0,
                    ha="right" if tilt else "center")  # fmt: skip


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"
