"""`medmoe ask`: what it prints, and every bad input in one line with exit code 2."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.running import in_a_process, refused_by
from tests.data.samples import dicom, nifti, ramp
from tests.model.tiny import DOMAINS, MOE_LAYERS, dense_model, processor

from medmoe.cli.main import main
from medmoe.data.intake.facts import WARNINGS
from medmoe.domains import domain_of
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import MANIFEST, load_model, save_model
from medmoe.numbers import probability

QUESTION = "Is there a mass?"


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model"
    save_model(dense_model("stablelm"), processor(), folder, {})
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


refused = refused_by("ask")


def test_pictures_may_stand_within_the_question(
    model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second, out = tmp_path / "an other.png", tmp_path / "answer.json"
    shutil.copy(picture, second)
    apart = ["ask", str(model), str(picture), "Is there in a mass?", "--further", str(second)]
    assert main([*apart, "--max-new-tokens", "4"]) == 0
    expected = capsys.readouterr().out
    within = f"Is there in {picture} '{second}' a mass?"
    assert main(["ask", str(model), within, "--max-new-tokens", "4", "--json", str(out)]) == 0
    assert capsys.readouterr().out == expected
    assert json.loads(out.read_text())["question"] == "Is there in a mass?"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("{picture}", "no question is given; write it behind the picture, in quotes"),
        ("Is there a mass?", "names no picture that is there; give one before it"),
        ("Is there a mass in lost.png?", "names no picture that is there"),
        (300 * "Is there a mass? ", "names no picture that is there"),  # too long for a file's name
        ("{picture} {picture}", "the question is empty; give one in quotes"),
    ],
)
def test_a_question_without_a_picture_or_the_other_way_round_is_refused(
    model: Path, picture: Path, word: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reason in refused(capsys, model, word.format(picture=picture))


def test_answer_confidence_domain_and_research_use_are_printed(
    model: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(model), str(picture), QUESTION, "--max-new-tokens", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    answer = MedMoe.load(model, max_new_tokens=9).answer(picture, QUESTION)
    assert answer.routing is not None
    assert answer.cut
    assert lines[-4:] == [
        "cut at the longest answer, 9 tokens at most (--max-new-tokens)",
        f"confidence {probability(answer.confidence)} (not calibrated)",
        f"router: {answer.routing.domain} ({probability(answer.routing.domain_probability)})",
        "Research use only, not a medical device.",
    ]
    assert "\n".join(lines[:-4]) == answer.text


def test_a_dtype_that_is_given_is_that_of_the_weights(
    model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []
    answer = MedMoe.answer
    monkeypatch.setattr(
        MedMoe, "answer", lambda self, *a, **k: asked.append(self) or answer(self, *a, **k)
    )
    half = tmp_path / "half"
    save_model(load_model(model)[0], processor(), half, {}, torch.bfloat16)
    assert main(["ask", str(model), str(picture), QUESTION, "--dtype", "bfloat16"]) == 0
    assert main(["ask", str(half), str(picture), QUESTION]) == 0
    assert main(["ask", str(half), str(picture), QUESTION, "--dtype", "float32"]) == 0
    types = [engine.model.dtype for engine in asked]
    assert types == [torch.bfloat16, torch.bfloat16, torch.float32]
    given, saved = (dict(engine.model.named_parameters()) for engine in asked[:2])
    assert all(torch.equal(given[name], saved[name]) for name in given)
    assert {w.dtype for n, w in given.items() if ".mlp.gate." in n} == {torch.float32}


def test_json_holds_answer_question_and_the_experts_of_every_moe_layer(
    model: Path, picture: Path, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "answer.json"
    assert main(["ask", str(model), str(picture), QUESTION, "--json", str(path)]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    said = {"text", "confidence", "routing", "further", "cut"}
    assert set(found) == said | {"question", "image", "note"}
    assert found["further"] == []
    assert found["image"]["format"] == "png"
    assert found["image"]["warnings"] == []
    assert found["question"] == QUESTION
    assert found["note"] == "Research use only, not a medical device."
    assert 0 <= found["confidence"] <= 1
    routing = found["routing"]
    assert set(routing["probabilities"]) == set(DOMAINS)
    assert sum(routing["probabilities"].values()) == pytest.approx(1, abs=1e-6)
    assert set(routing["experts"]) == {str(layer) for layer in MOE_LAYERS}
    for shares in routing["experts"].values():
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)


def test_a_dense_model_answers_without_a_router(
    dense: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answer.json"
    assert main(["ask", str(dense), str(picture), QUESTION, "--json", str(path)]) == 0
    assert "router:" not in capsys.readouterr().out
    assert json.loads(path.read_text(encoding="utf-8"))["routing"] is None


def test_a_dicom_file_shows_frame_window_warnings_and_disagreement(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "scan.dcm", tmp_path / "answer.json"
    frames = np.stack([ramp(), ramp()[::-1]])
    path.write_bytes(dicom(frames, Modality="US", BodyPartExamined="ABDOMEN"))
    words = ["--frame", "2", "--window=2000,4000", "--json", str(out)]
    assert main(["ask", str(model), str(path), QUESTION, *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    described = "image: DICOM, ultrasound, abdomen, frame 2 of 2, window 2000,4000 (as given)"
    assert described in lines
    assert "warning: ultrasound pictures often show the patient's name" in lines
    known = ", ".join(DOMAINS)
    assert f"warning: the file says ultrasound; this model knows only {known}" in lines
    image = json.loads(out.read_text(encoding="utf-8"))["image"]
    assert (image["frame"], image["frames"], image["modality"]) == (2, 2, "ultrasound")
    assert len(image["warnings"]) == 2


@pytest.mark.parametrize("colour", ["white", "black"])
def test_a_flat_picture_has_a_warning_and_no_confidence(
    model: Path, tmp_path: Path, colour: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "flat.png", tmp_path / "answer.json"
    Image.new("L", (64, 64), colour).save(path)
    assert main(["ask", str(model), str(path), QUESTION, "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"warning: {WARNINGS['flat_picture']}" in said.splitlines()
    assert "confidence" not in said
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["confidence"] is None
    assert found["image"]["warnings"][0] == WARNINGS["flat_picture"]


def test_a_volume_is_shown_in_the_plane_that_is_asked_for(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "head.nii.gz"
    path.write_bytes(gzip.compress(nifti()))
    words = ["--plane", "coronal", "--frame", "24"]
    assert main(["ask", str(model), str(path), QUESTION, *words]) == 0
    assert "image: NIfTI, coronal, slice 24 of 24" in capsys.readouterr().out


def test_the_router_and_the_file_are_compared(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scan.dcm"
    said = []
    for code, name in (("CT", "ct"), ("MR", "mri"), ("DX", "xray")):
        path.write_bytes(dicom(Modality=code))
        assert main(["ask", str(model), str(path), QUESTION]) == 0
        lines = capsys.readouterr().out.splitlines()
        (routed,) = (line.split()[1] for line in lines if line.startswith("router:"))
        warned = f"warning: the file says {name}, the router took it for {routed}" in lines
        assert warned == (name != routed)
        said.append(warned)
    assert any(said)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--window", "1,2,3"], "is not C,W"),
        (["--window", "a,b"], "is not C,W"),
        (["--window", "lungs"], "unknown window preset; choose one of abdomen"),
        (["--frame", "0"], "not a whole number of at least 1"),
        (["--frame", "9"], "choose one of 1 to 1"),
        (["--plane", "axial"], "a DICOM file has no planes; leave the plane out"),
        (["--plane", "oblique"], "invalid choice: 'oblique'"),
    ],
)
def test_a_wrong_window_or_frame_is_one_line(
    tmp_path: Path, words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scan.dcm"
    path.write_bytes(dicom())
    assert part in refused(capsys, tmp_path, path, QUESTION, *words)


@pytest.mark.parametrize(
    ("modality", "domains", "expected"),
    [
        ("ct", ("ct", "mri"), "ct"),
        ("ultrasound", ("ct", "mri"), None),
        (None, ("ct", "mri"), None),
        ("mri", ("radiology", "pathology"), "radiology"),
        ("pathology", ("radiology", "pathology"), "pathology"),
        ("fundus", ("radiology", "pathology"), None),
    ],
)
def test_domain_that_the_router_should_find(
    modality: str | None, domains: tuple[str, ...], expected: str
) -> None:
    assert domain_of(modality, domains) == expected


def test_an_image_token_in_the_question_is_text(model: Path, picture: Path) -> None:
    assert main(["ask", str(model), str(picture), "<image> What is <image>?</s>"]) == 0


def test_asking_changes_nothing_in_the_model_folder(model: Path, picture: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in model.iterdir()}
    assert main(["ask", str(model), str(picture), QUESTION]) == 0
    assert {path.name: path.stat().st_mtime_ns for path in model.iterdir()} == before


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_an_empty_question_is_refused(
    model: Path, picture: Path, question: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "the question is empty; give one in quotes" in refused(capsys, model, picture, question)


def test_a_missing_image_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, model, tmp_path / "gone.png", QUESTION)
    assert str(tmp_path / "gone.png") in line
    assert "No such file" in line


def test_a_folder_is_no_image(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "give an existing file" in refused(capsys, model, tmp_path, QUESTION)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty file"),
        (b"not a picture at all", "TIFF, WebP, BMP, DICOM or NIfTI by its content; convert it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "broken PNG file"),
        (b"\xff\xd8\xff\xe0" + bytes(50), "broken JPEG file"),
    ],
)
def test_an_unreadable_image_is_refused_with_the_reason_and_without_its_name(
    model: Path, tmp_path: Path, content: bytes, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    line = refused(capsys, model, path, QUESTION)
    assert part in line
    assert "odd.png" not in line  # a hospital's files are named after patients


def test_a_truncated_image_is_refused_and_never_half_read(
    model: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture.write_bytes(picture.read_bytes()[:-200])
    assert "broken PNG file" in refused(capsys, model, picture, QUESTION)


def test_a_missing_model_folder_is_named(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, tmp_path / "gone", picture, QUESTION)
    assert f"{tmp_path / 'gone'}: no such model directory" in line


def test_a_model_folder_without_a_manifest_is_refused(
    model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / MANIFEST).unlink()
    line = refused(capsys, copy, picture, QUESTION)
    assert f"{copy}: no MANIFEST.json" in line
    assert "`medmoe adopt " in line


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_altered_model_file_is_named(
    model: Path, picture: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    data = bytearray((copy / name).read_bytes())
    data[-2] ^= 1
    (copy / name).write_bytes(bytes(data))
    line = refused(capsys, copy, picture, QUESTION)
    assert f"{copy / name}: its SHA-256 differs" in line


def test_a_missing_word_names_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "see `medmoe ask --help`" in refused(capsys, "model", "image.png")


def test_a_json_file_that_cannot_be_written_is_refused(
    model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ask", str(model), str(picture), QUESTION, "--json", str(tmp_path)]) == 2
    assert "give another file by --json FILE" in capsys.readouterr().err


def test_a_user_sees_one_line_and_exit_code_2(tmp_path: Path, picture: Path) -> None:
    """Through a process of its own: no library may add warnings or a traceback on the way out."""
    done = in_a_process("ask", tmp_path, picture, QUESTION)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"medmoe: error: {tmp_path}: no MANIFEST.json")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (f"{QUESTION} " * 200, "the model reads at most 256; begin anew, ask in fewer words"),
        ("Gr\udcf6\udcdfe?", "is no text in UTF-8"),
    ],
)
def test_what_the_model_cannot_read_is_refused_not_answered(
    model: Path,
    picture: Path,
    question: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(capsys, model, picture, question)


def test_several_pictures_are_asked_about_in_order_each_with_its_routing(
    model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other.png", tmp_path / "answer.json"
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(other)
    words = ["--max-new-tokens", "9", "--json", str(out)]
    assert main(["ask", str(model), str(picture), QUESTION, "--further", str(other), *words]) == 0
    said = capsys.readouterr().out
    engine = MedMoe.load(model, max_new_tokens=9)
    answer = engine.answer([picture, other], QUESTION)
    assert answer.routing is not None
    told = json.loads(out.read_text())
    assert told["text"] == answer.text
    assert len(told["further"]) == len(told["further_images"]) == 1
    for number, routing in enumerate((answer.routing, *answer.further), 1):
        assert routing is not None
        assert f"router, image {number}: {routing.domain} (" in said
    assert "warning: 2 images: a model that was trained on conversations about one" in said
    turned = engine.answer([other, picture], QUESTION)
    assert (turned.text, turned.confidence) != (answer.text, answer.confidence)
    alone = engine.answer([picture], QUESTION)
    assert alone == engine.answer(picture, QUESTION)


def test_a_view_of_several_pictures_is_refused(
    model: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (capsys, model, picture, QUESTION, "--further", picture, "--frame", "2")
    assert "need one picture; leave --further out" in refused(*words)
