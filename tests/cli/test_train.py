"""`medmoe train`: what it prints and writes, and every bad input in one line."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from tests.experiments.micro_train import (
    SMALL,
    micro_plan,
    micro_recipe,
    settings,
    write_recipe,
)
from tests.model.tiny import processor
from tests.training import toy
from transformers import AutoConfig

from medmoe.cli.flags import counts
from medmoe.cli.main import main
from medmoe.cli.train_display import Display, bar
from medmoe.config.schema import PhaseName
from medmoe.experiments import phases as running
from medmoe.experiments.outlook import Outlook
from medmoe.experiments.plan import is_main
from medmoe.model.checkpoint import provenance, save_model
from medmoe.training.meter import Measured, Validated


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MEDMOE_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)  # the default of --out is a relative path


def refused(capsys: pytest.CaptureFixture[str], *words: object, code: int = 2) -> str:
    """Run `train`, which must end with one line; return that line."""
    assert main(["train", *map(str, words)]) == code
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("medmoe: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def sets(values: list[str]) -> list[str]:
    return [word for value in values for word in ("--set", value)]


def changed(tmp_path: Path, **changes: Any) -> Path:
    """Write a resolved recipe with some of its keys changed; None leaves a key out."""
    config = micro_recipe().config | changes
    path = tmp_path / "recipe.yaml"
    kept = {key: value for key, value in config.items() if value is not None or key not in changes}
    path.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return path


# ---- CONFIG ----


def test_an_unknown_recipe_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'tiny_phantom'?" in refused(capsys, "tiny_phantm")


def test_the_demo_is_a_recipe_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo_phantom", "--plan"]) == 0
    assert "phase3_moe" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        (b"phases: [", "not readable as YAML"),
        (b"- a\n- b\n", "must be a mapping of keys to values"),
        (b"base: nothing\n", "unknown recipe in experiments 'nothing'"),
    ],
)
def test_an_unreadable_file_is_one_line(
    content: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    if content is not None:
        path.write_bytes(content)
    assert reason in refused(capsys, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phasen": {}}, "unknown key at top level: 'phasen'; .* did you mean 'phases'"),
        ({"vocab_size": "many"}, "vocab_size = 'many': Input should be a valid integer"),
        ({"model": None}, "model is missing; add it"),
        ({"phases": {}}, "phases is empty; name at least one"),
        ({"router": None}, r"phase2_router needs the group router \(labels, loss, per_layer\)"),
        ({"vocab_size": None}, "phase 0 trains a tokenizer, so vocab_size is missing"),
    ],
)
def test_a_recipe_that_breaks_a_rule_is_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert re.search(message, refused(capsys, changed(tmp_path, **changes)))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("phases.phase1_alignment.learning_rat=1", "did you mean 'learning_rate'"),
        ("phases.phase1_alignment.learning_rate=fast", "learning_rate = 'fast': "),
        ("phases.phase1_alignment.epochs=2", "needs either epochs or steps"),
        ("phases.phase1_alignment.data=[phantom]", "must list sets as set/split"),
        (
            "phases.phase1_alignment.trains=lora",
            "phase1_alignment: trains is 'lora' and lora",
        ),
        ("phases.phase3_moe.load_balance=0.1", "acts on a router that trains, trains is 'paper'"),
        ("phases.phase2_instruction.trains=reference", "it must be one of: paper, decoder_layers"),
        (
            "phases.phase1_alignment=null",
            "starts from phase1_alignment, which is neither",
        ),
        ("model.num_experts_per_tok=5", "must not exceed the number of domains (4)"),
        ("model.moe_layers=[0,9]", "must lie in 0..3"),
        ("model.language_model=phi3", "unknown language model 'phi3'"),
        ("run.trackers=[mlflow]", "run.trackers.0 = 'mlflow'"),
        ("validation.data=[]", "must list sets as set/split"),
        ("validation.every=0", "validation.every = 0: "),
        ("validation.keep_bst=true", "did you mean 'keep_best'"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_one_line(
    setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "tiny_phantom", "--set", setting)


def test_matrices_of_4_bits_are_not_divided(capsys: pytest.CaptureFixture[str]) -> None:
    settings = (
        "phases.phase2_instruction.trains=lora",
        "phases.phase2_instruction.lora={rank: 2, alpha: 4, bits: 4}",
        "run.sharding=fsdp2",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    said = refused(capsys, "tiny_phantom", *words)
    assert "phases.phase2_instruction.lora.bits is 4 and run.sharding fsdp2: matrices of 4" in said


def test_phases_out_of_order_in_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = micro_recipe().config["phases"]
    swapped = {
        name: phases[name] for name in sorted(phases, key=lambda n: (n != "phase2_instruction", n))
    }
    line = refused(capsys, changed(tmp_path, phases=swapped))
    assert "phases stand out of order from phase2_instruction on; use phase0_encoder, " in line


# ---- phases, folders, resuming ----


def test_an_unknown_phase_and_phases_out_of_order(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "tiny_phantom", "--phase", "phase4")
    assert "'phase4' is no phase of tiny_phantom; its phases: phase0_encoder, " in line
    line = refused(capsys, "tiny_phantom", "--phase", "phase3_moe", "--phase", "phase2_router")
    assert "--phase phase3_moe, phase2_router is out of order; train phase2_router, phase3" in line


def test_a_phase_without_what_it_starts_from(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "tiny_phantom", "--phase", "phase3_moe")
    assert "phase3_moe starts from phase2_instruction, which runs/tiny_phantom/phase2_inst" in line
    assert "run `medmoe train tiny_phantom --phase phase2_instruction` first" in line


def test_phase_3_from_a_phase_1_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(toy.dense(), processor(), tmp_path / "p1" / "model", {"phase": "phase1_alignment"})
    line = refused(
        capsys,
        "tiny_phantom_no_meta",
        *sets([f"starts.phase2_instruction={tmp_path / 'p1'}"]),
    )
    assert f"phase3_moe starts from phase2_instruction, but {tmp_path / 'p1'} is of phase1" in line
    assert "use --set starts.phase2_instruction=RUN_DIRECTORY with one of phase2_in" in line


def test_a_damaged_start_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "p2"
    save_model(toy.dense(), processor(), folder / "model", {"phase": "phase2_instruction"})
    (folder / "model" / "config.json").write_text("{}")
    line = refused(capsys, "tiny_phantom_sft", "--set", f"starts.phase2_instruction={folder}")
    assert "config.json: its SHA-256 differs from MANIFEST.json; run that phase again" in line


def begun(tmp_path: Path) -> Path:
    """Return the folder of a run whose first phase has begun: its config and circumstances."""
    from medmoe.training.saving.run_dir import open_run

    folder = tmp_path / "run" / "phase0_encoder"
    open_run(folder, micro_recipe().config, {"seed": 7, "dirty": False})
    return tmp_path / "run"


def test_a_folder_with_a_run_needs_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "tiny_phantom", "--out", begun(tmp_path))
    assert "holds a run already; go on with it by --resume, or give another --out" in line


def test_resuming_with_other_values_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = begun(tmp_path)
    words = ["tiny_phantom", "--out", out, "--resume", "--phase", "phase0_encoder", "--seed", 8]
    other = settings("phases.phase0_encoder.learning_rate=0.5", "phases.phase3_moe.steps=9")
    line = refused(capsys, *words, *sets(other))
    assert "phases.phase0_encoder.learning_rate: 0.002 then, 0.5 now; seed: 7 then, 8 now" in line
    assert "phase3_moe" not in line  # it has no part in this phase
    assert "use --allow-changed" in line


def test_allow_changed_lets_it_pass(tmp_path: Path) -> None:
    out = begun(tmp_path)
    plan = micro_plan(
        out,
        "phases.phase0_encoder.learning_rate=0.5",
        phases=("phase0_encoder",),
        resume=True,
        allow_changed=True,
    )
    assert plan.phases == ("phase0_encoder",)


# ---- data and labels ----


def test_real_sets_need_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "tiny_real")
    assert "the recipe reads vqa_rad/disjoint_train, " in line
    assert "give the folder of the data sets by --data DIR" in line


def test_experts_without_a_picture_are_named_with_the_flag_that_leaves_them_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = sets(settings(steps=1))
    domains = "ct,mri,pathology,xray,ultrasound,angiography"
    assert main(["train", "tiny_phantom", "--domains", domains, *words]) == 0
    out = capsys.readouterr().out
    assert "phase2_router: No picture of the router's data is of ultrasound, angiography: " in out
    assert "(--domains ct,mri,pathology,xray leaves them out)" in out
    notes = provenance(Path("runs/tiny_phantom/phase3_moe/model"))["notes"]
    assert any(
        note.startswith("No picture of the router's data is of ultrasound") for note in notes
    )


def test_a_router_whose_data_name_no_modality_is_refused_with_the_flag(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(capsys, "tiny_phantom", *sets(settings()), "--domains", "ultrasound,fundus")
    assert "none of its data is of ultrasound, fundus; --modality X labels all pictures" in line
    assert not list(Path("runs").rglob("model"))


def test_an_unknown_modality_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "tiny_phantom", "--modality", "xrai")
    assert "unknown modality 'xrai'" in line
    assert "did you mean 'xray'?" in line


def test_too_few_labels(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "tiny_phantom", *sets([*settings(), "router.labels=3"]))
    assert "router.labels (3) must be at least the number of domains (4)" in line


def test_label_counts_belong_to_the_router(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "tiny_phantom", "--phase", "phase0_encoder", "--label-counts", "0,4")
    assert "--label-counts belongs to phase2_router; add --phase phase2_router" in line
    line = refused(capsys, "tiny_phantom", "--label-counts", "0,some")
    assert "'0,some' is not a list of whole numbers, e.g. 0,50,100" in line
    assert counts("0,50") == (0, 50)


def test_a_label_curve_needs_images_to_score_on(capsys: pytest.CaptureFixture[str]) -> None:
    words = sets(settings("router.test=[]"))
    line = refused(capsys, "tiny_phantom", "--label-counts", "0,8", *words)
    assert "the label-count curve needs labelled images that no router sees to score on" in line


# ---- memory and trackers ----


def test_out_of_memory_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def greedy(job: Any) -> Any:
        return torch.empty(2**60)  # a real allocation that no machine grants

    monkeypatch.setitem(running.PHASE_FUNCTIONS, "phase0_language", greedy)
    line = refused(capsys, "tiny_phantom", "--phase", "phase0_language", *sets(settings()), code=3)
    assert "phase0_language: out of memory at batch_size 4 (gradient_accumulation 1" in line
    assert "use --set run.gradient_accumulation=2 (the same loss in smaller parts)" in line
    assert not Path("runs/tiny_phantom").exists()  # nothing that blocks the next try


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_whose_package_is_missing(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    line = refused(capsys, "tiny_phantom", "--set", f"run.trackers=[{name}]")
    assert f"names {name}, whose package is not installed; run: pip install {name}" in line


# ---- what it shows ----


def test_a_plan_is_printed_and_nothing_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tiny_phantom", "--plan", "--json", tmp_path / "plan.json", *sets(SMALL)]
    assert main(["train", *map(str, words)]) == 0
    out = capsys.readouterr().out
    assert "Research use only, not a medical device." in out
    plan = json.loads((tmp_path / "plan.json").read_text())
    moe = plan["phases"]["phase3_moe"]
    assert moe["trains"] == ["domain_experts", "meta_expert"]
    assert f"{moe['trainable']:,}" in out
    assert "phase3_moe trains domain_experts, meta_expert" in out
    assert moe["steps"] == micro_recipe().spec.phases["phase3_moe"].steps or moe["steps"] > 0
    assert not Path("runs").exists()


def test_a_plan_of_real_size_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "phi2", "--plan", "--phase", "phase1_alignment", "--hardware", "8x24GB"]
    assert main(words) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "published for 8x24GB (568,000 GFLOP/s)" in out
    # 500,000 pairs, batches of 64, one epoch; the projector alone trains
    assert "7,813" in out
    assert f"{1024 * 2560 + 2560 + 2560 * 2560 + 2560:,}" in out
    assert "steps follow from the recipe's samples, since the recipe reads llava_med_align" in out


@pytest.mark.parametrize("plan", [["--plan"], []])
def test_a_llama_is_neither_planned_nor_trained_as_phi2(
    plan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AutoConfig.for_model("llama").save_pretrained(tmp_path / "llama")
    line = refused(capsys, "phi2", *plan, *sets([f"model.language_source={tmp_path / 'llama'}"]))
    assert "llama is a 'llama' model, phi2_2_7b is 'phi'; give the folder of one, or use" in line
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_hardware_is_of_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "phi2", "--hardware", "1xH100"]) == 2
    assert "--hardware belongs to --plan; add it" in capsys.readouterr().err


def test_a_phase_of_a_recipe_file_runs_and_says_where_it_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path / "mine.yaml")
    words = ["train", str(path), "--phase", "phase0_language", "--json", "result.json"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "phase0_language: trains everything" in out
    assert "phase0_language 3/3  loss " in out
    assert out.rstrip().endswith("Research use only, not a medical device.")
    result = json.loads(Path("result.json").read_text())
    assert result["model"] == "phase0_language/model/"
    assert (Path("runs/mine") / result["model"] / "MANIFEST.json").is_file()
    assert json.loads(Path("runs/mine/summary.json").read_text()) == result


def point(phase: PhaseName = "phase3_moe", **changes: Any) -> Measured:
    values: dict[str, Any] = {
        "phase": phase,
        "step": 5,
        "steps": 10,
        "loss": 1.25,
        "learning_rate": 3e-4,
        "tokens_per_second": 1234.0,
        "images_per_second": 8.5,
        "memory_gib": 0.75,
        "seconds": 10.0,
        "seconds_left": 75.0,
        "experts": {"ct": [0.5, 0.25, 0.25, 0.0]},
    }
    return Measured(**(values | changes))


def test_the_live_view_shows_all_that_is_measured(tmp_path: Path) -> None:
    console = Console(width=100, force_terminal=True, record=True, file=open("view.txt", "w"))  # noqa: SIM115
    display = Display(micro_plan(tmp_path / "out"), console)
    names: tuple[PhaseName, ...] = ("phase2_instruction", "phase3_moe")
    run = Outlook(dict.fromkeys(names, 10), dict.fromkeys(names, 1.0))
    display.measured(run)
    run.note("phase2_instruction", 1, 0.0)
    run.note("phase2_instruction", 10, 9.0)
    display.progress("phase3_moe", 5, 10, None)
    display.measured(point())
    display.measured(Validated("phase3_moe", 5, 10, 0.625, 71.9, 2.5))
    console.print(display.view())
    text = console.export_text()
    for part in ("phase3_moe", "5/10", "loss 1.250", "lr 3.00e-04", "1,234 tokens/s"):
        assert part in text
    for part in ("whole run", "validation 0.625", "72 % right", "whole run 75 %, about 5 s left"):
        assert part in text
    for part in ("8.5 images/s", "0.75 GiB", "00:01:15 left", "ct expert", "50 %", "waiting"):
        assert part in text


def test_a_log_file_has_the_validations_and_the_time_of_the_whole_run(tmp_path: Path) -> None:
    console = Console(width=100, record=True, file=open("log.txt", "w"))  # noqa: SIM115
    display = Display(micro_plan(tmp_path / "out"), console)
    run = Outlook({"phase3_moe": 10}, {"phase3_moe": 1.0})
    display.measured(run)
    run.note("phase3_moe", 1, 0.0)
    run.note("phase3_moe", 5, 400.0)
    display.measured(point())
    display.measured(Validated("phase3_moe", 5, 10, 0.625, None, 2.5))
    text = console.export_text()
    assert "00:01:15 left; whole run 50 %, about 8 min left" in text
    assert "phase3_moe 5/10  validation 0.625\n" in text


@pytest.mark.parametrize(("share", "blocks"), [(0.0, ""), (0.5, "███"), (1.0, "██████")])
def test_a_bar_is_as_long_as_its_share(share: float, blocks: str) -> None:
    assert bar(share) == blocks.ljust(6)


def test_of_several_processes_only_the_first_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_main()
    monkeypatch.setenv("RANK", "1")
    assert not is_main()


def test_a_refused_run_leaves_no_empty_folder_behind(tmp_path: Path) -> None:
    out, kept = tmp_path / "out", tmp_path / "kept"
    kept.mkdir()
    words = ["train", "tiny_real", "--data", str(tmp_path / "no-data"), "--out"]
    for folder in (out, kept):
        assert main([*words, str(folder)]) == 2
    assert not out.exists()
    assert kept.is_dir()  # it was the user's
