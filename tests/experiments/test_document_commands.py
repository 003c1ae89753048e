"""Every command of the documents runs as it is written, but for fewer steps.

In order, in one folder, on a demonstration of a few steps. What cannot be run here says why. Fences
of `sh` are left out: they are for other programs, or environments of their own (vLLM, lmms-eval).
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import httpx
import pytest
from tests.architecture.test_readme import ROOT, commands
from tests.experiments.micro import SETTINGS
from tests.experiments.test_add_expert import SETTINGS as EXPERT_SETTINGS
from tests.experiments.test_add_expert import table
from tests.serving.support import running

from medmoe.cli.main import main
from medmoe.experiments.recipe import load_recipe

#: Trainings come before what reads their runs.
DOCUMENTS = (
    "README.md", "docs/training.md", "docs/routes.md", "docs/scoring.md", "docs/experts.md",
    "docs/small_machines.md", "docs/weights.md", "docs/your_own_data.md", "docs/reproduce.md",
    "docs/serving.md", "docs/drift.md", "docs/dicomweb.md", "docs/bundle.md",
    "docs/add_a_backbone.md", "CONTRIBUTING.md",
)  # fmt: skip

#: Part of a command -> why it is not run here.
NOT_RUN = {
    "make ": "what CI itself calls",
    "pip ": "installs",
    "data get": "fetches: tests/data/test_download.py",
    "weights get": "fetches: tests/model/test_get_weights.py",
    "small_real": "needs weights and hours",
    "train phi2 --data": "needs weights and GPUs",
    "train stablelm2": "needs the data sets: tests/experiments/test_estimate.py plans it",
    "google/medgemma": "needs that model: tests/cli/test_eval_other.py",
    "runs/medgemma": "needs that model",
    "--model-api": "needs a server: tests/serving/test_asked_by_eval.py",
    "--judge": "needs a server: tests/serving/test_judged_by_serve.py",
    "reproduce table": "hours; table 1 is rehearsed: tests/cli/test_rehearsal.py",
    "medmoe ask model IMAGE": "needs small_real",
    "medmoe bundle": "fetches wheels: tests/cli/test_bundle.py",
    "--dicomweb": "needs Orthanc: tests/serving/test_dicomweb.py",
    "audit verify": "of such a server's log: tests/serving/test_audit.py",
    "--host 0.0.0.0": "opens this machine to others: tests/serving/test_access.py",
}
#: Part of a command -> the module that must be there.
NEEDS = {"export runs/demo/model --out runs/demo/int8": "openvino", "runs/demo/int8": "openvino",
         "bits: 4": "bitsandbytes", ".key": "cryptography", ".pub": "cryptography"}  # fmt: skip


def reason(line: str) -> str | None:
    """Return why a command is not run; None where it is."""
    lacking = (
        f"needs {name}" for part, name in NEEDS.items() if part in line and not find_spec(name)
    )
    return next(lacking, None) or next((why for part, why in NOT_RUN.items() if part in line), None)


def fewer(words: list[str]) -> list[str]:
    """Return what makes a command one of seconds."""
    if words[0] == "train" and "--plan" not in words:
        phases = load_recipe(words[1]).spec.phases
        short = ("epochs=null", "steps=2", "batch_size=4")
        values = [f"phases.{phase}.{value}" for phase in phases for value in short]
        values += [v for v in SETTINGS if not v.startswith("phases.") and "router" not in v]
        return [word for value in values for word in ("--set", value)]
    if words[:2] == ["expert", "add"]:
        return [word for value in EXPERT_SETTINGS for word in ("--set", value)]
    return []


def prepare(line: str) -> None:
    """Make what a document takes for granted before a command."""
    for site in ("SITE", "OTHER"):
        if f"{site}/model" in line:
            shutil.rmtree(site, ignore_errors=True)
            shutil.copytree("runs/demo/model", f"{site}/model")
    if "expert import" in line and "--trust" not in line:
        added = ["runs/us/model", "ultrasound"]
        assert main(["expert", "export", *added, "--out", "ultrasound.pack"]) == 0
    if "remove SITE/model" in line or "export SITE/model" in line:
        assert main(["expert", "import", "SITE/model", "ultrasound.pack"]) == 0
    if "--out ultrasound.pack" in line:
        shutil.rmtree("ultrasound.pack")


def run(words: list[str], line: str) -> None:
    if Path(words[0]).name != "medmoe":
        subprocess.run(words, check=True)
        return
    words = words[1:]
    if words[0] != "serve":
        assert main([*words, *fewer(words)]) == 0, line
        return
    with running(Path(words[1]), Path(mkdtemp()), *words[2:]) as server:
        assert httpx.get(f"{server.address}/v1/models").status_code == 200
    assert server.process.returncode in (0, -signal.SIGTERM), line


def write_files(folder: Path) -> None:
    """Write the tables, answers and logs that the documents name."""
    data = table(folder / "clinic", range(60), ("ct", "mri", "xray"))
    shutil.copyfile(data, folder / "clinic" / "questions.csv")
    shutil.copyfile(
        sorted((folder / "clinic" / "images").iterdir())[0],
        folder / "clinic" / "images" / "001.jpg",
    )
    table(folder / "clinic" / "us", range(300, 326), ("ultrasound",))
    (folder / "clinic" / "us.csv").write_text(
        (folder / "clinic" / "us" / "data.csv").read_text().replace("images/", "us/images/")
    )
    for part in ("test", "validation"):
        rows = [
            {"id": f"{part}{n}", "image": f"{part}{n}", "answer": "yes", "answer_type": "closed",
             "prediction": ("yes", "no")[n % 3 == 0], "confidence": 0.5 + n / 200}
            for n in range(60)
        ]  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        for name in ("answers", "truth"):
            (folder / f"{name}_{part}.jsonl").write_text(lines)


@pytest.mark.slow
def test_every_command_of_the_documents_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    short = [word for value in SETTINGS for word in ("--set", value)]
    assert main(["demo", *short]) == 0
    ran, left = set[str](), set[str]()
    for document in DOCUMENTS:
        for words in commands(document):
            line = " ".join(words)
            if why := reason(line):
                left.add(why)
            elif line not in ran:  # two documents may train the same
                prepare(line)
                run(words, f"{document}: {line}")
                ran.add(line)
    assert len(ran) > 40
    assert {*NOT_RUN.values()} <= left  # none is of a command that is gone


def test_every_document_with_commands_is_tried() -> None:
    found = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")}
    assert {name for name in found if commands(name)} == {*DOCUMENTS[1:-1]}
