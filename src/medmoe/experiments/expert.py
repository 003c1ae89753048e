"""`medmoe expert add`: the recipe of one expert more, and the phase that trains and adds it.

What trains stands in `medmoe.training.new_expert`, what is written and proven in
`medmoe.model.expert_edit`: the model's own files, with the new expert in them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medmoe import recipes
from medmoe.data import registry
from medmoe.data.collate import PackingCollator
from medmoe.data.readers.common import hash_share
from medmoe.data.schema import ImageRecord, Record, images_of
from medmoe.domains import MEMBERS, MODALITIES, modality_name
from medmoe.errors import ConfigError, DataError, one_of
from medmoe.experiments.data import PHANTOM
from medmoe.experiments.job import Job, context_of
from medmoe.experiments.recipe import Recipe, load_recipe
from medmoe.model.checkpoint import identity, load_model
from medmoe.model.expert_edit import put_in, refuse_known
from medmoe.model.expert_pack import Pack
from medmoe.model.experts import ModelFiles
from medmoe.model.locate import find_model
from medmoe.processes import is_main, processes
from medmoe.training.context import PhaseContext, RunSettings
from medmoe.training.new_expert import (
    NewExpert,
    RowTraining,
    calibrate,
    first_ffns,
    grow,
    set_row,
    without,
)
from medmoe.training.packed import packed_once, train_packed
from medmoe.training.phases.phase2_router import collect_states
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import PhaseResult, run_phase

PHASE = "phase4_expert"
_ROW_BATCH, _CALIBRATION_BATCH = 64, 8
_TOLD = (
    "data",
    "data_sha256",
    "licences",
    "seed",
    "commit",
    "dirty",
    "config_sha256",
    "shared_images",
)


def expert_recipe(
    model: Path,
    name: str,
    records: Sequence[str],
    old: Sequence[str],
    ffn: Path | None,
    settings: Sequence[str],
) -> Recipe:
    """Return the recipe that adds an expert to a model.

    Args:
        records: Sets of the new domain; of their pictures those of its modality or of none.
        old: Sets of the other domains; where none is named, what the model was trained on.
        ffn: A phase-2 model whose FFNs the expert starts as.
        settings: ``key=value`` changes, applied last.

    Raises:
        ConfigError: The name is no modality, or taken, or nothing is known of the old domains.
        CheckpointError: The model is no Med-MoE of ours.
    """
    name, files = modality_name(name), ModelFiles.of(find_model(model))
    if name not in (known := (*MODALITIES, *MEMBERS)):
        raise ConfigError(one_of(name, known, "domain"))
    refuse_known(files, name)
    config, facts = files.config, files.facts
    trained = facts.get("data")
    if not old:
        old = trained.split(", ") if trained else []
        if not old or any(n.split("/")[0] not in (PHANTOM, *registry.READERS) for n in old):
            raise ConfigError(
                f"{model} was trained on {trained or 'nothing it names'}, which cannot be read by "
                "that name; name pictures of its domains by --old SET"
            )
    shape = ("moe_layers", "num_experts_per_tok", "router_layers", "meta_expert", "routing")
    values: dict[str, Any] = {f"model.{key}": getattr(config, key) for key in shape}
    for part, entry in (facts.get("base_model") or {}).items():
        if entry.get("name"):
            values[f"model.{part}"] = entry["name"]
    values |= {
        "model.domains": [*files.domains, name],
        "vocab_size": config.text_config.vocab_size,
        "model.image_pool": config.image_pool,
        "data.apart_from": [n for n in records if Path(n).exists()],
        "expert.name": name,
        "expert.old": [*old],
        "expert.ffn": None if ffn is None else str(ffn),
        f"phases.{PHASE}.data": [*records],
        f"starts.{PHASE}": str(model if model.exists() else files.folder),
    }
    if images := (facts.get("phantom_images") or {}).get("train"):
        values["data.phantom_images"] = images
    own = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    file = Path(recipes.__file__).with_name("expert.yaml")
    return load_recipe(str(file), [*own, *settings])


def run_expert(job: Job) -> PhaseResult:
    """Phase 4: one expert more, its rows and its FFNs, and the model's files with it in them."""
    spec = job.spec.expert
    assert spec is not None
    if job.settings.sharding != "none" or processes() > 1:
        raise ConfigError("an expert is added in one process; leave sharding and torchrun out")
    files = ModelFiles.of(job.inputs["phase4_expert"])
    base, processor = load_model(files.folder, "float32")
    dense = None if spec.ffn is None else load_model(find_model(spec.ffn), "float32")[0]
    model, index = grow(base, spec.name), len(files.domains)
    new, (taught, held_out) = job.data.records(job.phase), _parted(job)
    pictures = images_of([*new, *taught, *held_out])
    context = context_of(job, model, processor, pictures, job.data.samples(job.phase))
    _teach_rows(job, context, index, new, taught)
    batches = _batches(context, held_out)
    calibrate(model, index, batches, spec.keep)
    trained = NewExpert(model, first_ffns(model, dense), index)
    result = train_packed(context, trained)
    trained.settle()
    _round(model, base_dtype(files), index)
    told = calibrate(model, index, batches, spec.keep)
    job.found["expert"] = {"name": spec.name, "calibration": told}
    if is_main():
        facts = {
            "origin": "added",
            **{key: job.facts[key] for key in _TOLD if key in job.facts},
            "steps": result.curve[-1][0] if result.curve else 0,
            "started_as": "the meta expert" if spec.ffn is None else f"the FFN of {spec.ffn}",
            "calibration": told | {"keep": spec.keep},
            "before": identity(files.folder),
        }
        trained_with = [*files.domains, spec.name]
        pack = Pack(spec.name, _tensors(model, files, index), trained_with, facts)
        job.found["expert"] |= put_in(files, job.model, pack)
    return result


