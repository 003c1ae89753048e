"""Every script of examples/ does what its first lines say, run as they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.serving.support import Running, png

from medmoe.inference.engine import MedMoe

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(png())
    return path


def run(name: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here_and_listed() -> None:
    names = {path.name for path in EXAMPLES.glob("*.py")}
    listed = set(re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text("utf-8")))
    assert (
        names == listed == set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text("utf-8")))
    )


def test_a_model_is_asked_from_python(tiny_model: Path, tiny: MedMoe, picture: Path) -> None:
    said = run("ask.py", tiny_model, picture, "Is there a mass?")
    answer = tiny.answer(str(picture), "Is there a mass?")
    assert answer.routing is not None
    assert said.startswith(f"{answer.text}\nconfidence: {answer.confidence:.2f} (not calibrated)\n")
    assert f"domain: {answer.routing.domain} (" in said
    assert "image blanked: " in said
    assert "Research use only" in said


def test_a_server_is_asked_and_asked_again(server: Running, tiny: MedMoe, picture: Path) -> None:
    said = run("ask_server.py", f"{server.address}/v1", picture, "Is there a mass?")
    assert said.startswith(tiny.answer(str(picture), "Is there a mass?").text)
    assert re.search(
        r"\nconfidence: [01]\.\d\d .*\nResearch use only, not a medical device\n$", said
    )


def test_a_model_of_ones_own_is_scored(tmp_path: Path) -> None:
    said = run("score_your_model.py", "phantom_vqa", tmp_path / "mine")
    assert re.search(r"closed +accuracy", said)
    assert (tmp_path / "mine" / "report.html").is_file()
