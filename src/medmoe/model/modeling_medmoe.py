"""`MedMoeForConditionalGeneration`: Llava, with the FFNs of chosen layers replaced by `MoeBlock`.

Composes stock transformers parts: the vision encoder and the language model are built from their
own configs; only the chosen layers' ``mlp`` attributes are swapped, and two stock parts are made to
serve ours (a placeholder beyond the vocabulary, StableLM's keywords). One class for all phases.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, LlavaForConditionalGeneration, LlavaModel
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaMultiModalProjector,
)
from transformers.models.stablelm import modeling_stablelm as stock

from medmoe.backbones.ffn import ffn_family
from medmoe.errors import CheckpointError, ConfigError
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.domain_check import DomainCheck
from medmoe.model.moe import MoeBlock, PictureChoice


class PlaceholderEmbedding(nn.Embedding):
    """A token embedding that knows one id more: the image placeholder, embedded as zeros.

    The reference writes -200 into the token ids, so its checkpoints hold no row for an image token.
    Where no row is spare the placeholder's id lies just beyond the vocabulary: no row is added, so
    logits, loss and gradients stay those of the checkpoint, and no placeholder is ever generated.
    """

    placeholder_id: int

    def forward(self, input: Tensor) -> Tensor:
        """Return embeddings (…, D) of ids (…); an image takes the zeros' place afterwards."""
        if self.placeholder_id < self.num_embeddings:  # the vocabulary has grown since
            return super().forward(input)
        outside = input == self.placeholder_id
        rows: Tensor = super().forward(input.masked_fill(outside, 0))
        return rows.masked_fill(outside.unsqueeze(-1), 0)


def embed_placeholder(embedding: Any, placeholder_id: int) -> None:
    """Let a stock embedding take a placeholder beyond its rows; leave it as it is otherwise."""
    if type(embedding) is nn.Embedding and placeholder_id >= embedding.num_embeddings:
        outer: Any = embedding
        outer.__class__ = PlaceholderEmbedding
        outer.placeholder_id = placeholder_id


class StableLmDecoderLayer(stock.StableLmDecoderLayer):
    """The stock layer, handing keyword arguments on to its attention.

    The stock one (transformers 5.23) drops them, and engines that bring their own attention (vLLM)
    pass what it needs that way. Named like it, since device maps look for layers by class name.
    """

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Return the layer's output (B, S, D)."""
        normed = self.input_layernorm(hidden_states)
        # differs from StableLM: all keywords reach the attention.
        attended, _ = self.self_attn(hidden_states=normed, **kwargs)
        after = hidden_states + attended
        if not self.use_parallel_residual:
            normed = self.post_attention_layernorm(after)
        output: Tensor = after + self.dropout(self.mlp(normed))
        return output


def pass_keywords(layer: Any) -> None:
    """Make a stock StableLM layer hand its keywords on; any other layer is left as it is."""
    if type(layer) is stock.StableLmDecoderLayer:
        layer.__class__ = StableLmDecoderLayer


def pool_cells(features: Tensor, pool: int) -> Tensor:
    """Return image tokens (N, P / n², n² · D): the states of n × n cells side by side.

    Pixel shuffle, as nanoVLM has it. Tokens, and cells in a token, go in rows from the upper left.

    Args:
        features: (N, P, D), cells of a square map in rows.
        pool: n, which divides the map's side; 1 takes states of any number as they are.
    """
    if pool == 1:
        return features
    count, cells, width = features.shape
    rows = math.isqrt(cells) // pool
    split = features.reshape(count, rows, pool, rows, pool, width)
    return split.transpose(2, 3).reshape(count, rows**2, pool**2 * width)


class Projector(LlavaMultiModalProjector):
    """Llava's projector, on image tokens of one or several cells (``image_pool``)."""

    linear_1: nn.Linear

    def __init__(self, config: MedMoeConfig) -> None:
        super().__init__(config)
        self.pool, first = config.image_pool, self.linear_1
        if self.pool > 1:
            width = first.in_features * self.pool**2
            self.linear_1 = nn.Linear(width, first.out_features, first.bias is not None)

    def forward(self, image_features: Tensor) -> Tensor:
        """Return the language model's image tokens (N, P / n², D) of cells (N, P, D_vision)."""
        return self.project(pool_cells(image_features, self.pool))

    def project(self, tokens: Tensor) -> Tensor:
        """Return what becomes of tokens (…, n² · D_vision), as `pool_cells` gives them."""
        projected: Tensor = super().forward(tokens)
        return projected


#: Marks the positions of ``labels`` that no loss is computed on, everywhere in transformers.
IGNORE = -100
#: What models of the installed transformers call the key-value cache: renamed in release 5.24.
_named = inspect.signature(LlavaForConditionalGeneration.forward).parameters
CACHE = "cache" if "cache" in _named else "past_key_values"


