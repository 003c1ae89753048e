"""What a recipe of `medmoe train` may say: model, data, phases, router, and how it is run.

A resolved recipe names everything; it is written into the run directory and is a recipe itself.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import (
    PHASES,
    ExpertSpec,
    ModelSpec,
    PhaseName,
    PhaseSpec,
    Positive,
    Share,
    Strict,
    Task,
    unsaid,
)
from medmoe.domains import MODALITIES, modality_name
from medmoe.errors import one_of


def _sets(names: tuple[str, ...]) -> tuple[str, ...]:
    bad = [name for name in names if not set(name) & set("/\\.")]  # "." of a file's suffix
    if bad or not names:
        raise ValueError("must list sets as set/split or by path, e.g. [vqa_rad/train]")
    return names


Sets = Annotated[tuple[str, ...], AfterValidator(_sets)]


class LoraSpec(Strict):
    """Low-rank adapters, merged at the end.

    In phase 3 on the domain and meta experts (paper, Table 7); in phase 2 and its SFT twin on the
    projector and on all matrices of the decoder's layers.

    Attributes:
        rank: Of the two factors; the paper tries 128 and 256.
        alpha: The adapter is scaled by alpha / rank.
        dropout: On the adapters' input; PEFT has none for stacked experts, so it must be 0.
        bits: Hold the frozen matrices of the decoder's layers in so many bits while the adapters
            train (QLoRA, NF4); stacked experts keep theirs. None for the weights' own.
        keep: Leave the adapter beside the merged model too, with the base that it was trained on.
    """

    rank: Positive
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, le=0)] = 0.0
    bits: Literal[4] | None = unsaid(None)
    keep: bool = unsaid(False)


class TrainPhaseSpec(PhaseSpec):
    """One phase of a training run: its data, its length and its optimisation.

    Attributes:
        data: Sets whose records of the phase's tasks are trained on, as ``set/split``, or a path
            (``clinic/data.csv``, or ``clinic/data.csv:train``).
        tasks: Instead of those that the phase's row of `medmoe.config.phases` names.
        epochs, steps: Its length: passes over the images, or optimiser steps; one of the two.
        samples: How many samples the paper counts (Table 12); gives the steps of a plan where the
            data is not there.
        max_questions: Questions packed behind one image in a step.
        prompt: ``plain`` is the reference's of phase 1, an image and its caption without question
            and template; captions only.
        keep_features: Encode every image once and keep the result on disk; false encodes a batch
            when it is needed, for more images than the disk can hold.
        views: Versions of each training picture whose features are kept, the others than the first
            with the strength ``augment``; one is drawn each time the picture comes.
        lora: Adapters instead of whole weights; ``trains`` must be ``lora``.
        load_balance: Weight of the auxiliary load-balancing loss; ``learned_router`` only.
    """

    data: Sets
    tasks: tuple[Task, ...] | None = unsaid(None)
    epochs: Positive | None = None
    steps: Positive | None = None
    samples: Positive | None = None
    max_questions: Positive = 8
    prompt: Literal["chat", "plain"] = unsaid("chat")
    keep_features: bool = True
    views: Positive = unsaid(1)
    lora: LoraSpec | None = None
    load_balance: Annotated[float, Field(ge=0)] = 0.0

    @field_validator("tasks")
    @classmethod
    def _at_least_one_task(cls, tasks: tuple[Task, ...] | None) -> tuple[Task, ...] | None:
        if tasks is not None and (not tasks or len(set(tasks)) != len(tasks)):
            raise ValueError("must name at least one task, and each once, e.g. [vqa]")
        return tasks

    @model_validator(mode="after")
    def _rules_between_values(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a phase needs either epochs or steps; give one, set the other null")
        if (self.lora is None) == (self.trains == "lora"):
            raise ValueError(
                f"trains is {self.trains!r} and lora is "
                f"{'missing' if self.lora is None else 'given'}; adapters need both"
            )
        if self.load_balance and self.trains != "learned_router":
            raise ValueError(
                f"load_balance ({self.load_balance}) acts on a router that trains, trains is "
                f"{self.trains!r}; use trains: learned_router, or load_balance: 0"
            )
        return self


class DataSpec(Strict):
    """Which data a run reads besides what its phases name.

    Attributes:
        phantom_images, phantom_test_images: How many embedded pictures ``phantom/train`` and
            ``phantom/test`` are; `medmoe eval` asks about 200.
        apart_from: Sets that will be scored: a training picture that nearly equals one of theirs
            is dropped, and counted in ``run.json``. Without a split: validation and test.
        drop_near_duplicates: Switched off, such a picture is refused instead of dropped.
        literature: Train on exactly the rows that the literature trains on: nothing is dropped or
            refused, and what is also scored is counted and stands in every score.
        shared: Scored sets that have pictures in common with other splits of their own data set:
            these are trained on, counted, and stand in every score.
        held_out: Set → share of its images that are not trained on but make up
            ``<data set>/held_out``, drawn by the seed.
        repeats: How often a data set's images come in one epoch (1 where not named).
        limits: At most so many training images of a data set.
        modality: That of all pictures of a set that names none.
        lower_case: Teach the answers to questions (not captions, not classes) in lower case. Sets
            write Yes and yes at will, no protocol tells them apart, and a model that does divides
            one answer's probability between them.
    """

    phantom_images: Positive = 480
    phantom_test_images: Positive = 200
    apart_from: tuple[str, ...] = ()
    drop_near_duplicates: bool = True
    literature: bool = unsaid(False)
    shared: tuple[str, ...] = unsaid(())
    held_out: dict[str, Share] = unsaid({})
    repeats: dict[str, Positive] = Field(default_factory=dict)
    limits: dict[str, Positive] = Field(default_factory=dict)
    modality: str | None = unsaid(None)
    lower_case: bool = unsaid(False)

    @field_validator("modality")
    @classmethod
    def _known_modality(cls, name: str | None) -> str | None:
        if name is None or modality_name(name) in MODALITIES:
            return name and modality_name(name)
        raise ValueError(one_of(name, MODALITIES, "modality"))


class RouterSpec(Strict):
    """How the router is taught (paper, section 3.2 and Figure 6).

    Attributes:
        labels: Labelled images it may see; the paper's upper bound is 1,000.
        loss: ``token`` asks for the domain at every token, ``pooled`` at their mean.
        per_layer: One router for each MoE layer; the reference shares one.
        test: Sets whose labelled images it is scored on.
        test_per_domain: At most so many of each domain, equal in number, drawn by the seed; None
            takes all.
        label_counts: Also train one router on each of these numbers of labels (Figure 6).
    """

    labels: Positive
    loss: Literal["token", "pooled"]
    per_layer: bool
    test: tuple[str, ...] = ()
    test_per_domain: Positive | None = unsaid(None)
    label_counts: tuple[Annotated[int, Field(ge=0)], ...] = ()


class ValidationSpec(Strict):
    """What is measured while the phases train that answer: validation loss and strict score.

    Attributes:
        data: Sets to measure on; of their pictures, those that nearly equal a trained one are left
            out.
        every: Steps between two measurements; a phase's last step is always measured.
        questions: The loss is that of so many of their records, a fixed draw, and the strict score
            that of so many questions.
        score: Whether the questions are asked, too.
        keep_best: A phase ends with the weights of the step with the best score (of equal ones, the
            lower loss) instead of the last ones.
        calibrate: At a phase's end, how readily answers end and are yes is set right on the same
            records (`medmoe.training.answer_bias`).
    """

    data: Sets
    every: Positive
    questions: Positive = 64
    score: bool = True
    keep_best: bool = False
    calibrate: bool = unsaid(False)

    @property
    def shapes(self) -> bool:
        """Whether what is measured changes the model, or only looks on."""
        return self.keep_best or self.calibrate


class RunSpec(Strict):
    """How the phases are run: checkpoints, precision, processes, logs.

    Apart from the order of ``group_by_length`` and the rounding of ``bf16`` and ``answers_only``,
    nothing here changes what a phase learns; what does stands in `PhaseSpec`.

    Attributes:
        precision: ``bf16`` computes in bfloat16, kept features too, and keeps trained weights in
            float32. ``auto`` is one of the two by the machine, and the resolved recipe says which.
        save_dtype: Of the weights in ``model/``, but for router and out-of-domain check; a later
            phase goes on with what was rounded. Checkpoints are float32.
        save_every: Steps between two checkpoints; the last step is always saved.
        keep: How many checkpoints stay; at least two, since the newest may be damaged.
        loader_workers: Processes that prepare batches; 0 does it in the training process.
        gradient_accumulation: Parts a step's batch is computed in; the loss is the same.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        group_by_length: Draw batches of samples of like length, so that less is padded.
        answers_only: Run the head on the answers' positions only; the loss is the same.
        sharding: Of weights and optimiser state over the processes; ``accelerate launch`` with a
            config of its own needs ``none``.
        trackers: Names for the Trainer's ``report_to``, e.g. ``tensorboard``.
        log_every: Steps between two points of the learning curve; None gives fifty in all.
    """

    precision: Literal["float32", "bf16", "auto"] = "float32"
    save_dtype: Literal["float32", "bf16"] = unsaid("float32")
    save_every: Positive = 500
    keep: Annotated[int, Field(ge=2)] = 2
    loader_workers: Annotated[int, Field(ge=0)] = 0
    gradient_accumulation: Positive = 1
    gradient_checkpointing: bool = False
    group_by_length: bool = False
    answers_only: bool = True
    sharding: Literal["none", "fsdp2", "zero2", "zero3"] = "none"
    trackers: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    log_every: Positive | None = None


class TrainSpec(Strict):
    """A whole training run.

    Attributes:
        vocab_size: Upper bound of the tokenizer that phase 0 trains.
        max_length: Longest sequence in tokens (paper, Table 11: 2048).
        notes: Plain sentences that belong beside the scores.
        scored: Task → the set that `medmoe demo` scores it on; kept apart as `apart_from` is.
        starts: Finished run directories of earlier phases to start from, by phase; an earlier
            phase that is not named is this run's own. A phase that is trained here and named too
            goes on with that model.
        phases: In the order of training.
        validation: What is measured on the way, None for nothing.
    """

    description: str
    model: ModelSpec
    vocab_size: Positive | None = None
    max_length: Positive = 2048
    notes: tuple[str, ...] = unsaid(())
    scored: dict[str, str] = unsaid({})
    data: DataSpec = Field(default_factory=DataSpec)
    router: RouterSpec | None = None
    expert: ExpertSpec | None = unsaid(None)
    validation: ValidationSpec | None = unsaid(None)
    starts: dict[PhaseName, str] = Field(default_factory=dict)
    phases: dict[PhaseName, TrainPhaseSpec]
    run: RunSpec = Field(default_factory=RunSpec)

    @model_validator(mode="after")
    def _phases_in_order(self) -> Self:
        named = list(self.phases)
        ordered = [phase for phase in PHASES if phase in self.phases]
        if not named:
            raise ValueError("phases is empty; name at least one, e.g. phase1_alignment")
        if named != ordered:
            first = next(a for a, b in zip(named, ordered, strict=True) if a != b)
            raise ValueError(f"phases stand out of order from {first} on; use {', '.join(ordered)}")
        for phase, spec in self.phases.items():
            if spec.trains not in PHASE_TABLE[phase].trains:
                raise ValueError(
                    f"phases.{phase}.trains is {spec.trains!r}, it must be one of: "
                    f"{', '.join(PHASE_TABLE[phase].trains)}; leave it out for the first"
                )
            kept = spec.keep_features and PHASE_TABLE[phase].leaves in ("dense", "moe")
            if spec.views > 1 and not (kept and spec.augment):
                raise ValueError(
                    f"phases.{phase}.views is {spec.views}: that is of kept features in phases 1 "
                    "to 3 and sft, with augment above 0; set both, or leave views out"
                )
            if spec.lora and spec.lora.bits and self.run.sharding != "none":
                raise ValueError(
                    f"phases.{phase}.lora.bits is {spec.lora.bits} and run.sharding "
                    f"{self.run.sharding}: matrices of 4 bits cannot be divided; leave one out"
                )
            packs = PHASE_TABLE[phase].leaves in ("dense", "moe")
            homes = {
                "sides": "phase0_adapt",
                "answers": "phase0_adapt",
                "prompt": "phase1_alignment",
                "batch_of": phase if packs else "a phase that packs questions",
            }
            for name, home in homes.items():
                default = TrainPhaseSpec.model_fields[name].default
                if phase != home and getattr(spec, name) != default:
                    raise ValueError(f"phases.{phase}.{name}: only {home} has {name}; leave it out")
        return self

    @model_validator(mode="after")
    def _every_phase_has_its_inputs(self) -> Self:
        if {"phase0_encoder", "phase0_adapt"} <= {*self.phases, *self.starts}:
            raise ValueError(
                "phase0_adapt goes on with a pretrained encoder and phase0_encoder trains one from "
                "scratch; leave one out by --set phases.phase0_adapt=null"
            )
        for phase in self.phases:
            for source in self.inputs(phase):
                if source not in self.phases and source not in self.starts:
                    raise ValueError(
                        f"{phase} starts from {source}, which is neither a phase of this recipe "
                        f"nor named under starts; use --set starts.{source}=RUN_DIRECTORY"
                    )
        if "phase3_experts" in self.phases and self.model.experts != "per_domain":
            raise ValueError(
                "phase3_experts tunes experts that phase3_moe would not take; use "
                "--set model.experts=per_domain"
            )
        if self.vocab_size is None and {"phase0_encoder", "phase0_language"} & {*self.phases}:
            raise ValueError("phase 0 trains a tokenizer, so vocab_size is missing; add it")
        if "phase2_router" in self.phases and self.router is None:
            raise ValueError("phase2_router needs the group router (labels, loss, per_layer)")
        if "phase4_expert" in self.phases and self.expert is None:
            raise ValueError("phase4_expert needs the group expert; use `medmoe expert add`")
        if self.model.routing == "image" and self.router is not None and self.router.per_layer:
            raise ValueError(
                "with model.routing image the first MoE layer's router decides for all; "
                "use --set router.per_layer=false"
            )
        return self

    def inputs(self, phase: PhaseName) -> tuple[PhaseName, ...]:
        """Return the phases whose results a phase starts from in this run."""
        if phase in self.starts and PHASE_TABLE[phase].leaves in ("dense", "moe"):
            return (phase,)
        # A backbone that no phase 0 trains is pretrained: from the hub, or from a folder.
        sources = tuple(
            name
            for name in PHASE_TABLE[phase].inputs
            if not PHASE_TABLE[name].backbone or name in {*self.phases, *self.starts}
        )
        if self.learns_router():
            sources = tuple(name for name in sources if PHASE_TABLE[name].leaves != "router")
        if self.model.experts != "per_domain":
            sources = tuple(name for name in sources if name != "phase3_experts")
        return sources

    def model_of(self, phase: PhaseName) -> ModelSpec:
        """Return the model that a phase trains: in phase 3a the domain experts stand alone."""
        alone = {"meta_expert": False, "num_experts_per_tok": 1}
        return self.model.model_copy(update=alone if phase == "phase3_experts" else {})

    def apart_from(self) -> tuple[str, ...]:
        """Return the sets that will be scored, whose pictures are not trained on."""
        return tuple(dict.fromkeys([*self.data.apart_from, *self.scored.values()]))

    def tasks(self, phase: PhaseName) -> tuple[Task, ...]:
        """Return the tasks whose records a phase trains on in this run."""
        return self.phases[phase].tasks or PHASE_TABLE[phase].tasks

    def pretrained(self) -> tuple[str, ...]:
        """Return the backbones that no phase trains from scratch: ``vision``, ``language``."""
        trained = {*self.phases, *self.starts}
        stand_ins = {"vision": "phase0_encoder", "language": "phase0_language"}
        return tuple(part for part, phase in stand_ins.items() if phase not in trained)

    def learns_router(self) -> bool:
        """Return whether the router trains in phase 3 instead of by labels (paper, Table 6)."""
        moe = self.phases.get("phase3_moe")
        return moe is not None and moe.trains == "learned_router"
