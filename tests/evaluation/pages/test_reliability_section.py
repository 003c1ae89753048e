from __future__ import annotations

from collections.abc import Callable

import pytest

from medmoe.data.schema import Record
from medmoe.errors import ConfigError, DataError
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.files.truth import check_apart
from medmoe.evaluation.pages.sections.corruptions import corruptions_section
from medmoe.evaluation.pages.sections.reliability import reliability_section
from medmoe.evaluation.reliability.measure import answered_by_kind, reliability, robustness_row

Make = Callable[..., Record]


def asked(make: Make, split: str, images: int) -> tuple[list[Record], list[Prediction]]:
    """A closed and an open question on each image; every fourth closed answer is wrong."""
    records, predictions = [], []
    for place in range(images):
        image = f"{split}-{place}"
        closed = make(f"{split}-c{place}", "yes", image=image)
        word = make(f"{split}-o{place}", "liver", image=image)
        records += [closed, word]
        said = "no" if place % 4 == 0 else "yes"
        predictions += [
            Prediction(closed.id, said, 0.4 if place % 4 == 0 else 0.9),
            Prediction(word.id, "liver", 0.8),
        ]
    return records, predictions


def test_each_kind_of_answer_stands_by_itself(make_record: Make) -> None:
    found = answered_by_kind(*asked(make_record, "test", 20))
    assert {kind: float(a.right.mean()) for kind, a in found.items()} == {
        "closed": 0.75,
        "open": 1.0,
    }


def test_the_report_says_numbers_threshold_and_shows_both_figures(make_record: Make) -> None:
    reported = answered_by_kind(*asked(make_record, "test", 40))
    chosen = answered_by_kind(*asked(make_record, "validation", 40))
    summary = {"reliability": {"vqa": reliability(reported, chosen, target=0.1, seed=7)}}
    section = reliability_section(summary)
    assert section is not None
    closed = summary["reliability"]["vqa"]["closed"]
    assert closed["abstention"]["coverage"] == 0.75  # the wrong ones are the unsure ones
    assert closed["abstention"]["wrong"] == 0.0
    assert [table.title for table in section.tables] == ["Calibration: vqa", "Abstention: vqa"]
    assert len(section.figures) == 4
    assert all("<title" in figure.svg for figure in section.figures)


def test_too_few_images_to_promise_anything_are_said(make_record: Make) -> None:
    reported = answered_by_kind(*asked(make_record, "test", 8))
    summary = {"reliability": {"vqa": reliability(reported, reported, target=0.05, seed=7)}}
    section = reliability_section(summary)
    assert section is not None
    assert all("cannot be reached" in row for row in section.tables[1].rows)


def test_without_calibration_records_nothing_is_fitted(make_record: Make) -> None:
    reported = answered_by_kind(*asked(make_record, "test", 8))
    found = reliability(reported, None, target=0.1, seed=7)
    assert all("temperature" not in entry and "abstention" not in entry for entry in found.values())
    assert reliability_section({}) is None


def test_classification_takes_its_confidence_from_the_scores(make_record: Make) -> None:
    options = ("ct", "mri")
    records = [make_record(f"r{i}", options[i % 2], options=options) for i in range(4)]
    predictions = [
        Prediction(r.id, "ct", None, (0.0, -1.0) if i < 2 else (0.0, -3.0))
        for i, r in enumerate(records)
    ]
    found = answered_by_kind(records, predictions)["classification"]
    assert found.confidence == pytest.approx([0.7310586, 0.7310586, 0.9525741, 0.9525741])
    assert found.right.tolist() == [1, 0, 1, 0]


def test_an_answer_without_confidence_is_named(make_record: Make) -> None:
    with pytest.raises(DataError, match="prediction of 'q1' has no confidence"):
        answered_by_kind([make_record()], [Prediction("q1", "yes")])


def test_nothing_is_chosen_on_what_is_reported(make_record: Make) -> None:
    records, _ = asked(make_record, "test", 4)
    others, _ = asked(make_record, "validation", 4)
    check_apart(records, others, "validation")
    with pytest.raises(ConfigError, match=r"test: 4 of its images, e\.g\. .* are reported"):
        check_apart(records, records, "test")


def test_worse_pictures_stand_with_interval_n_and_the_share_lost(make_record: Make) -> None:
    """All right on clean pictures: Wilson's interval over images, never a width of zero."""
    clean = answered_by_kind(*asked(make_record, "test", 20))["open"]
    worse = answered_by_kind(*asked(make_record, "test", 20))["closed"]
    rows = [
        robustness_row("vqa", None, 0, "open", clean, 7),
        robustness_row("vqa", "jpeg_compression", 5, "open", worse, 7),
    ]
    # Wilson's lower end of 20 of 20: 1 ÷ (1 + z² ÷ 20), z the 97.5 % point of the normal.
    assert (rows[0]["value"], rows[0]["high"]) == (100, 100)
    assert rows[0]["low"] == pytest.approx(100 / (1 + 1.959964**2 / 20), abs=1e-4)
    section = corruptions_section({"corruptions": rows})
    assert section is not None
    assert section.tables[0].title == "vqa, open (n = 20)"
    name, before, after, lost = section.tables[0].rows[0]
    assert name == "jpeg compression"
    assert before.startswith("100.0 (83.9")
    assert after.startswith("75.0 (")
    assert lost == "25.0"
    assert "Scores by severity of corruptions: vqa, open" in section.figures[0].svg
    assert corruptions_section({}) is None
