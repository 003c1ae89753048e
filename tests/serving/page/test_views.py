"""What the page draws: true shape, regions where they belong, and all text escaped."""

from __future__ import annotations

import base64
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoe.data.images import Picture
from medmoe.data.intake.facts import ImageFacts
from medmoe.data.phantom import draw_plan, read_phantom
from medmoe.data.phantom.plan import plan_image
from medmoe.inference.answer import Answer, OutOfDomain, Routing
from medmoe.inference.case import Exchange, case_to_json, case_to_text
from medmoe.inference.chat import ChatChunk
from medmoe.serving.page.views import (
    MAX_SIDE,
    cells_of,
    data_uri,
    evidence_html,
    export_html,
    picture_html,
    square_of,
    true_size,
)

CELLS = [[0.0, 0.5], [-1.0, 0.25]]


def picture(width: int, height: int) -> Picture:
    image = Image.fromarray(np.full((height, width, 3), 90, np.uint8))
    return Picture(image, ImageFacts("dicom"))


def evidence(**changes: Any) -> dict[str, Any]:
    found = {
        "question": "?",
        "answer": "yes",
        "confidence": 0.999,
        "alternatives": [{"text": "<b>no</b>", "probability": 0.001}],
        "routing": {
            "domain": "ct",
            "domain_probability": 0.6,
            "probabilities": {"mri": 0.4, "ct": 0.6},
            "experts": {0: {"mri": 0.25, "ct": 0.75}},
            "out_of_domain": {"warning": False, "sentence": "not out of domain by the check"},
        },
        "attribution": {
            "cells": CELLS,
            "deletion": {"most_important": 1.0, "random": 0.5, "passed": True},
            "method": "m",
        },
        "counterfactuals": [
            {"change": "image blanked", "answer": "no", "confidence": 0.5,
             "original_probability": 0.1, "differs": True},
        ],
    }  # fmt: skip
    return found | changes


@pytest.mark.parametrize(
    ("size", "shape"), [((200, 100), 2.0), ((100, 200), 0.5), ((4000, 1000), 4.0)]
)
def test_a_picture_has_the_shape_of_what_it_shows(size: tuple[int, int], shape: float) -> None:
    width, height = true_size(picture(*size))
    assert width / height == pytest.approx(shape, rel=0.01)  # whole pixels
    assert max(width, height) <= MAX_SIDE


def test_left_is_the_patients_left_in_picture_answer_and_card() -> None:
    """A frontal radiograph as it is looked at: the patient's left is on the viewer's right."""
    records = [
        record
        for record in read_phantom("test", 400, seed=7)
        if (record.image.labels["plane"], record.image.labels.get("side")) == ("frontal", "left")
    ]
    assert len({record.image.id for record in records}) > 10
    for record in {record.image.id: record for record in records}.values():
        plan = plan_image("test", int(record.image.id[-6:]), 7)
        pixels = np.asarray(record.image.source).astype(int)
        change = np.abs(pixels - draw_plan(plan, seed=7, findings=False))
        assert (np.nonzero(change > 40)[1] > 32).all()
        assert (pixels == 255)[:, 60].sum() >= 5, "the stem of the L"
        assert "left" in record.image.labels.get("quadrant", "left")
    asked = {r.question: r.answer for r in records if r.question_type == "side"}
    assert asked == {
        "Is the finding on the patient's left or right side?": "left",
        "Is the finding on the patient's left side?": "yes",
        "Is the finding on the patient's right side?": "no",
    }
    card = evidence_html(Exchange("where?", "left", complete=True))
    assert "the patient’s left is on the viewer’s right" in card


def test_regions_lie_over_the_picture_as_it_is_drawn_and_end_at_its_border() -> None:
    # 200x100 is padded to 200x200: a region has 100x100, of which a half is padding.
    cells = cells_of(evidence(), (200, 100), (400, 100))  # drawn twice as wide
    places = {(cell.x, cell.y): cell for cell in cells}
    assert set(places) == {(0, 0), (200, 0), (0, 50), (200, 50)}
    assert {(cell.width, cell.height) for cell in cells} == {(200, 50)}
    assert places[200, 0].rank == 1
    assert places[200, 50].rank == 2
    assert places[0, 50].rank is None  # it speaks against the answer
    assert {place: cell.opacity for place, cell in places.items()} == {
        (0, 0): 0, (200, 0): 0.3, (0, 50): 0.6, (200, 50): 0.15,
    }  # fmt: skip
    assert places[200, 0].colour == places[200, 50].colour != places[0, 50].colour


def test_the_square_is_centred_on_the_picture() -> None:
    assert square_of(200, 60) == (0, -70, 200)
    assert square_of(60, 200) == (-70, 0, 200)


