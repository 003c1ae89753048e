"""Cards hold the run's numbers and no others, and say what nobody told them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from medmoe.evaluation.pages.cards import (
    applied_card,
    results_section,
    with_results,
    write_applied_card,
)

TEMPLATE = Path("templates") / "applied_card.html.j2"


def score(**other: Any) -> dict[str, Any]:
    return {
        "system": "moe", "task": "vqa_rad", "split": "test", "subset": "closed",
        "protocol": "strict", "metric": "accuracy", "value": 58.8235, "low": 51.7979,
        "high": 65.6827, "n": 272, "constant_baseline": 49.2647, "question_only_baseline": 53.3088,
        "control": None,
    } | other  # fmt: skip


def summary(**other: Any) -> dict[str, Any]:
    return {
        "version": 1, "seed": 7, "data": "vqa_rad", "commit": "c0ffee", "config_sha256": "abcdef",
        "parameters": {"total": 4017672, "activated": 2727432},
        "router": {"accuracy": 84.25, "low": 79.125, "high": 88.5, "n": 230, "dataset": "vqa_rad"},
        "scores": [
            score(), score(subset="presence", value=49.1018, n=167),
            score(control="blank", value=20.5, low=15.25, high=25.75),
            score(protocol="label_score", subset="all", metric="auc", value=94.625, n=624),
        ],
        "comparisons": [],
        "notes": ["Shared images are counted."],
    } | other  # fmt: skip


def facts(of: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    return {"summary": of or summary(**other), "run": {}, "config": {}, "domains": ("ct", "mri")}


def numbers(text: str) -> set[str]:
    """Return the numbers that people see, each as it is printed."""
    return set(re.findall(r"(?<![\w.])\d[\d.]*\d|(?<![\w.])\d", text))


def visible(html: str) -> str:
    html = re.sub(r"<(style|head)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


CARD = "---\nlicense: cc0-1.0\ntags:\n- medical\n---\n\n# Med-MoE\n\nWhat it is.\n"


def test_the_model_card_gets_each_main_score_with_interval_and_n() -> None:
    text = with_results(CARD, summary())
    head = yaml.safe_load(text.split("---\n")[1])
    assert (head["license"], head["tags"]) == ("cc0-1.0", ["medical"])
    (entry,) = head["model-index"]
    assert entry["name"] == "Med-MoE (vqa_rad)"
    asked, classified = entry["results"]
    place = {"name": "vqa_rad (shared images) test", "type": "vqa_rad", "split": "test"}
    assert asked["dataset"] == classified["dataset"] == place
    assert (asked["task"], classified["task"]) == (
        {"type": "visual-question-answering"}, {"type": "image-classification"}
    )  # fmt: skip
    name = "closed accuracy, strict (51.8–65.7, n = 272)"
    assert asked["metrics"] == [{"type": "accuracy", "name": name, "value": 58.82}]
    name = "all auc, label_score (51.8–65.7, n = 624)"
    assert classified["metrics"] == [{"type": "auc", "name": name, "value": 94.62}]
    assert text.index("What it is.") < text.index("## Results")


def test_the_hub_reads_the_results_of_the_model_card() -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(with_results(CARD, summary())).data
    assert data.model_name == "Med-MoE (vqa_rad)"
    assert [(r.metric_type, r.metric_value, r.dataset_split) for r in data.eval_results] == [
        ("accuracy", 58.82, "test"),
        ("auc", 94.62, "test"),
    ]


def test_results_section_holds_table_router_verdicts_and_limits() -> None:
    text = results_section(summary())
    assert (
        "| vqa\\_rad (shared images) test | closed accuracy (strict) | ▽ 58.8 (51.8–65.7) |" in text
    )
    assert "Router: accuracy 84.2 % (79.1–88.5, n = 230)." in text
    assert "does not clear the question-only baseline (53.3)" in text
    assert "points of the score need the picture" in text
    assert "- Shared images are counted." in text
    assert text.rstrip().endswith("- Research use only, not a medical device.")


def test_names_of_data_cannot_break_out_of_the_markdown() -> None:
    attack = "a|b <script> [x](y)\n# title"
    text = results_section(summary(scores=[score(task=attack)], notes=[attack]))
    assert "<script" not in text.replace("\\<script", "")
    assert "\n# title" not in text
    rows = [line for line in text.splitlines() if "closed accuracy" in line and line[0] == "|"]
    columns = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert columns == {7}


@pytest.mark.parametrize("render", [applied_card, lambda summary, **_: results_section(summary)])
def test_no_number_is_typed_by_hand(render: Any) -> None:
    # Change every number of the run: no number of the card may stay, but the level of confidence.
    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: changed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [changed(item) for item in value]
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        return value * 0.5 + 0.77 if isinstance(value, float) else value * 3 + 2

    before = numbers(visible(render(**facts())))
    after = numbers(visible(render(**facts(changed(summary())))))
    assert before & after <= {"95", "2404.10237"}
    assert {"58.8", "51.8", "65.7", "272"} <= before


def test_the_template_holds_no_digit_but_the_level_of_confidence(source: Path) -> None:
    text = (source / "evaluation" / "pages" / TEMPLATE).read_text(encoding="utf-8")
    prose = re.sub(r"\{[{%].*?[}%]\}|<[^>]+>", " ", text)
    assert numbers(prose) == {"95"}


@pytest.mark.parametrize(
    "words",
    [
        "developer", "intended use", "out of scope", "clinical risk", "bias mitigation",
        "Usefulness, usability and efficacy", "Fairness and equity", "Safety and reliability",
        "4,017,672 weights in all, 2,727,432", "ct, mri", "not given", "58.8", "84.2",
        "does not clear the question-only baseline", "Shared images are counted.",
        "Research use only, not a medical device",
    ],
)  # fmt: skip
def test_applied_card_has_the_parts_of_the_outline(words: str) -> None:
    assert words in visible(applied_card(**facts()))


def test_what_data_is_called_is_escaped() -> None:
    html = applied_card(**facts(data="A <b>lab</b>"))
    assert "A &lt;b&gt;lab&lt;/b&gt;" in html
    assert "<b>lab" not in html


def test_the_applied_card_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    (tmp_path / "run.json").write_text(
        json.dumps({"versions": {"torch": "2.13.0"}, "data": {"sha256": {"test/x": "feed"}}})
    )
    (tmp_path / "config.yaml").write_text(
        "model: {language_model: tiny_stablelm, vision_encoder: tiny_clip_64, domains: [ct],"
        " num_experts_per_tok: 2}"
    )
    text = visible(write_applied_card(tmp_path).read_text(encoding="utf-8"))
    for part in ("tiny_stablelm and tiny_clip_64", "top-2 routing", "torch 2.13.0", "feed"):
        assert part in text


def test_a_bare_summary_is_enough() -> None:
    text = visible(applied_card({"scores": []}, {}, {}, ()))
    assert "This run has no scores." in text
