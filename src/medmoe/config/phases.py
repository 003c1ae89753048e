"""The phases of training, in order: what each starts from, trains on, trains and leaves.

The one table (paper, section 3.1 to 3.3). The functions that run the phases stand beside it in
`medmoe.experiments.phases`, which may import what trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from medmoe.config.schema import PhaseName, Task, Trains

#: Part of a model that trains: a key of `medmoe.training.trainable.PARTS`.
Part = Literal[
    "everything",
    "projector",
    "language_model",
    "decoder_layers",
    "lm_head",
    "router",
    "domain_experts",
    "meta_expert",
    "new_expert",
    "dense_ffns",
    "lora_adapters",
]


@dataclass(frozen=True, slots=True)
class Phase:
    """What a phase is.

    Attributes:
        inputs: The phases whose results it starts from.
        tasks: The tasks whose records it trains on, unless the recipe names others.
        trains: The parts that train, by variant; everything else is frozen. ``paper`` is the rule;
            ``decoder_layers`` leaves word embeddings and head as they were pretrained;
            ``reference`` is what the reference code's name matching trains in phase 3;
            ``learned_router`` is Table 6's alternative; ``lora`` is Table 7's, and what peers do
            in phase 2.
        leaves: What its run directory holds at the end.
    """

    inputs: tuple[PhaseName, ...]
    tasks: tuple[Task, ...]
    trains: Mapping[Trains, tuple[Part, ...]]
    leaves: Literal["encoder", "language_model", "dense", "router", "moe"]

    @property
    def backbone(self) -> bool:
        """Whether it trains a backbone alone."""
        return self.leaves in ("encoder", "language_model")

    @property
    def whole_batch(self) -> bool:
        """Whether its loss compares all images of a batch, which then has no parts."""
        return self.leaves == "encoder"

    @property
    def recomputes(self) -> bool:
        """Whether gradient checkpointing saves anything: heads and routers have no deep layers."""
        return self.leaves not in ("encoder", "router")

    @property
    def answers(self) -> bool:
        """Whether its model has learned to answer questions."""
        return self.leaves in ("dense", "moe") and "vqa" in self.tasks


_ALL: tuple[Task, ...] = ("caption", "vqa", "classification")
_QUESTIONS: tuple[Task, ...] = ("vqa", "classification")
_EVERYTHING: dict[Trains, tuple[Part, ...]] = {"paper": ("everything",)}
_DENSE: dict[Trains, tuple[Part, ...]] = {
    "paper": ("projector", "language_model", "lm_head"),
    "decoder_layers": ("projector", "decoder_layers"),
    "lora": ("lora_adapters",),
}

PHASE_TABLE: dict[PhaseName, Phase] = {
    "phase0_encoder": Phase((), _ALL, _EVERYTHING, "encoder"),
    "phase0_language": Phase((), _ALL, _EVERYTHING, "language_model"),
    # Not in the paper: a pretrained encoder meets medical pictures before it is frozen.
    "phase0_adapt": Phase((), _ALL, _EVERYTHING, "encoder"),
    "phase1_alignment": Phase(
        ("phase0_encoder", "phase0_language", "phase0_adapt"),
        ("caption",),
        {"paper": ("projector",)},
        "dense",
    ),
    "phase2_instruction": Phase(("phase1_alignment",), _ALL, _DENSE, "dense"),
    "phase2_router": Phase(("phase2_instruction",), _ALL, {"paper": ("router",)}, "router"),
    # Phase 3a of `experts: per_domain`: no router chooses and no meta expert helps.
    "phase3_experts": Phase(
        ("phase2_instruction", "phase2_router"), _QUESTIONS, {"paper": ("domain_experts",)}, "moe"
    ),
    "phase3_moe": Phase(
        ("phase2_instruction", "phase2_router", "phase3_experts"),
        _QUESTIONS,
        {
            "paper": ("domain_experts", "meta_expert"),
            "reference": ("domain_experts", "meta_expert", "projector", "dense_ffns"),
            "learned_router": ("domain_experts", "meta_expert", "router"),
            "lora": ("lora_adapters",),
        },
        "moe",
    ),
    # Not in the paper: one domain expert more, beside a trained model that stays what it is.
    "phase4_expert": Phase(("phase3_moe",), _QUESTIONS, {"paper": ("new_expert",)}, "moe"),
    "sft": Phase(("phase2_instruction",), _QUESTIONS, _DENSE, "dense"),
}
