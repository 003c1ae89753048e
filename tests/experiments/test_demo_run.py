"""One whole demonstration of a few steps, end to end: its files, its scores, its model."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from tests.experiments.micro import (
    PHASES,
    TEST_IMAGES,
    TRAIN_IMAGES,
    comparable,
    micro_plan,
    run_demo,
    silent,
)
from tests.stress.kills import fork_and_kill, half_written, is_mixed

from medmoe.cli.main import main
from medmoe.data.images import open_image
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import Record
from medmoe.errors import ConfigError, GuardError
from medmoe.evaluation.ask.records import task_records
from medmoe.evaluation.files.predictions import read_predictions
from medmoe.evaluation.score.rows import score_task
from medmoe.evaluation.tasks import task_spec
from medmoe.experiments import demo
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import load_model, verify

SIZE = 64
TASKS = ("phantom_vqa", "phantom_classification")
#: Each system with the control it is asked under.
SYSTEMS = (("moe", None), ("sft", None), ("moe", "blank"))


def prediction_file(system: str, task: str, control: str | None) -> str:
    return "-".join(filter(None, (system, task, control))) + ".jsonl"


def asked() -> list[Record]:
    return [r for r in read_phantom("test", 4, seed=7, size=SIZE) if r.task == "vqa"][::5]


class Run:
    """A finished demonstration: what it left on disk and what it returned."""

    def __init__(self, out: Path) -> None:
        self.out, self.plan = out, micro_plan(out)
        self.summary: dict[str, Any] = run_demo(self.plan, silent)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("demo"))


def test_the_folder_holds_what_was_promised_and_nothing_half_written(run: Run) -> None:
    assert sorted(os.listdir(run.out)) == sorted(
        [
            *PHASES,
            "applied_card.html",
            "config.yaml",
            "eval",
            "examples",
            "features",
            "model",
            "predictions",
            "report.html",
            "run.json",
            "summary.json",
        ]
    )
    answers = {prediction_file(name, task, control) for name, control in SYSTEMS for task in TASKS}
    assert set(os.listdir(run.out / "predictions")) == answers | {"moe-router.jsonl"}
    assert "MANIFEST.json" in os.listdir(run.out / "model")


def test_summary_has_every_key_of_the_contract(run: Run) -> None:
    summary = json.loads((run.out / "summary.json").read_text(encoding="utf-8"))
    assert summary == json.loads(json.dumps(run.summary))
    assert set(summary) >= {
        "version", "seed", "data", "commit", "config_sha256", "seconds", "parameters", "router",
        "model", "scores",
    }  # fmt: skip
    assert (summary["version"], summary["seed"], summary["data"]) == (1, 7, "phantom")
    assert set(summary["seconds"]) >= {"phase0", "phase1", "phase2", "router", "phase3", "eval"}
    assert all(value >= 0 for value in summary["seconds"].values())
    assert 0 < summary["parameters"]["activated"] < summary["parameters"]["total"]
    assert set(summary["router"]) >= {"accuracy", "low", "high", "n"}
    assert summary["router"]["n"] == TEST_IMAGES
    assert summary["router"]["low"] <= summary["router"]["accuracy"] <= summary["router"]["high"]
    assert summary["model"] == "model/"
    assert summary["config_sha256"] == run.plan.recipe.sha256


def test_every_score_has_every_key_and_says_its_n_and_baselines(run: Run) -> None:
    keys = {
        "system", "task", "split", "subset", "protocol", "metric", "value", "low", "high", "n",
        "constant_baseline", "question_only_baseline", "blind_twin", "share", "control",
    }  # fmt: skip
    for row in run.summary["scores"]:
        assert set(row) - {"note"} == keys
        assert row["n"] > 0
        if row["value"] is None or row["low"] is None:
            assert row["note"], "what is not known must say why"
        else:
            assert 0 <= row["low"] <= row["value"] <= row["high"] <= 100
            assert row["constant_baseline"] is not None
            assert row["question_only_baseline"] is not None


def test_both_systems_both_tasks_and_the_blank_control_are_scored(run: Run) -> None:
    headline = {
        (row["system"], row["task"], row["control"], row["protocol"], row["subset"], row["metric"])
        for row in run.summary["scores"]
    }
    for system, control in SYSTEMS:
        for protocol, subset, metric in (
            ("strict", "closed", "accuracy"),
            ("strict", "open", "exact_match"),
            ("reference", "open", "recall"),
        ):
            assert (system, "phantom_vqa", control, protocol, subset, metric) in headline
        task = "phantom_classification"
        assert (system, task, control, "label_score", "all", "accuracy") in headline


def test_predictions_on_disk_score_to_the_same_rows(run: Run) -> None:
    for name in TASKS:
        counts = {"train": TRAIN_IMAGES, "test": TEST_IMAGES}
        task = task_records(
            task_spec(name), None, split="test", limit=None, seed=7, phantom_images=counts
        )
        for system, control in SYSTEMS:
            path = run.out / "predictions" / prediction_file(system, name, control)
            again = score_task(
                system=system,
                task=name,
                split="test",
                records=task.records,
                predictions=read_predictions(path),
                train_records=task.train,
                seed=7,
                control=control,
            )
            rows = [
                row
                for row in run.summary["scores"]
                if (row["system"], row["task"], row["control"]) == (system, name, control)
            ]
            assert again
            assert all(row in rows for row in again)


def test_eval_of_the_model_asks_and_scores_what_the_report_did(run: Run, tmp_path: Path) -> None:
    words = ["eval", str(run.out / "model"), "--task", "phantom_vqa", "--out", str(tmp_path / "e")]
    assert main([*words, "--protocol", "strict"]) == 0
    found = json.loads((tmp_path / "e" / "summary.json").read_text(encoding="utf-8"))
    reported = [
        row
        for row in run.summary["scores"]
        if (row["system"], row["task"], row["control"], row["protocol"])
        == ("moe", "phantom_vqa", None, "strict")
    ]
    assert found["scores"] == reported


def test_run_files_say_how_the_run_was_made(run: Run) -> None:
    config = yaml.safe_load((run.out / "config.yaml").read_text(encoding="utf-8"))
    assert config == run.plan.recipe.config
    facts = json.loads((run.out / "run.json").read_text(encoding="utf-8"))
    assert facts["seed"] == 7
    assert set(facts["versions"]) >= {"python", "medmoe", "torch", "transformers"}
    assert set(facts["hardware"]) >= {"cores", "threads", "cpu_capability"}
    assert list(facts["data"]["sha256"]) == ["phantom/train"]


def test_report_shows_pictures_curves_and_scores_and_needs_no_network(run: Run) -> None:
    html = (run.out / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") > TEST_IMAGES
    for word in (*PHASES, "phantom_vqa", "MoE", "SFT", "medmoe ask", "not a medical device"):
        assert word in html
    assert html.count("<script") == 1  # a few lines of our own, named to the browser by their hash
    assert 'src="http' not in html


def test_cards_hold_the_scores_of_the_run(run: Run) -> None:
    card = (run.out / "applied_card.html").read_text(encoding="utf-8")
    results = (run.out / "model" / "README.md").read_text(encoding="utf-8")
    verify(run.out / "model")
    assert ModelCard(results).data.eval_results
    assert "model-index" not in (run.out / "phase3_moe" / "model" / "README.md").read_text()
    main = [
        row
        for row in run.summary["scores"]
        if row["system"] == "moe" and row["control"] is None and row["protocol"] == "strict"
    ]
    assert main
    for row in main:
        assert f"{row['value']:.1f}" in card
    for row in [row for row in main if row["subset"] in ("closed", "open", "all")]:
        assert f"{row['value']:.1f} ({row['low']:.1f}–{row['high']:.1f})" in results
    assert f"{run.summary['router']['accuracy']:.1f}" in card


def test_example_pictures_are_one_of_every_domain_and_open(run: Run) -> None:
    names = sorted(os.listdir(run.out / "examples"))
    assert names == ["ct.png", "mri.png", "pathology.png", "xray.png"]
    for name in names:
        assert open_image(run.out / "examples" / name).size == (SIZE, SIZE)


def test_model_on_disk_verifies_and_says_where_it_is_from(run: Run) -> None:
    folder = run.out / "model"
    verify(folder)
    model, _ = load_model(folder)
    assert model.config.moe_layers == list(run.plan.recipe.spec.model.moe_layers)
    trained = load_file(run.out / "phase3_moe" / "model" / "model.safetensors")
    assert load_file(folder / "model.safetensors").keys() == trained.keys()
    facts = json.loads((folder / "medmoe.json").read_text(encoding="utf-8"))
    assert facts["domains"] == ["ct", "mri", "pathology", "xray"]
    assert facts["training"]["seed"] == 7
    assert facts["training"]["config_sha256"] == run.summary["config_sha256"]
    assert "not a medical device" in facts["training"]["use"]


def test_ask_gives_the_answer_of_the_engine(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = MedMoe.load(run.out / "phase3_moe" / "model")
    for number, record in enumerate(asked()):
        expected = engine.answer(record.image.source, record.question, evidence=True)
        assert isinstance(record.image.source, np.ndarray)
        picture = tmp_path / "phantom.png"
        Image.fromarray(record.image.source).save(picture)
        result = tmp_path / f"{number}.json"
        words = ["ask", str(run.out / "model"), str(picture), record.question]
        longest = ["--max-new-tokens", str(engine.max_new_tokens)]
        assert main([*words, *longest, "--json", str(result)]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{expected.text}\n")
        assert "Research use only, not a medical device." in out
        found = json.loads(result.read_text(encoding="utf-8"))
        assert found["text"] == expected.text
        # the same weights and pixels on the same threads: float32 rounding only
        assert found["confidence"] == pytest.approx(expected.confidence, rel=1e-4)
        assert expected.routing is not None
        assert found["routing"]["domain"] == expected.routing.domain


@pytest.mark.slow
def test_same_seed_in_another_process_gives_the_same_summary(
    run: Run, tmp_path: Path, repository: Path
) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{repository}{os.pathsep}{repository / 'src'}",
    }
    script = repository / "tests" / "experiments" / "micro.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "again"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,  # a busy machine
    )
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["again"], "a run writes into its own folder only"
    again = json.loads((tmp_path / "again" / "summary.json").read_text(encoding="utf-8"))
    assert comparable(again) == comparable(run.summary)
    for file in sorted((run.out / "predictions").iterdir()):
        assert (tmp_path / "again" / "predictions" / file.name).read_bytes() == file.read_bytes()


def test_a_second_call_goes_on_and_finds_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a kill between two phases: what is finished stays, the rest is done again."""
    out = shutil.copytree(run.out, tmp_path / "out")
    for name in ("phase3_moe", "sft", "eval", "model"):
        shutil.rmtree(out / name)
    trained: list[str] = []
    summary = run_demo(micro_plan(out), lambda phase, *_: trained.append(phase))
    assert set(trained) == {"phase3_moe", "sft"}
    assert comparable(summary) == comparable(run.summary)
    monkeypatch.setattr(MedMoe, "answer_features", None)  # nothing is asked a second time
    again = run_demo(micro_plan(out), lambda phase, *_: trained.append("again"))
    assert "again" not in trained
    assert comparable(again) == comparable(run.summary)


