"""The router's score in sentences, the same in the terminal, on the report and on the cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medmoe.evaluation.pages.report_rows import interval
from medmoe.evaluation.routes.router_score import SOURCES
from medmoe.model.domain_check import check_sentence
from medmoe.numbers import count, percent


def router_lines(router: Mapping[str, Any] | None) -> list[str]:
    """Return what the object ``router`` of a summary says; empty where it scored no picture."""
    router = router or {}
    if not router.get("n"):
        return []
    rows = {SOURCES[kind]: row for kind, row in (router.get("by_source") or {}).items()}
    sets = router.get("by_dataset") or {}
    if len(sets) > 1 or not rows:
        rows |= sets
    lines = [f"Router, {name}: {_score(row)}." for name, row in rows.items()]
    lines = lines or [f"Router: {_score(router)}."]
    if shared := router.get("shared_images"):
        lines.append(f"{shared} of the pictures it is scored on nearly equal trained ones.")
    if check := router.get("out_of_domain"):
        lines.append(f"Out-of-domain check, {check_sentence(check)}.")
    return lines + [
        f"Router, {row['n']} pictures of {name}, which is none of its domains: taken for "
        + ", ".join(f"{domain} {count}" for domain, count in row["domains"].items())
        + ("" if row["warned"] is None else f"; {row['warned']} warned of as out of domain")
        + "."
        for name, row in (router.get("outside") or {}).items()
    ]


def _score(row: Mapping[str, Any]) -> str:
    """Return a row's accuracy and what stands beside it."""
    text = f"accuracy {percent(row['accuracy'])} % ({interval(row)}, n = {count(row['n'])})"
    if "recall" not in row:  # of an older run
        return text
    apart = row["apart"]
    recalls, singles = (
        ", ".join(
            f"{name} {percent(found['accuracy'])} of {found['n']}"
            for name, found in row["recall"].items()
            if (name in apart) == held
        )
        for held in (False, True)
    )
    common = row["commonest"]
    text += f", macro accuracy {percent(row['macro_accuracy'])} % (recall {recalls})"
    text += f"; apart, as one source alone has it: recall {singles}" if singles else ""
    if row["per_domain"]:
        text += f"; at most {row['per_domain']} pictures of a domain, drawn by the seed"
    return (
        f"{text}; always {common['domain']}: {percent(common['accuracy'])} %, "
        f"macro {percent(common['macro_accuracy'])} %"
    )
