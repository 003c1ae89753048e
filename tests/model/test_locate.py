"""MODEL: what users name, and one line for what is no model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.model.tiny import moe_model, processor

from medmoe.errors import CheckpointError
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import save_model
from medmoe.model.committed import committed, write_json
from medmoe.model.locate import find_model, folder_of, name_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("demo")
    save_model(moe_model("stablelm", 1), processor(), folder / "model", {})
    return folder


def in_the_cache(cache: Path, model: Path, name: str) -> Path:
    """Lay a model into a cache of the hub, as a download would."""
    root = cache / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    snapshot = root / "snapshots" / COMMIT
    shutil.copytree(model, snapshot)
    (snapshot / ".gitattributes").touch()
    return snapshot


def test_a_run_stands_for_its_model(run: Path) -> None:
    assert find_model(run) == find_model(run / "model") == run / "model"
    assert MedMoe.load(str(run)).domains
    assert name_of(run / "model") == run.name


def test_a_hub_id_stands_for_its_folder_in_the_cache(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = in_the_cache(tmp_path, run / "model", "clinic/med-moe")
    assert find_model("clinic/med-moe") == find_model(f"clinic/med-moe@{COMMIT}") == snapshot
    assert name_of(snapshot) == "med-moe"
    assert MedMoe.load("clinic/med-moe").domains
    (snapshot / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError, match=r"no MANIFEST\.json, .*`medmoe adopt"):
        MedMoe.load("clinic/med-moe")
    with pytest.raises(CheckpointError, match=r"clinic/other: no such folder, and no model that"):
        find_model("clinic/other")


def test_a_path_is_not_taken_for_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert folder_of("runs/dmeo") == Path("runs/dmeo")
    with pytest.raises(CheckpointError, match="runs/dmeo: no such model directory"):
        find_model("runs/dmeo")


def phase_of(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        with committed(folder / "model") as staging:
            write_json(staging / "medmoe.json", {"training": {"phase": name}})
        return folder

    return write


def config_of(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        return folder

    return write


def with_folder(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).mkdir(parents=True)
        return folder

    return write


def file_named(name: str, *, itself: bool = False) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).touch()
        return folder / name if itself else folder

    return write


OTHERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "router": (phase_of("phase2_router"), "a router of phase2_router, .*give the run of phase2_in"),
    "encoder": (phase_of("phase0_encoder"), "a vision encoder of phase0_encoder"),
    "phases": (with_folder("phase3_moe/model"), r"unfinished run with the phases phase3_moe; give"),
    "checkpoints": (with_folder("checkpoints/step-5"), r"no model yet; .*medmoe train … --resume"),
    "Trainer": (with_folder("checkpoint-5"), r"`medmoe adopt .*checkpoint-5 --out DIR`"),
    "GGUF folder": (file_named("model.gguf"), "holds a GGUF file"),
    "GGUF": (file_named("model.gguf", itself=True), "a GGUF file, which llama.cpp reads"),
    "file": (file_named("model.safetensors", itself=True), "a file; give its folder"),
    "llava": (config_of("llava"), "of type 'llava'.*`medmoe convert llava .* DST`"),
    "reference": (config_of("llava_phi"), "`medmoe convert reference .* DST`"),
    "another": (config_of("qwen3"), "of type 'qwen3'.*give the folder of a medmoe model"),
    "empty": (lambda folder: folder, r"no MANIFEST\.json and no config\.json"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_folder_is_one_line_with_the_way_out(name: str, tmp_path: Path) -> None:
    make, line = OTHERS[name]
    with pytest.raises(CheckpointError, match=line) as caught:
        find_model(make(tmp_path))
    assert "\n" not in str(caught.value)
