from __future__ import annotations

import pytest
import torch
from tests.model.tiny import (
    FAMILIES,
    IMAGE_TOKENS,
    TEXTS,
    VISION,
    Family,
    language_model,
    pixels,
    processor,
    prompt_ids,
    vision_tower,
)
from transformers import AddedToken, TokenizersBackend

from medmoe.backbones.templates import chat_template
from medmoe.data.tokenize import train_tokenizer
from medmoe.model.build import build_dense, build_processor


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_built_model_is_its_parts(family: Family) -> None:
    tokenizer = processor().tokenizer
    tower, language = vision_tower(), language_model(family, len(tokenizer) + 5)
    model = build_dense(tower, language, tokenizer, VISION, seed=0).eval()
    ids = torch.tensor([tokenizer("is there a mass?").input_ids])
    assert torch.equal(model(input_ids=ids).logits, language(input_ids=ids).logits)
    states = tower(pixels(2), output_hidden_states=True).hidden_states[-2]
    assert torch.equal(model.model.encode_images(pixels(2)), states[:, 1:])
    assert model.config.image_seq_length == IMAGE_TOKENS
    assert model.config.moe_layers == []


def test_the_bias_of_the_head_is_kept_and_none_is_invented() -> None:
    tokenizer = processor().tokenizer
    phi = language_model("phi", 330)
    model = build_dense(vision_tower(), phi, tokenizer, VISION, seed=0)
    assert phi.lm_head.bias.abs().sum() > 0
    assert torch.equal(model.lm_head.bias, phi.lm_head.bias)
    stablelm = build_dense(
        vision_tower(), language_model("stablelm", 330), tokenizer, VISION, seed=0
    )
    assert stablelm.lm_head.bias is None


@pytest.mark.parametrize("surplus", [0, 40])
def test_the_vocabulary_never_shrinks(surplus: int) -> None:
    tokenizer = processor().tokenizer
    language = language_model("phi", len(tokenizer) + surplus)
    model = build_dense(vision_tower(), language, tokenizer, VISION, seed=0)
    assert model.config.text_config.vocab_size == len(tokenizer) + surplus
    assert model.lm_head.weight.shape[0] == len(tokenizer) + surplus


def test_the_vocabulary_grows_for_the_image_token_and_keeps_every_row() -> None:
    tokenizer = processor().tokenizer
    language = language_model("phi", len(tokenizer) - 1)
    before = {name: tensor.clone() for name, tensor in language.state_dict().items()}
    model = build_dense(vision_tower(), language, tokenizer, VISION, seed=0)
    old = len(tokenizer) - 1
    assert model.lm_head.weight.shape[0] == model.lm_head.bias.shape[0] == len(tokenizer)
    embeddings = model.get_input_embeddings().weight
    assert torch.equal(embeddings[:old], before["model.embed_tokens.weight"])
    assert torch.equal(model.lm_head.weight[:old], before["lm_head.weight"])
    assert torch.equal(model.lm_head.bias[:old], before["lm_head.bias"])
    # The language model that was handed in stays as it was.
    assert language.config.vocab_size == old
    assert all(torch.equal(tensor, before[name]) for name, tensor in language.state_dict().items())


def test_the_seed_alone_decides_what_is_drawn() -> None:
    tokenizer = processor().tokenizer
    models = []
    for global_seed, seed in ((1, 0), (2, 0), (2, 3)):
        language = language_model("phi", len(tokenizer) - 1)
        tower = vision_tower()
        torch.manual_seed(global_seed)
        state = torch.random.get_rng_state()
        models.append(build_dense(tower, language, tokenizer, VISION, seed=seed).state_dict())
        assert torch.equal(torch.random.get_rng_state(), state)
    first, same, other = models
    assert all(torch.equal(first[name], same[name]) for name in first)
    projector = "model.multi_modal_projector.linear_1.weight"
    assert not torch.equal(first[projector], other[projector])


def bare_tokenizer() -> TokenizersBackend:
    """Return a tokenizer as language models have it: no padding token, no `<image>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("abc ?\nUSER:")}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return TokenizersBackend(
        tokenizer_object=inner,
        eos_token="<|endoftext|>",
        extra_special_tokens=[AddedToken("<|other|>", special=True)],
        padding_side="right",
    )


def test_a_tokenizer_gets_what_it_lacks_and_loses_nothing() -> None:
    tokenizer = bare_tokenizer()
    before = tokenizer.get_vocab()
    assert "<image>" not in before
    assert tokenizer.pad_token is None
    made = build_processor(tokenizer, VISION, chat_template("<|endoftext|>"))
    after = made.tokenizer.get_vocab()
    assert {name: after[name] for name in before} == before
    assert after["<image>"] == len(before)
    assert made.image_token_id == len(before)
    assert {"<|other|>", "<image>", "<|endoftext|>"} <= set(made.tokenizer.all_special_tokens)
    assert made.tokenizer.pad_token == "<|endoftext|>"
    assert made.tokenizer.padding_side == "left"


def test_a_tokenizer_that_has_all_is_left_alone() -> None:
    tokenizer = train_tokenizer(TEXTS, 320)
    before = tokenizer.get_vocab()
    made = build_processor(tokenizer, VISION, chat_template("</s>"))
    assert made.tokenizer.get_vocab() == before
    assert made.tokenizer.pad_token == "<pad>"
    assert prompt_ids("")[0] == before["<image>"]
