"""One rule for each kind of number that people are shown."""

from __future__ import annotations

import pytest

from medmoe.numbers import percent, points, probability, with_interval


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 %"), (0.004, "< 1 %"), (0.006, "1 %"), (0.93, "93 %"), (0.994, "99 %"),
     (0.995, "> 99 %"), (0.9999, "> 99 %"), (1.0, "100 %")],
)  # fmt: skip
def test_a_probability_is_never_rounded_to_certainty(value: float, text: str) -> None:
    assert probability(value) == text


def test_what_is_not_known_is_a_dash_and_no_zero_has_a_sign() -> None:
    assert (percent(None), points(None), with_interval(None, 1.0, 2.0)) == ("–", "–", "–")
    assert (points(-0.04), points(0.04), points(-2.25), points(2.0)) == (
        "0.0",
        "0.0",
        "−2.2",
        "+2.0",
    )
    assert with_interval(91.62, 88.9, 94.1) == "91.6 (88.9–94.1)"
    assert with_interval(91.62, None, None) == "91.6"
