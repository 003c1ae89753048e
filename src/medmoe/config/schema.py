"""What a recipe may say. Every key is declared here; an unknown one is an error.

Config is data (YAML under ``recipes/``), schema is code. The paper's hyperparameters have no hidden
defaults: a phase states them all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medmoe.domains import Task as Task

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
#: Which parts train in a phase: the variants of `medmoe.config.phases`.
Trains = Literal["paper", "decoder_layers", "reference", "learned_router", "lora"]
PhaseName = Literal[
    "phase0_encoder",
    "phase0_language",
    "phase0_adapt",
    "phase1_alignment",
    "phase2_instruction",
    "phase2_router",
    "phase3_experts",
    "phase3_moe",
    "phase4_expert",
    "sft",
]
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)


class Strict(BaseModel):
    """A group of values: unknown keys, wrong types and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def unsaid(default: Any, **rules: Any) -> Any:
    """Return a value that the dump leaves out where nothing is said, so that older hashes hold."""
    return Field(default=default, exclude_if=lambda value: value == default, **rules)


class ModelSpec(Strict):
    """The parts of a model and its MoE layers (paper, section 3.3 and Table 9).

    Attributes:
        language_model: Name of a language backbone.
        vision_encoder: Name of a vision backbone.
        moe_layers: Decoder layers with a MoE block; the paper takes 0, 2, 4, ….
        domains: One domain expert each; the order is the expert index.
        num_experts_per_tok: k of top-k, beside the always-on meta expert.
        router_layers: Depth of the router MLP.
        upcycle_init: ``copy`` (paper) or ``function_preserving`` (ours).
        meta_expert: Whether the MoE layers have the always-on meta expert (paper, Table 5).
        routing: ``token`` (paper), or ``image``: its picture decides for a whole conversation.
        experts: ``copies``: all start as the phase-2 FFN and specialise by routing; ``per_domain``:
            phase 3a first tunes each on the records of its own domain (the paper's other reading).
        language_layers: Keep only the first N decoder layers of the pretrained language model.
        language_source, vision_source: Hub id or folder to load the backbone from instead of the
            one its entry names.
        image_pool: n × n cells of the encoder, side by side (pixel shuffle), make one image token.
        blind: Whether it never sees a picture: the blind twin of a recipe, by `train --blind`.
    """

    language_model: str
    vision_encoder: str
    moe_layers: tuple[int, ...]
    domains: tuple[str, ...]
    num_experts_per_tok: Positive
    router_layers: Annotated[int, Field(ge=1, le=3)]
    upcycle_init: Literal["copy", "function_preserving"]
    meta_expert: bool = unsaid(True)
    routing: Literal["token", "image"] = unsaid("token")
    experts: Literal["copies", "per_domain"] = unsaid("copies")
    language_layers: Positive | None = unsaid(None)
    language_source: str | None = unsaid(None)
    vision_source: str | None = unsaid(None)
    image_pool: Literal[1, 2, 3] = unsaid(1)
    blind: bool = unsaid(False)

    @model_validator(mode="after")
    def _rules_between_values(self) -> Self:
        if self.num_experts_per_tok > len(self.domains):
            raise ValueError(
                f"num_experts_per_tok ({self.num_experts_per_tok}) must not exceed the number of "
                f"domains ({len(self.domains)}); use --set model.num_experts_per_tok=1"
            )
        for name, values in (("domains", self.domains), ("moe_layers", self.moe_layers)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} {list(values)} must name at least one, and each once")
        if self.upcycle_init == "function_preserving" and not self.meta_expert:
            raise ValueError(
                "upcycle_init function_preserving starts the domain experts at zero, so it needs "
                "the meta expert; use --set model.upcycle_init=copy"
            )
        if self.experts == "per_domain" and self.upcycle_init != "copy":
            raise ValueError(
                "experts per_domain are tuned from copies of the FFN, upcycle_init is "
                f"{self.upcycle_init!r}; use --set model.upcycle_init=copy"
            )
        return self


class PhaseSpec(Strict):
    """Optimisation of one phase (paper, Table 11): AdamW, cosine schedule with warm-up.

    Attributes:
        batch_size: Images per step (questions are packed behind their image).
        batch_of: Of ``questions`` a step has exactly ``batch_size``, captions and conversations
            among them, packed behind as many images as they are about: steps, samples and warm-up
            are those of the reference.
        warmup_ratio: Share of the steps with rising learning rate.
        augment: Strength 0–1 of shifts, zooms and exposure changes of training pictures.
        label_smoothing: Of the encoder's attribute heads.
        trains: Which parts train; what each name means stands in `medmoe.config.phases`.
        sides: Sides in pixels that pictures have in the parts of phase 0, equal in length; the
            encoder's own throughout where there are none.
        answers: Phase 0 also learns to answer what is asked of enough pictures.
        layer_decay: Each layer learns at this part of the rate of the one above it.
        projector_factor: Of the projector's rate, and of the heads' that phase 0 throws away.
        average: Part of the steps, at the end, whose weights' mean the phase ends with.
    """

    learning_rate: Annotated[float, Field(gt=0)]
    batch_size: Positive
    batch_of: Literal["images", "questions"] = unsaid("images")
    warmup_ratio: Share
    weight_decay: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    augment: Share = 0.0
    label_smoothing: Share = 0.0
    trains: Trains = unsaid("paper")
    sides: tuple[Positive, ...] = unsaid(())
    answers: bool = unsaid(False)
    layer_decay: Share = unsaid(1.0, gt=0)
    projector_factor: float = unsaid(1.0, gt=0)
    average: Share = unsaid(0.0)


class ExpertSpec(Strict):
    """One expert more for a trained model (`medmoe expert add`).

    Attributes:
        old: Sets of the other domains: half of their pictures teach the new row what is not its
            own, the other half keep at least the share ``keep`` of their decisions.
        labels: Pictures that teach the row, and that are held out, at most.
        ffn: Model folder of phase 2 whose FFNs it starts as; None: as the meta expert.
    """

    name: str
    old: tuple[str, ...]
    keep: Annotated[float, Field(gt=0, le=1)]
    labels: Positive
    row_steps: Positive
    row_rate: Annotated[float, Field(gt=0)]
    ffn: str | None = None
