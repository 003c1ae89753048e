from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmoe.errors import ConfigError, DataError
from medmoe.evaluation import metrics
from medmoe.evaluation.protocols import PROTOCOLS, score_pair

# Letters, digits and the marks answers hold; enough to reach every branch of both normalisers.
TEXT = st.text("abeghilnorstuyxANOTYES0123456789 .,;:!?'\"()/-+<>%=\t\u093f\u2212是不", max_size=30)
VOCABULARY = ["yes", "no", "left", "lung", "2.5", "cm", "two", "t1", "ct", "the", "mass"]
WORDS = st.lists(st.sampled_from(VOCABULARY), min_size=1)
ANSWER_TYPE = st.sampled_from(["open", "closed"])


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    path = shared / "reference" / "metrics.json"
    if not path.is_file():
        pytest.skip(f"no outputs of the released scorer at {path}")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("answer_type", ["open", "closed"])
def test_reference_equals_the_released_scorer_on_every_pair(
    golden: dict[str, Any], answer_type: str
) -> None:
    for pair in golden["pairs"]:
        f1, precision, recall = pair["f1_precision_recall"]
        bleu1, bleu2, bleu3 = pair["bleu_nltk_w1_w2_w3"]
        expected = {
            "exact_match": pair["exact_match"],
            "f1": f1,
            "precision": precision,
            "recall": recall,
            "bleu1": bleu1,
            "bleu2": bleu2,
            "bleu3": bleu3,
            "closed_correct": float(pair["closed_correct"]),
        }
        found = score_pair("reference", pair["candidate"], pair["reference"], answer_type)
        # Equal to the last bit: the same operations in the same order.
        assert found == expected, pair
    assert len(golden["pairs"]) == 44


def test_reference_normaliser_equals_the_released_one(golden: dict[str, Any]) -> None:
    for pair in golden["pairs"]:
        for name in ("candidate", "reference"):
            found = metrics.reference_normalise(pair[name].lower())
            assert found == pair[f"{name}_normalised"], pair


def test_reference_overlap_without_lower_casing_equals_the_released_one(
    golden: dict[str, Any],
) -> None:
    for pair in golden["pairs"]:
        said, true, expected = pair["candidate"], pair["reference"], pair["not_lowercased"]
        assert metrics.reference_exact_match(said, true) == expected["exact_match"]
        assert list(metrics.reference_overlap(said, true)) == expected["f1_precision_recall"]


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("I do not know", "no"),
        ("normal", "no"),
        ("unknown", "no"),
        ("yes and no", "yes"),
        ("yes and no", "no"),
    ],
)
def test_fault_of_the_reference_scorer_is_kept_there_and_absent_from_strict(
    prediction: str, answer: str
) -> None:
    assert score_pair("reference", prediction, answer, "closed")["closed_correct"] == 1.0
    assert score_pair("strict", prediction, answer, "closed") == {"accuracy": 0.0}


def test_word_order_counts_in_strict_exact_match_only() -> None:
    assert score_pair("reference", "left lung", "lung left", "open")["exact_match"] == 1.0
    strict = score_pair("strict", "left lung", "lung left", "open")
    assert strict == {"exact_match": 0.0, "f1": 1.0, "recall": 1.0}


