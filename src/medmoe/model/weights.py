"""Names of experts on disk: one tensor per expert, merged into stacks on load, split on save.

So one expert can be shipped alone, and other engines read the files as they are.
"""

from __future__ import annotations

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter


def _merged(source: str, target: str) -> WeightConverter:
    return WeightConverter(
        source_patterns=f"mlp.experts.*.{source}",
        target_patterns=f"mlp.experts.{target}",
        operations=[MergeModulelist(dim=0)],
    )


def expert_converters() -> list[WeightConverter]:
    """Return the converters between per-expert tensors on disk and the stacks in memory."""
    gate_up = WeightConverter(
        source_patterns=["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
        target_patterns="mlp.experts.gate_up_proj",
        operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
    )
    plain = [
        _merged(f"{part}.{kind}", f"{part}_{kind}")
        for part in ("fc1", "fc2")
        for kind in ("weight", "bias")
    ]
    return [gate_up, _merged("down_proj.weight", "down_proj"), *plain]


def register_expert_names() -> None:
    """Tell transformers' loader how the experts of a ``medmoe`` model are named on disk."""
    register_checkpoint_conversion_mapping("medmoe", expert_converters(), overwrite=True)
