"""Swapped questions: options in another order, words that exclude each other."""

from __future__ import annotations

import pytest

from medmoe.evaluation.pairs.swaps import excluding, reordered


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is this a CT or an MRI?", "Is this an MRI or a CT?"),
        ("Is this an MRI or CT scan?", "Is this a CT or MRI scan?"),
        ("Is the finding small or large?", "Is the finding large or small?"),
        ("Is it on the left or the right side?", "Is it on the right or the left side?"),
        ("Is it on the left or right side?", "Is it on the right or left side?"),
        ("Is this a T1 weighted or T2 weighted MRI?", "Is this a T2 weighted or T1 weighted MRI?"),
        ("Is this a T1 weighted, T2 weighted, or FLAIR image?", None),
        ("Is this image modality T1, T2, or FLAIR?", "Is this image modality T1, FLAIR, or T2?"),
        ("Which is bigger, liver or left lung?", "Which is bigger, left lung or liver?"),
        ("Which lobe is it, frontal or temporal lobe?", None),  # they share their noun
        (
            "Which is more likely? Cancer or hemorrhage?",
            "Which is more likely? Hemorrhage or cancer?",
        ),
        (
            "Is the lesion in the right lung or left lung?",
            "Is the lesion in the left lung or right lung?",
        ),
        ("Is the lesion in the right lung or left kidney?", None),
        ("Is the contrast in the bowels or the vasculature?", None),
        ("Is it left, right, or both?", None),
        ("Is it left or right or both?", None),
        ("Is there a mass?", None),
        ("or", None),
    ],
)
def test_options_change_places_where_both_are_sure(question: str, expected: str | None) -> None:
    assert reordered(question) == expected


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is this a CT?", "Is this an MRI?"),
        ("is this an mri scan?", "is this a ct scan?"),
        ("Is this a chest x-ray?", "Is this a chest MRI?"),
        ("Is this a noncontrast CT", "Is this a noncontrast MRI"),
        ("Is this image taken via X-Ray?", "Is this image taken via MRI?"),
        ("Is this an axial view of the brain?", "Is this a coronal view of the brain?"),
        ("Is the image in the axial plane?", "Is the image in the coronal plane?"),
        ("Is this the axial plane?", "Is this the coronal plane?"),
        ("Was this taken in PA position?", "Was this taken in AP position?"),
        ("Is this a T1 weighted MRI?", "Is this a T2 weighted MRI?"),
        (
            "Is the finding on the left side of the image?",
            "Is the finding on the right side of the image?",
        ),
        ("Is the mass on the patient's left side?", "Is the mass on the patient's right side?"),
        ("Is the mass on the viewer's right side?", "Is the mass on the viewer's left side?"),
        ("Is the ct scan normal?", None),  # says of the CT that it is normal
        ("Is this CT scan enhanced by IV contrast?", None),
        ("Is the chest xray underexposed?", None),
        ("Is the transverse colon in view?", None),
        ("Is this a plain film xray?", None),
        ("Is this an MRI image with T1 weighted?", None),  # a CT with T1 is nothing
        ("Is there a lesion on the left side?", None),  # there may be one on either
        ("Are the lesions on the left side?", None),
        ("Is this a CT or an MRI?", None),
        ("Is this not a CT?", None),
        ("", None),
    ],
)
def test_words_are_exchanged_where_they_exclude_each_other(
    question: str, expected: str | None
) -> None:
    assert excluding(question) == expected
