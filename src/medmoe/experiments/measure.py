"""Measured load memory and latency of a trained or an exported model: `medmoe cost --measure`.

In a process of its own, so that what this one holds does not count. Memory is the growth of the
resident set (on a GPU: what torch allocated there); times are medians, of a picture without
content, with the answer's length forced.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medmoe.errors import GuardError

ANSWER_TOKENS = 17
_QUESTION = "Is there any abnormality in this image?"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one machine needed.

    Attributes:
        load_bytes: Growth of the process while the model was loaded. Weights that stay mapped from
            the file are not in it before they are read.
        answering_bytes: Growth once it has answered: weights, cache and what the products need.
        mapped_bytes: So much of it is mapped from files, which the system may let go of and read
            again; None where it does not tell.
        first_token_seconds: From picture and question to the first token: encoder and prefill too.
        per_token_seconds: Each further token.
        repeats: How often each was timed.
        threads: Of torch.
    """

    load_bytes: int
    answering_bytes: int
    mapped_bytes: int | None
    first_token_seconds: float
    per_token_seconds: float
    repeats: int
    prompt_tokens: int
    threads: int
    device: str

    def seconds(self, tokens: int) -> float:
        """Return how long an answer of so many tokens takes."""
        return self.first_token_seconds + (tokens - 1) * self.per_token_seconds


def measure(directory: Path, repeats: int) -> Measured:
    """Load a model folder in a fresh process and time its answers.

    Raises:
        CheckpointError: The folder is incomplete, altered or not a model.
        GuardError: The system ended the process, as it does when memory runs out.
    """
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        try:
            return pool.submit(_measure, directory, repeats).result()
        except BrokenProcessPool:
            raise GuardError(
                f"{directory}: the process that ran the model was ended by the system, most likely "
                "for its memory; leave --measure out to see how much it needs"
            ) from None


def _measure(directory: Path, repeats: int) -> Measured:
    import psutil
    import torch

    from medmoe.inference.engine import MedMoe

    process = psutil.Process()
    start = process.memory_info()
    engine = MedMoe.load(directory)
    device = engine.model.device.type

    def held() -> int:
        on_gpu = device == "cuda"
        return (
            torch.cuda.max_memory_allocated() if on_gpu else process.memory_info().rss - start.rss
        )

    loaded = held()
    _seconds(engine, 2)  # all weights are read, and threads and kernels are warm from here on
    answering = held()
    mapped = process.memory_info().shared - start.shared if hasattr(start, "shared") else None
    first, whole = [], []
    for _ in range(repeats):  # interleaved: a busy moment hits both
        first.append(_seconds(engine, 1))
        whole.append(_seconds(engine, ANSWER_TOKENS))
    to_first = statistics.median(first)
    return Measured(
        load_bytes=loaded,
        answering_bytes=answering,
        mapped_bytes=mapped,
        first_token_seconds=to_first,
        per_token_seconds=(statistics.median(whole) - to_first) / (ANSWER_TOKENS - 1),
        repeats=repeats,
        prompt_tokens=len(engine.tokenizer.prompt(_QUESTION)),
        threads=torch.get_num_threads(),
        device=device,
    )


def _seconds(engine: Any, tokens: int) -> float:
    """Return how long an answer of exactly so many tokens takes, the picture encoded anew."""
    import torch
    from torch.nn import functional

    side = engine.model.config.vision_config.image_size
    grey = np.full((side, side, 3), 128, dtype=np.uint8)
    ids = torch.tensor([engine.tokenizer.prompt(_QUESTION)], device=engine.model.device)
    start = time.perf_counter()
    with torch.no_grad():
        vision, cache, mask = engine.encode([grey]), engine.new_cache(), torch.ones_like(ids)
        logits = engine.read(ids, vision, mask, mask.cumsum(-1) - 1, cache)
        for _ in range(tokens - 1):
            positions, mask = mask.sum(-1, keepdim=True), functional.pad(mask, (0, 1), value=1)
            logits = engine.read(logits.argmax(-1, keepdim=True), None, mask, positions, cache)
    if engine.model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
