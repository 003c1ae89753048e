"""Accuracy and AUC equal MedMNIST's own `Evaluator`, run on the same scores.

The package is installed without its dependencies (`make install`): its dataset module names
torchvision only inside the download, so that nothing of it has to be replaced here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoe.data.schema import Record
from medmoe.evaluation.files.predictions import Prediction
from medmoe.evaluation.score import auc as classification
from medmoe.evaluation.score.rows import cells_of, score_task
from medmoe.evaluation.score.table import score_table

MISSING = "medmnist is not installed: pip install --no-deps medmnist (and pandas)"


@pytest.fixture(scope="module")
def evaluator(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, Any], Any]:
    """Return a function that makes the official Evaluator of a set with the given test labels."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))  # importing it makes ~/.medmnist
        pytest.importorskip("pandas", reason=MISSING)
        pytest.importorskip("medmnist", reason=MISSING)
        from medmnist import Evaluator

    def make(flag: str, labels: Any) -> Any:
        root = tmp_path_factory.mktemp("root")
        np.savez(root / f"{flag}.npz", test_labels=labels)
        return Evaluator(flag, "test", root=str(root))

    return make


def test_torchvision_is_not_needed(evaluator: Callable[[str, Any], Any]) -> None:
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize(
    ("flag", "options"),
    [("pneumoniamnist", 2), ("breastmnist", 2), ("organcmnist", 11), ("retinamnist", 5)],
)
@pytest.mark.parametrize("seed", range(5))
def test_one_label_of_several(
    evaluator: Callable[[str, Any], Any],
    make_record: Callable[..., Record],
    flag: str,
    options: int,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(97) % options)
    # Coarse scores, so that ties occur.
    scores = np.round(rng.normal(size=(97, options)) + 1.5 * np.eye(options)[labels], 1)
    probabilities = classification.label_probabilities(scores)
    official = evaluator(flag, labels[:, None].astype(np.uint8)).evaluate(probabilities)
    names = tuple(map(str, range(options)))
    records = [make_record(f"i{i}", names[label], options=names) for i, label in enumerate(labels)]
    told = [Prediction(f"i{i}", "", option_scores=tuple(row)) for i, row in enumerate(scores)]
    cells = cells_of(score_table(records, told, wanted=("label_score",)))["protocols"][
        "label_score"
    ]
    assert cells["all"]["accuracy"]["value"] == pytest.approx(100 * official.ACC, abs=1e-6)
    # The same roc_auc_score calls and the same mean; their order of summation may differ.
    found = classification.auc_with_interval(labels, probabilities, range(97), seed=0, resamples=50)
    assert found.value == pytest.approx(official.AUC, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_several_labels_at_once(evaluator: Callable[[str, Any], Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, size=(83, 14))
    probabilities = np.clip(np.round(0.3 * truth + rng.uniform(0, 0.7, truth.shape), 1), 0, 1)
    official = evaluator("chestmnist", truth.astype(np.uint8)).evaluate(probabilities)
    found = classification.auc_with_interval(truth, probabilities, range(83), seed=0, resamples=50)
    assert found.value == pytest.approx(official.AUC, abs=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value <= found.high


def test_score_rows_of_a_multi_label_task_equal_the_evaluator(
    evaluator: Callable[[str, Any], Any], make_record: Callable[..., Record]
) -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, size=(30, 4))
    logits = np.round(rng.normal(size=truth.shape) + truth, 2)
    names = ("effusion", "mass", "nodule", "pneumonia")
    records, predictions = [], []
    for (i, j), present in np.ndenumerate(truth):
        record = make_record(
            f"{i}/{names[j]}", ("no", "yes")[present], options=("no", "yes"),
            image=f"i{i}", question_type=names[j],
        )  # fmt: skip
        scores = (0.0, float(logits[i, j]))
        records.append(record)
        predictions.append(Prediction(record.id, "yes" if scores[1] > 0 else "no", None, scores))
    rows = {
        (row["subset"], row["metric"]): row
        for row in score_task(
            system="moe", task="chestmnist", split="test", records=records,
            predictions=predictions, train_records=(), seed=1,
        )
    }  # fmt: skip
    official = evaluator("chestmnist", truth).evaluate(1 / (1 + np.exp(-logits)))
    assert rows["all", "auc"]["value"] == pytest.approx(100 * official.AUC, abs=1e-6)
    assert rows["all", "accuracy"]["value"] == pytest.approx(100 * official.ACC, abs=1e-6)
    side = cells_of(score_table(records, predictions, wanted=("label_score",), multi_label=True))
    cells = side["protocols"]["label_score"]["all"]
    assert cells["auc"]["value"] == rows["all", "auc"]["value"]
    means = [rows[name, "auc"]["value"] for name in names]
    assert rows["all", "auc"]["value"] == pytest.approx(np.mean(means), abs=1e-5)


def test_recorded_predictions_on_pneumoniamnist_equal_the_evaluator(
    evaluator: Callable[[str, Any], Any], repository: Path
) -> None:
    from medmoe.evaluation.files.predictions import read_predictions
    from medmoe.evaluation.files.truth import read_truth

    files = sorted((repository / "results" / "predictions").glob("*-pneumoniamnist-7.jsonl"))
    if not files:
        pytest.skip("no recorded predictions on PneumoniaMNIST")
    records, predictions = read_truth(files[0]), read_predictions(files[0])
    found = cells_of(score_table(records, predictions, wanted=("label_score",)))
    cells = found["protocols"]["label_score"]["all"]
    labels = np.asarray([r.options.index(r.answer) for r in records])
    scores = [p.option_scores or () for p in predictions]
    official = evaluator("pneumoniamnist", labels[:, None].astype(np.uint8)).evaluate(
        classification.label_probabilities(scores)
    )
    assert cells["accuracy"]["value"] == pytest.approx(100 * official.ACC, abs=1e-6)
    assert cells["auc"]["value"] == pytest.approx(100 * official.AUC, abs=1e-6)
    assert cells["auc"]["n"] == len(records) == 624
