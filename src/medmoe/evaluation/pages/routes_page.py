"""The page of `medmoe routes`: every figure with its rows, drawings and how it is to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medmoe.evaluation.pages.page import render_page
from medmoe.evaluation.pages.table import Table
from medmoe.evaluation.routes import tables
from medmoe.evaluation.routes.embedding import Embedding
from medmoe.evaluation.routes.observe import Observation
from medmoe.numbers import count, fixed, interval, percent
from medmoe.routing import route_figures
from medmoe.routing.figure_style import Drawing, Look, expert_looks

Row = dict[str, Any]
THIS, LEARNED = "this router", "learned router"


@dataclass(frozen=True)
class RouteFigure:
    """One figure.

    Attributes:
        stem: Name of its files, without ending; the rows are ``<stem>.csv``. By it the template
            has its title and how it is to be read.
        rows: What it shows, as the CSV holds it.
        drawings: File stem → drawing.
        table: Numbers of it that stand on the page too.
        more: Further CSV files: stem → rows.
        method: How it was made, where that is to be said.
    """

    stem: str
    rows: list[Row]
    drawings: Mapping[str, Drawing]
    table: Table | None = None
    more: Mapping[str, list[Row]] | None = None
    method: str = ""


def map_figure(embedding: Embedding) -> RouteFigure:
    """Return figures 3 and 10."""
    whole = next(row for row in embedding.silhouettes if row["metric"] == "euclidean")
    stem = "figure_3_router_embeddings"
    table = Table(
        ("Layer", "Distance", "Before", "After", "Difference"),
        [
            (
                "all, side by side" if row["layer"] == "all" else f"layer {row['layer']}",
                row["metric"],
                *(_interval(row, name) for name in ("before", "after", "difference")),
            )
            for row in embedding.silhouettes
        ],
        "Silhouette of the modalities, with 95 % interval over images",
        2,
    )
    return RouteFigure(
        stem,
        embedding.points,
        {
            f"{stem}_{side}": route_figures.embedding_map(side, embedding.points, whole)
            for side in ("before", "after")
        },
        table,
        {"figure_3_silhouettes": embedding.silhouettes},
        embedding.method,
    )


def share_figure(rows: list[Row], domains: Sequence[str]) -> RouteFigure:
    """Return figures 4 and 11, one panel per modality."""
    looks = expert_looks(domains)
    drawings = {
        f"figure_4_token_shares_{_file_name(modality)}": route_figures.token_shares(
            modality, [row for row in rows if row["modality"] == modality], looks
        )
        for modality in dict.fromkeys(row["modality"] for row in rows)
    }
    return RouteFigure("figure_4_token_shares", rows, drawings)


def most_used_figure(
    observation: Observation,
    learned: Observation | None,
    modalities: Sequence[str],
    domains: Sequence[str],
) -> RouteFigure:
    """Return figure 5, for this router and for a learned one where there is one."""
    rows = tables.most_used(observation, THIS, modalities, domains)
    looks: dict[str, dict[str, Look]] = {THIS: expert_looks(domains)}
    if learned is not None:
        numbered = [f"expert {e + 1}" for e in range(learned.counts.shape[-1])]
        rows += tables.most_used(learned, LEARNED, modalities, numbered)
        looks[LEARNED] = expert_looks(numbered)
    stem = "figure_5_most_used_expert"
    return RouteFigure(
        stem,
        rows,
        {
            f"{stem}_{_file_name(router)}": route_figures.most_used(
                router, [row for row in rows if row["router"] == router], experts
            )
            for router, experts in looks.items()
        },
    )


def load_table(rows: list[Row]) -> Table:
    """Return load entropy and specialisation index by layer, as page and terminal show them."""
    return Table(
        ("Layer", "Tokens", "Load entropy", "Bits", "÷ entropy of domains", "By chance", "p", "n"),
        [
            (
                f"layer {row['layer']}",
                row["tokens"],
                fixed(row["load_entropy"], 2),
                fixed(row["bits"], 2),
                fixed(row["normalised"], 2),
                fixed(row["by_chance"], 3),
                fixed(row["p"], 3),
                str(row["images"]),
            )
            for row in rows
        ],
        "Load entropy and specialisation index",
        2,
    )


def layer_figure(rows: list[Row]) -> RouteFigure:
    """Return load entropy and specialisation index by layer."""
    drawings = {
        "load_entropy": route_figures.load_entropy(rows),
        "specialisation": route_figures.specialisation(rows),
    }
    return RouteFigure("load_and_specialisation", rows, drawings, load_table(rows))


def curve_figure(rows: list[Row]) -> RouteFigure:
    """Return figure 6."""
    stem = "figure_6_label_curve"
    table = Table(
        ("Labels", "Images used", "Accuracy, %", "95 %", "n"),
        [
            (
                count(row["labels"]),
                count(row["images"]),
                percent(row["accuracy"]),
                interval(row["low"], row["high"]),
                count(row["n"]),
            )
            for row in rows
        ],
    )
    return RouteFigure(stem, rows, {stem: route_figures.label_curve(rows)}, table)


def render_routes(model: str, result: Mapping[str, Any], figures: Sequence[RouteFigure]) -> str:
    """Return the page as HTML.

    Args:
        model: What to call the model on the page.
        result: The object of ``routes.json``.
        figures: In the order of the page.
    """
    modalities = ", ".join(f"{name} {count}" for name, count in result["modalities"].items())
    tasks = "; ".join(
        f"{t['task']}, split {t['split']}, {t['questions']} questions" for t in result["tasks"]
    )
    facts = [
        ("model", model),
        ("tasks", tasks),
        ("images", f"{result['images']} ({modalities})"),
        ("MoE layers", ", ".join(map(str, result["layers"]))),
        ("experts", f"{', '.join(result['domains'])}; {result['num_experts_per_tok']} per token"),
        ("seed", str(result["seed"])),
    ]
    return render_page(
        "routes",
        title="Which expert did what",
        facts=facts,
        tiles=_tiles(result),
        figures=figures,
        result=result,
    )


def _tiles(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return label, value and remark of the numbers that stand first."""
    tiles = []
    layers = [r for r in result["figures"]["load_and_specialisation"] if r["tokens"] == "image"]
    low, high = (pick(r["normalised"] for r in layers) for pick in (min, max))
    worst = max(row["p"] for row in layers)
    value = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    tiles.append(
        ("specialisation of image tokens", value, f"of 1, over the layers; p ≤ {worst:.3f}")
    )
    for row in result["silhouettes"][:1]:
        remark = f"before to after the router, {row['metric']}, {row['images']} images"
        tiles.append(
            ("silhouette", f"{row['before']:.2f} → {row['after']:.2f}".replace("-", "−"), remark)
        )
    return tiles


def _interval(row: Mapping[str, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.2f} ({low:.2f} to {high:.2f})".replace("-", "−")


def _file_name(modality: str) -> str:
    """Return a modality as a part of a file name: it may be any text of a user's own data."""
    return "".join(c if c.isalnum() else "_" for c in modality) or "_"
