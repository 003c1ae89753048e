"""Phases on toy data in processes that can be killed, resumed, and refused by the disk.

A run is a fork of this process, which has imported everything: it costs what its steps cost.
"""

from __future__ import annotations

import gc
import hashlib
import mmap
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tests.model.tiny import DOMAINS, MOE_LAYERS, processor
from tests.training import toy
from tests.training.test_phase0 import TINY_LANGUAGE, TINY_VISION, pretrained
from torch import Tensor

from medmoe.config.schema import PhaseName
from medmoe.config.train_schema import ValidationSpec
from medmoe.data.pixels import pixel_table
from medmoe.data.schema import images_of
from medmoe.errors import CheckpointError, GuardError, StoppedError
from medmoe.model.upcycle import moe_config
from medmoe.training.context import PhaseRun, Progress, RunSettings
from medmoe.training.packed import train_packed
from medmoe.training.phases.phase0_encoder import train_encoder
from medmoe.training.phases.phase0_language import train_language_model
from medmoe.training.phases.phase2_router import choose_labelled, fit_router, labelled_states
from medmoe.training.saving.checkpoints import CheckpointFolder, verify_checkpoint
from medmoe.training.saving.state import read_state
from medmoe.training.trainer import PhaseResult

STEPS, SAVE_EVERY, SEED = 12, 2, 5
Weights = dict[str, Tensor]
Train = Callable[[RunSettings, Progress], tuple[Weights, PhaseResult]]


@cache
def records() -> list[Any]:
    return toy.phantom_records(8)


def _run(phase: PhaseName, settings: RunSettings, progress: Progress, augment: float) -> PhaseRun:
    spec = toy.SPEC.model_copy(update={"augment": augment})
    return PhaseRun(
        phase=phase, spec=spec, steps=STEPS, seed=SEED, progress=progress, settings=settings
    )


def _encoder(settings: RunSettings, progress: Progress) -> tuple[Weights, PhaseResult]:
    run = _run("phase0_encoder", settings, progress, augment=0.5)
    tokenizer = processor().tokenizer
    encoder, result, _ = train_encoder(run, TINY_VISION, records(), {}, _table(), tokenizer)
    return encoder.state_dict(), result


def _adapt(settings: RunSettings, progress: Progress) -> tuple[Weights, PhaseResult]:
    run = _run("phase0_adapt", settings, progress, augment=0.5)
    validation = ValidationSpec(data=("phantom/validation",), every=5)
    values = {"encoder": pretrained(), "measured": records()[:9], "validation": validation}
    table, tokenizer = _table(), processor().tokenizer
    encoder, result, _ = train_encoder(
        run, TINY_VISION, records()[9:], {}, table, tokenizer, **values
    )
    return encoder.state_dict(), result


@cache
def _table() -> Any:
    return pixel_table(images_of(records()), processor().image_processor)


def _language(settings: RunSettings, progress: Progress) -> tuple[Weights, PhaseResult]:
    run = _run("phase0_language", settings, progress, augment=0.0)
    words, result = train_language_model(run, TINY_LANGUAGE, records(), processor())
    return words.state_dict(), result


def _router(settings: RunSettings, progress: Progress) -> tuple[Weights, PhaseResult]:
    model = toy.dense()
    labelled = choose_labelled(images_of(records()), DOMAINS, 8, SEED)
    config = moe_config(model.config, moe_layers=MOE_LAYERS, domains=DOMAINS, router_layers=1)
    made = toy.context(model, STEPS, records(), "phase2_router")
    context = replace(made, settings=settings, progress=progress)
    return fit_router(context, config, labelled_states(context, config, labelled))


def _packed(make: Callable[[], Any], phase: PhaseName) -> Train:
    def train(settings: RunSettings, progress: Progress) -> tuple[Weights, PhaseResult]:
        model = make()
        context = toy.context(model, STEPS, records(), phase)
        result = train_packed(replace(context, settings=settings, progress=progress))
        return model.state_dict(), result

    return train


#: Every phase, from its start to its weights.
PHASES: dict[str, Train] = {
    "phase0_encoder": _encoder,
    "phase0_language": _language,
    "phase0_adapt": _adapt,
    "phase1_alignment": _packed(toy.dense, "phase1_alignment"),
    "phase2_instruction": _packed(toy.dense, "phase2_instruction"),
    "phase2_router": _router,
    "phase3_moe": _packed(toy.moe, "phase3_moe"),
    "sft": _packed(toy.dense, "sft"),
}


def digest(weights: Weights) -> str:
    """Return the SHA-256 of all weights."""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@cache
def unbroken(phase: str) -> str:
    """Return the digest of a phase's weights that was never interrupted and saved nothing."""
    return digest(PHASES[phase](RunSettings(), toy.silent)[0])


def settings(folder: Path, **changes: Any) -> RunSettings:
    fields: dict[str, Any] = {"checkpoints": folder, "save_every": SAVE_EVERY, "resume": True}
    return RunSettings(**(fields | changes))


@dataclass
class Outcome:
    """How a forked run ended: its exit status (negative: its signal), and its last words."""

    status: int
    words: str