def test_strict_counts_repeated_words_and_the_reference_does_not() -> None:
    assert score_pair("reference", "lung", "lung lung lung", "open")["recall"] == 1.0
    strict = score_pair("strict", "lung", "lung lung lung", "open")
    assert strict == {"exact_match": 0.0, "f1": 0.5, "recall": pytest.approx(1 / 3)}
    # The other way round: repeating a right word does not raise recall, and costs F1.
    repeated = score_pair("strict", "mass mass", "mass effusion", "open")
    assert repeated == {"exact_match": 0.0, "f1": 0.5, "recall": 0.5}


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("Yes.", "yes", 1.0),
        ("No, there is no mass", "No", 1.0),
        ("yes, there is", "no", 0.0),
        ("", "no", 0.0),
        ("nothing abnormal", "no", 0.0),
        ("the left", "Left", 1.0),
        ("on the left", "left", 0.0),
        ("axial", "axial plane", 0.0),
        ("no", "yes, in part", 0.0),
    ],
)
def test_strict_closed_answers(prediction: str, answer: str, right: float) -> None:
    assert score_pair("strict", prediction, answer, "closed") == {"accuracy": right}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("The liver", "liver"),
        ("two", "2"),
        ("right-sided", "right sided"),
        ("1,000 ml", "1000 ml"),
        ("2.5cm", "2.5 CM"),
        (".5", "0.5"),
        ("Crohn’s disease", "Crohns disease"),
        ("(axial)", "axial."),
        ("left\u00a0lung", "left lung"),
        ("3.0", "3"),
        ("3.50 cm", "3.5 cm"),
        ("05", "5"),
        ("-0", "0"),
        ("1,000.0", "1000"),
        ("\u0663", "3"),
        ("twelve", "12"),
        ("\u221240 HU", "-40 HU"),
        ("\u201340 HU", "-40 HU"),
        ("5\u201310 mm", "5-10 mm"),
        (">=5 mm", "\u22655 mm"),
        ("+/-2", "\u00b12"),
        ("yes\ufe0f", "yes"),
        ("le\u00adsion", "lesion"),
        ("e\u0301chographie", "\u00e9chographie"),
        ("A lesion in the liver", "lesion in liver"),
        ("\u662f\u7684\u3002", "\u662f"),
        ("\u6ca1\u6709", "No"),
    ],
)
def test_strict_takes_two_spellings_as_one(one: str, other: str) -> None:
    assert metrics.normalise(one) == metrics.normalise(other)
    assert metrics.exact_match(one, other) == metrics.exact_match(other, one) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1.5", "15"),
        ("-40 HU", "40 HU"),
        ("<5 mm", ">5 mm"),
        ("5%", "5"),
        ("A", "the"),
        ("T1", "T2"),
        ("L4-5", "L4"),
        ("12 345", "12,345"),
        ("", ""),
        ("?", "!"),
        (">=5 mm", ">5 mm"),
        ("-0.5", "0.5"),
        ("10", "1"),
        ("100", "1"),
        ("hepatitis A", "hepatitis"),
        ("hepatitis A", "hepatitis B"),
        ("vitamin a", "vitamin"),
        ("group A streptococcus", "group streptococcus"),
        ("A and B", "B"),
        ("\u0939\u093e\u0901", "\u0939\u093e"),
        ("\u0915\u093f", "\u0915\u093e"),
        ("\u0e44\u0e21\u0e48", "\u0e44\u0e21\u0e49"),
        ("\u09a8\u09be", "\u09a8\u09bf"),
        ("\u4e0d\u662f\u80ba", "\u80ba"),
    ],
)
def test_strict_keeps_different_answers_apart(one: str, other: str) -> None:
    assert metrics.exact_match(one, other) == metrics.exact_match(other, one) == 0.0


def test_strict_keeps_a_words_digits_and_parts_a_number_from_its_unit() -> None:
    assert metrics.words("T1 weighted, 5mm at L4-5") == (
        "t1",
        "weighted",
        "5",
        "mm",
        "at",
        "l4",
        "5",
    )


