"""`medmoe reproduce` on a few steps: what is missing runs, once; rows, verdicts and reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.experiments.micro_train import SMALL, silent
from tests.training.toy import phantom_records

from medmoe.cli.main import main
from medmoe.config.load import recipe, recipe_names
from medmoe.evaluation.compare import pooled
from medmoe.evaluation.files.predictions import Prediction
from medmoe.experiments.finished import FinishedPhases
from medmoe.experiments.plan import TrainPlan
from medmoe.experiments.recipe import load_recipe
from medmoe.experiments.reproduce import experiments, reproduce
from medmoe.experiments.run import run_train
from medmoe.experiments.verdicts import gain_verdict, score_verdict, table_of

PHASES = ("phase0_encoder", "phase0_language", "phase1_alignment", "phase2_instruction")
SHORT = [
    f"phases.{phase}.{value}"
    for phase in (*PHASES, "phase2_router", "phase3_moe", "sft")
    for value in ("steps=2", "batch_size=4")
]
SETTINGS = (*SMALL, *SHORT)


class Counted:
    """Runs plans and asks, and keeps what was trained."""

    def __init__(self, out: Path) -> None:
        self.trained: list[tuple[str, tuple[str, ...]]] = []
        self.phases = FinishedPhases(out, None, SETTINGS, self._train)

    def _train(self, plan: TrainPlan) -> None:
        self.trained.append((plan.recipe.name, plan.phases))
        run_train(plan, silent, None)

    @contextmanager
    def asking(self) -> Iterator[Any]:
        yield lambda *_: None

    def rows(self, name: str, dry: bool = False) -> list[dict[str, Any]]:
        found = reproduce(name, "tiny", [3], self.phases, self.asking, dry)
        table_of(found)
        return list(found["rows"])


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs after Table 4, beginning with a run of `medmoe train` of phase 0."""
    folder = tmp_path_factory.mktemp("runs")
    phase0 = ["--phase", "phase0_encoder", "--phase", "phase0_language", "--seed", "3"]
    pairs = [p for s in SETTINGS if not s.startswith("phases.sft") for p in ("--set", s)]
    assert main(["train", "tiny_phantom", *phase0, "--out", str(folder / "mine"), *pairs]) == 0
    dry = Counted(folder)
    (row,) = dry.rows("table4", dry=True)
    assert row["verdict"].startswith("would train tiny_phantom: phase1_alignment, phase2_instr")
    assert not dry.trained
    counted = Counted(folder)
    counted.rows("table4")
    base = (*PHASES[2:],)
    assert counted.trained == [
        ("tiny_phantom", base),
        ("tiny_phantom_sft", ("sft",)),
        ("tiny_phantom", ("phase2_router", "phase3_moe")),
    ]
    assert sum(asked(folder)) > 0
    return folder


def asked(folder: Path) -> list[int]:
    """Return how many questions the last call asked each model."""
    summaries = folder.glob("reproduce/*/summary.json")
    return [json.loads(path.read_text())["asked"] for path in summaries]


def test_a_second_call_trains_and_asks_nothing(out: Path) -> None:
    again = Counted(out)
    rows = again.rows("table4")
    assert again.trained == []
    assert set(asked(out)) == {0}
    assert rows == json.loads((out / "reproduce" / "table4-tiny.json").read_text())["rows"]
    assert [row["what"] for row in rows] == [
        "MoE − SFT, phantom_vqa closed",
        "MoE − SFT, phantom_vqa open",
        "MoE − SFT, all sets all",
    ]
    assert {(row["paper"], row["highest"]) for row in rows} == {(1.4, 3.8)}
    assert rows[2]["n"] == rows[0]["n"] + rows[1]["n"]
    assert rows[2]["low"] <= rows[2]["value"] <= rows[2]["high"]


def test_other_tables_share_what_is_finished(out: Path) -> None:
    later = Counted(out)
    rows = later.rows("table1")
    assert later.trained == []
    assert {row["what"].split(",")[0] for row in rows} == {"Med-MoE", "zero-shot"}
    assert all(0 <= row["value"] <= 100 for row in rows)
    shown = {row["what"].partition(" open ")[2] for row in later.rows("table2")}
    assert {"reference exact_match", "reference bleu1", "reference bleu3"} <= shown
    (only,) = later.rows("table9", dry=True)
    assert only["verdict"] == "would train tiny_phantom_top2: phase3_moe (seed 3)"
    made = reproduce("table9", "tiny", [3], later.phases, later.asking, False, train=False)
    (only,) = made["rows"]
    assert only["verdict"] == "not run because tiny_phantom_top2 (seed 3) is not trained yet"
    assert later.trained == []


def test_sizes_are_counted_on_the_finished_model_beside_the_papers(out: Path) -> None:
    rows = {row["what"]: row for row in Counted(out).rows("table13")}
    assert {row["verdict"] for row in rows.values()} == {"another size"}
    activated = rows["activated weights, 10⁹, counted"]
    assert activated["paper"] == 2.0
    assert 0 < activated["value"] < rows["weights in all, 10⁹"]["value"] < 0.01


