"""The rehearsal of table 1 at the paper's size: every step of the road, on copies of no meaning."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.cli.running import in_a_process, refused_by

from medmoe.experiments.rehearsal import COMMANDS, write_sources

refused = refused_by("reproduce")


def test_table_1_is_trained_asked_and_scored_at_the_papers_shape(tmp_path: Path) -> None:
    """In a process of its own, which finds the backbones by its environment."""
    fewer = ("phase2_instruction.epochs=1", "phase2_router.steps=10", "phase3_moe.epochs=1")
    settings = [word for text in fewer for word in ("--set", f"phases.{text}")]
    words = ("reproduce", "table1", "--size", "paper", "--rehearse", "--out", tmp_path)
    done = in_a_process(*words, *settings, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    path = tmp_path / "rehearsal" / "reproduce" / "table1-rehearsal.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    assert {row["family"] for row in rows} == {"stablelm2", "phi2"}
    assert {row["verdict"] for row in rows} == {"rehearsed"}
    assert len(rows) == 2 * 2 * 3 * 4  # families, systems, sets, scores
    ran = [line.removeprefix("$ ") for line in done.stdout.splitlines() if line.startswith("$ ")]
    data = tmp_path / "rehearsal" / "data"
    assert [command.replace(str(data), "DIR") for command in ran] == [*COMMANDS]
    assert "llava_med_alignment: no picture (its archive is gone)" in done.stdout
    assert "rehearsed" in done.stdout


def test_the_commands_are_those_of_the_document(repository: Path) -> None:
    text = (repository / "docs" / "reproduce.md").read_text(encoding="utf-8")
    section = text.partition("## Table 1 at the paper's size")[2]
    (block, *_) = re.findall(r"^```bash\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert tuple(block.splitlines()) == COMMANDS


def test_the_backbones_have_the_published_files_and_keys(tmp_path: Path, shared: Path) -> None:
    write_sources(tmp_path / "hub", tmp_path / "data", "http://127.0.0.1")
    weights = tmp_path / "hub"
    clip = torch.load(
        weights / "openai" / "clip-vit-large-patch14-336" / "pytorch_model.bin", weights_only=True
    )
    listed = shared / "reference" / "keys"
    hub = {"stablelm2_1_6b": "stabilityai/stablelm-2-1_6b", "phi2": "microsoft/phi-2"}
    for reference, name in hub.items():
        known = json.loads((listed / f"{reference}_stage3_keys.json").read_text())["keys"]
        with safe_open(weights / name / "model.safetensors", "pt") as file:
            keys = set(file.keys())
        shared_keys = {k for k in known if k.startswith("model.layers.") and ".mlp." not in k}
        assert shared_keys
        assert shared_keys <= keys
    assert "vision_model.encoder.layers.23.mlp.fc2.weight" in clip
    assert "text_model.final_layer_norm.bias" in clip


@pytest.mark.parametrize(
    "words", [["table4", "--size", "paper"], ["table1"], ["table1", "--size", "paper", "--dry-run"]]
)
def test_only_table_1_at_the_papers_size_is_rehearsed(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, *words, "--rehearse", "--out", tmp_path / "new")
    assert "medmoe reproduce table1 --size paper --rehearse" in said
    assert not (tmp_path / "new").exists()
