"""Phase 0: what an encoder learns from, where it starts, and that both halves learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import VISION, processor
from tests.training.toy import SPEC, phantom_records, record, silent
from torch import Tensor
from transformers import AutoConfig, AutoModel

from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.backbones.templates import chat_template
from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import ValidationSpec
from medmoe.data.pixels import PixelTable, pixel_table
from medmoe.data.schema import AnswerType, ImageRecord, Record, images_of
from medmoe.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from medmoe.training.context import PhaseRun
from medmoe.training.phases.phase0_encoder import (
    MIN_PICTURES,
    AttributeHead,
    EncoderPretraining,
    EncoderSample,
    SideSchedule,
    _collate,
    _texts,
    accuracies,
    attribute_classes,
    labelled_by_answers,
    train_encoder,
)
from medmoe.training.phases.phase0_language import new_language_model, train_language_model
from medmoe.training.trainer import PhaseResult

TINY_VISION: VisionBackbone = replace(
    VISION,
    config={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
)
TINY_LANGUAGE = LanguageBackbone(
    name="tiny",
    hub_id=None,
    revision=None,
    model_type="stablelm",
    config={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    },
    chat_template=chat_template("</s>"),
)


def image(number: int, **facts: Any) -> ImageRecord:
    return ImageRecord(f"i{number}", Path("none.png"), **facts)


def test_rare_values_and_attributes_of_one_value_are_no_classes() -> None:
    images = [
        image(n, modality="ct" if n % 2 else "mri", organ="liver", labels={"plane": "axial"})
        for n in range(2 * MIN_PICTURES)
    ]
    images += [
        image(100 + n, modality="xray", labels={"plane": "frontal"})
        for n in range(MIN_PICTURES - 1)
    ]
    # X-ray and frontal are one short; organ and plane are left with one value: nothing to learn
    assert attribute_classes(images) == {"modality": ["ct", "mri"]}
    images.append(image(200, modality="xray", labels={"plane": "frontal"}))
    assert attribute_classes(images) == {
        "modality": ["ct", "mri", "xray"],
        "plane": ["axial", "frontal"],
    }


def test_unlabelled_images_give_no_classes() -> None:
    assert attribute_classes([image(n) for n in range(50)]) == {}


def test_answers_are_labels_where_a_picture_has_one() -> None:
    def asked(question: str, answer: str, kind: AnswerType, number: int = 1) -> Record:
        picture = image(number, modality="ct", labels={"plane": "axial"})
        named = f"{question} {answer}"
        return Record(
            named, picture, question, answer, kind, "type", "vqa", "set", "train", licence=""
        )

    records = [
        asked("Is this a CT?", "Yes", "closed"),
        asked("What type?", "CT with contrast", "open"),
        asked("Where?", "left", "open", 2),
        asked("What?", "a mass", "open", 2),
        replace(asked("", "A CT.", "open", 3), task="caption"),
    ]
    labels = [record.image.labels for record in labelled_by_answers(records)]
    first = {"plane": "axial", "set: is this a ct?": "yes", "set: type": "ct with contrast"}
    assert labels == [first, first, *3 * [{"plane": "axial"}]]


def new_encoder(classes: tuple[int, ...] = (3, 2)) -> EncoderPretraining:
    torch.manual_seed(1)
    return EncoderPretraining(TINY_VISION, classes, vocab_size=50, label_smoothing=0.0)


def test_positions_start_as_sines_that_tell_row_and_column() -> None:
    weight = new_encoder().encoder.embeddings.position_embedding.weight.detach()
    side, width = 4, 32
    patches = weight[1:]
    assert patches.shape == (side * side, width)
    row_half, column_half = patches.view(side, side, width).split(width // 2, dim=-1)
    # the first half tells the row alone, the second the column alone
    assert torch.equal(row_half, row_half[:, :1].expand_as(row_half))
    assert torch.equal(column_half, column_half[:1].expand_as(column_half))
    angles = torch.arange(side)[:, None] / 10_000 ** (torch.arange(width // 4) / (width // 4))
    expected = 0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)
    assert torch.allclose(row_half[:, 0], expected, atol=1e-6)  # float32 rounding
    assert torch.allclose(column_half[0], expected, atol=1e-6)
    assert len({tuple(row.tolist()) for row in patches}) == side * side


def test_positions_train_on() -> None:
    assert new_encoder().encoder.embeddings.position_embedding.weight.requires_grad


def batch(classes: list[list[int]], captions: list[int]) -> dict[str, Tensor]:
    size = len(captions)
    pixels = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return {
        "pixel_values": pixels,
        "words": torch.tensor([1 + caption for caption in captions]),
        "offsets": torch.arange(size),
        "classes": torch.tensor(classes),
    }


def test_an_unknown_attribute_adds_no_loss() -> None:
    model = new_encoder().eval()
    known = model(**batch([[0, 1], [2, 0]], [0, 1]))["loss"]
    half = model(**batch([[0, -1], [2, -1]], [0, 1]))["loss"]
    none = model(**batch([[-1, -1], [-1, -1]], [0, 1]))["loss"]
    assert torch.isfinite(none)
    assert len({round(float(loss.detach()), 6) for loss in (known, half, none)}) == 3
    half.backward()
    unused = model.heads[1]
    assert isinstance(unused, AttributeHead)
    assert unused.classify.weight.grad is None


def test_contrast_of_equal_captions_equals_that_of_targets_shared_among_them() -> None:
    """Pictures with the same caption are no wrong answers to each other."""
    model = new_encoder().eval().requires_grad_(False)
    captions = torch.tensor([0, 1, 0, 2, 0, 1])
    pooled = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    image = model.image_projection(pooled)
    text = model.text_projection(model.words(1 + captions, torch.arange(6)))
    cosines = torch.nn.functional.cosine_similarity(image[:, None], text[None], dim=-1)
    logits = cosines * model.log_temperature.exp()
    same = (captions[:, None] == captions).double()
    shared = same / same.sum(dim=1, keepdim=True)
    expected = sum(
        -(shared * scores.double().log_softmax(-1)).sum(dim=1).mean() / 2
        for scores in (logits, logits.T)
    )
    found = model._contrast(pooled, 1 + captions, torch.arange(6))
    assert float(found) == pytest.approx(float(expected), rel=1e-5)  # float32 sums
    unshared = sum(
        float(-scores.log_softmax(-1).diagonal().mean()) / 2 for scores in (logits, logits.T)
    )
    assert float(found) == pytest.approx(unshared, rel=1e-5)


def run(phase: PhaseName, steps: int, seed: int = 5, **values: Any) -> PhaseRun:
    spec = SPEC.model_copy(update=values)
    return PhaseRun(phase=phase, spec=spec, steps=steps, seed=seed, progress=silent)


def fit_encoder(steps: int, seed: int = 5) -> tuple[Any, PhaseResult]:
    records = phantom_records(32)
    half = len(records) // 2  # the other pictures are named by attributes
    records = [r for i, r in enumerate(records) if i < half or r.task != "caption"]
    encoder, result, accuracy = train_encoder(
        run("phase0_encoder", steps, seed, batch_size=8, augment=0.5),
        TINY_VISION,
        records,
        {},
        pixel_table(images_of(records), processor().image_processor),
        processor().tokenizer,
    )
    assert accuracy == {}  # nothing is held out
    return encoder, result


def test_a_few_steps_of_the_encoder_reduce_the_loss() -> None:
    encoder, result = fit_encoder(30)
    losses = [loss for _, loss in result.curve]
    # means of five steps: one batch's loss is noisy
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert encoder.config.model_type == "clip_vision_model"
    assert not encoder.training


def test_same_seed_gives_the_same_encoder() -> None:
    weights = [fit_encoder(3, seed)[0].state_dict() for seed in (5, 5, 6)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def pretrained() -> Any:
    """Return an encoder that some other training has left."""
    torch.manual_seed(9)
    return AutoModel.from_config(AutoConfig.for_model(TINY_VISION.model_type, **TINY_VISION.config))


def adapted(steps: int, measured: int = 0) -> tuple[Any, PhaseResult, dict[str, Any]]:
    """Adapt to the later of 40 pictures, measuring so many of the first eight."""
    records = phantom_records(40)
    names = [one.id for one in images_of(records)]
    return train_encoder(
        run("phase0_adapt", steps, batch_size=8),
        TINY_VISION,
        [one for one in records if one.image.id in names[8:]],
        {},
        pixel_table(images_of(records), processor().image_processor),
        processor().tokenizer,
        encoder=pretrained(),
        measured=[one for one in records if one.image.id in names[:measured]],
        validation=ValidationSpec(data=("phantom/validation",), every=2),
    )


def test_an_adapted_encoder_goes_on_from_its_weights() -> None:
    before = pretrained().state_dict()
    again, result, _ = adapted(1)
    after = again.state_dict()
    assert result.counts.frozen == 0
    # One step of AdamW moves a weight by the rate at most, be it near or far from where it began.
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    assert max(moved.values()) <= SPEC.learning_rate * 1.01  # float32 rounding
    # What stands behind the states that are read stays; a shift of all keys changes no attention.
    unread = ("encoder.layers.1.", "post_layernorm.", "layers.0.self_attn.k_proj.bias")
    assert {n for n, by in moved.items() if not by} <= {n for n in moved for u in unread if u in n}


def test_measuring_held_out_pictures_changes_no_weight() -> None:
    seen, result, accuracy = adapted(4, measured=8)
    assert [step for step, *_ in result.validation] == [2, 4]
    assert all(loss > 0 and score is None for _, loss, score in result.validation)
    assert accuracy["modality"]["n"] == 8
    unseen, quiet, none = adapted(4)
    assert (quiet.validation, none) == ([], {})
    assert all(torch.equal(a, unseen.state_dict()[n]) for n, a in seen.state_dict().items())


def test_accuracy_counts_known_classes_and_stands_beside_the_most_frequent() -> None:
    model = new_encoder(classes=(2,)).eval()
    head = model.heads[0]
    assert isinstance(head, AttributeHead)
    with torch.no_grad():
        head.classify.weight.zero_()
        head.classify.bias.copy_(torch.tensor([0.0, 1.0]))  # always the second, "mri"
    taught = [EncoderSample(0, (), (n % 3 == 0,), ()) for n in range(30)]
    truth = [1] * 3 + [0] * 5 + [-1] * 2
    held_out = [EncoderSample(row, (), (known,), ()) for row, known in enumerate(truth)]
    table = PixelTable(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), {}, (0.5,) * 3, (0.5,) * 3)
    found = accuracies(model, ["modality"], taught, held_out, table)
    assert found == {"modality": {"accuracy": 37.5, "most_frequent": 62.5, "n": 8}}


def test_open_answers_name_the_pictures_of_a_pretrained_encoder() -> None:
    records = [
        record("1", image(1), answer="a cyst", answer_type="open"),
        record("2", image(1), answer="axial", answer_type="open"),
        record("3", image(1), answer="yes"),
        record("4", image(2, modality="ct"), answer="no"),
        record("5", image(3), answer="a chest", task="caption", answer_type="open"),
    ]
    assert _texts(records, answers=True) == {
        "i1": ["a cyst axial"],
        "i2": ["ct"],
        "i3": ["a chest"],
    }
    assert _texts(records, answers=False) == {"i1": ["image"], "i2": ["ct"], "i3": ["a chest"]}


def test_cells_of_a_convolutional_encoder_are_all_read() -> None:
    encoder = EfficientNetLiteModel(EfficientNetLiteConfig(hidden_size=32, image_size=64))
    vision = replace(TINY_VISION, select_layer=-1, select_strategy="full")
    model = EncoderPretraining(vision, (2,), 50, 0.0, encoder)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    cells = encoder(pixels).last_hidden_state
    assert cells.shape == (2, 4, 32)
    assert torch.equal(model.patches(pixels), model.norm(cells))


def test_pictures_have_one_side_after_another_and_one_in_each_batch() -> None:
    def sides(named: Sequence[int], steps: int) -> list[int | None]:
        draw = lambda index, rng: EncoderSample(index, (), ())  # noqa: E731
        schedule = SideSchedule(named, 2, draw, 3, 2 * steps, 7)
        batches = [[schedule[2 * step + i].side for i in range(2)] for step in range(steps)]
        assert all(first == second for first, second in batches)
        return [first for first, _ in batches]

    assert sides((), 2) == [None, None]
    assert sides((32, 64), 4) == [32, 32, 64, 64]
    assert sides((32, 64), 5) == [32, 32, 32, 64, 64]
    assert sides((32, 64, 96), 7) == [32, 32, 32, 64, 64, 96, 96]


def test_a_smaller_side_shows_the_whole_picture() -> None:
    pixels = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    pixels[:, :, :, 32:] = 255  # the right half is white
    table = PixelTable(pixels, {"a": 0}, (0.0,) * 3, (1.0,) * 3)
    small = _collate([EncoderSample(0, (1,), (), side=32)], table)["pixel_values"]
    assert small.shape == (1, 3, 32, 32)
    assert torch.all(small[..., :15] == 0)
    assert torch.all(small[..., 17:] == 1)
    assert _collate([EncoderSample(0, (1,), ())], table)["pixel_values"].shape[-1] == 64


def test_a_few_steps_of_the_language_model_reduce_the_loss() -> None:
    model, result = train_language_model(
        run("phase0_language", 25), TINY_LANGUAGE, phantom_records(8), processor()
    )
    losses = [loss for _, loss in result.curve]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert model.config.vocab_size == len(processor().tokenizer)


def test_language_model_starts_from_its_seed_and_knows_its_special_tokens() -> None:
    tokenizer = processor().tokenizer
    one, two, other = (new_language_model(TINY_LANGUAGE, tokenizer, seed) for seed in (1, 1, 2))
    state = one.state_dict()
    assert all(torch.equal(state[name], two.state_dict()[name]) for name in state)
    assert not all(torch.equal(state[name], other.state_dict()[name]) for name in state)
    assert one.config.eos_token_id == tokenizer.eos_token_id
    assert one.config.pad_token_id == tokenizer.pad_token_id
