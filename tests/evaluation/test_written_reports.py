"""ROUGE-L by its definition, findings with what denies them, and a report task asked and scored."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
from tests.data.readers.test_iu_xray import REPORT, row, write
from tests.model.tiny import moe_model, processor

from medmoe.cli.main import main
from medmoe.evaluation.protocols import score_pair
from medmoe.evaluation.written_reports import findings, longest_common, report_scores
from medmoe.model.checkpoint import save_model


@pytest.mark.parametrize(
    ("said", "value"),
    [
        # Lin 2004, section 3: against "police killed the gunman".
        ("police kill the gunman", 3 / 4),
        ("the gunman kill police", 2 / 4),
        ("Police killed the gunman!", 1.0),
        ("police killed", 2 / 3),
        ("", 0.0),
    ],
)
def test_rouge_l_is_that_of_its_paper(said: str, value: float) -> None:
    assert report_scores(said, "police killed the gunman")["rouge_l"] == pytest.approx(value)


def test_longest_common_subsequence_is_the_longest_of_all_subsequences() -> None:
    rng = random.Random(1)
    for _ in range(40):
        a, b = ("".join(rng.choices("xyz", k=rng.randrange(8))) for _ in range(2))
        parts = (
            {"".join(p) for n in range(9) for p in itertools.combinations(t, n)} for t in (a, b)
        )
        assert longest_common(a, b) == max(map(len, set.intersection(*parts)))


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ("No pneumothorax, effusion or consolidation.", "-pneumothorax -effusion -consolidation"),
        ("There is no effusion but a small pneumothorax", "-effusion pneumothorax"),
        ("Right pleural effusion with no pneumothorax", "effusion -pneumothorax"),
        ("Heart is normal in size with small left effusion", "-cardiomegaly effusion"),
        ("Cardiac silhouette is enlarged, lungs are clear", "cardiomegaly -opacity"),
        ("The lungs are free of focal airspace disease.", "-opacity"),
        ("A nodule is seen. Edema is not present.", "nodule -edema"),
        ("A large hiatal hernia is noted.", ""),
    ],
)
def test_findings_are_read_as_present_or_denied(report: str, said: str) -> None:
    wanted = {(name.removeprefix("-"), name[0] != "-") for name in said.split()}
    assert findings(report) == wanted


def test_a_denied_finding_is_not_the_finding() -> None:
    scores = score_pair("report", "There is an effusion.", "There is no effusion.", "open")
    assert scores["finding_f1"] == 0.0
    assert scores["rouge_l"] > 0.7
    assert score_pair("report", "A hernia.", "Nothing.", "open")["finding_f1"] == 1.0


def test_a_report_task_is_asked_and_scored_under_its_own_protocol(tmp_path: Path) -> None:
    root = write(tmp_path, row(2, report="Small left effusion."))
    model, out = tmp_path / "model", tmp_path / "out"
    save_model(moe_model("stablelm"), processor(), model, {})
    words = f"eval {model} --task iu_xray --data {root} --out {out} --max-new-tokens 4"
    assert main(words.split()) == 0
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    rows = {r["metric"]: r for r in summary["scores"]}
    assert {(r["protocol"], r["subset"], r["n"]) for r in rows.values()} == {("report", "all", 2)}
    assert set(rows) == {"rouge_l", "f1", "finding_f1"}
    # The training report is the first study's, and denies what the second one has.
    assert rows["rouge_l"]["constant_baseline"] == pytest.approx(
        50 * (1 + report_scores(REPORT, "Small left effusion.")["rouge_l"]), abs=0.01
    )
    assert rows["finding_f1"]["constant_baseline"] == 50.0
    assert summary["reliability"] == {"iu_xray": {}}
    assert main(["score", str(out), "--protocol", "report"]) == 0
