"""Fetching sets: refused in one line where it cannot work, and what is fetched is unpacked."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from PIL import Image
from tests.data.readers.test_slake import write

from medmoe.data import fetch, registry
from medmoe.data.bad_rows import BadRows
from medmoe.errors import DataError


def test_offline_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    """The suite runs with HF_HUB_OFFLINE=1: the real client is asked and refuses."""
    source = registry.READERS["path_vqa"].SOURCE
    with pytest.raises(DataError, match=r"hub cannot be reached; fetch flaviagiammarino/path-vqa"):
        fetch.fetch("path_vqa", source, tmp_path, BadRows())


def test_a_set_that_is_not_on_the_hub_names_its_home(tmp_path: Path) -> None:
    source = registry.READERS["rocov2"].SOURCE
    with pytest.raises(DataError, match=r"not on the hub: get it from https://zenodo\.org"):
        fetch.fetch("rocov2", source, tmp_path, BadRows())


def test_what_is_fetched_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transfer alone is replaced: by a copy of the files as the hub holds them."""
    asked: dict[str, Any] = {}

    def transfer(repo: str, *, local_dir: Path, **options: Any) -> str:
        asked.update(options, repo=repo)
        write(local_dir.parent, folder=local_dir.name)
        images = local_dir / "imgs"
        with zipfile.ZipFile(local_dir / "imgs.zip", "w") as archive:
            for path in sorted(images.rglob("*.jpg")):
                archive.write(path, path.relative_to(local_dir))
                path.unlink()
        return str(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", transfer)
    reader = registry.READERS["slake"]
    assert fetch.fetch("slake", reader.SOURCE, tmp_path, BadRows()) == tmp_path / "slake"
    assert len(registry.read("slake", tmp_path, "test")) == 3
    assert asked["repo"] == "BoKelvin/SLAKE"
    assert asked["repo_type"] == "dataset"
    assert asked["revision"] is None
    assert asked["allow_patterns"] == ["*.json", "imgs.zip"]


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "PNG")
    with zipfile.ZipFile(folder / "imgs.zip", "w") as archive:
        archive.writestr("../../escaped.png", buffer.getvalue())
    fetch.unpack(folder / "imgs.zip")
    assert [p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*.png")] == ["set"]


def test_a_broken_archive_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "imgs.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"imgs\.zip: cannot be unpacked .*fetch it again"):
        fetch.unpack(tmp_path / "imgs.zip")
