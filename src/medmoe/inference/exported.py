"""`MedMoe` on graphs that `medmoe export` wrote: the same answers without PyTorch's modules.

The key-value cache is the state of a request to the language graph; all requests share one set of
weights. What looks into the model's modules (`explain`) is refused.

Shapes: B prompts, S tokens read now, N pictures, P patches, W encoder width, K wanted positions, V
vocabulary, E experts.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig

from medmoe.errors import CheckpointError, ConfigError, first_line
from medmoe.inference.answer import Answer, Routing, read_check, read_routings
from medmoe.inference.chat import ChatBatch, ChatRow
from medmoe.inference.engine import Asked, MedMoe, Options, Scored, room_for
from medmoe.model.checkpoint import read_config, read_processor, verify
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.domain_check import DomainCheck
from medmoe.model.export import CHECK, LANGUAGE, SHAPES_KEPT, VISION, openvino_core
from medmoe.model.locate import EXPORT, read_json
from medmoe.model.modeling_medmoe import pool_cells

_VARIABLE = re.compile(r"\.(\d+)\.(?:.*\.)?(keys|values)")


@dataclass(slots=True)
class _Layer:
    keys: Tensor
    values: Tensor


class _State:
    """The key-value cache of one request, which `ChatBatch` reads and writes layer by layer."""

    def __init__(self, request: Any) -> None:
        self.request = request
        request.reset_state()
        self._variables: dict[tuple[int, str], Any] = {}
        for variable in request.query_state():
            number, kind = _VARIABLE.search(variable.name).groups()  # type: ignore[union-attr]
            self._variables[int(number), kind] = variable
        self._taken: list[_Layer] | None = []  # None: the request's own are the newest

    @property
    def layers(self) -> list[_Layer]:
        """Keys and values of every layer, (B, heads, S, width); what is set there is read next."""
        if self._taken is None:
            count = len(self._variables) // 2
            self._taken = [
                _Layer(*(self._tensor(n, k) for k in _Layer.__slots__)) for n in range(count)
            ]
        return self._taken

    def update(self, keys: Tensor, values: Tensor, number: int) -> None:
        """Take a layer's keys and values into an empty cache."""
        assert self._taken is not None
        self._taken.insert(number, _Layer(keys, values))

    def infer(self, feed: dict[str, Any]) -> Any:
        """Run the graph behind what the cache holds."""
        for number, layer in enumerate(self._taken or ()):
            for kind in _Layer.__slots__:
                states = np.ascontiguousarray(getattr(layer, kind).numpy())
                self._variables[number, kind].state = _tensor_of(states)
        self._taken = None
        return self.request.infer(feed)

    def _tensor(self, number: int, kind: str) -> Tensor:
        return torch.from_numpy(np.array(self._variables[number, kind].state.data))


def _give_back_memory() -> None:
    """Return to the system what reading the tokenizer's file took: of Gemma's some 300 MB."""
    with suppress(AttributeError, OSError, TypeError):  # not every system's C library has it
        ctypes.CDLL(None).malloc_trim(0)


def _tensor_of(states: Any) -> Any:
    import openvino

    return openvino.Tensor(states)


class _Graphs:
    """What stands in the place of the torch model: its facts, and the compiled graphs."""

    device = torch.device("cpu")

    def __init__(self, folder: Path, config: MedMoeConfig) -> None:
        core = openvino_core()
        # One answer at a time; float32 sums, as PyTorch's: the default would be bfloat16's.
        how = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        how["CPU_RUNTIME_CACHE_CAPACITY"] = SHAPES_KEPT
        try:
            self.vision, self.language = (
                core.compile_model(str(folder / name), "CPU", how) for name in (VISION, LANGUAGE)
            )
        except RuntimeError as error:
            raise CheckpointError(
                f"{folder}: its graphs cannot be run ({first_line(error)}); export it again"
            ) from None
        self.config = config
        self.facts = read_json(folder / EXPORT)
        self.generation_config = GenerationConfig.from_pretrained(folder)
        self.domain_check: DomainCheck | None = None
        if (folder / CHECK).is_file():
            self.domain_check = DomainCheck(config.domain_check or {})
            self.domain_check.load_state_dict(load_file(folder / CHECK))

    def eval(self) -> Self:
        """Return itself: a graph is never trained."""
        return self

    def to(self, _: Any) -> Self:
        """Return itself: the graphs run where they were compiled, on the CPU."""
        return self


@dataclass(frozen=True, slots=True)
class _Decisions:
    """The routers' decisions on image tokens, as `read_routings` reads a trace.

    Attributes:
        logits: By layer (T, E).
    """

    logits: dict[int, Tensor]
    top_k: int

    @property
    def layers(self) -> list[int]:
        return list(self.logits)

    def probabilities(self, layer: int) -> Any:
        return self.logits[layer].softmax(-1).double().numpy()

    def experts(self, layer: int) -> Any:
        return self.logits[layer].topk(self.top_k, dim=-1).indices.numpy()


