"""The router's score: each value against a count by hand, and nothing that one domain can hide."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from medmoe.evaluation.pages.sections.router import router_lines
from medmoe.evaluation.routes.router_score import RoutedPicture, router_score

DOMAINS = ("ct", "mri", "pathology")


def pictures(dataset: str, modality: str | None, **chosen: int) -> list[RoutedPicture]:
    return [
        RoutedPicture(dataset, modality, domain) for domain, n in chosen.items() for _ in range(n)
    ]


def score(*groups: list[RoutedPicture], **options: Any) -> dict[str, Any]:
    return router_score([picture for group in groups for picture in group], DOMAINS, **options)


def test_always_the_commonest_domain_reaches_its_share_and_one_recall() -> None:
    """As on SLAKE and PathVQA, where nine of ten pictures are of pathology."""
    found = score(pictures("a", "pathology", pathology=90), pictures("a", "ct", pathology=10))
    assert found["accuracy"] == 90.0
    assert found["macro_accuracy"] == 50.0
    assert found["commonest"] == {"domain": "pathology", "accuracy": 90.0, "macro_accuracy": 50.0}


def test_macro_accuracy_is_the_mean_of_the_recalls_and_rows_are_the_truth() -> None:
    found = score(pictures("a", "ct", ct=3, mri=1), pictures("a", "mri", mri=1, pathology=1))
    assert {n: r["accuracy"] for n, r in found["recall"].items()} == {"ct": 75.0, "mri": 50.0}
    assert found["macro_accuracy"] == 62.5
    assert found["confusion"] == [[3, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_a_domain_that_one_source_alone_has_stands_apart_from_the_macro_accuracy() -> None:
    groups = (
        pictures("a", "ct", ct=1, mri=1),
        pictures("a", "mri", mri=2),
        pictures("tiles", "pathology", pathology=9),
    )
    found = score(*groups)
    assert (found["apart"], found["macro_accuracy"]) == (["pathology"], 75.0)
    assert found["recall"]["pathology"]["n"] == 9
    assert score(groups[2])["apart"] == [], "of one domain alone there is nothing to stand apart of"


def test_pictures_are_drawn_in_equal_number_by_the_seed() -> None:
    groups = (
        pictures("a", "ct", ct=50, mri=50),
        pictures("a", "mri", mri=20),
        pictures("tiles", "pathology", pathology=9),
    )
    found = [score(*groups, per_domain=30, seed=seed) for seed in (1, 1, 2, 3, 4)]
    assert {n: row["n"] for n, row in found[0]["recall"].items()} == {
        "ct": 20, "mri": 20, "pathology": 9,
    }  # fmt: skip
    assert found[0]["per_domain"] == 20
    assert found[0] == found[1]
    assert len({row["recall"]["ct"]["accuracy"] for row in found}) > 1
    assert found[0]["by_dataset"]["a"]["n"] == 120, "of a set all pictures count"


def test_sources_that_were_never_trained_on_have_a_row_of_their_own() -> None:
    groups = (
        pictures("a", "ct", ct=9, mri=1),
        pictures("b", "ct", ct=1, mri=1),
        pictures("c", "ct", mri=1),
    )
    found = score(*groups, sources={"a": "taught", "b": "seen"})
    assert {k: row["accuracy"] for k, row in found["by_source"].items()} == {
        "taught": 90.0, "seen": 50.0, "new": 0.0,
    }  # fmt: skip
    assert found["accuracy"] == 90.0, "the first kind stands on top"
    lines = router_lines(found)
    assert lines[0].startswith("Router, sources that the router was taught on: accuracy 90.0 %")
    assert lines[2].startswith("Router, sources never trained on: accuracy 0.0 %")


def test_pictures_of_no_domain_are_counted_by_what_takes_them() -> None:
    strange = [RoutedPicture("a", "ultrasound", "ct", warned) for warned in (True, True, False)]
    found = score(strange, pictures("a", None, ct=5), pictures("a", "ct", ct=1))
    assert found["outside"] == {"ultrasound": {"n": 3, "warned": 2, "domains": {"ct": 3}}}
    assert found["n"] == 1, "and do not count as right or wrong"
    assert router_lines(found)[-1] == (
        "Router, 3 pictures of ultrasound, which is none of its domains: taken for ct 3; "
        "2 warned of as out of domain."
    )


@pytest.mark.parametrize("router", [None, {}, {"n": 0}])
def test_without_a_scored_picture_nothing_is_said(router: dict[str, Any] | None) -> None:
    assert router_lines(router) == []
    assert Counter(score(pictures("a", "ultrasound", ct=2)))["n"] == 0
