"""`medmoe convert`: what it prints and writes, and every refusal in one line with exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.running import in_a_process, refused_by
from tests.model.convert.reference_checkpoint import write_reference
from tests.model.convert.stock_llava import saved, stock

from medmoe.cli.main import main
from medmoe.model.checkpoint import PROVENANCE, verify

FOOTER = "Research use only, not a medical device."


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_reference(tmp_path / "source")


refused = refused_by("convert")


def test_all_that_was_found_filled_and_dropped_is_printed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    assert main(["convert", "reference", str(source), str(model), "--top-k", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "reference moe_llava_phi: 155 tensors from model.safetensors",
        "MoE layers 0, 2: 4 domain experts, top-2, and the meta expert",
        f"vision tower: weights from the checkpoint, config from {source / 'clip'}",
        "router: from the checkpoint",
        "processor: none: there is no tokenizer in the folder, so the model runs on token ids but "
        "cannot be asked in words; put the tokenizer of its language model there and convert again",
        "filled: lm_head.bias (zeros: the reference drops phi-2's)",
        "dropped: nothing",
        "note: which modality each domain expert stands for is not recorded by the reference: they "
        "are named expert_0, expert_1, ... in the order of the router's rows",
        f"written: {model}",
        FOOTER,
    ]
    verify(model)


def test_json_holds_the_account_and_equals_the_provenance(source: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "account.json", tmp_path / "model"
    assert main(["convert", "reference", str(source), str(model), "--json", str(path)]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.pop("note") == FOOTER
    assert found.pop("destination") == str(model)
    facts = json.loads((model / PROVENANCE).read_text(encoding="utf-8"))
    assert facts["training"]["converted"] == found
    assert facts["training"]["notes"][0] == "Converted from reference moe_llava_phi."
    assert "expert_0, expert_1, ..." in facts["training"]["notes"][1]
    assert found["filled"] == ["lm_head.bias (zeros: the reference drops phi-2's)"]
    assert found["dropped"] == []
    assert found["domains"] == ["expert_0", "expert_1", "expert_2", "expert_3"]


def test_a_dense_checkpoint_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_reference(tmp_path / "source", "stablelm", 2)
    assert main(["convert", "reference", str(folder), str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert "no MoE layers: a dense model" in out
    assert "router: none: a dense model" in out
    assert "filled: nothing" in out


def test_a_stock_llava_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(stock("llama"), tmp_path / "source", processor=True)
    assert main(["convert", "llava", str(folder), str(tmp_path / "model")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("llava with llama: ")
    assert "pictures padded to square" in out
    verify(tmp_path / "model")


@pytest.mark.parametrize(
    "words", [("--router", "r.pth"), ("--top-k", "1"), ("--vision-tower", "clip")]
)
def test_flags_of_the_reference_are_refused_for_a_llava(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "llava", tmp_path, tmp_path / "model", *words)
    assert f"{words[0]} is for `medmoe convert reference`; leave it out" in line


def test_an_unknown_kind_lists_the_choices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "torch", tmp_path, tmp_path / "model")
    assert "invalid choice: 'torch' (choose from" in line
    assert "see `medmoe convert --help`" in line


def test_a_file_in_the_destinations_place_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").write_text("x")
    assert str(tmp_path / "model") in refused(capsys, "reference", source, tmp_path / "model")
    assert (tmp_path / "model").read_text() == "x"


def test_a_user_sees_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """Through a process of its own: no library may add a load report, warnings or a traceback."""
    folder = saved(stock("phi"), tmp_path / "source")
    name = "language_model.model.layers.1.mlp.fc1.weight"
    state = load_file(folder / "model.safetensors")
    state[name] = torch.ones(3, 2)
    save_file(state, folder / "model.safetensors")
    done = in_a_process("convert", "llava", folder, tmp_path / "model")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "layers.1.mlp.fc1.weight is (3, 2), its config needs (" in done.stderr
    assert not (tmp_path / "model").exists()


def test_a_conversion_writes_nothing_to_stderr(source: Path, tmp_path: Path) -> None:
    done = in_a_process("convert", "reference", source, tmp_path / "m")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"written: {tmp_path / 'm'}\n{FOOTER}\n")
