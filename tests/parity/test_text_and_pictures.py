"""What goes into the model against the reference: pictures, prompts, token ids, labels.

One policy for training and evaluation, unlike the reference: pictures are padded to a square.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.convert.reference_checkpoint import write_reference

from medmoe.data.collate import Packed, pack_batch
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.model.build import IMAGE_TOKEN
from medmoe.model.convert.reference import load_reference
from medmoe.model.convert.tokens import read_tokenizer
from medmoe.model.processing_medmoe import MedMoeProcessor, square_image_processor

FAMILIES = ("phi", "stablelm")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def processor(
    family: Any, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> MedMoeProcessor:
    """The processor of a converted checkpoint: the reference's tiny tokenizer, our template."""
    folder = write_reference(tmp_path_factory.mktemp("reference"), family)
    for path in (shared / "reference" / "text" / "tokenizer").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    made = load_reference(folder).processor
    assert made is not None
    return made


@pytest.fixture(scope="module")
def labels(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "reference" / "text" / "labels.json").read_text())
    return found


@pytest.fixture
def conversations(processor: MedMoeProcessor) -> ConversationTokenizer:
    # One placeholder for one -200: the reference's ids stand before images are put in.
    return ConversationTokenizer(processor, image_tokens=1)


def pair(labels: dict[str, Any], case: str) -> tuple[str, str]:
    """Return question and answer of a conversation's last round."""
    human, gpt = labels["conversations"][case][-2:]
    return human["value"].removeprefix("<image>\n"), gpt["value"]


def ours(ids: Any, processor: MedMoeProcessor) -> list[int]:
    """Return our ids with the reference's -200 for the image."""
    return [-200 if token == processor.image_token_id else int(token) for token in ids]


@pytest.mark.parametrize("case", ["image_one_round", "gpt_first_is_dropped"])
def test_ids_and_labels_of_a_question_with_an_image(
    case: str, family: str, processor: Any, labels: Any, conversations: ConversationTokenizer
) -> None:
    wanted = labels["results"][f"{family}/{case}"]
    segment = conversations.segment(*pair(labels, case))
    ids = [*conversations.prefix(), *segment.ids]
    assert ours(ids, processor) == wanted["input_ids"]
    unlabelled = len(ids) - segment.answer_length
    assert [-100] * unlabelled + ids[unlabelled:] == wanted["labels"]
    assert processor.tokenizer.decode(ids[unlabelled:]) == wanted["scored_text"]


def test_an_answer_that_holds_the_separator_is_still_trained_on(
    family: str, processor: Any, labels: Any, conversations: ConversationTokenizer
) -> None:
    """The reference loses the whole answer here: all of its labels are -100."""
    wanted = labels["results"][f"{family}/answer_contains_separator"]
    segment = conversations.segment(*pair(labels, "answer_contains_separator"))
    ids = [*conversations.prefix(), *segment.ids]
    assert ours(ids, processor) == wanted["input_ids"]
    assert set(wanted["labels"]) == {-100}
    scored = processor.tokenizer.decode(ids[-segment.answer_length :])
    assert scored == " see ASSISTANT: no<|endoftext|>"


def test_ids_of_a_question_in_words_only(
    family: str, labels: Any, conversations: ConversationTokenizer
) -> None:
    wanted = labels["results"][f"{family}/text_only"]["input_ids"]
    assert list(conversations.text_only([pair(labels, "text_only")])) == wanted


def test_ids_of_two_rounds(family: str, processor: Any, labels: Any) -> None:
    messages = []
    for turn in labels["conversations"]["image_two_rounds"]:
        text = turn["value"].removeprefix("<image>\n")
        content = [{"type": "image"}] if text != turn["value"] else []
        content.append({"type": "text", "text": text})
        role = "user" if turn["from"] == "human" else "assistant"
        messages.append({"role": role, "content": content})
    text = processor.apply_chat_template(messages, tokenize=False)
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert ours(ids, processor) == labels["results"][f"{family}/image_two_rounds"]["input_ids"]


