"""`medmoe score --judge` against `medmoe serve`: a text-only question to a model of ours."""

from __future__ import annotations

import json
from pathlib import Path

from tests.evaluation.test_judge import files
from tests.serving.support import Running

from medmoe.cli.main import main


def test_a_served_model_of_ours_judges_and_its_tokens_are_counted(
    server: Running, tmp_path: Path
) -> None:
    words = [*files(tmp_path), "--judge", f"{server.address}/v1", "--judge-model", "tiny"]
    assert main(words) == 0
    judged = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["judge"]
    assert judged["asked"] == 4
    assert set(judged["verdicts"]) == {"a", "b", "c", "d"}
    assert judged["prompt_tokens"] > 4 * 40
    assert judged["completion_tokens"] >= 4
