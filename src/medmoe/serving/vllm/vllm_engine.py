"""vLLM in our server: its scheduler behind our intake of images, our limits, audit log and page.

It decodes greedily, as `medmoe.serving.local_engine` does, and gives the same tokens. What it does
not do: say where the router sent an image, or explain (`--engine local` does).
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from medmoe.data.tokenize import ConversationTokenizer
from medmoe.errors import ConfigError, MedMoeError
from medmoe.inference.chat import (
    ChatChunk,
    ChatRequest,
    ChatRow,
    prepare,
    take_token,
    token_biases,
)
from medmoe.model.checkpoint import read_config, verify
from medmoe.model.locate import is_adapter, refuse_site
from medmoe.model.processing_medmoe import MedMoeProcessor
from medmoe.serving.chat_engine import ChatEngine, Load, failed, late, not_ready

_log = logging.getLogger(__name__)
#: vLLM reports home and looks for files on the hub unless it is told not to.
_OFFLINE = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
#: What is ours to say: the model, how it is built, and how many answer together.
_FIXED = ("model", "model_impl", "max_num_seqs", "limit_mm_per_prompt", "enable_log_requests")


class VllmEngine(ChatEngine):
    """The engine that hands over to vLLM, which shows neither the router's choices nor gradients.

    Args:
        options: Of vLLM's engine, by its own names, e.g. ``tensor_parallel_size``.

    Raises:
        ConfigError: vLLM is not installed, or an option is none.
        CheckpointError: It is no model folder.
    """

    def __init__(
        self,
        directory: Path,
        name: str | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        **limits: int,
    ) -> None:
        if is_adapter(directory):
            raise ConfigError(
                f"{directory} is an adapter, and vLLM reads whole models; make one of it by "
                f"`medmoe adopt {directory} --out DIR`"
            )
        refuse_site(directory, "vLLM reads")
        super().__init__(directory, name, **limits)
        self._directory, self._config = directory, read_config(directory)
        self._config.refuse_routing_by_picture("vLLM")
        self._options = dict(options or {})
        _check_options(self._options)
        self._under_way = 0
        self._llm: Any = None

    @property
    def state(self) -> str:
        """One of ``loading``, ``ready``, ``draining``, ``broken``."""
        return "broken" if self._llm is not None and self._llm.errored else self._state

    def load(self) -> Load:
        """Return how much there is to do."""
        running = min(self._under_way, self._max_batch)
        return Load(self._under_way - running, running)

    async def start(self) -> None:
        """Start vLLM's processes.

        Raises:
            MedMoeError: The model cannot be loaded, or vLLM does not start.
        """
        verify(self._directory)
        self._processor = MedMoeProcessor.from_pretrained(self._directory, local_files_only=True)
        self._count = ConversationTokenizer(self._processor, self._config.image_seq_length)
        self._biases = token_biases(GenerationConfig.from_pretrained(self._directory))
        # vLLM puts a picture's tokens in the place of one placeholder itself.
        self._write = ConversationTokenizer(self._processor, 1)
        try:
            self._llm = await asyncio.to_thread(self._build)
        except MedMoeError:
            raise
        except Exception as error:  # whatever a start of many processes may give
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(
                f"vLLM does not start ({reason}); its log above says more, "
                "docs/serving_vllm.md what was tried"
            ) from None
        self._state = "ready"

    async def stream(
        self, request: ChatRequest, *, deadline: float | None = None
    ) -> AsyncGenerator[ChatChunk]:
        """Answer a conversation, as `ChatEngine.stream` says."""
        self.check_room()
        if request.options:
            raise ConfigError("vLLM chooses among no options; a server with --engine local does")
        row = prepare(request, None, self._count, self._llm.model_config.max_model_len)
        request = replace(request, max_new_tokens=row.max_new_tokens)
        end = None if deadline is None else asyncio.get_running_loop().time() + deadline
        self._under_way += 1
        try:
            # Closing what vLLM gives takes the request out of its batch.
            async with aclosing(self._outputs(request)) as outputs:
                while True:
                    async with asyncio.timeout_at(end):  # never around a yield
                        chunks = self._said(row, await anext(outputs))
                    for chunk in chunks:
                        yield chunk
                        if chunk.finish is not None:
                            return
        except TimeoutError:
            raise late() from None
        finally:
            self._under_way -= 1

    async def stop(self) -> None:
        """End vLLM's processes."""
        self._state = "draining"
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)

    def _build(self) -> Any:
        """Return vLLM's engine; takes a minute."""
        for name, value in _OFFLINE.items():
            os.environ.setdefault(name, value)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        args = AsyncEngineArgs(
            model=str(self._directory), model_impl="transformers", max_num_seqs=self._max_batch,
            limit_mm_per_prompt={"image": self.most_images}, enable_log_requests=False,
            **self._options,
        )  # fmt: skip
        return AsyncLLM.from_engine_args(args)

    async def _outputs(self, request: ChatRequest) -> AsyncGenerator[Any]:
        """Yield what vLLM says, each time the new tokens only.

        Raises:
            EngineError: It failed.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        turns = [(turn.role, turn.text) for turn in request.turns]
        further = [turn for turn, _ in request.further]
        ids = self._write.conversation(turns, with_image=bool(request.images), further=further)
        prompt: dict[str, Any] = {"prompt_token_ids": list(ids)}
        if request.images:
            images = [image.convert("RGB") for image in request.images]
            prompt["multi_modal_data"] = {"image": images}
        params = SamplingParams(
            temperature=0.0, max_tokens=request.max_new_tokens, logprobs=0, detokenize=False,
            stop_token_ids=[self._processor.tokenizer.eos_token_id],
            logit_bias=self._biases or None,
            output_kind=RequestOutputKind.DELTA,
        )  # fmt: skip
        answer = self._llm.generate(prompt, params, uuid.uuid4().hex)
        try:
            async with aclosing(answer) as outputs:
                async for output in outputs:
                    yield output.outputs[0]
        except EngineDeadError:
            raise not_ready("broken") from None
        except (EngineGenerateError, ValueError) as error:
            _log.error("vLLM failed: %s", type(error).__name__)
            raise failed("answering") from None

    def _said(self, row: ChatRow, output: Any) -> list[ChatChunk]:
        """Return what new tokens add to an answer."""
        said = zip(output.token_ids, output.logprobs, strict=True)
        tokenizer = self._processor.tokenizer
        chunks = [take_token(row, token, of[token].logprob, tokenizer) for token, of in said]
        return [chunk for chunk in chunks if chunk.text or chunk.finish]


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that vLLM does not have, or that are ours.

    Raises:
        ConfigError: vLLM is not installed, or names the option.
    """
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed, which --engine vllm needs; "
            "docs/serving_vllm.md says how to install it"
        ) from None
    known = sorted({field.name for field in fields(AsyncEngineArgs)} - set(_FIXED))
    for name in options:
        if name in _FIXED:
            raise ConfigError(f"--vllm {name}: is set by medmoe itself; leave it out")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"--vllm {name}: vLLM has no such option{hint}")
