"""The folder of a phase's checkpoints: the newest whole one is found, whatever happened to it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training import faults, toy
from tests.training.faults import PHASES, SAVE_EVERY, STEPS, settings

from medmoe.config.load import check
from medmoe.config.train_schema import RunSpec
from medmoe.errors import CheckpointError, ConfigError, GuardError
from medmoe.training.saving.checkpoints import CheckpointFolder, refuse_changed

PHASE = "phase1_alignment"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a finished run; they are read only."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    PHASES[PHASE](settings(folder), toy.silent)
    return folder


def copied(run: Path, to: Path) -> Path:
    import shutil

    shutil.copytree(run, to)
    return to


def test_two_are_kept_and_the_last_step_is_saved(run: Path) -> None:
    assert CheckpointFolder(run).steps() == [STEPS - SAVE_EVERY, STEPS]
    assert sorted(path.name for path in run.iterdir()) == ["step-10", "step-12"]


def test_checkpoint_is_safetensors_and_json_with_a_manifest(run: Path) -> None:
    names = {path.name for path in (run / "step-12").iterdir()}
    assert names == {
        "MANIFEST.json",
        "optimizer.safetensors",
        "state.json",
        "trainer_state.json",
        "weights.safetensors",
    }


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_flipped_byte_in_any_file_is_found_and_the_one_before_is_used(
    run: Path, tmp_path: Path, where: float
) -> None:
    for number, path in enumerate(sorted((run / "step-12").iterdir())):
        folder = CheckpointFolder(copied(run, tmp_path / str(number)))
        broken = folder.at(STEPS) / path.name
        content = bytearray(broken.read_bytes())
        content[int(where * len(content))] ^= 1
        broken.write_bytes(content)
        assert folder.newest() == folder.at(STEPS - SAVE_EVERY), path.name
        (line,) = folder.damaged
        assert "\n" not in line
        assert str(folder.at(STEPS)) in line
        assert "the one before it is used" in line


@pytest.mark.parametrize("fault", ["missing", "extra"])
def test_a_missing_or_an_extra_file_is_found(run: Path, tmp_path: Path, fault: str) -> None:
    folder = CheckpointFolder(copied(run, tmp_path / "run"))
    if fault == "missing":
        (folder.at(STEPS) / "state.json").unlink()
    else:
        (folder.at(STEPS) / "optimizer.pt").write_bytes(b"x")
    assert folder.newest() == folder.at(STEPS - SAVE_EVERY)


def test_a_resume_past_a_damaged_one_ends_with_the_same_weights(run: Path, tmp_path: Path) -> None:
    folder = CheckpointFolder(copied(run, tmp_path / "run"))
    (folder.at(STEPS) / "weights.safetensors").write_bytes(b"not weights")
    weights, result = PHASES[PHASE](settings(folder.path), toy.silent)
    assert result.resumed_from == STEPS - SAVE_EVERY
    assert len(result.damaged) == 1
    assert faults.digest(weights) == faults.unbroken(PHASE)
    assert folder.newest() == folder.at(STEPS)  # written anew
    assert not CheckpointFolder(folder.path).damaged


def test_when_none_is_whole_the_run_does_not_begin_anew_in_silence(
    run: Path, tmp_path: Path
) -> None:
    folder = copied(run, tmp_path / "run")
    for path in folder.glob("*/state.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"none of its 2 checkpoints is whole .*state.json"):
        PHASES[PHASE](settings(folder), toy.silent)


def test_a_new_run_does_not_mix_with_the_checkpoints_of_another(run: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds checkpoints up to step 12; .*--resume"):
        PHASES[PHASE](settings(run, resume=False), toy.silent)


def test_a_finished_phase_is_resumed_at_its_end(run: Path, tmp_path: Path) -> None:
    folder = copied(run, tmp_path / "run")
    weights, result = PHASES[PHASE](settings(folder), toy.silent)
    assert result.resumed_from == STEPS
    assert faults.digest(weights) == faults.unbroken(PHASE)
    assert [step for step, _ in result.curve] == list(range(1, STEPS + 1))


def test_a_resume_with_changed_values_names_them_and_is_refused_unless_allowed(
    run: Path, tmp_path: Path
) -> None:
    folder = copied(run, tmp_path / "run")
    other = settings(folder, facts={"config_sha256": "abc"})
    message = (
        r"step-12: 1 values differ from those it was trained with "
        r"\(config_sha256: None then, abc now\); set them back, or use --allow-changed"
    )
    with pytest.raises(CheckpointError, match=message):
        PHASES[PHASE](other, toy.silent)
    allowed = settings(folder, facts={"config_sha256": "abc"}, allow_changed=True)
    assert PHASES[PHASE](allowed, toy.silent)[1].resumed_from == STEPS


def test_of_many_changed_values_the_message_names_the_first_few(tmp_path: Path) -> None:
    then = {"data": {"a/train": "0" * 64, "b/train": "1" * 64}, "trained": {"w": [1]}, "samples": 3}
    now = {
        "data": {"a/train": "2" * 64, "b/train": "1" * 64},
        "trained": {f"w{i}": [i] for i in range(500)},
        "samples": list(range(500)),
    }
    with pytest.raises(CheckpointError) as refused:
        refuse_changed(then, now, tmp_path)
    line = str(refused.value)
    assert (
        f"503 values differ from those it was trained with (data.a/train: {'0' * 64} then" in line
    )
    assert "b/train: 1" not in line
    assert "samples: 3 then, [0, 1, 2" in line
    assert "and 500 more); set them back" in line
    assert len(line) < 700


def test_frozen_weights_that_changed_are_refused(run: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    from medmoe.training.packed import train_packed

    model = toy.dense()
    next(model.model.language_model.parameters()).data[0] += 1
    context = toy.context(model, STEPS, faults.records())
    with pytest.raises(CheckpointError, match=r"1 values differ .*\(frozen: \w+ then, \w+ now\)"):
        train_packed(replace(context, settings=settings(copied(run, tmp_path / "run"))))


@pytest.mark.parametrize("keep", [2, 3, 5])
def test_as_many_are_kept_as_asked_for(tmp_path: Path, keep: int) -> None:
    folder = CheckpointFolder(tmp_path, keep)
    for step in range(1, 8):
        with folder.saving(step) as directory:
            (directory / "state.json").write_text(str(step))
        assert folder.steps() == list(range(max(1, step + 1 - keep), step + 1))


def test_a_damaged_one_does_not_count_among_those_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        with folder.saving(step) as directory:
            (directory / "state.json").write_text(str(step))
    (folder.at(2) / "state.json").write_text("x")
    again = CheckpointFolder(tmp_path)
    assert again.newest() == folder.at(1)
    with again.saving(3) as directory:
        (directory / "state.json").write_text("3")
    assert again.steps() == [1, 3]


def test_what_a_killed_run_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for name in (".step-4.staging", ".step-2.old", ".step-x.staging", "step-2", ".other"):
        (tmp_path / name).mkdir()
    CheckpointFolder(tmp_path).sweep()
    assert {path.name for path in tmp_path.iterdir()} == {".step-x.staging", "step-2", ".other"}


def test_a_value_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    import torch

    from medmoe.training.saving.state import write_tensors

    with pytest.raises(GuardError, match=r"b is not finite and is not saved to x\.safetensors"):
        write_tensors(
            tmp_path / "x.safetensors",
            {"a": torch.ones(2), "b": torch.tensor([1.0, float("inf")])},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("keep", 1), ("save_every", 0), ("loader_workers", -1)]
)
def test_settings_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"^recipe: {name} = {value}: Input should be greater"):
        check(RunSpec, {name: value}, "recipe")
