"""The real lmms-eval, run by its command line: its scores are those of `medmoe eval`, to the digit.

It has an environment of its own (`make test-lmms`); one run takes half a minute, so all is seen in
one.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.lmms_eval.miniature import PICTURES, QUESTIONS, save_tiny_model, write_data

from medmoe.cli.main import main
from medmoe.evaluation.lmms_eval import TASKS

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own: make test-lmms")

OURS = ("vqa_rad", "path_vqa")
#: Not a divisor of the questions, and smaller: chunks and batches of both must be the same.
BATCH = 4


@dataclass(frozen=True)
class Seen:
    """What lmms-eval wrote, and what `medmoe eval` did."""

    results: dict[str, dict[str, Any]]
    samples: dict[str, list[dict[str, Any]]]
    scores: list[dict[str, Any]]
    out: Path


def lmms_eval(out: Path, model: Path, data: Path) -> None:
    tasks = ",".join(f"medmoe_{name}" for name in OURS)
    words = ["--model", "medmoe", "--model_args", f"pretrained={model}", "--tasks", tasks]
    words += ["--include_path", str(TASKS), "--batch_size", str(BATCH), "--log_samples"]
    subprocess.run(
        [sys.executable, "-m", "lmms_eval", *words, "--output_path", str(out)],
        env={**os.environ, "MEDMOE_DATA": str(data), "HF_HOME": str(out / "home")},
        check=True,
        capture_output=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("lmms")
    model = save_tiny_model(folder / "model")
    data = write_data(folder / "data", model)
    lmms_eval(folder / "theirs", model, data)
    (results,) = folder.glob("theirs/*/*_results.json")
    samples = {}
    for name in OURS:
        (log,) = folder.glob(f"theirs/*/*_samples_medmoe_{name}.jsonl")
        samples[name] = [json.loads(line) for line in log.read_text("utf-8").split("\n") if line]
    words = [word for name in OURS for word in ("--task", name)]
    words += ["--data", str(data), "--out", str(folder / "ours"), "--batch-size", str(BATCH)]
    assert main(["eval", str(model), *words]) == 0
    summary = json.loads((folder / "ours" / "summary.json").read_text(encoding="utf-8"))
    theirs = json.loads(results.read_text(encoding="utf-8"))["results"]
    return Seen(theirs, samples, summary["scores"], folder / "ours")


def values(seen: Seen, task: str) -> dict[str, float]:
    """Return lmms-eval's values of a task by metric, without their errors."""
    found = seen.results[f"medmoe_{task}"]
    names = {key.removesuffix(",none"): value for key, value in found.items() if "," in key}
    return {name: value for name, value in names.items() if "_stderr" not in name}


def predictions(seen: Seen, task: str) -> list[dict[str, Any]]:
    text = (seen.out / task / "predictions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


@pytest.mark.parametrize("task", OURS)
def test_every_score_is_that_of_our_own_run_to_the_digit(seen: Seen, task: str) -> None:
    ours = {
        f"{row['protocol']}_{row['subset']}_{row['metric']}": row["value"]
        for row in seen.scores
        if row["task"] == task
        and row["subset"] in ("closed", "open", "all")
        and row["protocol"] in ("strict", "reference")
    }
    assert len(ours) == 8
    assert values(seen, task) == ours


def test_the_scores_are_none_that_an_empty_answer_has(seen: Seen) -> None:
    between = [name for name, value in values(seen, "vqa_rad").items() if 0 < value < 100]
    assert len(between) == 8
    assert 0 < values(seen, "path_vqa")["strict_open_recall"] < 100


@pytest.mark.parametrize("task", OURS)
def test_every_answer_is_that_of_our_own_run(seen: Seen, task: str) -> None:
    ours = {row["id"]: row["prediction"] for row in predictions(seen, task)}
    theirs = {row["strict_all_accuracy"]["id"]: row["filtered_resps"] for row in seen.samples[task]}
    assert theirs == ours
    assert len(set(ours.values())) > 4, "a picture that is another's would not show"


def test_all_questions_are_asked(seen: Seen) -> None:
    assert len(seen.samples["vqa_rad"]) == PICTURES * len(QUESTIONS)
    assert len(seen.samples["path_vqa"]) == 12


@pytest.mark.parametrize("metric", ["strict_all_accuracy", "reference_open_f1"])
def test_standard_errors_are_clustered_on_the_image(seen: Seen, metric: str) -> None:
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for row in seen.samples["vqa_rad"]:
        if metric in row:
            scores[row[metric]["image"]].append(row[metric]["score"])
    every = [score for of_image in scores.values() for score in of_image]
    n, mean = len(every), sum(every) / len(every)
    # arXiv 2411.00640, equation 4: the independent error, and what questions share by their image.
    variance = sum((score - mean) ** 2 for score in every) / (n - 1) / n
    for of_image in scores.values():
        parts = [score - mean for score in of_image]
        variance += (sum(parts) ** 2 - sum(part**2 for part in parts)) / n**2
    found = seen.results["medmoe_vqa_rad"][f"{metric}_stderr_clustered,none"]
    assert found > 0
    assert math.isclose(found, math.sqrt(variance), rel_tol=1e-9)


def test_no_picture_is_in_their_log(seen: Seen) -> None:
    for row in [*seen.samples["vqa_rad"], *seen.samples["path_vqa"]]:
        assert len(json.dumps(row)) < 2000
