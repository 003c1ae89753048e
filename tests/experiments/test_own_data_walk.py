"""The commands of docs/your_own_data.md on real pictures, a table and a folder per class.

Word for word but for a few steps of training; the server is started, asked and stopped.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serving.support import ask, running

from medmoe.cli.main import main
from medmoe.data import registry
from medmoe.data.readers.checker import CLASS_QUESTION
from medmoe.data.schema import images_of
from medmoe.experiments.recipe import load_recipe

_MODALITIES = ("ct", "mri", "xray")


def commands(repository: Path) -> list[list[str]]:
    """Return the commands of the walk-through."""
    text = (repository / "docs" / "your_own_data.md").read_text(encoding="utf-8")
    block = re.search(r"## From pictures to answers\n+```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [shlex.split(line)[1:] for line in block[1].splitlines()]


def short() -> list[str]:
    """Return the flags that make `tiny_real` a run of seconds."""
    words = ["--set", "vocab_size=400"]
    for phase in load_recipe("tiny_real").spec.phases:
        words += ["--set", f"phases.{phase}.steps=2", "--set", f"phases.{phase}.batch_size=4"]
    return words


def write_clinic(folder: Path, root: Path) -> None:
    """Write 60 pictures of VQA-Med-2019 with their questions, and a table without answers."""
    records = [r for r in registry.read("vqa_med_2019", root, "train") if r.task == "vqa"]
    chosen = [
        image
        for name in _MODALITIES
        for image in [i for i in images_of(records) if i.modality == name][:20]
    ]
    (folder / "images").mkdir(parents=True)
    names = {image.id: f"images/{number:03d}.jpg" for number, image in enumerate(chosen)}
    for image in chosen:
        assert isinstance(image.source, Path)
        shutil.copyfile(image.source, folder / names[image.id])
    rows = [
        (names[r.image.id], r.question, r.answer, str(r.image.modality))
        for r in records
        if r.image.id in names
    ]
    with (folder / "data.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "question", "answer", "modality"), *rows])
    with (folder / "questions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("image", "question"), *(row[:2] for row in rows[:9])])


def write_tiles(folder: Path, root: Path) -> None:
    """Write 200 tiles of LC25000, in a folder per class."""
    for place, source in enumerate(sorted((root / "lc25000-lung").iterdir())):
        (folder / source.name).mkdir(parents=True)
        for file in sorted(source.iterdir())[: 67 - (place == 0)]:
            shutil.copyfile(file, folder / source.name / file.name)


def walked(lines: list[list[str]], picture: Path, question: str) -> list[str]:
    """Run commands in this process, and `serve` in one of its own; return their verbs."""
    for words in lines:
        if words[0] == "serve":
            with running(Path(words[1]), Path("server"), *words[2:]) as server:
                (known,) = httpx.get(f"{server.address}/v1/models").json()["data"]
                reply = ask(
                    server.address, text=question, image=picture.read_bytes(), model=known["id"]
                )
                assert reply.status_code == 200, reply.text
                assert reply.json()["choices"][0]["message"]["role"] == "assistant"
            assert server.process.returncode in (0, -signal.SIGTERM)
            continue
        assert main([*words, *(short() if words[0] == "train" else [])]) == 0, words
    return [words[0] for words in lines]


def scores(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return found


ROAD = ["data", "train", "eval", "eval", "compare", "predict", "ask", "serve"]


@pytest.mark.slow
def test_the_walk_through_runs_word_for_word_on_sixty_real_pictures(
    repository: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clinic(tmp_path / "clinic", shared / "data")
    monkeypatch.chdir(tmp_path)
    picture = Path("clinic/images/001.jpg")
    assert walked(commands(repository), picture, "Is this an MRI?") == ROAD
    summary = scores(Path("runs/eval-moe"))
    assert {row["task"] for row in summary["scores"]} == {"clinic"}
    assert {row["split"] for row in summary["scores"]} == {"test"}
    assert summary["router"]["n"] > 0
    page = Path("runs/eval-moe/report.html").read_text(encoding="utf-8")
    assert "data:image/png" in page.partition(">Examples<")[2]
    with Path("answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert list(rows[0]) == ["image", "question", "prediction", "confidence"]


@pytest.mark.slow
def test_a_folder_per_class_of_real_tiles_takes_the_same_road(
    repository: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiles(tmp_path / "tiles", shared / "data")
    monkeypatch.chdir(tmp_path)
    picture = min(Path("tiles/lung_n").iterdir())
    names = {
        "clinic/data.csv": "tiles",
        "clinic/questions.csv": "tiles:test",
        "clinic/images/001.jpg": str(picture),
        "Is this an MRI?": CLASS_QUESTION,
    }
    lines = [[names.get(word, word) for word in words] for words in commands(repository)]
    for words in lines:
        words += ["--modality", "histology"] if words[0] == "train" else []
    assert walked(lines, picture, CLASS_QUESTION) == ROAD
    summary = scores(Path("runs/eval-moe"))
    assert {row["task"] for row in summary["scores"]} == {"tiles"}
    assert {row["protocol"] for row in summary["scores"]} == {"label_score"}
    with Path("answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {len(rows)} == {row["n"] for row in summary["scores"] if row["metric"] == "accuracy"}
    assert {row["prediction"] for row in rows} <= {"lung aca", "lung n", "lung scc"}