def test_other_values_or_another_seed_are_another_training(out: Path) -> None:
    counted = Counted(out)
    assert counted.phases.missing("tiny_phantom", "phase3_moe", 3) == {}
    everything = {"tiny_phantom": [*PHASES, "phase2_router", "phase3_moe"]}
    assert counted.phases.missing("tiny_phantom", "phase3_moe", 4) == everything
    changed = (*SETTINGS, "phases.phase2_instruction.learning_rate=5e-4")
    other = FinishedPhases(out, None, changed, run_train)
    found = other.missing("tiny_phantom_top2", "phase3_moe", 3)
    assert found["tiny_phantom"] == ["phase2_instruction", "phase2_router"]


@pytest.mark.parametrize(
    ("paper", "value", "high", "verdict"),
    [
        (80.07, 80.07, 84.0, "reproduced"),
        (80.07, 78.0, 82.0, "inside the noise"),
        (80.07, 70.0, 75.0, "not reproduced"),
        (80.07, 70.0, None, "not reproduced"),
        (None, 70.0, 75.0, "the paper gives no figure"),
    ],
)
def test_a_score_is_held_against_the_papers(
    paper: float | None, value: float, high: float | None, verdict: str
) -> None:
    assert score_verdict(paper, value, high) == verdict


@pytest.mark.parametrize(
    ("least", "low", "high", "verdict"),
    [
        (1.4, 0.1, 2.0, "reproduced"),
        (1.4, -0.1, 2.0, "inside the noise"),
        (1.4, -2.0, 1.3, "not reproduced"),
        (1.4, None, None, "inside the noise"),
        (None, 1.0, 2.0, "the paper gives no figure"),
    ],
)
def test_a_gain_is_there_absent_or_undecided(
    least: float | None, low: float | None, high: float | None, verdict: str
) -> None:
    assert gain_verdict(least, low, high) == verdict


def test_sets_taken_together_count_every_record_once() -> None:
    records = [r for r in phantom_records() if r.task == "vqa"]
    right = [Prediction(r.id, r.answer) for r in records]
    wrong = [Prediction(r.id, "zzz") for r in records]
    half = len(records) // 2
    mixed = [*right[:half], *wrong[half:]]
    (row,) = pooled("all", [(records, wrong, right), (records, wrong, mixed)], 7, whole=True)
    assert row.n == 2 * len(records)
    assert row.difference == pytest.approx(100 * (len(records) + half) / (2 * len(records)))
    assert row.images == len({r.image.id for r in records})
    subsets = pooled("both", [(records, wrong, right)], 7)
    assert [r.subset for r in subsets] == ["closed", "open"]
    assert [r.difference for r in subsets] == [100, 100]


def test_every_row_of_the_table_names_recipes_that_are_there() -> None:
    names = set(recipe_names("experiments"))
    known = recipe("reproduce", "experiments")
    for family, of in known["families"].items():
        suffixes = {"", "_label_curve", *of["lora"], *of["vqa"].values()}
        suffixes |= set(of["classification"].values())
        for about in known["experiments"].values():
            suffixes |= {s for pair in about.get("pairs", {}).values() for s in pair if s != "lora"}
        missing = {family + suffix for suffix in suffixes} - names
        # The embedded pictures show four domains.
        assert missing <= {"tiny_phantom_experts6"}
        for task, suffix in of["classification"].items():
            spec = load_recipe(family + suffix).spec
            assert spec.tasks("phase3_moe") == ("classification",), task
    wanted = [f"table{n}" for n in range(1, 14)]
    wanted += [f"figure{n}" for n in (3, 4, 5, 6, 10, 11)]
    assert list(known["experiments"]) == wanted == list(experiments())


def test_the_papers_values_need_no_training(tmp_path: Path) -> None:
    phases = FinishedPhases(tmp_path, None, (), run_train)
    asking = Counted(tmp_path).asking
    rows = reproduce("table11", "paper", [1], phases, asking, True)["rows"]
    assert len(rows) == 20
    assert {row["verdict"] for row in rows} == {"reproduced"}
    assert not list(tmp_path.iterdir())


def test_a_set_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    words = ["reproduce", "table1", "--size", "small", "--dry-run", "--json", str(out)]
    assert main([*words, "--out", str(tmp_path / "runs")]) == 0
    rows = json.loads(out.read_text())["rows"]
    slake = [row for row in rows if "slake" in row["what"] and row["paper"]]
    assert [row["paper"] for row in slake] == [83.41, 83.16, 52.64, 40.63]
    assert all(row["verdict"].startswith("not run because task 'slake' needs") for row in slake)
    assert "Research use only" in capsys.readouterr().out
    assert main(["reproduce", "table14"]) == 2
    assert "table14" in capsys.readouterr().err
