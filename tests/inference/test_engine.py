from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.model.tiny import (
    DOMAINS,
    FAMILIES,
    IMAGE_TOKENS,
    MOE_LAYERS,
    Family,
    dense_model,
    moe_model,
    processor,
)

import medmoe
from medmoe.errors import CheckpointError, ConfigError, ImageError
from medmoe.inference.engine import Answer, ChosenTokens, MedMoe
from medmoe.model.checkpoint import MANIFEST, save_model

QUESTIONS = ("Is there a mass?", "why?", "Which organ is seen in the picture?")
# Logits of three layers near 10 move by some 1e-5 with the batch; probabilities by as much again.
CLOSE = 1e-3


def engine(family: Family = "stablelm", batch_size: int = 64, **model: Any) -> MedMoe:
    return MedMoe(moe_model(family, **model), processor(), batch_size=batch_size, max_new_tokens=6)


def picture(seed: int, height: int = 40, width: int = 30) -> np.ndarray:
    shape = (height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def assert_same(one: Answer, other: Answer) -> None:
    assert one.text == other.text
    assert one.confidence == pytest.approx(other.confidence, rel=CLOSE)
    assert (one.routing is None) == (other.routing is None)
    if one.routing and other.routing:
        assert one.routing.domain == other.routing.domain
        assert one.routing.probabilities == pytest.approx(other.routing.probabilities, rel=CLOSE)
        assert one.routing.experts.keys() == other.routing.experts.keys()
        for layer, shares in one.routing.experts.items():
            assert shares == pytest.approx(other.routing.experts[layer])


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_three_equals_one_by_one(family: Family, top_k: int) -> None:
    asked = [(picture(i), question) for i, question in enumerate(QUESTIONS)]
    ours = engine(family, top_k=top_k)
    for found, (image, question) in zip(
        ours.answer_batch(asked, evidence=True), asked, strict=True
    ):
        assert_same(found, ours.answer(image, question, evidence=True))


def test_an_image_is_read_once_for_all_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = engine()
    alone = [engine().answer(picture(0), question, evidence=True) for question in QUESTIONS]
    read: list[int] = []
    embed = ours.model.model.embed
    image = ours.processor.image_token_id

    def counted(ids: torch.Tensor, features: torch.Tensor | None) -> torch.Tensor:
        read.append(0 if features is None else int((ids == image).sum()))
        return embed(ids, features)

    monkeypatch.setattr(ours.model.model, "embed", counted)
    table = ours.encode([picture(0)])
    found = ours.answer_features(table, [0] * len(QUESTIONS), QUESTIONS, experts=True)
    for one, expected in zip(found, alone, strict=True):
        assert_same(one, expected)
    assert sum(read) == ours.model.config.image_seq_length


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_answers_come_in_order_whatever_the_batches(batch_size: int) -> None:
    """Pictures, no pictures and lengths mixed: each is answered as if it were alone."""
    images = [picture(0), None, picture(1)]
    asked = [(image, q) for q, image in itertools.product(QUESTIONS, images)]
    alone = [engine().answer(image, question) for image, question in asked]
    assert len({answer.text for answer in alone}) > 4
    for found, expected in zip(
        engine(batch_size=batch_size).answer_batch(asked), alone, strict=True
    ):
        assert_same(found, expected)


def test_what_is_asked_twice_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = engine(batch_size=2)
    table = ours.encode([picture(0), picture(1)])
    rows = [0, 1, 0, None, 0, None]
    questions = [QUESTIONS[n] for n in (0, 0, 0, 1, 1, 1)]
    options = [("yes", "no")] * 4 + [("no", "yes")] * 2
    pictured = [0, 1, 0, 0, 0, 1]
    alone = [
        engine().answer_features(table, [r], [q])[0] for r, q in zip(rows, questions, strict=True)
    ]
    scores = [engine().scored_options(table, [r], [q], [o])[0][0]
              for r, q, o in zip(pictured, questions, options, strict=True)]  # fmt: skip
    prompts, packed = [], []
    generate, weigh = ours._generate, ours._token_log_likelihood
    monkeypatch.setattr(ours, "_generate", lambda p, *a: prompts.extend(p) or generate(p, *a))
    monkeypatch.setattr(
        ours, "_token_log_likelihood", lambda b, f: packed.append(len(f)) or weigh(b, f)
    )
    for found, expected in zip(ours.answer_features(table, rows, questions), alone, strict=True):
        assert_same(found, expected)
    assert len(prompts) == 4
    found = [given for given, _ in ours.scored_options(table, pictured, questions, options)]
    assert torch.tensor(found).allclose(torch.tensor(scores), atol=1e-4)
    assert sum(packed) == len(set(zip(pictured, questions, options, strict=True)))


def test_no_question_gives_no_answer() -> None:
    assert engine().answer_batch([]) == []


def test_an_answer_is_what_generate_gives_with_its_probability() -> None:
    ours = engine(top_k=2)
    image, question = Image.fromarray(picture(3)), QUESTIONS[0]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    ]
    text = processor().apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor()(images=image, text=text, return_tensors="pt")
    out = ours.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    start = inputs["input_ids"].shape[1]
    with torch.no_grad():
        logits = ours.model(input_ids=out, pixel_values=inputs["pixel_values"]).logits
    probabilities = logits[0, start - 1 : -1].softmax(-1).gather(-1, out[0, start:, None])
    found = ours.answer(image, question)
    assert found.text == processor().decode(out[0, start:], skip_special_tokens=True).strip()
    assert found.confidence == pytest.approx(float(probabilities.prod()), rel=CLOSE)


