"""The evidence card: one self-contained page on one answer, from `medmoe explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from medmoe.data.images import Picture
from medmoe.evaluation.pages.page import render_page
from medmoe.files import write_text
from medmoe.inference.evidence import BEAM, Evidence
from medmoe.inference.evidence_picture import region_picture


def write_evidence(
    path: Path, evidence: Evidence, picture: Picture, model: str, *, warnings: Sequence[str] = ()
) -> None:
    """Write the card, as `write_text` does.

    Args:
        path: The HTML file.
        picture: The picture asked about, and what its file says of it.
        model: What to call the model on the page.
        warnings: About the picture, in words.
    """
    routing = evidence.routing
    text = render_page(
        "evidence",
        title="Evidence card",
        model=model,
        evidence=evidence,
        shown=picture.facts.description(),
        warnings=warnings,
        picture=region_picture(picture.image, evidence.attribution),
        domains=sorted(routing.probabilities.items(), key=lambda p: -p[1]) if routing else [],
        experts=routing.experts if routing else {},
        columns=list(routing.probabilities) if routing else [],
        beam=BEAM,
        deletion=_deletion_in_words(evidence),
    )
    write_text(path, text)


def _deletion_in_words(evidence: Evidence) -> str:
    test = evidence.attribution.deletion
    figures = (
        f"greying out the regions of the highest shares (10, 20 and 30 % of them) changes the "
        f"answer’s log-probability by {-test.most_important:+.3g} on average, as many random "
        f"regions by {-test.random:+.3g}"
    )
    if test.passed:
        return f"Passed: {figures}."
    return f"Not passed: {figures}. Do not read the map as the answer’s reason."
