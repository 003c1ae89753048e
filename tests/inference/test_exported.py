"""Exported graphs answer as the model does: same words, probabilities, experts and warnings."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model import test_gemma
from tests.model.tiny import dense_model, moe_model, processor
from transformers import AutoTokenizer, GemmaTokenizer

from medmoe.cli.main import main
from medmoe.errors import CheckpointError, ConfigError
from medmoe.experiments.measure import measure
from medmoe.inference.answer import Answer
from medmoe.inference.chat import ChatBatch, ChatRequest, ChatRow, Turn, prepare, stream_chat
from medmoe.inference.engine import MedMoe
from medmoe.inference.evidence import explain
from medmoe.inference.exported import ExportedMedMoe
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.domain_check import fit_domain_check
from medmoe.model.export import export_openvino, name_plain_tokenizer

pytest.importorskip("openvino", reason="the extra `export` is not installed")
pytest.importorskip("nncf", reason="the extra `export` is not installed")
pytestmark = pytest.mark.openvino

QUESTIONS = ("Is there a mass?", "Where?", "Which organ is it, and in which plane was it taken?")


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Med-MoE of gated experts with an out-of-domain check."""
    model = moe_model("stablelm")
    taught = torch.randn(600, 64, generator=torch.Generator().manual_seed(0))
    check = fit_domain_check(taught, torch.arange(600) % 4, taught[:200], torch.ones(8, 64))
    model.take_check(check)
    folder = tmp_path_factory.mktemp("exported") / "model"
    save_model(model, processor(), folder, {"notes": ["tiny"]})
    return folder


@pytest.fixture(scope="module")
def exported(model_folder: Path) -> Path:
    out = model_folder.with_name("float32")
    export_openvino(model_folder, out, "float32")
    return out


def pair(model: Path, exported: Path) -> tuple[MedMoe, MedMoe]:
    """Return the model itself and its exported twin."""
    twin = MedMoe.load(exported, max_new_tokens=8)
    assert isinstance(twin, ExportedMedMoe)
    return MedMoe.load(model, max_new_tokens=8), twin


def assert_same(found: Answer, expected: Answer) -> None:
    assert (found.text, found.cut) == (expected.text, expected.cut)
    assert found.confidence == pytest.approx(expected.confidence, rel=1e-3)
    assert (found.routing is None) == (expected.routing is None)
    if found.routing is not None and expected.routing is not None:
        assert found.routing.probabilities == pytest.approx(
            expected.routing.probabilities, abs=1e-5
        )
        assert found.routing.experts == expected.routing.experts
        assert found.routing.out_of_domain.warning == expected.routing.out_of_domain.warning


def assert_answers_alike(model: MedMoe, twin: MedMoe) -> None:
    asked = [(image, text) for image in (picture(0), picture(1), None) for text in QUESTIONS]
    for one, other in zip(
        twin.answer_batch(asked, evidence=True),
        model.answer_batch(asked, evidence=True),
        strict=True,
    ):
        assert_same(one, other)


def test_answers_are_the_models_own(model_folder: Path, exported: Path) -> None:
    model, twin = pair(model_folder, exported)
    assert_answers_alike(model, twin)
    features = model.encode([picture(0), picture(1)])
    torch.testing.assert_close(twin.encode([picture(0), picture(1)]), features, atol=1e-4, rtol=0)
    for one, other in zip(twin.route(features), model.route(features), strict=True):
        assert one is not None
        assert other is not None
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert one.out_of_domain.distance == pytest.approx(other.out_of_domain.distance, rel=1e-3)
    options = [("yes", "no mass at all"), ("left", "right", "liver and lung")]
    for one, other in zip(
        twin.scored_options(features, [0, 1], QUESTIONS[:2], options),
        model.scored_options(features, [0, 1], QUESTIONS[:2], options),
        strict=True,
    ):
        assert one[0] == pytest.approx(other[0], rel=1e-4)


@pytest.mark.parametrize("kind", ["plain experts", "dense", "pooled", "past a sliding window"])
def test_other_models_answer_alike_too(kind: str, tmp_path: Path) -> None:
    """Phi's experts have biases and no gate; Gemma's prompts are longer than its window here."""
    models = {
        "plain experts": lambda: moe_model("phi"),
        "dense": lambda: dense_model("stablelm"),
        "pooled": lambda: moe_model("stablelm", pool=2),
    }
    model = models.get(kind, test_gemma.moe)()
    own = processor(1 + (kind == "pooled")) if kind in models else test_gemma.PROCESSOR
    save_model(model, own, tmp_path / "model", {})
    export_openvino(tmp_path / "model", tmp_path / "out", "float32")
    assert_answers_alike(*pair(tmp_path / "model", tmp_path / "out"))


def test_a_tokenizer_of_a_class_of_its_own_is_read_without_a_second_copy(tmp_path: Path) -> None:
    """Gemma's keeps its words and merges in Python too, which takes as much as the rest of it."""
    words = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<image>",
        "\u2581",
        *"Ideghstanr?",
        "an",
        "\u2581an",
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    own = GemmaTokenizer(vocab=vocabulary, merges=[("a", "n"), ("\u2581", "an")])
    own.add_special_tokens({"additional_special_tokens": ["<image>"]})
    own.save_pretrained(tmp_path)
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), GemmaTokenizer)
    name_plain_tokenizer(tmp_path / "tokenizer_config.json", own.padding_side)
    found = AutoTokenizer.from_pretrained(tmp_path)
    assert not hasattr(found, "_merges")
    assert found.padding_side == own.padding_side
    for text in ("Is there an  ant?", "<image>an \u00e9", " <bos>and"):
        ids = own(text)["input_ids"]
        assert found(text)["input_ids"] == ids
        assert found.decode(ids) == own.decode(ids)


