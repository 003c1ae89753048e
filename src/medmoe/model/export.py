"""A trained model as two OpenVINO graphs, for machines without PyTorch's speed or memory.

``vision`` is the encoder. ``language`` is everything behind it, projector, decoder, experts, router
and head, reading prompts and single tokens alike with the key-value cache as its state: one set of
weights, the embedding shared with the head where the model shares them. Both are made by
transformers' own exporter, and their weights rounded by nncf. Nothing here runs a graph: see
`medmoe.inference.exported`.

Shapes: B prompts, S tokens read now, L tokens in the cache, N pictures, P patches, W encoder width,
K wanted positions, V vocabulary, E experts.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache

from medmoe.errors import ConfigError
from medmoe.model.card import CARD
from medmoe.model.checkpoint import check_replaceable, identity, load_model, provenance
from medmoe.model.committed import committed, write_json
from medmoe.model.cost.parameters import parameters_of
from medmoe.model.locate import EXPORT, PROVENANCE
from medmoe.model.modeling_medmoe import CACHE, MedMoeForConditionalGeneration

Weights = Literal["float32", "int8", "int4"]
VISION, LANGUAGE, CHECK = "vision.xml", "language.xml", "domain_check.safetensors"
#: For how many shapes a runtime keeps what it prepared: those of one step's layers.
SHAPES_KEPT = "16"
_INSTALL = "pip install 'medmoe[export]'"


class VisionGraph(nn.Module):
    """Pixels (N, 3, H, W) to vision features (N, P, W), as `MedMoeModel.encode_images` does."""

    def __init__(self, model: MedMoeForConditionalGeneration) -> None:
        super().__init__()
        self.config = model.config
        self.inner = model.model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Return ``features``."""
        return {"features": self.inner.encode_images(pixel_values)}


class LanguageGraph(nn.Module):
    """Tokens behind a cache to logits and router logits."""

    def __init__(self, model: MedMoeForConditionalGeneration) -> None:
        super().__init__()
        self.config = model.config
        self.inner = model

    def forward(
        self,
        input_ids: Tensor,
        vision_features: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        wanted: Tensor,
        past_key_values: DynamicCache,
    ) -> dict[str, Any]:
        """Read tokens.

        Args:
            input_ids: (B, S) int64.
            vision_features: (B, S, W): of each image placeholder its cells, as `pool_cells` lays
                them side by side; anything elsewhere.
            attention_mask: (B, L + S) int64, 0 on padding.
            position_ids: (B, S) int64.
            wanted: (B, K) int64: the positions among the S whose logits are wanted.

        Returns:
            ``logits`` (B, K, V), of the token after each wanted one, ``past_key_values``, and with
            MoE layers ``router_logits`` (layers, B, S, E).
        """
        model = self.inner.model
        image = model.multi_modal_projector.project(vision_features)
        words = model.get_input_embeddings()(input_ids)
        shown = (input_ids == self.config.image_token_id)[..., None]
        decided: list[Tensor] = []
        handles = [
            block.gate.register_forward_hook(lambda _, inputs, given: decided.append(given[0]))
            for block in self.inner.moe_blocks.values()
        ]
        out = model.language_model(
            inputs_embeds=torch.where(shown, image, words),
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=True,
            **{CACHE: past_key_values},
        )
        for handle in handles:
            handle.remove()
        states = out.last_hidden_state
        index = wanted[..., None].expand(-1, -1, states.shape[-1])
        logits = self.inner.lm_head(states.gather(1, index))
        given = {"logits": logits, "past_key_values": out.past_key_values}
        return given | ({"router_logits": torch.stack(decided)} if decided else {})