def test_a_batch_is_padded_and_labelled_as_the_references(
    family: str, processor: Any, labels: Any, conversations: ConversationTokenizer
) -> None:
    cases = ("image_one_round", "gpt_first_is_dropped")
    prefix = conversations.prefix()
    samples = [Packed(0, prefix, (conversations.segment(*pair(labels, case)),)) for case in cases]
    batch = pack_batch(samples, labels["pad_token_id"])
    for row, case in enumerate(cases):
        wanted = labels["results"][f"{family}/{case}"]
        spare = batch["input_ids"].shape[1] - len(wanted["input_ids"])
        ids = wanted["input_ids"] + [labels["pad_token_id"]] * spare
        assert ours(batch["input_ids"][row], processor) == ids
        assert batch["labels"][row].tolist() == wanted["labels"] + [-100] * spare
        # Causal over real tokens, as the reference's mask is; padding is seen by none but itself.
        real = len(wanted["input_ids"])
        seen = batch["attention_mask"][row, 0, :real, :real]
        assert torch.equal(seen, torch.ones(real, real, dtype=torch.bool).tril())
        assert not batch["attention_mask"][row, 0, :real, real:].any()


def test_the_image_splits_a_text_where_the_reference_does(processor: Any, labels: Any) -> None:
    for text, wanted in labels["results"]["tokenizer_image_token"].items():
        ids = processor.tokenizer(text, add_special_tokens=False).input_ids
        assert ours(ids, processor) == wanted, text


@pytest.mark.parametrize("kind", ["CodeGenTokenizer", "GPT2Tokenizer"])
def test_a_tokenizer_saved_the_older_way_is_read(kind: str, shared: Path, tmp_path: Path) -> None:
    """The reference trains with ``use_fast=False``: vocabulary and merges, no ``tokenizer.json``.

    What the config says of foreign code is not heeded.
    """
    whole = shared / "reference" / "text" / "tokenizer"
    model = json.loads((whole / "tokenizer.json").read_text())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    settings = json.loads((whole / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = kind
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": "moe_llava_phi", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    older, newer = read_tokenizer(tmp_path, 512), read_tokenizer(whole, 512)
    assert older is not None
    assert newer is not None
    for text in ("USER: Is there a mass?\nASSISTANT: no<|endoftext|>", "  two  spaces", "µm"):
        assert older(text).input_ids == newer(text).input_ids


def test_special_tokens_are_the_tokenizers(processor: Any, labels: Any) -> None:
    assert processor.tokenizer.eos_token_id == labels["eos_token_id"]
    assert processor.tokenizer.pad_token_id == labels["pad_token_id"]
    # A spare row of the vocabulary, not a new one.
    assert processor.image_token_id == len(processor.tokenizer) - 1 < 512


def test_prompts_are_the_reference_prompts(family: str, processor: Any, shared: Path) -> None:
    prompts = json.loads((shared / "reference" / "prompts.json").read_text())
    question: list[dict[str, Any]] = [{"type": "image"}]
    question.append({"type": "text", "text": "Is there evidence of an aortic aneurysm?"})
    asked = [{"role": "user", "content": question}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    assert text == prompts[f"{family}/inference"]
    question = [{"type": "image"}, {"type": "text", "text": "What organ is this?"}]
    answered = [{"role": "user", "content": question}, {"role": "assistant", "content": "Liver."}]
    text = processor.apply_chat_template(answered, tokenize=False)
    assert text == prompts[f"{family}/training"]
    assert text.count(IMAGE_TOKEN) == 1


def test_pictures_are_those_of_the_references_training_not_of_its_evaluation(shared: Path) -> None:
    arrays = np.load(shared / "reference" / "preprocess.npz")
    image = Image.fromarray(arrays["image_uint8"])
    processed = square_image_processor(336, MEAN, STD)(image)
    pixels = np.asarray(processed["pixel_values"][0])
    # Same steps, same libraries: 8-bit pixels, normalised in float32 in another order.
    np.testing.assert_allclose(pixels, arrays["train_pad_then_clip"], atol=1e-5)
    # Its evaluation cuts 40 % of this picture's width away; we show all of it in both.
    assert np.abs(pixels - arrays["eval_clip_only"]).max() > 1
    border = (np.floor(np.array(MEAN) * 255) / 255 - MEAN) / STD
    np.testing.assert_allclose(pixels[:, :60].mean((1, 2)), border, atol=1e-4)