def test_confidence_ends_with_the_end_token() -> None:
    """What `generate` fills up an ended row with belongs to no answer."""
    tokenizer = processor().tokenizer
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sequences = torch.tensor([[5, end, pad, pad], [5, 6, 7, end], [5, 6, 7, 8], [end, end, 5, 6]])
    logits = torch.randn(4, 4, 20, generator=torch.Generator().manual_seed(0))
    logits.scatter_(-1, sequences[:, :, None], 5.0)  # greedy: the likeliest
    probabilities = logits.softmax(-1)
    chosen, before = ChosenTokens(), logits.clone()
    for step in logits.unbind(1):
        assert chosen(sequences, step) is step
    assert torch.equal(logits, before)
    spoken = [2, 4, 4, 1]
    confidences, cut = chosen.told(sequences, [end])
    assert cut == [False, False, True, False]
    for row, found in enumerate(confidences):
        expected = 1.0
        for step in range(spoken[row]):
            expected *= float(probabilities[row, step, sequences[row, step]])
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch_size", [2, 64])
@torch.no_grad()
def test_option_scores_equal_the_likelihood_of_each_option_alone(
    family: Family, batch_size: int
) -> None:
    ours = engine(family, batch_size=batch_size, top_k=2)
    options = [("yes", "no"), ("lung", "the left lung, upper lobe", "liver"), ("yes", "no")]
    rows = [0, 1, 1]
    table = ours.encode([picture(0), picture(1)])
    found = [scores for scores, _ in ours.scored_options(table, rows, QUESTIONS, options)]
    for row, question, choices, scores in zip(rows, QUESTIONS, options, found, strict=True):
        assert len(scores) == len(choices)
        for choice, score in zip(choices, scores, strict=True):
            prompt = ours.tokenizer.prompt(question)
            told = ours.tokenizer.segment(question, choice)
            answer = told.ids[-told.answer_length :]
            ids = torch.tensor([prompt + answer])
            logits = ours.model(input_ids=ids, vision_features=table[row : row + 1]).logits
            log_probs = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            expected = sum(float(log_probs[i, token]) for i, token in enumerate(answer))
            assert score == pytest.approx(expected, abs=2e-4)


def test_one_image_used_often_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = engine()
    seen: list[int] = []
    encode = ours.model.model.encode_images

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels))
        encoded: torch.Tensor = encode(pixels)
        return encoded

    monkeypatch.setattr(ours.model.model, "encode_images", counted)
    one, two = picture(0), picture(1)
    ours.answer_batch([(one, "why?"), (two, "why?"), (one, "how?"), (None, "why?"), (one, "?")])
    assert seen == [2]


def test_every_kind_of_image_gives_the_same_answer(tmp_path: Path) -> None:
    array = picture(5)
    path = tmp_path / "picture.png"
    Image.fromarray(array).save(path)
    kinds = [array, path, str(path), Image.fromarray(array)]
    answers = [engine().answer(image, "why?") for image in kinds]
    for answer in answers[1:]:
        assert_same(answer, answers[0])


def odd_pictures(folder: Path) -> dict[str, Path]:
    """Return files of the kinds that need more than a plain conversion to RGB."""
    colour = Image.fromarray(picture(6))
    deep = np.linspace(1000, 5000, 1200).astype(np.uint16).reshape(40, 30)
    see_through = colour.copy()
    see_through.putalpha(Image.fromarray(picture(7)[..., 0]))
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "16-bit": (Image.fromarray(deep), "png", {}),
        "alpha": (see_through, "png", {}),
        "EXIF": (colour, "png", {"exif": turned}),
        "CMYK": (colour.convert("CMYK"), "jpeg", {}),
    }
    for name, (image, kind, options) in kinds.items():
        image.save(folder / f"{name}.{kind}", **options)
    return {name: folder / f"{name}.{kind}" for name, (_, kind, _) in kinds.items()}


@pytest.mark.parametrize("kind", ["16-bit", "alpha", "EXIF", "CMYK"])
def test_a_pillow_image_is_seen_as_its_file_is(tmp_path: Path, kind: str) -> None:
    path = odd_pictures(tmp_path)[kind]
    ours = engine()
    with Image.open(path) as image:
        assert torch.equal(ours.encode([image]), ours.encode([path]))


