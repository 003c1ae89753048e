"""`--site`: experts of several sites beside one model, whose folder stays byte for byte."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.cli.running import refused_by
from tests.model.growing import ALL, NONE, grown, run
from tests.model.tiny import moe_model, processor

from medmoe.cli.main import main
from medmoe.evaluation.compare import compare_runs
from medmoe.model.checkpoint import identity, load_model, save_model
from medmoe.model.committed import MANIFEST
from medmoe.model.expert_tensors import renamed
from medmoe.model.experts import Expert, MoeFolder, put_in

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


def test_a_sites_model_of_half_precision_is_that_of_the_whole_folder(tmp_path: Path) -> None:
    base = tmp_path / "run" / "model"
    save_model(moe_model("stablelm").to(torch.bfloat16), processor(), base, {})
    files, folders = MoeFolder(base), [tmp_path / "whole", tmp_path / "run" / "sites" / "north"]
    own = files.expert("ct").items()
    tensors = {renamed(k, "ct", "ultrasound"): t.clone() for k, t in own}
    expert = Expert("ultrasound", tensors, [*files.domains, "ultrasound"], {})
    for folder, link in zip(folders, (None, base), strict=True):
        put_in(files, folder, expert, base=link)
    whole, of_site = (load_model(folder)[0].state_dict() for folder in folders)
    assert whole.keys() == of_site.keys()
    assert {t.dtype for t in whole.values()} == {torch.bfloat16, torch.float32}
    for name, tensor in whole.items():
        assert of_site[name].dtype == tensor.dtype
        assert torch.equal(of_site[name], tensor)


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


def test_a_pack_says_how_its_expert_was_tested_and_a_worse_one_is_not_written(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grown(base, tmp_path / "quiet", NONE)
    task = ["--test", "phantom_vqa", "--limit", 40, "--seed", 3]
    shipped = told(
        capsys, "expert", "export", tmp_path / "quiet", "ultrasound", "--out", tmp_path / "p", *task
    )
    assert "the same. Neither is shown to be better. Too few pictures to show a loss." in shipped
    assert "tested: its report is in the pack" in shipped
    report = json.loads((tmp_path / "p" / "expert.json").read_text())["evaluation"]
    assert not report["worse"]
    assert sum(row["n"] for row in report["rows"]) == 40
    assert all(row["same_answers"] == row["n"] for row in report["rows"])
    assert report["with"] == identity(tmp_path / "quiet")
    taken = told(capsys, "expert", "import", base, tmp_path / "p", "--site", "north")
    assert "tested by its maker, no old domain worse; pictures: phantom_vqa ct (" in taken
    said = json.loads((base.parent / "sites" / "north" / "medmoe.json").read_text())
    kept = said["training"]["experts"]["ultrasound"]["imported"]["evaluation"]
    assert kept == report


def test_an_expert_that_makes_an_old_domain_worse_is_neither_shipped_nor_taken_in(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = pack_of(base, tmp_path, "ultrasound")
    assert "the pack says of no test" in told(capsys, "expert", "import", base, pack, "--site", "a")
    files = {path.name: path.read_bytes() for path in base.iterdir()}

    # An untrained model has nothing to lose: what it answers without the expert is made the truth.
    def answered_right(name: str, records: Any, a: Any, b: Any, seed: int) -> Any:
        truth = {said.id: said.text for said in a[0]}
        own = [replace(r, answer=truth[r.id], answer_type="open", options=()) for r in records]
        return compare_runs(name, own, a, b, seed)

    monkeypatch.setattr("medmoe.evaluation.expert_gate.compare_runs", answered_right)
    task = ["--test", "phantom_vqa", "--limit", "300", "--seed", "3"]
    for words in (
        ["import", base, pack],
        ["import", base, pack, "--site", "b"],
        ["export", tmp_path / "whole", "ultrasound", "--out", tmp_path / "q"],
    ):
        assert main(["expert", *map(str, words), *task]) == 1
        out = capsys.readouterr().out
        assert "an old domain is worse: nothing is written" in out
        assert "B is worse than A: phantom_vqa, " in out
    assert {path.name: path.read_bytes() for path in base.iterdir()} == files
    assert not (tmp_path / "q").exists()
    assert not (base.parent / "sites" / "b").exists()
