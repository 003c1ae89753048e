"""The router's decisions on images, summed: each value against a count by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medmoe.data.schema import ImageRecord
from medmoe.evaluation.routes.routed_images import RoutedImages
from medmoe.evaluation.routes.router_score import router_score
from medmoe.inference.answer import Routing

DOMAINS = ("ct", "mri")
#: Image, its modality, the router's domain, and the share of its tokens that the first expert has.
ROWS = [
    ("a/1", "ct", "ct", 1.0),
    ("a/2", "mri", "ct", 0.5),
    ("b/1", "mri", "mri", 0.0),
    ("b/2", "ultrasound", "mri", 0.25),
]


@pytest.fixture
def routed() -> RoutedImages:
    images = tuple(ImageRecord(name, Path(), modality) for name, modality, *_ in ROWS)
    routings = tuple(
        Routing(domain, 0.75, {}, {2: {"ct": share, "mri": 1 - share}})
        for *_, domain, share in ROWS
    )
    return RoutedImages(images, routings, DOMAINS)


def test_its_pictures_are_what_a_score_counts(routed: RoutedImages) -> None:
    found = router_score(routed.pictures(), DOMAINS)
    assert (found["n"], found["confusion"]) == (3, [[1, 0], [1, 1]])
    assert found["by_dataset"]["b"]["n"] == 1, "an image of no domain does not count"


def test_experts_shares_are_means_over_the_images_of_a_modality(routed: RoutedImages) -> None:
    rows = [tuple(row.values()) for row in routed.token_shares()]
    assert rows == [
        ("ct", 2, "ct", 100), ("ct", 2, "mri", 0),
        ("mri", 2, "ct", 25), ("mri", 2, "mri", 75),
        ("ultrasound", 2, "ct", 25), ("ultrasound", 2, "mri", 75),
    ]  # fmt: skip


def test_each_image_has_a_line(routed: RoutedImages) -> None:
    rows = [json.loads(line) for line in routed.lines().splitlines()]
    assert [row["id"] for row in rows] == [name for name, *_ in ROWS]
    assert rows[1] == {
        "id": "a/2", "domain": "ct", "domain_probability": 0.75, "modality": "mri",
    }  # fmt: skip
