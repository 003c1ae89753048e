from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.model.tiny import FAMILIES, IMAGE_TOKENS, Family, moe_model, pixels, processor
from torch import Tensor

from medmoe.data.collate import IGNORE, Packed, PackingCollator, pack_batch
from medmoe.data.tokenize import ConversationTokenizer, Segment
from medmoe.errors import ConfigError

PAD = processor().tokenizer.pad_token_id
TOKENS = ConversationTokenizer(processor(), IMAGE_TOKENS)
PREFIX = TOKENS.prefix()
QUESTIONS = (
    ("Is there a mass?", "yes"),
    ("Which organ?", "the left lung, upper lobe"),
    ("Why?", "no idea"),
    ("How many?", "2"),
)


def packed(image: int, *numbers: int) -> Packed:
    segments = tuple(TOKENS.segment(*QUESTIONS[number]) for number in numbers)
    return Packed(image, PREFIX, segments)


def features(model: Any, count: int) -> Tensor:
    with torch.no_grad():
        encoded: Tensor = model.model.encode_images(pixels(count))
    return encoded


def loss_and_gradients(
    model: Any, batches: list[list[Packed]], table: Tensor
) -> tuple[float, dict[str, Tensor]]:
    """Return the mean loss per answer token over batches, and its gradients."""
    model.zero_grad()
    collate = PackingCollator(table, PAD)
    inputs = [collate(batch) for batch in batches]
    total = sum(int((batch["labels"] != IGNORE).sum()) for batch in inputs)
    loss = 0.0
    for batch in inputs:
        share = model(**batch, num_items_in_batch=total).loss
        share.backward()
        loss += float(share.detach())
    return loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_loss_and_gradients_equal_the_unpacked_ones(family: Family, top_k: int) -> None:
    model = moe_model(family, top_k)
    table = features(model, 2)
    together, gradients = loss_and_gradients(model, [[packed(0, 0, 1, 2), packed(1, 3, 1)]], table)
    alone = [[packed(0, 0)], [packed(0, 1)], [packed(0, 2)], [packed(1, 3)], [packed(1, 1)]]
    apart, expected = loss_and_gradients(model, alone, table)
    assert together == pytest.approx(apart, abs=1e-5, rel=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1.0)
        assert float((gradients[name] - gradient).abs().max()) <= 1e-5 * scale, name


def test_the_models_own_mean_is_the_token_weighted_mean() -> None:
    model = moe_model("stablelm")
    table = features(model, 1)
    collate = PackingCollator(table, PAD)
    with torch.no_grad():
        whole = float(model(**collate([packed(0, 0, 1, 2)])).loss)
        parts = [(collate([packed(0, n)])) for n in range(3)]
        losses = [float(model(**part).loss) for part in parts]
    counts = [int((part["labels"] != IGNORE).sum()) for part in parts]
    mean = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
    assert whole == pytest.approx(mean, abs=1e-5, rel=0)
    assert whole != pytest.approx(sum(losses) / 3, abs=1e-3)


@torch.no_grad()
def test_the_loss_of_a_conversation_is_that_of_its_answers_in_the_rendered_text() -> None:
    model = moe_model("stablelm", top_k=2)
    table = features(model, 1)
    (conversation,) = TOKENS.segments(QUESTIONS[:3])
    neighbours = [TOKENS.segment(*QUESTIONS[3]), conversation, TOKENS.segment(*QUESTIONS[1])]
    ids = torch.tensor([PREFIX + conversation.ids])
    said = model(input_ids=ids, vision_features=table).logits[0, :-1].log_softmax(-1)
    losses = -said.gather(-1, ids[0, 1:, None])[:, 0]
    end = len(conversation.ids)
    spans = [*conversation.earlier, (end - conversation.answer_length, end)]
    at = len(PREFIX) - 1  # the token before predicts
    wanted = sum(float(losses[at + first : at + after].sum()) for first, after in spans)
    alone = sum(
        float(model(**PackingCollator(table, PAD)([Packed(0, PREFIX, (s,))]).copy()).loss)
        * s.answer_length
        for s in (neighbours[0], neighbours[2])
    )
    for others, more in (([conversation], 0.0), (neighbours, alone)):
        batch = PackingCollator(table, PAD)([Packed(0, PREFIX, tuple(others))])
        total = float(model(**batch, num_items_in_batch=1).loss)
        assert total == pytest.approx(wanted + more, abs=1e-4, rel=1e-5)
    assert len(spans) == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_neighbour_changes_nothing_of_a_questions_logits(family: Family, attention: str) -> None:
    model = moe_model(family, top_k=2)
    model.set_attn_implementation(attention)
    table = features(model, 1)
    ids = PREFIX + TOKENS.segment(*QUESTIONS[1]).ids
    alone = model(input_ids=torch.tensor([ids]), vision_features=table).logits[0]
    # Behind another question, before another one, and beside padding.
    batch = PackingCollator(table, PAD)([packed(0, 0, 1, 2), packed(0, 1)])
    logits = model(**batch).logits
    start = len(PREFIX) + len(TOKENS.segment(*QUESTIONS[0]).ids)
    length = len(ids) - len(PREFIX)
    # Sums over more (hidden) columns: units of the last place of logits near 10.
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(logits[0, start : start + length], alone[len(PREFIX) :], **close)
    torch.testing.assert_close(logits[1, : len(ids)], alone, **close)
    assert not torch.allclose(logits[0, start - 1], alone[len(PREFIX) - 1], atol=0.1)