class _MedMoePreTrained:
    """What both model classes share beyond Llava's base."""

    config: MedMoeConfig
    config_class = MedMoeConfig
    # The router decides in float32 whatever the model's dtype. Not "mlp.gate": it is searched for
    # as a part of names, and would find the `gate_proj` of dense layers too.
    _keep_in_fp32_modules_strict = ("mlp.gate.fc", "domain_check")

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers looks for the decorator in this file; ours stands in moe.py.
        return True

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model; every tensor must be found and used.

        Raises:
            CheckpointError: A file is damaged, or a tensor is missing, unexpected or of another
                shape (transformers only warns and leaves random weights, or prints a report).
        """
        wanted = kwargs.pop("output_loading_info", False)
        source = args[0] if args else kwargs.get("pretrained_model_name_or_path", "checkpoint")
        # So that tensors of a wrong shape are listed, and refused below by name.
        kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        except SafetensorError as error:
            raise CheckpointError(
                f"{source}: a weight file is damaged ({error}); copy the model directory again"
            ) from None
        except RuntimeError as error:
            if "conversion of the weights" not in str(error):
                raise
            raise CheckpointError(
                f"{source}: the experts of a layer have different shapes and cannot be stacked; "
                "this is not a complete checkpoint of its config"
            ) from None
        _refuse_incomplete(source, info)
        return (model, info) if wanted else model


def _refuse_incomplete(source: Any, info: Mapping[str, Any]) -> None:
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        # A mismatch is a tuple of name, shape on disk and shape wanted.
        names = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
        if names:
            raise CheckpointError(
                f"{source}: {len(names)} {kind.replace('_', ' ')}, first: {names[0]}; "
                "this is not a complete checkpoint of its config"
            )


class MedMoeModel(_MedMoePreTrained, LlavaModel):
    """Vision encoder, projector and language model without the output head."""

    # The whole model's files hold the head and the check too, which have no place here.
    _keys_to_ignore_on_load_unexpected: tuple[str, ...] = (r"^lm_head\.", r"^domain_check\.")

    def __init__(self, config: MedMoeConfig) -> None:
        # differs from Llava: the chosen layers' FFNs are swapped before weights are initialised.
        super(LlavaModel, self).__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = Projector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        embed_placeholder(self.language_model.get_input_embeddings(), config.image_token_id)
        for layer in self.language_model.layers:
            pass_keywords(layer)
        self.picture = (
            PictureChoice(config) if config.moe_layers and config.routing == "image" else None
        )
        for index in config.moe_layers or []:
            layer = self.language_model.layers[index]
            layer.mlp = MoeBlock(config, meta_expert=layer.mlp, family=ffn_family(layer.mlp))
            layer.mlp.gate.picture = self.picture
            layer.mlp.gate.decides = index == min(config.moe_layers or [])
        self.post_init()
        if config.moe_layers:  # where asked for (``ep_size``), each process holds whole experts
            experts = self.language_model.layers[config.moe_layers[0]].mlp.experts
            where = "language_model.layers.*.mlp.experts"
            self._ep_plan = {where: "ep_dispatch_experts"}
            self._ep_plan |= {f"{where}.{name}": "grouped_gemm" for name in experts._parameters}

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Return the selected vision states (B, P, D_vision) that the projector reads.

        Args:
            pixel_values: (B, 3, H, W), normalised by the image processor.
        """
        layer = self.config.vision_feature_layer
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        chosen = [states[i] for i in ([layer] if isinstance(layer, int) else layer)]
        if self.config.vision_feature_select_strategy == "default":
            chosen = [state[:, 1:] for state in chosen]
        return torch.cat(chosen, dim=-1)

    def embed(self, input_ids: Tensor, vision_features: Tensor | None) -> Tensor:
        """Return token embeddings (B, S, D) with the projected image in the placeholders' place.

        Args:
            input_ids: (B, S) int64, with one placeholder per image token.
            vision_features: (N, P, D_vision), all images of the batch in order, as
                `encode_images` gives them; None for text only.
        """
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        if vision_features is None:
            return embeds
        # Features are float32 whatever the weights; under autocast the projector gives bfloat16.
        image = self.multi_modal_projector(vision_features.to(embeds.dtype)).to(embeds)
        mask = self.get_placeholder_mask(input_ids, inputs_embeds=embeds, image_features=image)
        return embeds.masked_scatter(mask, image)

    def forward(
        self,
        input_ids: Tensor | None = None,
        vision_features: Tensor | None = None,
        picture_tokens: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run Llava's forward; ``vision_features`` stands for ``pixel_values`` already encoded."""
        if self.picture is not None:
            self.picture.show(input_ids, picture_tokens, kwargs.get(CACHE))
        if vision_features is not None and input_ids is not None:
            kwargs["inputs_embeds"] = self.embed(input_ids, vision_features)
            input_ids = None
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 4:
            kwargs["attention_mask"] = self._packed_masks(mask, kwargs.get("position_ids"))
        out = super().forward(input_ids=input_ids, **kwargs)
        if self.picture is not None:
            self.picture.keep(getattr(out, CACHE, None))
        return out

    def _packed_masks(self, mask: Tensor, position_ids: Tensor | None) -> Any:
        """Return a 4-D mask as the language model takes it: one for each form of its layers.

        Args:
            mask: (B, 1, S, S) bool, or added to the scores.
            position_ids: (B, S). A sliding window spans positions: packed questions lie farther
                from their image than when each is asked alone.
        """
        text = self.config.text_config
        forms = set(getattr(text, "layer_types", None) or ())
        if "sliding_attention" not in forms or mask.dtype != torch.bool:
            return self._packed_mask(mask)
        if position_ids is None:
            position_ids = torch.arange(mask.shape[-1], device=mask.device)[None]
        near = position_ids[:, :, None] - position_ids[:, None, :] < text.sliding_window
        return {
            "full_attention": self._packed_mask(mask),
            "sliding_attention": self._packed_mask(mask & near[:, None]),
        }

    def _packed_mask(self, mask: Tensor) -> Tensor:
        """Return a 4-D boolean mask as the attention in use needs it.

        Raises:
            ConfigError: The attention in use cannot follow such a mask.
        """
        attention = self.config.text_config._attn_implementation
        if attention == "sdpa" or mask.dtype != torch.bool:
            return mask
        if attention == "eager":
            # It adds the mask to the scores: a boolean one would pass without any effect.
            hidden = torch.finfo(self.dtype).min
            return torch.zeros_like(mask, dtype=self.dtype).masked_fill(~mask, hidden)
        raise ConfigError(
            f"attention {attention!r} cannot keep packed questions apart; "
            "load the model with attn_implementation='sdpa'"
        )


class MedMoeForConditionalGeneration(_MedMoePreTrained, LlavaForConditionalGeneration):
    """The whole model: dense in phases 1 and 2, MoE after phase 3.

    Besides Llava's inputs it takes ``vision_features`` (N, P, D_vision) in place of
    ``pixel_values``, ``picture_tokens`` (B, S) bool beside ``inputs_embeds`` (what of them is
    pictures, where these route), and a 4-D boolean ``attention_mask`` (B, 1, S, S) for packed
    questions.
    """

    def __init__(self, config: MedMoeConfig) -> None:
        # differs from Llava: our inner model, and a head that may have a bias (phi-2).
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = MedMoeModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=config.lm_head_bias)
        facts = config.domain_check or {}
        self.domain_check = DomainCheck(facts) if "pooled_width" in facts else None
        self.post_init()

    def take_check(self, check: DomainCheck | Mapping[str, Any]) -> None:
        """Take an out-of-domain check, or the facts that say why there is none."""
        found = check if isinstance(check, DomainCheck) else None
        self.config.domain_check = dict(found.facts if found else check)  # type: ignore[arg-type]
        self.domain_check = found.to(self.device) if found else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        answers_only: bool = False,
        cache: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run Llava's forward, the head on answers only if asked for.

        Args:
            past_key_values: The key-value cache; ``cache`` is the same, whatever the release of
                transformers calls it.
            answers_only: Compute the loss without running the head where ``labels`` (B, S) are
                -100, most positions of a training batch. The loss and its gradients are the same;
                the output then has a loss and no logits.
        """
        # The first keywords are those that `generate`, the Trainer and PEFT look for.
        inputs = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        cache = past_key_values if cache is None else cache
        if cache is not None:
            inputs[CACHE] = cache
        if labels is None or not answers_only:
            return super().forward(**inputs, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
        loss_kwargs = {k: kwargs.pop(k) for k in ("num_items_in_batch",) if k in kwargs}
        states = self.model(**inputs, **kwargs).last_hidden_state
        # The token after a position is what the position must tell.
        known = labels[:, 1:] != IGNORE
        loss = self.loss_function(
            logits=self.lm_head(states[:, :-1][known]),
            labels=None,
            shift_labels=labels[:, 1:][known],
            vocab_size=self.config.text_config.vocab_size,
            **loss_kwargs,
        )
        return LlavaCausalLMOutputWithPast(loss=loss)

    @property
    def moe_blocks(self) -> dict[int, MoeBlock]:
        """The MoE blocks by decoder layer index; empty for the dense model."""
        layers = self.model.language_model.layers
        return {index: layers[index].mlp for index in self.config.moe_layers or []}

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        vision_features: Tensor | None = None,
        picture_tokens: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Prepare a step of ``generate``; images go in with the prompt, then live in the cache."""
        # `inputs_embeds` is named because `generate` looks for it in this very signature.
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs["vision_features"] = vision_features
            inputs["picture_tokens"] = picture_tokens
        return inputs