class ExportedMedMoe(MedMoe):
    """A model that runs as exported graphs; made by `MedMoe.load` of their folder."""

    explains = False
    model: Any

    @classmethod
    def load(cls, directory: Path | str, *, dtype: str | None = None, **limits: int) -> Self:
        """Load a folder of exported graphs, verified against its manifest.

        Raises:
            CheckpointError: It is incomplete or altered.
            ConfigError: A dtype is asked for, which was chosen when it was exported, or OpenVINO is
                not installed.
        """
        folder = Path(directory)
        if dtype is not None:
            raise ConfigError(
                f"{folder} is exported, its weights are as `medmoe export --weights` wrote them; "
                "leave --dtype out"
            )
        verify(folder)
        processor = read_processor(folder)
        engine = cls(_Graphs(folder, read_config(folder)), processor, **limits)  # type: ignore[arg-type]
        _give_back_memory()
        return engine

    def parameters(self) -> dict[str, int]:
        """Return how many weights the model had before it was exported."""
        return dict(self.model.facts["parameters"])

    def encode_pixels(self, pixel_values: Tensor) -> Tensor:
        """Return the vision features (N, P, W) of what `pixel_values` gives."""
        parts = pixel_values.split(self.batch_size)
        return torch.cat(
            [torch.from_numpy(self.model.vision([p.numpy()])[0].copy()) for p in parts]
        )

    def new_cache(self) -> Any:
        """Return an empty key-value cache for `read`."""
        return _State(self.model.language.create_infer_request())

    def read(
        self, ids: Tensor, vision: Tensor | None, mask: Tensor, positions: Tensor, cache: Any
    ) -> Tensor:
        """Read tokens behind those in a cache, as `MedMoe.read`."""
        last = torch.full((len(ids), 1), ids.shape[1] - 1)
        return self._logits(ids, vision, mask, positions, last, cache)[:, 0]

    def _logits(
        self,
        ids: Tensor,
        vision: Tensor | None,
        mask: Tensor,
        positions: Tensor,
        wanted: Tensor,
        cache: _State,
    ) -> Tensor:
        """Return the logits (B, K, V) behind the wanted positions (B, K)."""
        patches = torch.zeros(*ids.shape, self.model.facts["width"])
        if vision is not None:
            tokens = pool_cells(vision, self.model.config.image_pool)
            patches[ids == self.processor.image_token_id] = tokens.flatten(0, 1).float()
        out = cache.infer(
            {
                "input_ids": ids.numpy(),
                "vision_features": patches.numpy(),
                "attention_mask": mask.numpy(),
                "position_ids": positions.numpy(),
                "wanted": wanted.numpy(),
                "beam_idx": np.arange(len(ids), dtype=np.int32),
            }
        )
        if self.model.config.moe_layers:
            self._decided = torch.from_numpy(out["router_logits"].copy())
        return torch.from_numpy(out["logits"].copy())

    @contextmanager
    def routed(
        self, ids: Tensor, vision: Tensor | None, *, experts: bool
    ) -> Iterator[list[Routing | None]]:
        """Record where the routers send the images of the one batch that is read inside."""
        routings: list[Routing | None] = [None] * len(ids if vision is None else vision)
        yield routings
        config = self.model.config
        if vision is not None and config.moe_layers:
            of_image = self._decided[:, ids == self.processor.image_token_id]
            by_layer = dict(zip(config.moe_layers, of_image, strict=True))
            decisions: Any = _Decisions(by_layer, config.num_experts_per_tok)
            checks = read_check(self.model, vision)
            routings[:] = read_routings(decisions, checks, self.domains, experts=experts)

    @torch.inference_mode()
    def _scored(self, asked: Sequence[Options], features: Tensor) -> list[Scored]:
        """Score the options of some questions, of one after the other."""
        return [
            self._scored_one(features[list(images)], question, options)
            for images, question, options in asked
        ]

    def _scored_one(self, features: Tensor, question: str, options: tuple[str, ...]) -> Scored:
        count = len(features)
        segments = [self.segment(question, option, count) for option in options]
        prefix = self.tokenizer.prefix(count)
        ids, mask = self.left_padded([prefix + segment.ids for segment in segments])
        vision = features.repeat(len(options), 1, 1)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        longest = max(segment.answer_length for segment in segments)
        places = torch.arange(ids.shape[1] - longest, ids.shape[1])
        wanted = (places - 1).repeat(len(options), 1)
        with self.routed(ids, vision, experts=False) as routings:
            logits = self._logits(ids, vision, mask, positions, wanted, self.new_cache())
        of_tokens = logits.float().log_softmax(-1).gather(-1, ids[:, places, None])[..., 0]
        lengths = [segment.answer_length for segment in segments]
        sums = [float(row[longest - n :].sum()) for row, n in zip(of_tokens, lengths, strict=True)]
        return tuple(sums), tuple(routings[:count])

    def _generate(
        self,
        batch: Sequence[Asked],
        features: Tensor | None,
        experts: bool,
    ) -> list[Answer]:
        """Answer prompts, as one batch of conversations."""
        asked = [
            ChatRow(
                prompt,
                features[list(images)] if images and features is not None else None,
                room_for(self.max_new_tokens, len(prompt), self.limit),
            )
            for images, prompt in batch
        ]
        talks, answers = ChatBatch(self), dict[ChatRow, Answer]()
        talks.join(asked)
        while talks.rows:
            said = talks.step()
            answers |= {row: chunk.answer for row, chunk in said if chunk.answer is not None}
        return [answers[row] for row in asked]
