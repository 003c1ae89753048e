"""`--site`: experts of several sites beside one model, whose folder stays byte for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.cli.running import refused_by
from tests.model.growing import ALL, grown, run

from medmoe.cli.main import main
from medmoe.model.committed import MANIFEST

refused = refused_by("expert")


def told(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([*map(str, words)]) == 0
    return capsys.readouterr().out


def pack_of(model: Path, folder: Path, name: str) -> Path:
    """Return the pack of a random expert that every token goes to."""
    grown(model, folder / "whole", ALL, name)
    assert main(["expert", "export", str(folder / "whole"), name, "--out", str(folder / "p")]) == 0
    return folder / "p"


@pytest.fixture
def base(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "run" / "model")


@pytest.fixture
def packs(base: Path, tmp_path: Path) -> dict[str, Path]:
    names = ("ultrasound", "angiography")
    return {name: pack_of(base, tmp_path / name, name) for name in names}


def test_each_site_answers_by_its_own_experts_and_the_model_stays(
    base: Path, packs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    sites = {"north": "ultrasound", "south": "angiography"}
    for site, name in sites.items():
        assert "10 came" in told(capsys, "expert", "import", base, packs[name], "--site", site)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert "sites: north, south" in told(capsys, "expert", "list", base)
    picture, out = tmp_path / "x.png", tmp_path / "a.json"
    Image.effect_noise((64, 64), 40).save(picture)
    asked = ("ask", base, picture, "Is there a mass?", "--max-new-tokens", 4, "--json", out)
    for site, name in sites.items():
        told(capsys, *asked, "--site", site)
        assert json.loads(out.read_text())["routing"]["domain"] == name
        # The same as the model with this pack alone in it, and none of the base's bytes again.
        folder = tmp_path / "run" / "sites" / site
        whole = tmp_path / name / "whole"
        assert torch.equal(run(folder)[0], run(whole)[0])
        weights = [sum(p.stat().st_size for p in f.glob("*.safetensors")) for f in (folder, whole)]
        assert weights[0] < 0.2 * weights[1]
    told(capsys, *asked)
    assert json.loads(out.read_text())["routing"]["domain"] in ("ct", "mri", "pathology", "xray")


def test_a_site_takes_several_packs_and_lets_them_go(
    base: Path, packs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for pack in packs.values():
        told(capsys, "expert", "import", base, pack, "--site", "north")
    listed = told(capsys, "expert", "list", base, "--site", "north")
    assert "ultrasound" in listed
    assert "angiography" in listed
    assert "ultrasound" not in told(capsys, "expert", "list", base)
    assert "already" in refused(capsys, "import", base, packs["ultrasound"], "--site", "north")
    told(capsys, "expert", "swap", base, packs["ultrasound"], "--site", "north")
    told(capsys, "expert", "export", base, "ultrasound", "--site", "north", "--out", tmp_path / "o")
    both = [json.loads((p / MANIFEST).read_text()) for p in (packs["ultrasound"], tmp_path / "o")]
    assert both[0]["files"]["expert.safetensors"] == both[1]["files"]["expert.safetensors"]
    # An expert of the base may go at one site, and is there at the others.
    told(capsys, "expert", "remove", base, "ct", "--to", "meta", "--site", "north")
    assert "removed; its tokens go to meta" in told(
        capsys, "expert", "list", base, "--site", "north"
    )
    told(capsys, "expert", "remove", base, "angiography", "--to", "next", "--site", "north")
    listed = told(capsys, "expert", "list", base, "--site", "north")
    assert "ultrasound" in listed
    assert "angiography" not in listed


def test_answers_of_a_site_are_scored_as_its_own(
    base: Path, packs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told(capsys, "expert", "import", base, packs["ultrasound"], "--site", "north")
    words: list[Any] = ["eval", base, "--task", "phantom_vqa", "--limit", 8, "--seed", 3]
    words += ["--max-new-tokens", 2, "--out", tmp_path / "eval"]
    told(capsys, *words, "--site", "north")
    settings = json.loads((tmp_path / "eval" / "settings.json").read_text())
    assert main([*map(str, words)]) == 2  # another model's answers
    assert "holds another run (its model" in capsys.readouterr().err
    assert settings["model"]


def test_a_base_that_is_gone_or_another_is_refused(
    base: Path, packs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(base), "--site", "north"]) == 2
    assert "has no site north (its sites: none yet); make one by" in capsys.readouterr().err
    said = refused(capsys, "import", base, packs["ultrasound"], "--site", "../x")
    assert "is not a site's name, e.g. north" in said
    with_both = ("--site", "north", "--out", tmp_path / "o")
    assert "without --out" in refused(capsys, "import", base, packs["ultrasound"], *with_both)
    told(capsys, "expert", "import", base, packs["ultrasound"], "--site", "north")
    # Both folders together may go elsewhere.
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere") / "model"
    told(capsys, "expert", "list", moved, "--site", "north")
    told(capsys, "expert", "remove", moved, "xray", "--to", "next")
    assert "is another model now" in refused(capsys, "list", moved, "--site", "north")
    shutil.move(moved, tmp_path / "away")
    assert main(["chat", str(tmp_path / "elsewhere" / "sites" / "north")]) == 2
    assert "is gone; put the model that it was made beside there" in capsys.readouterr().err
