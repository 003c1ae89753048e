"""Builds the dense model of phases 1 and 2 from a vision encoder and a language model.

The parts may come from a hub id, a folder, or memory (the stand-in backbones of ``phase0``).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from medmoe.backbones.spec import VisionBackbone
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor, square_image_processor

IMAGE_TOKEN = "<image>"


def build_processor(
    tokenizer: PreTrainedTokenizerBase, vision: VisionBackbone, chat_template: str
) -> MedMoeProcessor:
    """Return the processor of a backbone pair.

    Args:
        tokenizer: Gets ``<image>`` and a padding token if it lacks them, and pads on the left, as
            batched generation needs it.
        vision: Gives the image's size and its number of tokens.
        chat_template: Jinja template of the language model's prompt.
    """
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    has_class_token = vision.select_strategy == "default"
    return MedMoeProcessor(
        image_processor=square_image_processor(vision.image_size, vision.mean, vision.std),
        tokenizer=tokenizer,
        patch_size=vision.patch_size * vision.pool,  # of what one image token stands for
        vision_feature_select_strategy=vision.select_strategy,
        chat_template=chat_template,
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=int(has_class_token),
    )


def build_dense(
    vision_tower: PreTrainedModel,
    language_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    vision: VisionBackbone,
    seed: int,
) -> MedMoeForConditionalGeneration:
    """Return a dense model made of trained parts and a fresh projector (start of phase 1).

    Args:
        vision_tower: The vision encoder; its weights are copied.
        language_model: A causal language model with its head; its weights are copied. The head's
            bias is kept (zeros are not invented where there is none).
        tokenizer: Holds ``<image>``; the vocabulary grows to hold it and never shrinks.
        vision: Which states of the encoder the projector reads, and the image's size.
        seed: Draws the projector, and the rows of new tokens.
    """
    text: Any = language_model.config
    size = max(text.vocab_size, len(tokenizer))
    config = pair_config(
        vision_tower.config,
        text.to_dict() | {"vocab_size": size},
        vision,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    head: Any = language_model.get_output_embeddings()
    config.lm_head_bias = head.bias is not None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if size > text.vocab_size:
            language_model = copy.deepcopy(language_model)  # the caller's stays as it is
            language_model.resize_token_embeddings(size)
        model = MedMoeForConditionalGeneration(config)
    inner: Any = model.model
    inner.vision_tower.load_state_dict(vision_tower.state_dict())
    inner.language_model.load_state_dict(language_model.base_model.state_dict())
    model.lm_head.load_state_dict(language_model.get_output_embeddings().state_dict())
    return model


@torch.no_grad()
def match_embeddings(model: MedMoeForConditionalGeneration, features: torch.Tensor) -> None:
    """Centre and scale a fresh projector where the language model scales its word embeddings.

    Gemma multiplies them by the square root of its width, so its words are some fifty times larger
    than what a fresh projector gives, and its layers would hardly see the image. Elsewhere, as in
    the paper, a projector stays as it was drawn.

    Args:
        model: Changed in place.
        features: (N, P, D_vision) of some training pictures.
    """
    words: Any = model.get_input_embeddings()
    if not hasattr(words, "embed_scale") or not features.any():  # a blind twin's are all alike
        return
    rows = torch.arange(0, words.num_embeddings, 1 + words.num_embeddings // 4096)
    size = words(rows.to(model.device)).std()
    projector: Any = model.model.multi_modal_projector
    last = projector.linear_2
    image = projector(features.to(model.device, model.dtype))
    mean = image.mean((0, 1))
    factor = size / (image - mean).std()
    last.weight.mul_(factor)
    last.bias.sub_(mean).mul_(factor)


def pair_config(
    vision_config: Any, text: Mapping[str, Any], vision: VisionBackbone, **others: Any
) -> MedMoeConfig:
    """Return the dense configuration for two backbone configs.

    Args:
        text: The language model's config as a dictionary, with the final vocabulary.
        vision: Which states of the encoder the projector reads, and the image's size.
        others: Further fields: ``image_token_index`` and, where known, the ids of the other
            special tokens.
    """
    return MedMoeConfig(
        vision_config=vision_config.to_dict(),
        text_config=dict(text),
        image_seq_length=vision.image_tokens,
        image_pool=vision.pool,
        vision_feature_layer=vision.select_layer,
        vision_feature_select_strategy=vision.select_strategy,
        tie_word_embeddings=text["tie_word_embeddings"],
        **others,
    )
