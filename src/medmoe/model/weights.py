"""Names of experts on disk: one tensor per expert, merged into stacks on load, split on save.

So one expert can be shipped alone, and other engines read the files as they are.
"""

from __future__ import annotations

from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

from medmoe.backbones.ffn import GATED, PLAIN


def register_expert_names() -> None:
    """Tell transformers' loader how the experts of a ``medmoe`` model are named on disk."""
    converters = [
        WeightConverter(
            source_patterns=[f"mlp.experts.*.{name}" for name in names],
            target_patterns=f"mlp.experts.{stack}",
            operations=[MergeModulelist(dim=0), *([Concatenate(dim=1)] if names[1:] else [])],
        )
        for family in (GATED, PLAIN)
        for stack, names in family.stacks.items()
    ]
    register_checkpoint_conversion_mapping("medmoe", converters, overwrite=True)
