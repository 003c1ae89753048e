"""What stands in a checkpoint, and how it gets there and back.

Trained weights, optimiser, schedule, random state and the learning curve so far; safetensors and
JSON only. Frozen weights are not written: the phase begins with them, and their hash is compared.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medmoe.errors import GuardError
from medmoe.model.committed import write_json
from medmoe.model.hashes import take_in
from medmoe.training.parallel import (
    is_of_deepspeed,
    optimizer_state,
    put,
    put_optimizer_state,
    share,
    trained_parameters,
    whole,
)

WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
AVERAGE = "average.safetensors"
VERSION = 1


def optimizer_tensors(model: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Return the optimiser's state as ``<kind>/<parameter>``; every process must call this."""
    return {
        f"{kind}/{name}": whole(value)
        for name, parameter in trained_parameters(model)
        for kind, value in optimizer_state(optimizer, parameter).items()
    }


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to one file.

    Raises:
        GuardError: One of them is not finite: it would be of no use and is never saved.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise GuardError(f"{name} is not finite and is not saved to {path.name}")
    save_file(dict(tensors), path)


def load_weights(model: nn.Module, directory: Path, file_name: str = WEIGHTS) -> None:
    """Put a checkpoint's weights into a model of the same trained parameters."""
    with safe_open(directory / file_name, framework="pt") as file:
        for name, parameter in trained_parameters(model):
            put(parameter, file.get_tensor(name))


def load_optimizer(model: nn.Module, optimizer: Any, directory: Path) -> None:
    """Put a checkpoint's optimiser state into an optimiser of the same parameters."""
    trained = list(trained_parameters(model))
    names = {id(parameter): name for name, parameter in trained}
    groups = optimizer.param_groups
    order = [parameter for group in groups for parameter in group["params"]]
    index = {id(parameter): number for number, parameter in enumerate(order)}
    with safe_open(directory / OPTIMIZER, framework="pt") as file:
        kinds: dict[str, list[str]] = {}
        for key in file.keys():  # noqa: SIM118  (the file is no mapping)
            kind, _, name = key.partition("/")
            kinds.setdefault(name, []).append(kind)
        if is_of_deepspeed(trained[0][1]):
            for name, parameter in trained:
                whole_state = {kind: file.get_tensor(f"{kind}/{name}") for kind in kinds[name]}
                put_optimizer_state(optimizer, parameter, whole_state)
            return
        state = {
            index[id(parameter)]: {
                kind: share(file.get_tensor(f"{kind}/{names[id(parameter)]}"), parameter)
                for kind in kinds.get(names[id(parameter)], [])
            }
            for parameter in order
        }
    numbered = [group | {"params": [index[id(p)] for p in group["params"]]} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": numbered})


def schedule_state(scheduler: Any) -> dict[str, Any]:
    """Return where a learning rate schedule stands."""
    return {"last_epoch": scheduler.last_epoch, "step_count": scheduler._step_count}


def load_schedule(scheduler: Any, state: Mapping[str, Any]) -> None:
    """Set a learning rate schedule to where it stood; its rates follow from its own formula."""
    scheduler.last_epoch, scheduler._step_count = state["last_epoch"], state["step_count"]
    rates = [
        base * rule(scheduler.last_epoch)
        for base, rule in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates


def random_state() -> dict[str, Any]:
    """Return the state of this process's random generators, as JSON has it."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (a library may draw from it)
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "cuda": None if gpu is None else gpu.numpy().tobytes().hex(),
    }


def load_random_state(state: Mapping[str, Any]) -> None:
    """Set this process's random generators."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(_bytes(state["torch"]))
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(state["cuda"]))


def write_state(directory: Path, content: Mapping[str, Any]) -> None:
    """Write the part of a checkpoint's state that holds no tensor."""
    write_json(directory / STATE, {"version": VERSION} | dict(content))


def read_state(directory: Path) -> dict[str, Any]:
    """Return the state that `write_state` wrote."""
    content: dict[str, Any] = json.loads((directory / STATE).read_text(encoding="utf-8"))
    return content


def frozen_hash(model: nn.Module) -> str:
    """Return a hash of all that does not train: frozen parameters by name, type and bytes."""
    digest = hashlib.sha256()
    take_in(digest, ((n, p) for n, p in model.named_parameters() if not p.requires_grad))
    return digest.hexdigest()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