def test_a_folder_of_other_values_is_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"was trained with other values \(seed: 7 then, 8 now\)"):
        micro_plan(run.out, seed=8)
    with pytest.raises(ConfigError, match=r"phases\.phase0_encoder\.steps: 3 then, 4 now"):
        micro_plan(run.out, "phases.phase0_encoder.steps=4")


def test_a_folder_never_shows_the_scores_of_one_run_with_the_model_of_another(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise GuardError("the disk is full")

    out = shutil.copytree(run.out, tmp_path / "out")
    shutil.rmtree(out / "phase3_moe")
    monkeypatch.setattr(demo, "evaluate", full)
    with pytest.raises(GuardError, match="the disk is full"):
        run_demo(micro_plan(out), silent)
    assert not {"predictions", "examples", "applied_card.html"} & set(os.listdir(out))
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["scores"] == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="killing a copy of this process needs fork")
def test_a_run_killed_while_it_writes_leaves_nothing_half_written(run: Run, tmp_path: Path) -> None:
    """A sample of `make stress`: training and scoring are done already, all that is left writes."""

    def write(out: Path) -> None:
        run_demo(micro_plan(out), silent)

    begun = shutil.copytree(run.out, tmp_path / "begun")
    for name in ("summary.json", "report.html", "run.json", "config.yaml"):
        (begun / name).unlink()
    for name in ("model", "predictions", "examples"):
        shutil.rmtree(begun / name)
    start = time.perf_counter()
    assert fork_and_kill(partial(write, shutil.copytree(begun, tmp_path / "whole")), None)
    seconds = time.perf_counter() - start
    assert not half_written(tmp_path / "whole")
    rng, ended = random.Random(7), 0
    for number in range(6):
        out = shutil.copytree(run.out if number % 2 else begun, tmp_path / f"out{number}")
        ended += fork_and_kill(partial(write, out), seconds * rng.uniform(0.0, 1.0))
        assert half_written(out) == []
        assert not is_mixed(out)
    assert ended < 6, "no run was met alive"


def test_the_blind_twin_stands_beside_every_score_and_is_asked_once(
    run: Run, tmp_path: Path
) -> None:
    shutil.copytree(run.out, tmp_path / "demo", ignore=shutil.ignore_patterns("eval"))
    plan = micro_plan(tmp_path / "demo")
    twin = demo.blind_plan(plan)
    demo.train_demo(twin, silent)
    assert set(twin.phases) == {"phase0_language", "phase1_alignment", "phase2_instruction", "sft"}
    asked_of: list[str] = []
    summary = demo.score_demo(plan, lambda name, done, total: asked_of.append(f"{name} {done}"))
    rows = [row for row in summary["scores"] if row["control"] is None and row["metric"] != "auc"]
    assert {row["system"] for row in rows} == {"moe", "sft"}
    assert all(row["share"] is not None for row in rows)
    # The SFT model's scores are held against the answers that were given for the MoE model's.
    assert "moe: phantom_vqa, blind twin 0" in asked_of
    assert "sft: phantom_vqa, blind twin 0" not in asked_of
    names = set(os.listdir(plan.out / "predictions"))
    assert names >= {f"blind_twin-{task}.jsonl" for task in TASKS}
    assert "What the pictures gave" in (plan.out / "model" / "README.md").read_text()