def forked(work: Callable[[], str], words: Path) -> int:
    """Run ``work`` in a fork of this process and return its process id.

    Its result or error is written to ``words``; it exits with 0, the error's code, or 99.
    """
    gc.freeze()  # the fork need not look at, and so copy, what this process holds
    pid = os.fork()
    if pid:
        gc.unfreeze()
        return pid
    code, text = 99, ""
    try:
        text = work()
        code = 0
    except (GuardError, StoppedError, CheckpointError) as error:
        code, text = error.exit_code, str(error)
    except BaseException as error:
        text = repr(error)
    finally:
        try:
            words.write_text(text, encoding="utf-8")
        finally:
            os._exit(code)  # whatever happens, a fork never goes on with its parent's work


def forked_pair(work: Callable[[], str], words: Path) -> tuple[int, int]:
    """Run ``work`` in two forks that work together over gloo, as ``torchrun`` starts them.

    Returns:
        Their process ids; the words of the first are written to ``words``.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def one(rank: int) -> str:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in (ranks | at).items()}
        return work()

    second = forked(lambda: one(1), words.with_suffix(".second"))
    return forked(lambda: one(0), words), second


def ended(pid: int, words: Path) -> Outcome:
    """Wait for a forked run."""
    _, status = os.waitpid(pid, 0)
    text = words.read_text(encoding="utf-8") if words.exists() else ""
    words.unlink(missing_ok=True)
    return Outcome(os.waitstatus_to_exitcode(status), text)


class Steps:
    """The last step that a forked run has finished, in memory that both processes see."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)

    @property
    def last(self) -> int:
        return int.from_bytes(self._memory[:8], "little")

    def hear(self, phase: str, step: int, steps: int, loss: float | None) -> None:
        self._memory[:8] = step.to_bytes(8, "little")


def load_all(directory: Path) -> None:
    """Read all of a checkpoint, as a resume does.

    Raises:
        Exception: It cannot be read.
    """
    verify_checkpoint(directory)
    read_state(directory)
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert all(torch.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118


def newest_step(folder: Path) -> int:
    """Return the newest checkpoint's step; it must load. 0 where there is none."""
    steps = CheckpointFolder(folder).steps()
    if not steps:
        return 0
    load_all(folder / f"step-{steps[-1]}")
    return steps[-1]


def kill_at_random(phase: str, folder: Path, numbers: range, workers: int = 0) -> Counter[str]:
    """Kill a phase at random moments, resuming it each time; count what went wrong.

    A run that ends by itself must have the weights of an unbroken one; the next begins anew.
    """
    counts: Counter[str] = Counter()
    words = folder.with_suffix(".words")
    wanted, duration = unbroken(phase), seconds(phase)
    for number in numbers:
        steps, before = Steps(), newest_step(folder)
        steps.hear(phase, before, STEPS, None)
        run = settings(folder, loader_workers=workers)
        pid = forked(lambda run=run, steps=steps: digest(PHASES[phase](run, steps.hear)[0]), words)
        delay = random.Random(f"{phase} {number}").uniform(0, duration)
        end = time.monotonic() + delay
        while time.monotonic() < end and not words.exists():
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        outcome = ended(pid, words)
        counts["killed" if outcome.status < 0 else "ended_before"] += 1
        try:
            newest = newest_step(folder)
        except Exception:
            counts["unloadable"] += 1
            shutil.rmtree(folder)
            continue
        counts["lost_more_than_an_interval"] += steps.last - newest > SAVE_EVERY
        counts["resumed"] += before > 0
        if newest == STEPS:
            final = digest(PHASES[phase](settings(folder), toy.silent)[0])
            counts["ends"] += 1
            counts["other_weights_at_the_end"] += final != wanted
            shutil.rmtree(folder)
    return counts


def _final(phase: str, run: RunSettings) -> str:
    return digest(PHASES[phase](run, toy.silent)[0])


@cache
def seconds(phase: str) -> float:
    """Return how long a phase with its saves takes in a fork."""
    times = []
    for _ in range(3):  # the shortest: the machine may be busy otherwise
        with tempfile.TemporaryDirectory() as scratch:
            words, run = Path(scratch) / "words", settings(Path(scratch) / "run")
            began = time.monotonic()
            outcome = ended(forked(lambda run=run: _final(phase, run), words), words)
            times.append(time.monotonic() - began)
        assert outcome.words == unbroken(phase), outcome.words
    return min(times)


def resume_at(phase: str, step: int, every: Path, folder: Path, workers: int) -> bool:
    """Return whether a resume from one step ends with the weights of an unbroken run.

    Args:
        every: Holds a checkpoint of every step of the phase.
    """
    shutil.copytree(every / f"step-{step}", folder / f"step-{step}")
    weights, result = PHASES[phase](settings(folder, loader_workers=workers), toy.silent)
    assert result.resumed_from == step
    return digest(weights) == unbroken(phase)


def save_every_step(phase: str, folder: Path) -> str:
    """Train with a checkpoint of every step; return the digest of the weights."""
    run = settings(folder, save_every=1, keep=STEPS + 1, resume=False)
    return digest(PHASES[phase](run, toy.silent)[0])