def export_openvino(source: Path, destination: Path, weights: Weights = "int8") -> dict[str, Any]:
    """Write a model folder's exported twin, which `MedMoe.load` takes like any other.

    Args:
        source: Folder of a model or an adapter.
        destination: Folder to write, new, or of a model or export that is replaced once the new one
            is whole.
        weights: ``float32``, or what the language graph's matrices are rounded to, those of the
            router too. The encoder, some percent of the bytes, stays float32.

    Returns:
        What was written: ``format``, ``weights``, ``source`` (a hash of the model), ``width`` W,
        its number of ``parameters``, ``bytes``.

    Raises:
        CheckpointError: The source is no model, or the destination holds something else.
        ConfigError: What exporting needs is not installed.
    """
    openvino, exporter = _openvino()
    check_replaceable(destination)
    model, processor = load_model(source, "float32")
    model.config.refuse_routing_by_picture("an exported graph")
    width = model.model.multi_modal_projector.linear_1.in_features
    told = {
        "format": "openvino",
        "weights": weights,
        "source": identity(source),
        "width": width,
        "parameters": parameters_of(model),
    }
    with committed(destination) as staging, torch.no_grad(), _quiet():
        for name, graph, sample, shapes in _graphs(model, width):
            varying = {"dynamic_shapes": shapes} if shapes else {"dynamic": True}
            options = _options(weights if name == LANGUAGE else "float32", varying)
            program = exporter.export(graph, sample, options).program
            openvino.save_model(program, staging / name, compress_to_fp16=False)
        model.config.save_pretrained(staging)
        model.generation_config.save_pretrained(staging)
        processor.save_pretrained(staging)
        name_plain_tokenizer(staging / "tokenizer_config.json", processor.tokenizer.padding_side)
        if model.domain_check is not None:
            save_file(model.domain_check.state_dict(), staging / CHECK)
        facts = {"domains": model.config.domains, "training": provenance(source)}
        write_json(staging / PROVENANCE, facts)
        if (source / CARD).is_file():
            shutil.copy(source / CARD, staging / CARD)
        told["bytes"] = sum(path.stat().st_size for path in staging.iterdir())
        write_json(staging / EXPORT, told)
    return told


def name_plain_tokenizer(path: Path, padding_side: str) -> None:
    """Have a tokenizer's file read by the class that keeps no second copy of it.

    Gemma's own class holds words and merges in Python as well, some 150 MB.
    """
    told = json.loads(path.read_text(encoding="utf-8"))
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": padding_side}
    write_json(path, told | plain)


def openvino_core() -> Any:
    """Return OpenVINO's runtime.

    Raises:
        ConfigError: It is not installed.
    """
    # What oneDNN keeps for each length of a context, megabytes a token, saves no time.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", SHAPES_KEPT)
    return _openvino()[0].Core()


def _openvino() -> tuple[Any, Any]:
    # OpenVINO and nncf report to their makers what is done with them, unless this is not there.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
        from transformers.exporters import OpenVINOExporter

        return openvino, OpenVINOExporter()
    except ImportError as error:
        raise ConfigError(f"exported models need more ({error}); install it: {_INSTALL}") from None


def _options(weights: Weights, shapes: Mapping[str, Any]) -> Any:
    from transformers.exporters import OpenVINOConfig

    if weights == "float32":
        return OpenVINOConfig(**shapes)
    try:
        import nncf
        from transformers.exporters import NNCFOpenVINOQuantizer, NNCFWeightCompressionConfig
    except ImportError as error:
        raise ConfigError(f"rounding needs more ({error}); install it: {_INSTALL}") from None
    rounded = NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode[f"{weights.upper()}_SYM"])
    if weights == "int4":  # groups as wide as a matrix that 128 does not divide allows
        rounded.advanced_parameters = nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
        )
    return OpenVINOConfig(**shapes, quantizer=NNCFOpenVINOQuantizer(rounded))


def _graphs(
    model: MedMoeForConditionalGeneration, width: int
) -> Iterator[tuple[str, nn.Module, dict[str, Any], dict[str, Any]]]:
    """Yield each graph: its file's name, an example of its inputs, what varies (empty: all)."""
    side = model.config.vision_config.image_size
    pixels = torch.zeros(2, 3, side, side)
    batch = {"pixel_values": {0: torch.export.Dim.AUTO}}
    yield VISION, VisionGraph(model).eval(), {"pixel_values": pixels}, batch
    rows, before, now = 2, 5, 6
    mask = torch.ones(rows, before + now, dtype=torch.long)
    positions = torch.arange(before + now).expand(rows, -1)

    def tokens(start: int, end: int) -> Mapping[str, Tensor]:
        count = end - start
        return {
            "input_ids": torch.ones(rows, count, dtype=torch.long),
            "vision_features": torch.zeros(rows, count, width),
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, start:end].contiguous(),
            "wanted": torch.arange(3).expand(rows, -1).contiguous(),
        }

    graph, cache = LanguageGraph(model).eval(), DynamicCache()
    graph(**tokens(0, before), past_key_values=cache)
    yield LANGUAGE, graph, {**tokens(before, before + now), "past_key_values": cache}, {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporter says of versions and shapes: no user can act on it."""
    loggers = [logging.getLogger(name) for name in ("transformers", "nncf", "openvino")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
