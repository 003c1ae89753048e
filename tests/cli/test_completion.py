"""What the TAB key completes, asked as a shell asks it: in the environment of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def completed(line: str, folder: Path) -> list[str]:
    answer = folder / "completed"
    subprocess.run(
        [sys.executable, "-m", "medmoe"],
        env=os.environ
        | {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "COMP_TYPE": "9", "COMP_LINE": line}
        | {"COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)},
        cwd=folder,
        check=True,
        timeout=120,
    )
    return [word.strip() for word in answer.read_text().split("\n")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("medmoe e", {"eval", "explain", "expert", "export"}),
        ("medmoe data au", {"audit"}),
        ("medmoe eval runs/model --format ", {"csv", "json", "latex", "markdown"}),
        ("medmoe ask runs/model --fu", {"--further"}),
        ("medmoe train small_real_lora", {"small_real_lora32", "small_real_lora64"}),
        ("medmoe cost phi2", {"phi2_2_7b"}),
        ("medmoe train ow", {"own.yaml"}),
        ("medmoe ask sc", {"scan.png"}),
    ],
)  # fmt: skip
def test_verbs_flags_choices_recipes_and_files_are_completed(
    line: str, words: set[str], tmp_path: Path
) -> None:
    for name in ("own.yaml", "scan.png"):
        (tmp_path / name).touch()
    assert set(completed(line, tmp_path)) == words
