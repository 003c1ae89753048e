"""Our models as lmms-eval calls them: what is taken, in which batches, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.evaluation.lmms_eval.miniature import save_tiny_model

from medmoe.errors import CheckpointError, ConfigError
from medmoe.inference.engine import MedMoe

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own: make test-lmms")

from lmms_eval.models import get_model

from medmoe.evaluation.lmms_eval.model import MedMoeModel

GREEDY = {"max_new_tokens": 6, "do_sample": False, "until": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("lmms") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> MedMoeModel:
    return MedMoeModel.create_from_arg_string(f"pretrained={folder}", {"batch_size": 4})


def picture(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(values)


def turn(text: str, *pictures: Any, role: str = "user", kind: str = "image") -> dict[str, Any]:
    content = [{"type": kind, "url": each} for each in pictures]
    return {"role": role, "content": [*content, {"type": "text", "text": text}]}


def request(model: Any, messages: Any, task: str = "t", **settings: Any) -> Any:
    """Make a request as lmms-eval makes it: the messages of document 0 of a split."""
    model.task_dict[task] = {"test": ["document"]}
    args = ("", lambda _: messages, GREEDY | settings, 0, task, "test")
    return SimpleNamespace(args=args, task_name=task)


def said(model: Any, *messages: Any, **settings: Any) -> list[str]:
    found: list[str] = model.generate_until([request(model, m, **settings) for m in messages])
    return found


def test_the_entry_point_makes_it_a_model_of_lmms_eval() -> None:
    assert get_model("medmoe") is MedMoeModel


def test_answers_come_in_the_order_of_the_requests_each_with_its_picture(
    model: MedMoeModel, folder: Path
) -> None:
    asked = [(picture(i % 3), q) for q in ("What organ is this?", "yes no") for i in range(3)]
    ours = MedMoe.load(folder, max_new_tokens=6)
    expected = [ours.answer(image, question).text for image, question in asked]
    assert said(model, *([turn(q, image)] for image, q in asked)) == expected
    assert len(set(expected)) > 3


def test_an_image_is_encoded_once_for_all_its_questions(
    model: MedMoeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    encode = MedMoe.encode

    def counted(engine: MedMoe, images: Sequence[Any]) -> Any:
        counts.append(len(images))
        return encode(engine, images)

    monkeypatch.setattr(MedMoe, "encode", counted)
    said(model, *([turn(f"yes {i}", picture(i % 2))] for i in range(6)))
    assert counts == [2]


def test_words_alone_are_answered_and_may_be_a_plain_text(model: MedMoeModel, folder: Path) -> None:
    expected = MedMoe.load(folder, max_new_tokens=6).answer(None, "What organ is this?").text
    plain = [{"role": "user", "content": "What organ is this?"}]
    assert said(model, plain, [turn("What organ is this?")]) == [expected, expected]


def test_a_palette_picture_is_converted_as_a_file_is(model: MedMoeModel, folder: Path) -> None:
    image = picture(1).convert("P")
    expected = MedMoe.load(folder, max_new_tokens=6).answer(image, "yes no").text
    assert said(model, [turn("yes no", image)]) == [expected]


def test_tasks_have_their_own_length_and_stop(model: MedMoeModel) -> None:
    messages = [turn("What organ is this?", picture(1))]
    (whole,) = said(model, messages, max_new_tokens=12)
    (short,) = said(model, messages, max_new_tokens=2)
    assert whole.startswith(short)
    assert len(short) < len(whole)
    stop = whole[3:5]
    assert said(model, messages, max_new_tokens=12, until=[stop, ""]) == [whole.split(stop)[0]]
    assert said(model, messages, max_new_tokens=12, until=stop) == [whole.split(stop)[0]]


@pytest.mark.parametrize(
    "settings", [{"do_sample": True}, {"num_beams": 3}, {"do_sample": None, "temperature": 0.7}]
)
def test_sampling_and_beams_are_refused(model: MedMoeModel, settings: dict[str, Any]) -> None:
    made = request(model, [turn("yes", picture(1))])
    kept = {key: value for key, value in (GREEDY | settings).items() if value is not None}
    made.args = (*made.args[:2], kept, *made.args[3:])
    with pytest.raises(ConfigError, match=r"^task 't' asks for sampling or beams .*--gen_kwargs"):
        model.generate_until([made])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([turn("a", picture(1), picture(2))], "asks about 2 pictures; medmoe takes one"),
        ([turn("a", "film.mp4", kind="video")], "asks about video; medmoe takes one picture"),
        ([turn("a", "secret.png")], "gives its picture as str; .* opens no path or address"),
        ([turn("b", role="system"), turn("a", picture(1))], "by turns of system, user; .*fewshot"),
        ([], "by turns of nobody"),
    ],
)
def test_what_the_engine_does_not_take_is_refused_by_the_tasks_name(
    model: MedMoeModel, messages: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^task 't' .*{message}"):
        said(model, messages)


@pytest.mark.parametrize(
    ("method", "what"),
    [("loglikelihood", "likelihoods"), ("generate_until_multi_round", "several rounds")],
)
def test_other_kinds_of_tasks_are_refused(model: MedMoeModel, method: str, what: str) -> None:
    with pytest.raises(ConfigError, match=f"^task 't' asks for {what}; .*generate_until"):
        getattr(model, method)([request(model, [turn("a")])])


@pytest.mark.parametrize("size", [0, "auto", -1])
def test_a_batch_size_that_is_none_is_refused(folder: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match=r"^batch_size .* must be a whole number of at least 1"):
        MedMoeModel(str(folder), batch_size=size)


def test_no_folder_and_a_wrong_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--model_args pretrained="):
        MedMoeModel()
    with pytest.raises(CheckpointError, match="no such model directory"):
        MedMoeModel(str(tmp_path / "nowhere"))


def test_the_device_is_the_one_that_was_asked_for(folder: Path) -> None:
    assert MedMoeModel(str(folder), device="cpu").device.type == "cpu"
