"""The commands of docs/your_own_data.md on real pictures, word for word, a few steps long."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from medmoe.cli.main import main, parser_of
from medmoe.data import registry
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


@pytest.mark.slow
def test_the_walk_through_runs_word_for_word_on_sixty_real_pictures(
    repository: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clinic(tmp_path / "clinic", shared / "data")
    monkeypatch.chdir(tmp_path)
    done = []
    for words in commands(repository):
        done.append(words[0])
        if words[0] == "serve":  # it would not end; its own tests start it
            parser_of("serve").parse_strictly(words[1:])
            continue
        assert main([*words, *(short() if words[0] == "train" else [])]) == 0, words
    assert done == ["data", "train", "eval", "eval", "compare", "predict", "ask", "serve"]
    summary = json.loads((tmp_path / "runs" / "eval-moe" / "summary.json").read_text())
    assert {row["task"] for row in summary["scores"]} == {"clinic"}
    assert {row["split"] for row in summary["scores"]} == {"test"}
    with (tmp_path / "answers.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert list(rows[0]) == ["image", "question", "prediction", "confidence"]
