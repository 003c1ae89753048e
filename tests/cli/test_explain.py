"""`medmoe explain`: the card it writes, and every bad input in one line with exit code 2."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from tests.model.tiny import DOMAINS, dense_model, moe_model, processor

from medmoe.cli.main import main
from medmoe.model.checkpoint import save_model

QUESTION = "Is there a <b>mass</b>?"
NOTE = "Research use only, not a medical device"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    save_model(moe_model("stablelm"), processor(), folder / "moe", {})
    save_model(dense_model("stablelm"), processor(), folder / "dense", {})
    return {"moe": folder / "moe", "dense": folder / "dense"}


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "name of a person.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_page_and_json_hold_the_whole_card(
    models: dict[str, Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", tmp_path / "also.json"
    words = ["explain", str(models["moe"]), str(picture), QUESTION, "--out", str(out)]
    words += ["--option", "yes", "--option", "no", "--json", str(other)]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[0] in ("yes", "no")
    assert NOTE in printed
    found = json.loads((out / "evidence.json").read_text(encoding="utf-8"))
    assert json.loads(other.read_text(encoding="utf-8")) == found
    page = (out / "evidence.html").read_text(encoding="utf-8")
    assert "Is there a &lt;b&gt;mass&lt;/b&gt;?" in page
    assert NOTE in page
    for row in found["counterfactuals"]:
        assert row["change"] in page
    for domain in DOMAINS:
        assert f'<th scope="row">{domain}</th>' in page
    # Self-contained, and silent about where the picture came from.
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "name of a person" not in page + json.dumps(found)


def test_a_dicom_is_shown_in_the_window_of_choice_with_what_its_file_warns_of(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = get_testdata_file("CT_small.dcm")
    words = ["explain", str(models["moe"]), str(file), QUESTION, "--out", str(tmp_path / "out")]
    assert main([*words, "--window", "40,400", "--frame", "1"]) == 0
    found = json.loads((tmp_path / "out" / "evidence.json").read_text(encoding="utf-8"))
    assert found["image"]["window"]["width"] == 400
    page = (tmp_path / "out" / "evidence.html").read_text(encoding="utf-8")
    assert "DICOM, ct" in page
    assert "window 40,400" in page
    printed = capsys.readouterr().out
    assert found["image"]["warnings"]
    for warning in found["image"]["warnings"]:
        assert f"warning: {warning}" in printed
        assert warning[1:] in page  # a sentence there
    assert "CompressedSamples" not in page  # the patient's name in this file


def test_a_dense_models_card_leaves_the_routing_out_and_says_so(
    models: dict[str, Path], picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explain", str(models["dense"]), str(picture), QUESTION, "--out", str(tmp_path / "o")]
    assert main([*words, "--option", "yes", "--option", "no"]) == 0
    assert "router: none, a dense model" in capsys.readouterr().out
    assert json.loads((tmp_path / "o" / "evidence.json").read_text())["routing"] is None
    page = (tmp_path / "o" / "evidence.html").read_text(encoding="utf-8")
    assert "No router: a dense model" in page
    assert "Experts, % of the image" not in page


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"question": " "}, "the question is empty; give one in quotes"),
        ({"option": "yes"}, "must be at least two"),
        ({"image": "gone.png"}, "gone.png"),
        ({"model": "gone"}, "gone: no such model directory"),
        ({"out": "taken"}, "give another folder by --out"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    models: dict[str, Path],
    picture: Path,
    tmp_path: Path,
    change: dict[str, str],
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "taken").write_text("a file")
    words = [change.get("model") or str(models["moe"]), change.get("image") or str(picture)]
    words += [change.get("question", QUESTION), "--out", str(tmp_path / change.get("out", "new"))]
    words += ["--option", change["option"]] if "option" in change else []
    assert main(["explain", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert part in err
    assert not (tmp_path / "new").exists()
