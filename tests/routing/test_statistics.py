"""Shares, entropy and mutual information with its test against values worked out by hand."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import entropy

from medmoe.routing.statistics import (
    expert_share,
    routing_entropy,
    specialisation,
)


def test_shares_of_a_row_sum_to_one_and_a_row_without_tokens_is_nan() -> None:
    shares = expert_share([[3, 1], [0, 0]])
    assert shares[0].tolist() == [0.75, 0.25]
    assert np.isnan(shares[1]).all()


def test_entropy_is_zero_for_one_expert_and_one_for_all_alike() -> None:
    rows = [[8, 0, 0, 0], [2, 2, 2, 2], [4, 4, 0, 0], [0, 0, 0, 0]]
    entropy = routing_entropy(rows)
    assert entropy[:3].tolist() == [0.0, 1.0, 0.5]
    assert np.isnan(entropy[3])


def test_entropy_of_a_single_expert_is_zero() -> None:
    assert routing_entropy([[5]]).tolist() == [0.0]


def test_a_perfect_router_has_the_entropy_of_the_domains() -> None:
    domains = [0] * 4 + [1] * 2 + [2] * 2
    counts = np.eye(3)[domains] * 7
    found = specialisation(counts, domains, seed=0)
    assert found.bits == pytest.approx(1.5)  # of shares 1/2, 1/4, 1/4
    assert (found.domain_bits, found.normalised, found.n) == (1.5, pytest.approx(1), 8)


def test_a_constant_router_has_none_and_every_permutation_reaches_it() -> None:
    found = specialisation([[5, 0, 0]] * 6, [0, 0, 0, 1, 1, 1], seed=0)
    assert (found.bits, found.by_chance, found.p) == (0, 0, 1)


def test_each_image_counts_once_however_many_tokens_it_has() -> None:
    counts = np.array([[9, 1], [2, 8], [1, 3]])
    more = counts * [[1], [50], [7]]
    first, second = (specialisation(c, [0, 1, 1], seed=3) for c in (counts, more))
    assert first.bits == pytest.approx(second.bits)
    assert first.p == second.p


def test_a_noisy_channel_has_the_value_of_the_formula() -> None:
    """A symmetric channel that errs in one of four: 1 − H(1/4) bits."""
    expected = 1 + 0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)
    found = specialisation([[3, 1], [1, 3]], [0, 1], seed=0)
    assert found.bits == pytest.approx(expected)


def test_p_is_that_of_all_permutations_with_the_observed_one_counted_in() -> None:
    """Six images of two domains, perfectly routed: 2 of the 20 ways to share them out reach it."""
    domains = [0, 0, 0, 1, 1, 1]
    counts = np.eye(2)[domains]
    exact = [specialisation(counts, o, seed=0, permutations=1).bits for o in permutations(domains)]
    share = np.mean(np.isclose(exact, 1))
    assert share == pytest.approx(0.1)
    found = specialisation(counts, domains, seed=0, permutations=4999)
    # Four standard errors of a share of 0.1 over 4,999 draws.
    assert found.p == pytest.approx(share, abs=4 * math.sqrt(0.1 * 0.9 / 4999))
    assert found.p * 5000 == pytest.approx(round(found.p * 5000))
    assert specialisation(counts, domains, seed=0, permutations=9).p >= 0.1


def test_images_without_domain_or_token_are_left_out() -> None:
    found = specialisation([[1, 0], [0, 1], [9, 9], [0, 0]], [0, 1, -1, 0], seed=0)
    assert (found.n, found.bits) == (2, pytest.approx(1))


def test_one_domain_has_no_normalised_value() -> None:
    found = specialisation([[1, 0], [0, 1]], [0, 0], seed=0)
    assert (found.bits, found.domain_bits) == (0, 0)
    assert math.isnan(found.normalised)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, 9), min_size=3, max_size=3)),
        min_size=1,
        max_size=12,
    )
)
def test_it_lies_between_zero_and_the_smaller_entropy(
    images: list[tuple[int, list[int]]],
) -> None:
    domains, counts = [d for d, _ in images], np.array([c for _, c in images], dtype=float)
    assume(counts.sum() > 0)
    found = specialisation(counts, domains, seed=0, permutations=19)
    kept = counts[counts.sum(1) > 0]
    load = (kept / kept.sum(1, keepdims=True)).sum(0)
    assert 0 <= found.bits <= min(found.domain_bits, entropy(load, base=2)) + 1e-9
    assert 1 / 20 <= found.p <= 1


def test_the_same_seed_gives_the_same_p() -> None:
    rng = np.random.default_rng(0)
    counts, domains = rng.integers(0, 5, (30, 4)), rng.integers(0, 4, 30)
    assert specialisation(counts, domains, seed=1) == specialisation(counts, domains, seed=1)
