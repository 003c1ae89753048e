from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.model.tiny import DOMAINS, FAMILIES, Family, dense_model, moe_model, processor

from medmoe.errors import CheckpointError
from medmoe.model.checkpoint import MANIFEST, PROVENANCE, load_model, save_model, verify
from medmoe.model.processing_medmoe import MedMoeProcessor

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "model"
    save_model(moe_model("stablelm", 2), processor(), directory, {"seed": 7})
    return directory


@pytest.fixture
def model_dir(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def relist(directory: Path) -> None:
    """Write a manifest that vouches for whatever lies in a directory now."""
    files = {
        path.name: {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in directory.iterdir()
        if path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(json.dumps({"version": 1, "files": files}))


def assert_same_weights(one: Any, other: Any) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_a_saved_model_loads_bit_by_bit(family: Family, kind: str, tmp_path: Path) -> None:
    model = dense_model(family) if kind == "dense" else moe_model(family, 2, router_layers=2)
    save_model(model, processor(), tmp_path / "model", {})
    again, its_processor = load_model(tmp_path / "model")
    assert_same_weights(model, again)
    assert not again.training
    assert again.config.moe_layers == model.config.moe_layers
    assert again.config.num_experts_per_tok == model.config.num_experts_per_tok
    assert its_processor.chat_template == processor().chat_template
    text = "USER: <image>\nwhy?"
    assert its_processor.tokenizer(text).input_ids == processor().tokenizer(text).input_ids


def test_saving_a_loaded_model_gives_the_same_files(saved: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    save_model(*load_model(saved), again, {"seed": 7})
    assert load_file(saved / WEIGHTS).keys() == load_file(again / WEIGHTS).keys()
    first, second = (json.loads((d / MANIFEST).read_text())["files"] for d in (saved, again))
    assert first.keys() == second.keys()
    # transformers notes the dtype and where it loaded from in these two.
    changed = {name for name in first if first[name] != second[name]}
    assert changed <= {"config.json", "tokenizer_config.json"}


def test_another_user_can_read_what_the_umask_allows(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    allowed = (tmp_path / "plain").stat().st_mode
    assert {path.name for path in saved.iterdir() if path.stat().st_mode != allowed} == set()


def test_a_model_directory_says_what_it_is(saved: Path) -> None:
    facts = json.loads((saved / PROVENANCE).read_text())
    assert facts == {"domains": list(DOMAINS), "training": {"seed": 7}}
    listed = set(json.loads((saved / MANIFEST).read_text())["files"])
    assert listed == {path.name for path in saved.iterdir()} - {MANIFEST}
    assert {WEIGHTS, "config.json", "processor_config.json", "tokenizer.json"} <= listed


def cut_weights(directory: Path) -> None:
    path = directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-64])


def change_byte(directory: Path) -> None:
    path = directory / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def edit_config(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))
    relist(directory)


def auto_map(place: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    def change(config: dict[str, Any]) -> None:
        place(config)["auto_map"] = {"AutoModel": "modeling.Evil"}

    return lambda directory: edit_config(directory, change)


def listed(name: str, content: str = "x") -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).write_text(content)
        relist(directory)

    return change


def text_config(**values: Any) -> Callable[[Path], None]:
    return lambda d: edit_config(d, lambda config: config["text_config"].update(values))


def link_out(directory: Path) -> None:
    outside = directory.parent / "outside.safetensors"
    (directory / WEIGHTS).rename(outside)
    (directory / WEIGHTS).symlink_to(outside)
    relist(directory)


def cut_and_listed(directory: Path) -> None:
    cut_weights(directory)
    relist(directory)


REFUSALS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda d: (d / MANIFEST).unlink(), f"no {MANIFEST}"),
    "broken manifest": (lambda d: (d / MANIFEST).write_text("{"), f"{MANIFEST}: not a manifest"),
    "manifest of a list": (lambda d: (d / MANIFEST).write_text("[1]"), f"{MANIFEST}: not a mani"),
    "manifest of nothing": (
        lambda d: (d / MANIFEST).write_text('{"files": {}}'),
        "lists no config.json",
    ),
    "pickle": (lambda d: (d / "old.bin").write_text("x"), "old.bin: pickle files are refused"),
    "listed pickle": (listed("model.PTH"), "model.PTH: pickle files are refused"),
    "unlisted file": (lambda d: (d / "notes.txt").write_text("x"), "notes.txt: not in the manif"),
    "unlisted folder": (lambda d: (d / "code").mkdir(), "code: not in the manifest"),
    "missing file": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: missing"),
    "changed byte": (change_byte, f"{WEIGHTS}: its SHA-256 differs"),
    "truncated weights": (cut_weights, f"{WEIGHTS}: its SHA-256 differs"),
    "truncated weights, vouched for": (cut_and_listed, f"{WEIGHTS}: damaged weights"),
    "auto_map": (auto_map(lambda config: config), r"config.json: auto_map \(foreign code\)"),
    "nested auto_map": (auto_map(lambda config: config["text_config"]), "config.json: auto_map"),
    "auto_map of the processor": (
        listed("processor_config.json", '{"auto_map": {"AutoProcessor": "x.Y"}}'),
        "processor_config.json: auto_map",
    ),
    "no JSON": (listed("config.json", "{"), "config.json: not readable as JSON"),
    "deep JSON": (listed("generation_config.json", "[" * 10**5 + "]" * 10**5), "not readable as"),
    "deep config": (listed("config.json", '{"a":' * 10**5), "config.json: not readable as JSON"),
    "deep tokenizer": (listed("tokenizer.json", "[" * 10**5), "tokenizer.json: not readable as"),
    "broken template": (listed("chat_template.jinja", "{% for x in %}"), "no usable processor"),
    "template that fails": (listed("chat_template.jinja", "{{ 1 / 0 }}"), "no usable processor"),
    "endless template": (
        listed("chat_template.jinja", "{% for a in range(99999) %}" * 9 + "{% endfor %}" * 9),
        r"no usable processor \(its chat template needs more than 5 s or 2 GiB",
    ),
    "template that fills memory": (
        listed("chat_template.jinja", "{% set a = [0] * 10**9 %}{{ a[-1] * 10 }}"),
        "its chat template needs more than 5 s or 2 GiB",
    ),
    "template that reads a file": (
        listed("chat_template.jinja", "{% include '/etc/passwd' %}"),
        "no usable processor",
    ),
    "activation": (text_config(hidden_act="evil"), r"give no model \(KeyError: 'evil'\)"),
    "kernel of the hub": (
        text_config(attn_implementation="kernels-community/flash-attn"),
        "attn_implementation 'kernels-community/flash-attn' .* is refused",
    ),
    "vocabulary": (text_config(vocab_size=2**40), "hidden_size .* and vocab_size 1,099,511"),
    "layers": (text_config(num_hidden_layers=10**9), "num_hidden_layers 1,000,000,000 give"),
    "width": (text_config(hidden_size=10**9), "hidden_size 1,000,000,000 and vocab_size"),
    "image tokens": (
        lambda d: edit_config(d, lambda c: c.update(image_seq_length=c["image_seq_length"] + 1)),
        "number of image tokens",
    ),
    "index": (
        listed("model.safetensors.index.json", '{"weight_map": {"a": "../outside.safetensors"}}'),
        r"index\.json: names '\.\./outside\.safetensors', which is not in the manifest",
    ),
    "index of nothing": (listed("model.safetensors.index.json", "{}"), "names None"),
    "vocabulary elsewhere": (
        listed("tokenizer_config.json", '{"vocab_file": "/etc/passwd"}'),
        "vocab_file '/etc/passwd' .a file elsewhere. is refused",
    ),
    "symbolic link": (link_out, "model.safetensors: a symbolic link to elsewhere is refused"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_verify_refuses_and_names_the_file(name: str, model_dir: Path) -> None:
    verify(model_dir)
    damage, message = REFUSALS[name]
    damage(model_dir)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(model_dir)
    assert str(model_dir) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_of_the_hubs_cache_are_followed(model_dir: Path, tmp_path: Path) -> None:
    """There a snapshot's files are links into the folder of blobs beside it."""
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in model_dir.iterdir():
        path.rename(blobs / f"hash-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/hash-of-{path.name}")
    verify(snapshot)


def test_a_folder_in_a_listed_files_place_is_refused(model_dir: Path) -> None:
    (model_dir / "tokenizer.json").unlink()
    (model_dir / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: its SHA-256 differs"):
        verify(model_dir)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone: no such model directory; give the folder"):
        load_model(tmp_path / "gone")


def test_a_model_without_processor_is_refused_in_one_line(model_dir: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        (model_dir / name).unlink()
    relist(model_dir)
    with pytest.raises(CheckpointError, match="no usable processor") as caught:
        load_model(model_dir)
    assert "\n" not in str(caught.value)


def fail_in_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_pretrained(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(MedMoeProcessor, "save_pretrained", save_pretrained)


def fail_in_the_last_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def broken(path: Path, target: Path) -> Path:
        if path.name.endswith(".staging"):
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    # As where the system cannot exchange two names in one step.
    monkeypatch.setattr("medmoe.model.committed._exchanged", lambda *_: False)


@pytest.mark.parametrize("fail", [fail_in_the_processor, fail_in_the_last_rename])
def test_a_save_that_fails_leaves_the_old_model_whole(
    fail: Callable[[pytest.MonkeyPatch], None], model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save_model(dense_model("phi"), processor(), model_dir, {})
    assert [path.name for path in model_dir.parent.iterdir()] == ["model"]
    assert_same_weights(load_model(model_dir)[0], moe_model("stablelm", 2))
    monkeypatch.undo()
    save_model(dense_model("phi"), processor(), model_dir, {})
    assert_same_weights(load_model(model_dir)[0], dense_model("phi"))
    assert [path.name for path in model_dir.parent.iterdir()] == ["model"]


def test_what_a_killed_save_left_behind_is_no_obstacle(model_dir: Path) -> None:
    staging = model_dir.with_name(".model.staging")
    staging.mkdir()
    (staging / "junk").write_text("x")
    save_model(dense_model("phi"), processor(), model_dir, {})
    assert_same_weights(load_model(model_dir)[0], dense_model("phi"))
    assert not staging.exists()


def test_a_save_killed_between_its_renames_says_where_the_old_model_is(model_dir: Path) -> None:
    old = model_dir.rename(model_dir.with_name(".model.old"))
    with pytest.raises(CheckpointError, match=r"rename .*\.model\.old back to it"):
        load_model(model_dir)
    verify(old)


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"holds files but no MANIFEST\.json"):
        save_model(dense_model("phi"), processor(), tmp_path, {})
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
