"""The two kinds of FFN that stock decoders have, told apart by the names of their parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medmoe.errors import ConfigError


@dataclass(frozen=True, slots=True)
class FfnFamily:
    """Names of the linear parts of a stock FFN module.

    Attributes:
        gated: SwiGLU without bias if true, else two linear layers with biases.
        parts: Attribute names of the linear layers, in the order of the forward pass.
        stacks: Name of each stack of experts' weights -> the weights of one expert in it.
    """

    gated: bool
    parts: tuple[str, ...]
    stacks: Mapping[str, tuple[str, ...]]


GATED = FfnFamily(
    gated=True,
    parts=("gate_proj", "up_proj", "down_proj"),
    stacks={
        "gate_up_proj": ("gate_proj.weight", "up_proj.weight"),
        "down_proj": ("down_proj.weight",),
    },
)
PLAIN = FfnFamily(
    gated=False,
    parts=("fc1", "fc2"),
    stacks={f"{p}_{kind}": (f"{p}.{kind}",) for p in ("fc1", "fc2") for kind in ("weight", "bias")},
)


def ffn_family(ffn: Any) -> FfnFamily:
    """Return the family of a decoder layer's FFN module.

    Raises:
        ConfigError: The module is of neither family, so its experts could not be exact copies.
    """
    for family in (GATED, PLAIN):
        parts = [getattr(ffn, name, None) for name in family.parts]
        if all(part is not None and (part.bias is None) == family.gated for part in parts):
            return family
    names = ", ".join(name for name, _ in ffn.named_children())
    raise ConfigError(
        f"the FFN {type(ffn).__name__} has the parts ({names}); an expert needs gate_proj, "
        "up_proj, down_proj without bias, or fc1, fc2 with bias: choose another language model"
    )