def about(*texts: str, image: Image.Image) -> ChatRequest:
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts))  # type: ignore[arg-type]
    return ChatRequest(turns, image, 8)


def test_conversations_join_leave_and_go_on(model_folder: Path, exported: Path) -> None:
    """The cache is a request's state: it is joined, shortened, kept and taken over as well."""
    model, twin = pair(model_folder, exported)
    requests = [about(text, image=picture(i % 2)) for i, text in enumerate(QUESTIONS)]
    expected = [list(stream_chat(model, request))[-1].answer for request in requests]
    rows = [
        prepare(request, twin.encode(request.images), twin.tokenizer, twin.limit)
        for request in requests
    ]
    batch, said = ChatBatch(twin), dict[ChatRow, Answer]()
    for row in rows:
        batch.join([row])  # while those before are being answered
        said |= {r: chunk.answer for r, chunk in batch.step() if chunk.answer is not None}
    while batch.rows:
        said |= {r: chunk.answer for r, chunk in batch.step() if chunk.answer is not None}
    for row, answer in zip(rows, expected, strict=True):
        assert answer is not None
        assert_same(said[row], answer)
    later = about(QUESTIONS[0], said[rows[0]].text, "why?", image=picture(0))
    one, other = (list(stream_chat(e, later))[-1].answer for e in (twin, model))
    assert one is not None
    assert other is not None
    assert_same(one, other)


def test_what_looks_into_the_model_is_refused_by_name(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = MedMoe.load(exported)
    with pytest.raises(ConfigError, match="exported graphs do not allow"):
        explain(twin, picture(0), QUESTIONS[0])
    with pytest.raises(CheckpointError, match="holds exported graphs, which ask, chat"):
        load_model(exported)
    with pytest.raises(ConfigError, match="leave --dtype out"):
        MedMoe.load(exported, dtype="bfloat16")
    assert main(["serve", str(exported), "--engine", "vllm"]) == 2
    assert "holds exported graphs" in capsys.readouterr().err


def test_a_graph_that_was_changed_is_refused(exported: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in exported.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    whole = (copy / "language.bin").read_bytes()
    (copy / "language.bin").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"language\.bin"):
        MedMoe.load(copy)
    (copy / "language.bin").write_bytes(whole)
    (copy / "more.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"more\.bin: pickle files are refused"):
        MedMoe.load(copy)


def test_nothing_is_told_to_anybody(model_folder: Path, tmp_path: Path) -> None:
    """OpenVINO and nncf tell their makers of each use; pytest would hide it, so a process shows."""
    try:
        version("openvino-telemetry")
    except PackageNotFoundError:
        pytest.skip("openvino-telemetry is not installed: there is nothing that could tell")
    script = f"""
import socket, sys
def refused(*args, **kwargs): print("CALLED", args, flush=True); raise OSError("no network")
socket.socket.connect = socket.getaddrinfo = refused
from pathlib import Path
from medmoe.inference.engine import MedMoe
from medmoe.model.export import export_openvino
export_openvino(Path({str(model_folder)!r}), Path({str(tmp_path / "out")!r}), "int8")
MedMoe.load({str(tmp_path / "out")!r}).answer(None, "why?")
import openvino.tools.ovc.telemetry_utils as told
assert told.tm.__name__.endswith("telemetry_stub"), told.tm
print("DONE", sys.modules["openvino_telemetry"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "CALLED" not in done.stdout
    assert done.stdout.endswith("DONE None\n"), done.stderr[-2000:]


def test_the_command_writes_rounded_weights_that_are_asked(
    model_folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, told = tmp_path / "int8", tmp_path / "told.json"
    image = tmp_path / "picture.png"
    picture(0).save(image)
    assert main(["export", str(model_folder), "--out", str(out), "--json", str(told)]) == 0
    assert "int8 weights" in capsys.readouterr().out
    assert json.loads(told.read_text())["weights"] == "int8"
    sizes = [(folder / "language.bin").stat().st_size for folder in (out, exported)]
    assert sizes[0] < 0.35 * sizes[1]  # a scale for each row of the small matrices
    assert main(["ask", str(out), str(image), QUESTIONS[0]]) == 0
    assert "router:" in capsys.readouterr().out
    assert main(["explain", str(out), str(image), QUESTIONS[0]]) == 2
    assert main(["export", str(model_folder), "--out", str(tmp_path)]) == 2  # holds other files
    assert main(["export", str(model_folder)]) == 2
    capsys.readouterr()


def test_memory_and_times_of_an_exported_model_are_measured_as_a_models_are(
    exported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measure(exported, repeats=1)
    assert found.mapped_bytes is not None
    assert 0 < found.mapped_bytes < found.answering_bytes
    assert found.first_token_seconds > 0
    assert main(["cost", str(exported), "--measure", "1"]) == 0
    assert "of it mapped from files" in " ".join(capsys.readouterr().out.split())
