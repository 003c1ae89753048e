"""Captions and hash splits, which all readers share."""

from __future__ import annotations

import pytest

from medmoe.data.readers import common


@pytest.mark.parametrize(
    ("modality", "organ", "plane", "sentence"),
    [
        ("mri", "skull and contents", "axial", "An axial MRI of the skull and contents."),
        ("mri", None, None, "An MRI."),
        ("xray", "chest", "pa", "A PA X-ray of the chest."),
        ("xray", "chest", None, "An X-ray of the chest."),
        ("ct", None, "ap", "An AP CT."),
        ("ultrasound", "genitourinary", None, "An ultrasound of the genitourinary system."),
        ("xray", "breast", "mammo - cc", "An X-ray of the breast (mammo - cc)."),
        (None, "vascular and lymphatic", None, "An image of the vascular and lymphatic system."),
        ("fundus", None, None, "A fundus image."),
    ],
)
def test_caption_states_the_known_facts(
    modality: str | None, organ: str | None, plane: str | None, sentence: str
) -> None:
    assert common.caption(modality, organ, plane) == sentence


def test_nothing_known_gives_no_caption() -> None:
    assert common.caption() is None


def test_hash_share_is_uniform_and_depends_on_the_seed() -> None:
    shares = [common.hash_share(f"image {i}") for i in range(4000)]
    # Standard error of a mean of 4,000 uniform numbers: 0.0046; the bound is 5 of them.
    assert sum(shares) / 4000 == pytest.approx(0.5, abs=0.023)
    assert 0 <= min(shares) < 0.01 < 0.99 < max(shares) < 1
    assert common.hash_share("image 1", seed=1) != common.hash_share("image 1", seed=2)


def test_hash_share_never_changes() -> None:
    """A pinned value: other numbers would move images between published splits."""
    assert common.hash_share("mednist/0") == pytest.approx(0.5062573786159058, abs=1e-12)
