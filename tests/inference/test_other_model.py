"""Other people's classes answer as they do by hand, and their folders run nothing."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.inference.other_checkpoints import idefics3, llava
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import is_torchvision_available

from medmoe.errors import CheckpointError, ConfigError
from medmoe.inference.other_model import OtherModel

MAKERS = (llava, idefics3)
QUESTIONS = ("Is there a mass?", "What organ is this, in the left or the right lung?", "why?")


@pytest.fixture(scope="module", params=MAKERS, ids=lambda make: make.__name__)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param(tmp_path_factory.mktemp("other") / "model")
    return made


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def by_hand(folder: Path, image: Image.Image, question: str) -> tuple[str, float, bool]:
    """Answer as the documentation of transformers does; return probability and whether cut too."""
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(
        **inputs, max_new_tokens=6, do_sample=False, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    said = out.sequences[0, inputs["input_ids"].shape[1] :]
    log_probs = [
        step[0].log_softmax(-1)[token] for step, token in zip(out.logits, said, strict=True)
    ]
    text = processor.decode(said, skip_special_tokens=True).strip()
    ended = model.generation_config.eos_token_id in said.tolist()
    return text, float(torch.stack(log_probs).sum().exp()), not ended


def test_answers_in_batches_are_those_by_hand(folder: Path) -> None:
    model = OtherModel(folder, 2)
    model.max_new_tokens = 6
    pictures = [picture(seed) for seed in range(3)]
    given = model.answers(pictures, [[("user", question)] for question in QUESTIONS])
    for image, question, answer in zip(pictures, QUESTIONS, given, strict=True):
        text, probability, cut = by_hand(folder, image, question)
        assert (answer.text, answer.cut, answer.routing) == (text, cut, None)
        # batches pad differently: float32 rounding, on a product of six probabilities
        assert answer.confidence == pytest.approx(probability, rel=1e-3)
    assert len({answer.text for answer in given}) == 3


def test_pictures_and_earlier_turns_change_the_answer(folder: Path) -> None:
    model = OtherModel(folder, 4)
    model.max_new_tokens = 6
    talk = [("user", QUESTIONS[0]), ("assistant", "yes"), ("user", "why?")]
    talks = [talk[2:], talk[2:], talk]
    one, other, later = model.answers([picture(0), picture(1), picture(0)], talks)
    assert len({one.text, other.text, later.text}) == 3


def test_further_pictures_stand_where_they_are_said_to_in_their_order(folder: Path) -> None:
    model = OtherModel(folder, 1)
    talk = [("user", QUESTIONS[0]), ("assistant", "yes"), ("user", "why?")]
    shown = ((0, picture(1)), (2, picture(2)))
    inputs = model._inputs([picture(0)], [talk], [shown])
    alone = [model._inputs([picture(n)], [talk], [()])["pixel_values"] for n in range(3)]
    flat = [values.flatten(0, -4) for values in (inputs["pixel_values"], *alone)]
    assert torch.equal(flat[0], torch.cat(flat[1:]))
    words = "".join(model._tokenizer.decode(inputs["input_ids"][0]).lower().split())
    before, after = words.split("".join(QUESTIONS[0].lower().split()))
    assert before.count("<image>") == 2 * after.count("<image>") > 0
    turned = model._inputs([picture(0)], [talk], [((0, picture(2)), (2, picture(1)))])
    assert torch.equal(turned["input_ids"], inputs["input_ids"])
    assert not torch.equal(turned["pixel_values"], inputs["pixel_values"])
    assert len(model.answers([picture(0)], [talk], [shown])) == 1


def test_an_answer_that_ends_by_itself_is_not_cut(folder: Path) -> None:
    model = OtherModel(folder, 1)
    end = model._tokenizer.eos_token_id
    model._model.generation_config.sequence_bias = [[[end], 1e4]]
    (answer,) = model.answers([picture(0)], [[("user", "why?")]])
    assert (answer.text, answer.cut) == ("", False)


def test_what_is_longer_than_the_model_reads_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the model reads at most 256"):
        OtherModel(folder, 1).answers([picture(0)], [[("user", "why? " * 200)]])


def _settings(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _code(folder: Path) -> None:
    _settings(folder, "config.json", auto_map={"AutoModel": "stolen.Model"})


def _without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(dict(sorted(weights.items())[1:]), folder / "model.safetensors", {"format": "pt"})


def _pickle(folder: Path) -> None:
    class Harmful:
        def __reduce__(self) -> Any:
            return Path.touch, (folder.parent / "harmed",)

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Harmful()}, protocol=2))


def _video(folder: Path) -> None:
    """Take the processor of Qwen2-VL, which reads videos too."""
    (folder / "video_preprocessor_config.json").write_text(
        '{"video_processor_type": "Qwen2VLVideoProcessor"}'
    )
    pictures = {"image_processor_type": "Qwen2VLImageProcessor"}
    own = {"processor_class": "Qwen2VLProcessor", "image_processor": pictures}
    _settings(folder, "processor_config.json", **own)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_code, r"config.json: auto_map \(foreign code\) is refused"),
        (lambda f: (f / "chat_template.jinja").unlink(), "its processor has no chat template"),
        (_without_a_weight, "1 weights are missing, such as lm_head.weight"),
        (_pickle, r"no model to ask \(Weights only load failed\)"),
        pytest.param(
            _video,
            "its processor needs torchvision",
            marks=pytest.mark.skipif(is_torchvision_available(), reason="torchvision is there"),
        ),
    ],
)
def test_a_folder_that_cannot_be_asked_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = llava(tmp_path / "model")
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as refusal:
        OtherModel(folder, 1)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "harmed").exists()


def test_weights_in_a_pickle_of_tensors_are_read(tmp_path: Path) -> None:
    folder = llava(tmp_path / "model")
    other = Path(shutil.copytree(folder, tmp_path / "pickled"))
    torch.save(load_file(folder / "model.safetensors"), other / "pytorch_model.bin")
    (other / "model.safetensors").unlink()
    asked = [picture(0)], [[("user", "why?")]]
    first, second = OtherModel(folder, 1), OtherModel(other, 1)
    first.max_new_tokens = second.max_new_tokens = 6
    (one,), (other_one,) = first.answers(*asked), second.answers(*asked)
    assert one.text == other_one.text
    # weights lie otherwise in memory: float32 rounding, on a product of six probabilities
    assert one.confidence == pytest.approx(other_one.confidence, rel=1e-3)
