"""The out-of-domain check: what it warns of, how often it may be wrong, and that it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.stats import binom
from tests.model.tiny import IMAGE_TOKENS, WIDTH, dense_model, moe_model, processor

from medmoe.inference.answer import read_check, warnings_of
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.domain_check import DomainCheck, allowed_warnings, fit_domain_check, pooled


def features(count: int, seed: int, shift: float = 0.0, spread: float = 1.0) -> torch.Tensor:
    """Return features (N, P, W) of pictures around one of two means."""
    draw = torch.Generator().manual_seed(seed)
    means = 4.0 * torch.randn(2, 1, WIDTH, generator=torch.Generator().manual_seed(0))
    own = torch.randn(count, 1, WIDTH, generator=draw)
    patches = torch.randn(count, IMAGE_TOKENS, WIDTH, generator=draw)
    return means[torch.arange(count) % 2] + own + shift + spread * patches


def noise(count: int, seed: int) -> torch.Tensor:
    """Return features (N, P, W) of pictures of noise: all alike."""
    draw = torch.Generator().manual_seed(seed)
    mean = 4.0 * torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(20))
    return mean + 0.1 * torch.randn(count, IMAGE_TOKENS, WIDTH, generator=draw)


def fitted(held_out: int = 400) -> DomainCheck | dict[str, str]:
    states = pooled(features(600, 1))
    known = pooled(features(held_out, 2))
    return fit_domain_check(states, torch.arange(600) % 2, known, pooled(noise(40, 10)))


def test_at_most_the_stated_share_of_held_out_pictures_is_warned_of() -> None:
    check = fitted()
    assert isinstance(check, DomainCheck)
    assert check.facts["warned"] == allowed_warnings(400) == 3
    new = check.warns(pooled(features(2000, 3)))
    assert new.float().mean() <= 0.02


def test_pictures_away_from_all_domains_and_pictures_without_detail_are_warned_of() -> None:
    check = fitted()
    assert isinstance(check, DomainCheck)
    assert check.warns(pooled(features(50, 4, shift=4.0))).all()
    assert check.warns(pooled(features(50, 5, spread=0.01))).all()
    means = pooled(features(600, 1))[:, :WIDTH].unflatten(0, (300, 2)).mean(0)  # of each domain
    between = pooled(features(50, 6))
    between[:, :WIDTH] -= (means - means.mean(0))[torch.arange(50) % 2]
    assert check.warns(between).all(), "the mean of two domains is none of them"


def test_noise_is_warned_of_although_it_is_no_farther_than_a_domain_reaches() -> None:
    check = fitted()
    assert isinstance(check, DomainCheck)
    check.facts["distance"] = 1e6
    assert not check.warns(pooled(features(50, 4, shift=4.0))).any()
    check.facts["spread"] = 0.0
    assert check.warns(pooled(noise(50, 11))).all()


def test_an_encoder_that_tells_no_picture_from_noise_has_no_check() -> None:
    states = pooled(features(600, 1))
    found = fit_domain_check(states, torch.arange(600) % 2, states[:200], states[:200:2])
    assert isinstance(found, dict)
    assert found["missing"] == "the encoder takes more than 0 held-out pictures for noise"


@pytest.mark.parametrize("n", [149, 400, 1000])
def test_one_warning_more_would_break_the_promise(n: int) -> None:
    allowed = allowed_warnings(n)
    assert binom.cdf(allowed, n, 0.02) <= 0.05 < binom.cdf(allowed + 1, n, 0.02)


def test_too_few_held_out_pictures_are_said_and_nothing_is_guessed() -> None:
    found = fitted(148)
    assert isinstance(found, dict)
    assert found["missing"].startswith("148 held-out pictures of a known domain are too few")
    assert found["missing"].endswith("149 are needed")


def test_an_encoder_that_sees_nothing_has_no_check() -> None:
    same = torch.ones(400, 2 * WIDTH)
    found = fit_domain_check(same, torch.zeros(400), same, same)
    assert isinstance(found, dict)
    assert "same of every picture" in found["missing"]


def test_it_is_saved_and_loaded_with_the_model_and_changes_no_answer(tmp_path: Path) -> None:
    model, check = moe_model("stablelm"), fitted()
    engine = MedMoe(model, processor())
    plain = engine.answer_features(features(1, 7), [0], ["Which?"])[0]
    assert plain.routing is not None
    assert plain.routing.out_of_domain.warning is None
    assert isinstance(check, DomainCheck)
    model.take_check(check)
    again = engine.answer_features(features(1, 7), [0], ["Which?"])[0]
    assert again.routing is not None
    assert again.routing.out_of_domain.warning is False
    assert (again.text, again.confidence) == (plain.text, plain.confidence)
    assert again.routing.probabilities == plain.routing.probabilities
    save_model(model, processor(), tmp_path / "m", {})
    loaded, _ = load_model(tmp_path / "m")
    assert loaded.domain_check is not None
    strange = features(3, 8, shift=4.0)
    assert torch.equal(loaded.domain_check(pooled(strange)), check(pooled(strange)))


def test_the_sentence_is_a_warning_like_any_other() -> None:
    engine = MedMoe(moe_model("stablelm"), processor())
    check = fitted()
    assert isinstance(check, DomainCheck)
    engine.model.take_check(check)
    (strange,) = engine.route(features(1, 9, shift=4.0))
    assert strange is not None
    (warning,) = warnings_of(None, strange)
    assert warning == strange.out_of_domain.sentence
    assert warning.startswith("out of domain: the picture is unlike those that the router was")
    (flat,) = engine.route(features(1, 9, spread=0.01))
    assert flat is not None
    assert "it has hardly any detail" in flat.out_of_domain.sentence
    assert warnings_of(None, engine.route(features(1, 2))[0]) == []


def test_a_model_says_why_it_has_no_check(tmp_path: Path) -> None:
    model = moe_model("stablelm")
    assert "saved without one" in read_check(model, features(1, 1))[0].sentence
    model.take_check({"missing": "3 pictures are too few"})
    save_model(model, processor(), tmp_path / "m", {})
    loaded, _ = load_model(tmp_path / "m")
    (found,) = read_check(loaded, features(1, 1))
    assert (found.warning, found.sentence) == (
        None, "no out-of-domain check: 3 pictures are too few",
    )  # fmt: skip
    assert dense_model("phi").domain_check is None