@torch.no_grad()
def test_padding_rows_and_columns_give_no_nan() -> None:
    model = moe_model("phi", top_k=2)
    batch = PackingCollator(features(model, 2), PAD)([packed(0, 0, 1, 2, 3), packed(1, 3)])
    padding = batch["input_ids"].shape[1] - len(PREFIX) - len(packed(1, 3).segments[0].ids)
    assert padding > 10
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        out = model(**batch)
        assert out.logits.isfinite().all()
        assert out.loss.isfinite()


def test_an_attention_that_would_mix_packed_questions_is_refused() -> None:
    model = moe_model("phi")
    model.config.text_config._attn_implementation = "flash_attention_2"
    batch = PackingCollator(features(model, 1), PAD)([packed(0, 0, 1)])
    with pytest.raises(
        ConfigError, match=r"'flash_attention_2' cannot keep packed questions apart"
    ):
        model(**batch)


def test_a_small_batch_by_hand() -> None:
    one = Packed(0, (7, 8), (Segment((3, 4), 1), Segment((5,), 0), Segment((6, 9), 2)))
    two = Packed(1, (7, 8), (Segment((2,), 1),))
    batch = pack_batch([one, two], pad_token_id=0)
    assert batch["input_ids"].tolist() == [[7, 8, 3, 4, 5, 6, 9], [7, 8, 2, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist()[0] == [0, 1, 2, 3, 2, 2, 3]
    assert batch["position_ids"].tolist()[1][:3] == [0, 1, 2]
    no = IGNORE
    assert batch["labels"].tolist() == [
        [no, no, no, 4, no, 6, 9],
        [no, no, 2, no, no, no, no],
    ]
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["attention_mask"].shape == (2, 1, 7, 7)
    seen = ["".join(".x"[int(v)] for v in row) for row in batch["attention_mask"][0, 0]]
    assert seen == ["x......", "xx.....", "xxx....", "xxxx...", "xx..x..", "xx...x.", "xx...xx"]
    seen = ["".join(".x"[int(v)] for v in row) for row in batch["attention_mask"][1, 0]]
    assert seen == ["x......", "xx.....", "xxx....", "...x...", "....x..", ".....x.", "......x"]


def test_every_answer_of_a_conversation_is_a_label_and_its_turns_see_what_came_before() -> None:
    talk = Segment((3, 4, 5, 6, 9), 2, earlier=((1, 2),))
    batch = pack_batch([Packed(0, (7,), (Segment((2, 2), 1), talk))], pad_token_id=0)
    no = IGNORE
    assert batch["labels"].tolist() == [[no, no, 2, no, 4, no, 6, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 1, 2, 3, 4, 5]]
    seen = ["".join(".x"[int(v)] for v in row) for row in batch["attention_mask"][0, 0]]
    assert seen[3:] == ["x..x....", "x..xx...", "x..xxx..", "x..xxxx.", "x..xxxxx"]


def test_each_row_gets_the_features_of_its_own_image() -> None:
    table = torch.arange(3.0)[:, None, None].expand(3, 2, 4)
    batch = PackingCollator(table, PAD)([packed(2, 0), packed(0, 1), packed(2, 2)])
    assert batch["vision_features"][:, 0, 0].tolist() == [2, 0, 2]
