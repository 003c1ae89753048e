"""Negated questions: what is rewritten is the opposite, what is not sure is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmoe.data import registry
from medmoe.evaluation.metrics import normalise
from medmoe.evaluation.pairs.negation import negated


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Is there a fracture?", "Is there no fracture?"),
        (
            "Are there any fractures in any of the ribs?",
            "Are there no fractures in any of the ribs?",
        ),
        ("Is/Are there evidence of edema", "Is/Are there no evidence of edema?"),
        ("Is there anything abnormal?", "Is there nothing abnormal?"),
        ("Are any of the ribs fractured?", "Are none of the ribs fractured?"),
        ("Is a pneumothorax present near the lung?", "Is no pneumothorax present near the lung?"),
        ("Is free air seen?", "Is no free air seen?"),
        ("Can mass be observed in this picture?", "Can no mass be observed in this picture?"),
        ("Can the liver be seen?", "Can the liver not be seen?"),
        ("Do you see a mass?", "Do you see no mass?"),
        ("Can you see the kidneys?", "Can you not see the kidneys?"),
        ("Is this a CT?", "Is this not a CT?"),
        ("Is this image taken via MRI?", "Is this image not taken via MRI?"),
        ("Has the gallbladder been removed?", "Has the gallbladder not been removed?"),
        ("Is the heart enlarged?", "Is the heart not enlarged?"),
        ("Are the nodules well circumscribed?", "Are the nodules not well circumscribed?"),
        ("Is the lesion ring enhancing?", "Is the lesion not ring enhancing?"),
        ("Is the heart clearly visible?", "Is the heart not clearly visible?"),
        ("Is the mass in the pancreas enhancing?", "Is the mass in the pancreas not enhancing?"),
        ("Is the size of the spleen normal?", "Is the size of the spleen not normal?"),
        ("Was IV contrast given to the patient?", "Was IV contrast not given to the patient?"),
        (
            "Is the finding on the left side of the image?",
            "Is the finding not on the left side of the image?",
        ),
        ("Does this image show any mass?", "Does this image not show any mass?"),
        ("Does the lung look healthy?", "Does the lung not look healthy?"),
    ],
)
def test_the_negation_is_the_opposite(question: str, expected: str) -> None:
    assert negated(question) == expected


@pytest.mark.parametrize(
    "question",
    [
        "Is there no mass?",  # a negation already
        "Is the appendix non-enlarged?",
        "Isn't the heart enlarged?",
        "Is there a mass or a cyst?",
        "Is there a mass and an effusion?",  # not both, or neither?
        "Are both lungs normal?",
        "Are all ribs intact?",
        "Are there two kidneys?",
        "Are there 2 kidneys?",
        "Are there multiple masses?",
        "Is there a single lesion?",
        "Is there more than one lesion?",
        "Are the ventricles larger than normal?",
        "Is the lesion seen in the left lung calcified?",  # "not seen", or "not calcified"?
        "Is the appendix seen in this image lobular?",
        "Is the enlarged heart visible?",
        "Is the fluid in the abdomen blood?",
        "Is the left enhanced kidney large?",
        "Does this mass likely represent a tumor?",
        "Does a blocked alveoli cause a mismatch?",  # of alveoli at large, not of a picture
        "Can a patient with a metal implant get a CXR?",
        "Is it possible to see the cerebellum?",
        "Is there something wrong?",
        "Is there the aorta?",
        "Is the mass calcified? -yes/no",
        "Is the heart >50% of the chest?",
        "Is the heart enlarged, as it seems?",
        "What is enlarged?",
        "Is this?",
        "图像中有肿块吗?",
        "",
    ],
)
def test_what_is_not_sure_is_left_out(question: str) -> None:
    assert negated(question) is None


def test_a_negation_is_not_negated_again_and_hardly_any_word_is_lost(shared: Path) -> None:
    """Of all yes/no questions of VQA-RAD: at most an article goes, at most one word comes."""
    records = registry.read("vqa_rad", shared / "data", "test")
    questions = [r.question for r in records if normalise(r.answer) in ("yes", "no")]
    found = {question: negated(question) for question in questions}
    done = {question: new for question, new in found.items() if new is not None}
    assert len(questions) == 251
    assert sum(found[question] is not None for question in questions) == 199
    for question, new in done.items():
        assert negated(new) is None
        before, after = question.rstrip("? ").split(), new.rstrip("?").split()
        gone = [word for word in before if word not in after]
        come = [word for word in after if word not in before]
        assert come in (["no"], ["not"], ["none"], ["nothing"])
        assert gone in ([], ["a"], ["an"], ["any"], ["anything"])