def test_a_region_of_the_padding_alone_is_not_drawn() -> None:
    shares = {"cells": [[1.0] * 4] * 4, "deletion": {}, "method": "m"}
    cells = cells_of(evidence(attribution=shares), (200, 50), (200, 50))
    assert {cell.y for cell in cells} == {0, 25}  # of four rows of 50 the inner two show a half
    assert len(cells) == 8


def test_regions_are_drawn_with_evidence_alone() -> None:
    drawn = picture_html(picture(50, 40), evidence())
    assert drawn.count("<circle") == 2
    assert "a share of 1 in the answer’s log-probability" in drawn
    bare = picture_html(picture(50, 40))
    assert "regions" not in bare
    assert "<circle" not in bare


def test_a_large_picture_is_shrunk_and_grey_stays_grey() -> None:
    found = data_uri(Image.new("RGB", (3000, 1500), (7, 7, 7)))
    shown = Image.open(BytesIO(base64.b64decode(found.partition(",")[2])))
    assert (shown.size, shown.mode) == ((1024, 512), "L")
    coloured = data_uri(Image.new("RGB", (20, 20), (7, 8, 7)))
    assert Image.open(BytesIO(base64.b64decode(coloured.partition(",")[2]))).mode == "RGB"


def test_text_of_people_and_models_is_escaped_everywhere() -> None:
    bad = '<script>alert("x")</script>'
    exchange = Exchange(
        bad, bad, True, picture=ImageFacts("png"), warnings=(bad,), evidence=evidence(answer=bad)
    )
    pages = [
        evidence_html(exchange),
        export_html(bad, [exchange], picture(50, 40)),
    ]
    for page in pages:
        assert "<script" not in page.lower()
        assert "&lt;script&gt;" in page.lower()


def test_the_card_holds_confidence_router_experts_alternatives_and_changes() -> None:
    card = evidence_html(Exchange("?", "yes", True, 0.999, evidence=evidence()))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", card)).replace("\u00a0", " ")
    for part in (
        "Answer yes", "Confidence &gt; 99 % not calibrated", "Router’s domain ct probability 60 %",
        "ct 60 %", "Layer mri ct 0 25 75", "&lt;b&gt;no&lt;/b&gt; &lt; 1 %",
        "image blanked no ≠ 50 %", "Not out of domain by the check.", "Deletion test passed",
    ):  # fmt: skip
        assert part in text, part
    assert text.index("ct 60 %") < text.index("mri 40 %")


@pytest.mark.parametrize(
    ("changes", "complete", "part"),
    [
        ({"answer": "no"}, True, "Asked alone"),
        ({}, False, "The answer is not complete"),
        (
            {
                "attribution": {
                    "cells": CELLS,
                    "deletion": {"passed": False, "most_important": 0.1, "random": 0.5},
                    "method": "m",
                }
            },
            True,
            "Deletion test not passed: do not read the regions",
        ),
        ({"routing": None}, True, "No router"),
    ],
)
def test_the_card_warns(changes: dict[str, Any], complete: bool, part: str) -> None:
    assert part in evidence_html(
        Exchange("?", "yes", complete, 0.9, evidence=evidence(**changes))
    ).replace("\n", " ")


def test_a_picture_out_of_domain_is_a_warning_on_the_card_and_in_what_is_copied() -> None:
    check = OutOfDomain(True, "out of domain: unlike those taught; do not rely on the answer")
    routing = Routing("ct", 0.6, {"ct": 0.6, "mri": 0.4}, out_of_domain=check)
    exchange = Exchange("?")
    exchange.take(ChatChunk("yes", "stop", Answer("yes", 0.9, routing)))
    said = "ut of domain: unlike those taught; do not rely on the answer"
    card = evidence_html(exchange).replace("\n", " ")
    assert card.count(said) == 1
    assert f"Warning: o{said}" in case_to_text("m", [exchange])
    assert f"o{said}" in case_to_json("m", [exchange])["exchanges"][0]["warnings"]
    assert said in export_html("m", [exchange], None)


def test_an_exported_case_is_one_file_and_holds_the_picture_only_when_asked() -> None:
    exchange = Exchange("Is it?", "yes", True, picture=ImageFacts("dicom"), evidence=evidence())
    bare = export_html("m", [exchange], None)
    assert "data:image" not in bare
    assert "Research use only, not a medical device" in bare
    with_picture = export_html("m", [exchange], Picture(picture(50, 40).image, ImageFacts("dicom")))
    assert "data:image/png" in with_picture
    for page in (bare, with_picture):
        assert not re.search(r"""(?:src|href)=["'](?!data:|\#)""", page)
        assert "default-src 'none'" in page