def test_strict_counts_chinese_by_the_character() -> None:
    assert metrics.words("左肺，第4腰椎 T1") == ("左", "肺", "第", "4", "腰", "椎", "t1")
    found = score_pair("strict", "左肺", "左上肺。", "open")
    assert found == {"exact_match": 0.0, "f1": pytest.approx(0.8), "recall": pytest.approx(2 / 3)}
    assert score_pair("strict", "左肺。", "左肺", "open")["exact_match"] == 1.0
    assert score_pair("strict", "不是", "是", "closed") == {"accuracy": 0.0}


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("是", "是的", 1.0),
        ("是的，右肺有结节。", "是", 1.0),
        ("有", "是的", 1.0),
        ("Yes", "是", 1.0),
        ("否", "不是", 1.0),
        ("没有。", "no", 1.0),
        ("图中没有结节", "否", 1.0),
        ("不是，这是肝脏", "是的", 0.0),
        ("这是肝脏", "是", 0.0),  # a copula says neither
        ("是否有结节", "是", 0.0),
        ("是。否。", "否", 0.0),
    ],
)
def test_strict_reads_yes_and_no_in_chinese(prediction: str, answer: str, right: float) -> None:
    assert score_pair("strict", prediction, answer, "closed") == {"accuracy": right}


def test_llava_med_gives_nothing_for_closed_answers_other_than_yes_and_no() -> None:
    assert score_pair("llava_med", "left", "left", "closed")["closed_correct"] == 0.0
    assert score_pair("reference", "left", "left", "closed")["closed_correct"] == 1.0
    assert score_pair("llava_med", "Yes!", "yes", "closed")["closed_correct"] == 1.0
    assert score_pair("llava_med", "unknown", "no", "closed")["closed_correct"] == 1.0


def test_llava_med_scores_open_answers_as_the_reference() -> None:
    pair = ("The left lung.", "left upper lung", "open")
    found, reference = score_pair("llava_med", *pair), score_pair("reference", *pair)
    assert found == reference | {"closed_correct": 0.0}


def test_token_f1_gives_accuracy_for_closed_answers_only() -> None:
    assert score_pair("token_f1", "yes", "yes", "closed") == {"f1": 1.0, "accuracy": 1.0}
    assert score_pair("token_f1", "left lung", "lung", "open") == {"f1": pytest.approx(2 / 3)}


def test_unknown_protocol_and_answer_type_are_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown protocol 'strickt'.*did you mean 'strict'"):
        score_pair("strickt", "a", "b", "open")
    with pytest.raises(DataError, match=r"unknown answer type 'CLOSED '; choose one of: closed"):
        score_pair("strict", "a", "b", "CLOSED ")


def test_a_returned_score_can_be_changed_without_changing_the_next() -> None:
    score_pair("strict", "yes", "yes", "closed")["accuracy"] = 0.5
    assert score_pair("strict", "yes", "yes", "closed") == {"accuracy": 1.0}


@given(prediction=TEXT, answer=TEXT, answer_type=ANSWER_TYPE)
def test_every_metric_lies_between_0_and_1(prediction: str, answer: str, answer_type: str) -> None:
    for protocol in PROTOCOLS:
        for metric, value in score_pair(protocol, prediction, answer, answer_type).items():
            assert 0.0 <= value <= 1.0, (protocol, metric)


@given(prediction=WORDS, answer=WORDS, answer_type=ANSWER_TYPE)
def test_strict_is_blind_to_case_and_closing_punctuation(
    prediction: list[str], answer: list[str], answer_type: str
) -> None:
    said, true = " ".join(prediction), " ".join(answer)
    plain = score_pair("strict", said, true, answer_type)
    assert score_pair("strict", f'"{said.upper()}!"', f" ({true.title()}).", answer_type) == plain
    assert score_pair("strict", ", ".join(prediction), true, answer_type) == plain


@given(text=TEXT)
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert metrics.normalise(metrics.normalise(text)) == metrics.normalise(text)


@given(one=TEXT, other=TEXT)
def test_strict_overlap_swaps_precision_and_recall(one: str, other: str) -> None:
    f1, precision, recall = metrics.token_overlap(one, other)
    assert metrics.token_overlap(other, one) == (f1, recall, precision)
    assert (f1 == 1.0) == (sorted(metrics.words(one)) == sorted(metrics.words(other)) != [])
