"""Cards of a trained model: the results of a Hugging Face model card, and an applied model card.

The applied card follows the outline of the Coalition for Health AI (CHAI): identity, uses,
warnings, trust ingredients, key metrics, resources. Every number in either comes from the run's own
files; what only people can know (developer, funding, who was consulted) is said to be missing.
Neither card makes a model fit for clinical use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medmoe.evaluation.pages.page import render_markdown, render_page
from medmoe.evaluation.pages.report_rows import (
    BY_PART,
    BY_TYPE,
    OTHER_PROTOCOLS,
    OUR_PROTOCOL,
    OURS,
    interval,
    lead_system,
    place,
    results,
)
from medmoe.evaluation.pages.sections.router import router_lines
from medmoe.files import json_object, write_text
from medmoe.numbers import count

#: The file that `write_applied_card` writes.
APPLIED_CARD = "applied_card.html"
PAPER = "Med-MoE, arXiv 2404.10237"
_TASK_TYPES = {"label_score": "image-classification"}
_SIZES = ("total", "activated")
_MAIN_TABLES = (OUR_PROTOCOL, OTHER_PROTOCOLS)
_MAIN_METRICS = ("accuracy", "exact_match", "auc")


def write_applied_card(folder: Path) -> Path:
    """Write ``applied_card.html`` into the folder of a finished run, and return it.

    Raises:
        MedMoeError: A card cannot be written, as `write_text` says.
    """
    names = ("summary.json", "run.json", "model/medmoe.json")
    summary, run, model = (json_object(folder / name) or {} for name in names)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    write_text(folder / APPLIED_CARD, applied_card(summary, run, config, model.get("domains", ())))
    return folder / APPLIED_CARD


# --- Hugging Face -----------------------------------------------------------------------------


def with_results(card: str, summary: Mapping[str, Any]) -> str:
    """Return a model card with a run's results: ``model-index`` in its head, a section at its end.

    Metrics are the main ones of the MoE model (or of the only system): strict accuracy and exact
    match, and accuracy and AUC by label score, each with its interval and n in its name.
    """
    from huggingface_hub import EvalResult, ModelCard

    entries = []
    for row in _main_rows(summary):
        inside = ", ".join(text for text in (interval(row), f"n = {row['n']}") if text)
        entries.append(
            EvalResult(
                task_type=_TASK_TYPES.get(row["protocol"], "visual-question-answering"),
                dataset_type=row["task"],
                dataset_name=place(row["task"], row["split"]),
                dataset_split=row["split"],
                metric_type=row["metric"],
                metric_name=f"{row['subset']} {row['metric']}, {row['protocol']} ({inside})",
                metric_value=round(float(row["value"]), 2),
            )
        )
    whole = ModelCard(f"{card.rstrip()}\n\n{results_section(summary)}")
    head: Any = whole.data
    head.model_name, head.eval_results = f"Med-MoE ({summary.get('data', 'run')})", entries
    return str(whole)


def _main_rows(summary: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    rows = [row for row in summary.get("scores", []) if row.get("control") is None]
    lead = lead_system(rows)
    for row in rows:
        told = row["protocol"] in OURS and row["metric"] in _MAIN_METRICS
        main = row["subset"] in ("closed", "open", "all")
        if row["system"] == lead and told and main and row["value"] is not None:
            yield row


def results_section(summary: Mapping[str, Any]) -> str:
    """Return the results of a model card as Markdown: table, and what they do not show."""
    arranged = results(summary.get("scores", []), summary.get("comparisons", []))
    known = {"seed": "seed", "commit": "commit", "config_sha256": "config"}
    return render_markdown(
        "results",
        results=arranged,
        tables={
            k: arranged.tables[k] for k in (OUR_PROTOCOL, OTHER_PROTOCOLS) if k in arranged.tables
        },
        router=router_lines(summary.get("router")),
        origin=[
            f"{name} {summary[key]}" for key, name in known.items() if summary.get(key) is not None
        ],
        notes=summary.get("notes", []),
    )


# --- CHAI -------------------------------------------------------------------------------------


def applied_card(
    summary: Mapping[str, Any],
    run: Mapping[str, Any],
    config: Mapping[str, Any],
    domains: Sequence[str],
) -> str:
    """Return the applied model card as a page.

    Args:
        summary: The object of ``summary.json``; ``run`` and ``config`` are those of ``run.json``
            and ``config.yaml``.
        domains: Of the model.
    """
    arranged = results(summary.get("scores", []), summary.get("comparisons", []))
    model = config.get("model") or {}
    sizes = summary.get("parameters") or {}
    return render_page(
        "applied_card",
        title=f"Applied model card: Med-MoE ({summary.get('data', 'run')})",
        commit=summary.get("commit"),
        dirty=run.get("dirty", False),
        data=summary.get("data") or "not named by the run",
        notes=summary.get("notes", []),
        versions=run.get("versions") or {},
        domains=list(domains or model.get("domains", [])),
        top_k=model.get("num_experts_per_tok"),
        parts=[model[key] for key in ("language_model", "vision_encoder") if key in model],
        parameters={k: count(sizes[k]) for k in _SIZES} if sizes else {},
        results=arranged,
        ours=arranged.tables.get(OUR_PROTOCOL),
        parts_of_questions=[arranged.tables[k] for k in (BY_TYPE, BY_PART) if k in arranged.tables],
        router=router_lines(summary.get("router")),
        hashes=sorted(((run.get("data") or {}).get("sha256") or {}).items()),
        paper=PAPER,
        sets=sorted({place(row["task"], row["split"]) for row in summary.get("scores", [])}),
    )
