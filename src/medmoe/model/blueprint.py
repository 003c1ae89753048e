"""A model of a recipe at its real size without any weights: shapes on the meta device.

For counting and checking. It asks no tokenizer: the vocabulary is the language model's own, so the
one row that ``<image>`` adds to a full vocabulary (SmolLM2, Llama 3.2) is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from transformers import AutoConfig

from medmoe.backbones.spec import shortened
from medmoe.config.schema import ModelSpec
from medmoe.errors import ConfigError
from medmoe.model.build import pair_config
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.pretrained import language_of, vision_of
from medmoe.model.upcycle import moe_config


def recipe_config(spec: ModelSpec, vocab_size: int | None = None) -> MedMoeConfig:
    """Return the configuration of the MoE model that a recipe describes.

    Args:
        vocab_size: Of a language model that is trained from scratch, with its own tokenizer.

    Raises:
        ConfigError: A backbone is unknown, a layer does not exist, or a size is missing.
    """
    language, vision = language_of(spec), vision_of(spec)
    values = dict(language.config)
    if "vocab_size" not in values:
        if vocab_size is None:
            raise ConfigError(
                f"language model {language.name!r} has no vocabulary before it is trained; "
                "give the folder of a trained model"
            )
        values["vocab_size"] = vocab_size
    dense = pair_config(
        AutoConfig.for_model(vision.model_type, **vision.config),
        AutoConfig.for_model(language.model_type, **values).to_dict(),
        vision,
        image_token_index=values["vocab_size"] - 1,
    )
    dense.lm_head_bias = language.lm_head_bias
    return config_of_moe(dense, spec)


def config_of_moe(dense: MedMoeConfig, spec: ModelSpec) -> MedMoeConfig:
    """Return the configuration of a recipe's MoE model, made from that of its dense model."""
    fields = {"moe_layers", "domains", "num_experts_per_tok", "router_layers", "meta_expert"}
    given = spec.model_dump(mode="json", include=fields)
    return moe_config(dense, **given, routing=spec.routing)


def dense_twin(config: MedMoeConfig) -> MedMoeConfig:
    """Return the configuration of the dense model that a MoE model is made of (phases 1 and 2)."""
    twin: MedMoeConfig = MedMoeConfig.from_dict(config.to_dict() | {"moe_layers": []})
    return twin


def first_layers(config: MedMoeConfig) -> tuple[MedMoeConfig, list[int]]:
    """Return a configuration cut to its first layers, and which of them each real layer is like.

    What is counted layer by layer need not be counted for every one of them: past the first of its
    kind (dense or MoE, and its form of attention), a layer costs what the one before it cost.
    """
    text = config.text_config
    forms = getattr(text, "layer_types", None) or [""] * text.num_hidden_layers
    moe = set(config.moe_layers or [])
    kinds = [(index in moe, form) for index, form in enumerate(forms)]
    # In phase 3 gradients begin at the first MoE layer, and the next one keeps what all share.
    settled = min(min(moe, default=0) + 2, len(kinds))
    depth = settled
    while any(kind not in kinds[settled:depth] for kind in kinds[depth:]):
        depth += 1
    latest = {kinds[index]: index for index in range(settled, depth)}
    alike = [index if index < depth else latest[kind] for index, kind in enumerate(kinds)]
    values = config.to_dict()
    values["moe_layers"] = [index for index in moe if index < depth]
    values["text_config"] = shortened(text.to_dict(), depth)
    cut: MedMoeConfig = MedMoeConfig.from_dict(values)
    return cut, alike


@contextmanager
def by_layer(layers: Iterable[nn.Module], total: Callable[[], int]) -> Iterator[list[int]]:
    """Yield a list of what a running total grows by while each layer runs, in their order."""
    grown: list[int] = []
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(lambda *_: grown.append(-total())))
            hooks.enter_context(
                layer.register_forward_hook(lambda *_: grown.append(grown.pop() + total()))
            )
        yield grown


def meta_model(config: MedMoeConfig) -> MedMoeForConditionalGeneration:
    """Return the model on the meta device: every tensor has its shape and no memory."""
    with torch.device("meta"):
        return MedMoeForConditionalGeneration(config)