def _parted(job: Job) -> tuple[list[Record], list[Record]]:
    """Return old pictures' records in two halves, each of at most as many pictures as asked for.

    Raises:
        DataError: One of them is empty.
    """
    assert job.spec.expert is not None
    halves: tuple[list[Record], list[Record]] = ([], [])
    chosen: tuple[set[str], set[str]] = (set(), set())
    order = {r.image.id: hash_share(r.image.id, job.plan.seed) for r in job.data.old_records()}
    for number, name in enumerate(sorted(order, key=lambda n: order[n])):
        if len(chosen[number % 2]) < job.spec.expert.labels:
            chosen[number % 2].add(name)
    for record in job.data.old_records():
        for half, names in zip(halves, chosen, strict=True):
            if record.image.id in names:
                half.append(record)
    if not halves[1]:
        raise DataError(
            f"{', '.join(job.spec.expert.old)}: fewer than two pictures of the model's other "
            "domains, and their decisions are to be kept; name more by --old SET"
        )
    return halves


def _teach_rows(
    job: Job, context: PhaseContext, index: int, new: Sequence[Record], old: Sequence[Record]
) -> None:
    """Train the new rows on hidden states of the model as it was, and put them in place."""
    spec, model = job.spec.expert, context.model
    assert spec is not None
    pictures: list[ImageRecord] = images_of(new)
    pictures = sorted(pictures, key=lambda i: hash_share(i.id, job.plan.seed))[: spec.labels]
    others = images_of(old)
    by_picture = model.config.routing == "image"
    layers = list(model.config.moe_layers or [])[: 1 if by_picture else None]
    asked = replace(context, records=[*new, *old])
    with without(model, index):
        states = collect_states(asked, layers, [*pictures, *others], by_picture)
    rows = RowTraining([model.moe_blocks[layer].gate for layer in layers], index)
    # As many of either kind in a batch, on the mean.
    times = max(1, len(others) // max(1, len(pictures)))
    places = [*range(len(pictures))] * times + [*range(len(pictures), len(states))]

    def collate(chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        at = torch.tensor(chosen)
        return {"states": states[at], "new": at < len(pictures)}

    values = {"learning_rate": spec.row_rate, "batch_size": _ROW_BATCH, "trains": "paper"}
    plain = replace(
        context,
        phase="phase2_router",
        spec=context.spec.model_copy(update=values),
        steps=spec.row_steps,
        settings=RunSettings(),
        validation=None,
        progress=lambda *_: None,
    )
    schedule = Schedule(
        lambda number, _: places[number],
        len(places),
        spec.row_steps * _ROW_BATCH,
        context.seed,
        names=[str(place) for place in places],
    )
    run_phase(plain, rows, schedule, collate)
    for number, block in enumerate(model.moe_blocks.values()):
        place = 0 if by_picture else number
        row, bias = rows.router["weight"][place], rows.router["bias"][place]
        set_row(block.gate, index, row.detach(), bias.detach())


def _batches(context: PhaseContext, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return old pictures with their questions, packed as in training."""
    samples = packed_once(records, context.rows, context.tokenizer, context.max_length)
    collate = PackingCollator(context.features, context.processor.tokenizer.pad_token_id)
    starts = range(0, len(samples), _CALIBRATION_BATCH)
    return [dict(collate(samples[start : start + _CALIBRATION_BATCH])) for start in starts]


def base_dtype(files: ModelFiles) -> torch.dtype:
    """Return the dtype that a model folder has its experts in."""
    tensors = files.expert(files.domains[0])
    return next(tensor.dtype for name, tensor in tensors.items() if ".router." not in name)


@torch.no_grad()
def _round(model: Any, dtype: torch.dtype, index: int) -> None:
    """Round the new expert as its file will, before its decisions are looked at."""
    for block in model.moe_blocks.values():
        for stack in block.experts.parameters():
            stack[index] = stack[index].to(dtype)


def _tensors(model: Any, files: ModelFiles, index: int) -> dict[str, torch.Tensor]:
    """Return the new expert's tensors as they go into the files."""
    from medmoe.backbones.ffn import GATED, PLAIN
    from medmoe.model.moe import GatedExperts

    dtype, found = base_dtype(files), dict[str, torch.Tensor]()
    for layer, block in model.moe_blocks.items():
        family = GATED if isinstance(block.experts, GatedExperts) else PLAIN
        for stack, names in family.stacks.items():
            whole = block.experts.get_parameter(stack).detach()[index].cpu()
            for name, part in zip(names, whole.chunk(len(names)), strict=True):
                found[f"layers.{layer}.{name}"] = part.to(dtype).clone()
        for kind in ("weight", "bias"):
            row = block.gate.get_parameter(f"fc{block.gate.depth}.{kind}").detach()[
                index : index + 1
            ]
            found[f"layers.{layer}.router.{kind}"] = row.cpu().clone()
    return found