def test_an_image_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="neither PNG nor JPEG"):
        engine().answer(tmp_path / "bad.png", "why?")
    with pytest.raises(ImageError, match=r"gone\.png"):
        engine().answer(tmp_path / "gone.png", "why?")


@pytest.mark.parametrize("question", ["<image>", "is <image><image> a mass?", "</s>", ""])
def test_special_tokens_in_a_question_are_text(question: str) -> None:
    found = engine().answer_batch([(picture(0), question), (None, question)])
    assert len(found) == 2
    assert found[0].routing is not None


def test_routing_is_that_of_the_images_tokens() -> None:
    ours = engine(top_k=2)
    image = picture(4)
    table = ours.encode([image])
    seen: dict[int, torch.Tensor] = {}
    hooks = []
    for layer, block in ours.model.moe_blocks.items():

        def keep(module: Any, args: Any, out: Any, layer: int = layer) -> None:
            seen[layer] = out[0]

        hooks.append(block.gate.register_forward_hook(keep))
    ids = torch.tensor([ours.tokenizer.prefix()])
    with torch.no_grad():
        ours.model(input_ids=ids, vision_features=table)
    for hook in hooks:
        hook.remove()
    tokens = ids[0] == processor().image_token_id
    assert int(tokens.sum()) == IMAGE_TOKENS
    mean = torch.stack([seen[i][0, tokens].softmax(-1).mean(0) for i in MOE_LAYERS]).mean(0)
    routing = ours.answer(image, "why?", evidence=True).routing
    assert routing is not None
    assert routing.probabilities == pytest.approx(dict(zip(DOMAINS, mean.tolist(), strict=True)))
    assert routing.domain == DOMAINS[int(mean.argmax())]
    assert routing.domain_probability == pytest.approx(float(mean.max()))
    assert sum(routing.probabilities.values()) == pytest.approx(1)
    for layer in MOE_LAYERS:
        chosen = seen[layer][0, tokens].topk(2).indices.flatten().bincount(minlength=4)
        shares = (chosen / chosen.sum()).tolist()
        assert routing.experts[layer] == pytest.approx(dict(zip(DOMAINS, shares, strict=True)))
    # Asking nothing routes the same picture alike.
    assert ours.route(table)[0] is not None
    assert_same(Answer("", 1, ours.route(table)[0]), Answer("", 1, routing))


def test_an_answer_is_cut_where_the_longest_ends_it_and_not_the_model() -> None:
    ours = engine()
    assert ours.answer(picture(0), "why?").cut
    end = processor().tokenizer.eos_token_id
    ours.model.generation_config.sequence_bias = [[[end], 1e4]]
    ended = ours.answer(picture(0), "why?")
    assert (ended.text, ended.cut) == ("", False)


def test_a_long_answer_ends_where_the_model_can_read_no_more() -> None:
    ours = engine()
    prompt = ours.prompt("why?")
    ours.limit = len(prompt) + 70
    ours.max_new_tokens = 70
    whole = ours.answer(picture(0), "why?")
    ours.max_new_tokens = 10_000
    assert ours.answer(picture(0), "why?") == whole
    ours.limit = len(prompt) + 63
    with pytest.raises(ConfigError, match=f"the model reads at most {ours.limit}"):
        ours.answer(picture(0), "why?")


def test_evidence_is_given_only_where_asked_for() -> None:
    plain = engine().answer(picture(0), "why?").routing
    assert plain is not None
    assert plain.experts == {}


def test_a_dense_model_and_a_question_in_words_have_no_routing() -> None:
    dense = MedMoe(dense_model("phi"), processor(), max_new_tokens=3)
    assert dense.answer(picture(0), "why?", evidence=True).routing is None
    assert dense.route(dense.encode([picture(0), picture(1)])) == [None, None]
    assert engine().answer(None, "why?", evidence=True).routing is None


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_answers_as_the_saved_one(family: Family, tmp_path: Path) -> None:
    save_model(moe_model(family, 2), processor(), tmp_path / "model", {})
    loaded = medmoe.MedMoe.load(tmp_path / "model")
    assert not loaded.model.training
    loaded.max_new_tokens = 6
    found = loaded.answer(picture(0), "why?", evidence=True)
    assert_same(found, engine(family, top_k=2).answer(picture(0), "why?", evidence=True))


def test_an_unfinished_model_directory_is_refused(tmp_path: Path) -> None:
    save_model(moe_model("phi"), processor(), tmp_path / "model", {})
    (tmp_path / "model" / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=MANIFEST):
        MedMoe.load(str(tmp_path / "model"))


def test_asking_leaves_no_hook_and_no_gradient_behind() -> None:
    ours = engine()
    ours.answer(picture(0), "why?", evidence=True)
    assert not ours.model._forward_pre_hooks
    assert not any(block.gate._forward_hooks for block in ours.model.moe_blocks.values())
    assert all(parameter.grad is None for parameter in ours.model.parameters())
