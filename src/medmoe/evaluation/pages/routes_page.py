"""The page of `medmoe routes`: every figure with how it is to be read, and its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medmoe.evaluation.pages.page import render_page

if TYPE_CHECKING:
    from medmoe.evaluation.pages.route_figures import RouteFigure


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
        notes=result["notes"],
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
    norms = result["figures"].get("norm_share")
    if norms:
        tokens = sum(row["tokens"] for row in norms)
        share = sum(row["meta_share"] * row["tokens"] for row in norms) / tokens
        tiles.append(("meta expert’s share of the norm", f"{share:.0f} %", "mean over all tokens"))
    return tiles
