from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.model.tiny import moe_model, processor

from medmoe.cli.main import main
from medmoe.model.checkpoint import save_model


def test_cost_prints_the_counts_and_writes_them_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, result = tmp_path / "tiny-moe", tmp_path / "cost.json"
    save_model(moe_model("phi", 2), processor(), folder, {})
    words = ["cost", str(folder), "--top-k", "1", "--context", "64", "--json", str(result)]
    assert main(words) == 0
    out = capsys.readouterr().out
    for said in ("top-1 + meta expert, float32", "tiny-moe", "dense", "twin", "LLaVA-Med-7B"):
        assert said in out
    for said in ("phase1_alignment", "phase2_router", "LoRA, rank 128", "Research use only"):
        assert said in out
    assert "paper's Table" not in out, "the paper knows no such model"
    written = json.loads(result.read_text())
    assert (written["top_k"], written["measured"], written["paper"]) == (1, None, None)
    assert written["systems"][0]["total"] == sum(written["systems"][0]["parts"].values())
    assert len(written["systems"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["phi2"], "unknown model 'phi2'"),
        (["phi2_2_7b", "--measure"], "--measure needs the folder of a trained model"),
        (["phi2_2_7b", "--dtype", "int4"], "invalid choice: 'int4'"),
        (["phi2_2_7b", "--batch", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_wrong_use_is_one_line_and_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cost", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
