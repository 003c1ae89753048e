"""`medmoe expert add`: the recipe of one expert more, and the phase that trains and adds it.

What trains stands in `medmoe.training.new_expert`, what is written and proven in
`medmoe.model.experts`: the model's own tensors, with those of the new expert among them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medmoe import recipes
from medmoe.data import registry
from medmoe.data.collate import PackingCollator
from medmoe.data.readers.common import hash_share
from medmoe.data.schema import Record, images_of
from medmoe.domains import MEMBERS, MODALITIES, modality_name
from medmoe.errors import ConfigError, DataError, one_of
from medmoe.evaluation.files.known_records import PHANTOM
from medmoe.experiments.job import Job, context_of
from medmoe.experiments.recipe import Recipe, as_settings, load_recipe, model_settings
from medmoe.model.checkpoint import load_model
from medmoe.model.expert_pack import shape_of
from medmoe.model.expert_tensors import Tensors, renamed
from medmoe.model.experts import Expert, MoeFolder, put_in
from medmoe.model.locate import find_model
from medmoe.processes import processes
from medmoe.routing.hooks import ffn_inputs
from medmoe.training.context import PhaseContext, RunSettings
from medmoe.training.load_balance import is_token
from medmoe.training.new_expert import NewExpert, RowTraining, calibrate, kept
from medmoe.training.packed import packed_once, train_packed
from medmoe.training.phases.phase2_router import TOKENS_KEPT, collect_states
from medmoe.training.schedule import Schedule
from medmoe.training.trainer import PhaseResult, run_phase

_ROW_BATCH, _BATCH = 64, 8
_TOLD = [
    "data",
    "data_sha256",
    "licences",
    "shared_images",
    "seed",
    "commit",
    "dirty",
    "config_sha256",
]


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
    name, base = modality_name(name), MoeFolder(find_model(model))
    if name not in (known := (*MODALITIES, *MEMBERS)):
        raise ConfigError(one_of(name, known, "domain"))
    base.refuse(name)
    config, facts = base.config, base.facts
    sets = list(old) or str(facts.get("data", "")).split(", ")
    if not old and any(n.split("/")[0] not in (PHANTOM, *registry.READERS) for n in sets):
        raise ConfigError(
            f"{model} was trained on {facts.get('data', 'what it does not say')}, which is not "
            "known by name; name pictures of its domains by --old SET"
        )
    images = (facts.get("phantom_images") or {}).get("train")
    values: dict[str, Any] = {
        **model_settings(config, facts),
        **({"data.phantom_images": images} if images else {}),
        "model.domains": [*base.domains, name],
        "vocab_size": config.text_config.vocab_size,
        "data.apart_from": [n for n in records if Path(n).exists()],
        "expert.name": name,
        "expert.old": sets,
        "expert.ffn": None if ffn is None else str(ffn),
        "phases.phase4_expert.data": [*records],
        "starts.phase4_expert": str(model if model.exists() else base.folder),
    }
    changes = [*as_settings(values), *settings]
    return load_recipe(str(Path(recipes.__file__).with_name("expert.yaml")), changes)


def run_expert(job: Job) -> PhaseResult:
    """Phase 4: one expert more, its rows and its FFNs, and the model's files with it in them."""
    spec, base = job.spec.expert, MoeFolder(job.inputs["phase4_expert"])
    assert spec is not None
    if job.settings.sharding != "none" or processes() > 1:
        raise ConfigError("an expert is added in one process; leave sharding and torchrun out")
    model, processor = load_model(base.folder, "float32")
    ffns = _first_ffns(model, spec.ffn)
    new, (taught, held_out) = job.data.records(job.phase), _parted(job)
    pictures = images_of([*new, *taught, *held_out])
    context = context_of(job, model, processor, pictures, job.data.samples(job.phase))
    rows = _taught_rows(job, context, new, taught)
    trained = NewExpert(model, spec.name, ffns).to(model.device)
    for place, row in enumerate(trained.rows()):
        for kind, taught_row in rows.items():  # by picture the first layer's row is that of all
            row[kind].copy_(taught_row[min(place, len(taught_row) - 1)])
    batches = _batches(context, held_out)
    calibrate(trained, batches, spec.keep)
    result = train_packed(context, trained)
    dtype = next(t.dtype for k, t in base.expert(base.domains[0]).items() if not k.endswith("]"))
    for parameter in trained.new_experts.parameters():  # rounded as its file will be
        parameter.data = parameter.data.to(dtype).float()
    told = calibrate(trained, batches, spec.keep)
    own = kept(trained, _batches(context, new)[: spec.labels // _BATCH + 1])[0]
    told["chosen"] = 1 - own["kept"] / own["decisions"]
    facts = {
        "origin": "added",
        **{key: job.facts[key] for key in _TOLD if key in job.facts},
        "steps": result.curve[-1][0] if result.curve else 0,
        "started_as": "the meta expert" if spec.ffn is None else f"the FFN of {spec.ffn}",
        "calibration": told | {"keep": spec.keep},
    }
    tensors = _tensors(trained, base, spec.name)
    expert = Expert(spec.name, tensors, [*base.domains, spec.name], facts)
    job.found["expert"] = {"calibration": told, **put_in(base, job.model, expert)}
    return result


def _batches(context: PhaseContext, records: Sequence[Record]) -> list[Any]:
    """Return records packed as in training, in a fixed order."""
    collate = PackingCollator(context.features, context.processor.tokenizer.pad_token_id)
    samples = packed_once(records, context.rows, context.tokenizer, context.max_length)
    starts = range(0, len(samples), _BATCH)
    return [collate(samples[start : start + _BATCH]) for start in starts]


def _first_ffns(model: Any, source: str | None) -> dict[int, nn.Module]:
    """Return by layer the FFN that an expert starts as: the meta expert, or that of phase 2."""
    if source is None:
        if not model.config.meta_expert:
            raise ConfigError("the model has no meta expert to start from; give --from-ffn PHASE2")
        return {n: copy.deepcopy(block.meta_expert) for n, block in model.moe_blocks.items()}
    dense = load_model(find_model(source), "float32")[0]
    for what in ("activation", "hidden_size", "intermediate_size"):
        given, wanted = (shape_of(one.config)[what] for one in (dense, model))
        if given != wanted:
            raise ConfigError(f"--from-ffn {source}: its {what} is {given}, the model's {wanted}")
    layers = dense.model.language_model.layers
    return {n: getattr(layers[n].mlp, "meta_expert", layers[n].mlp) for n in model.moe_blocks}


def _parted(job: Job) -> tuple[list[Record], list[Record]]:
    """Return old pictures' records in two halves, each of at most as many pictures as asked for.

    Raises:
        DataError: There are not two pictures.
    """
    assert job.spec.expert is not None
    records, most = job.data.old_records(), job.spec.expert.labels
    names = sorted({r.image.id for r in records}, key=lambda n: hash_share(n, job.plan.seed))
    if len(names) < 2:
        raise DataError(
            f"{', '.join(job.spec.expert.old)}: fewer than two pictures of the model's other "
            "domains, whose decisions are to be kept; name more by --old SET"
        )
    halves = [{*names[place::2][:most]} for place in (0, 1)]
    first, second = ([r for r in records if r.image.id in half] for half in halves)
    return first, second


def _taught_rows(
    job: Job, context: PhaseContext, new: Sequence[Record], old: Sequence[Record]
) -> dict[str, torch.Tensor]:
    """Return the rows (L, D) and biases (L,) that the model's hidden states have taught."""
    spec, model = job.spec.expert, context.model
    assert spec is not None
    by_picture = model.config.routing == "image"
    layers = list(model.moe_blocks)[: 1 if by_picture else None]
    own = sorted(images_of(new), key=lambda image: hash_share(image.id, job.plan.seed))[
        : spec.labels
    ]
    chosen = [record for record in new if record.image in own]
    if by_picture:
        asked = replace(context, records=[*new, *old])
        parts = [collect_states(asked, layers, part, True) for part in (own, images_of(old))]
    else:
        parts = [_states(context, chosen, layers, False), _states(context, old, layers, True)]
    states, count = torch.cat(parts), len(parts[0])
    rows = RowTraining([model.moe_blocks[layer].gate for layer in layers])
    # As many of either kind in a batch, on the mean.
    places = [*range(count)] * max(1, len(parts[1]) // count) + [*range(count, len(states))]

    def collate(chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        at = torch.tensor(chosen)
        return {"states": states[at], "new": at < count}

    values = {"learning_rate": spec.row_rate, "batch_size": _ROW_BATCH}
    plain = replace(
        context,
        phase="phase2_router",
        spec=context.spec.model_copy(update=values),
        steps=spec.row_steps,
        settings=RunSettings(),
        validation=None,
        progress=lambda *_: None,
    )
    total, names = spec.row_steps * _ROW_BATCH, [str(place) for place in places]
    schedule = Schedule(lambda i, _: places[i], len(places), total, context.seed, names=names)
    run_phase(plain, rows, schedule, collate)
    return {name: rows.router[name].detach() for name in ("weight", "bias")}


@torch.no_grad()
def _states(
    context: PhaseContext, records: Sequence[Record], layers: Sequence[int], every: bool
) -> torch.Tensor:
    """Return what routers read of each picture's packed questions, (N, L, T, D), T tokens drawn.

    Args:
        every: Of all tokens; else not of those before the picture, which have not seen it.
    """
    draw, found = torch.Generator().manual_seed(context.seed), []
    for batch in _batches(context, records):
        inputs = {name: tensor.to(context.model.device) for name, tensor in batch.items()}
        with ffn_inputs(context.model, layers) as seen:
            context.model(**inputs)
        seeing = (batch["input_ids"] == context.processor.image_token_id).cumsum(1) > 0
        real = is_token(batch["attention_mask"]) & (seeing | every)
        places = torch.multinomial(real.float(), TOKENS_KEPT, replacement=True, generator=draw)
        rows = torch.arange(len(places))[:, None]
        found.append(torch.stack([states.float().cpu()[rows, places] for states in seen], dim=1))
    return torch.cat(found)


def _tensors(trained: NewExpert, base: MoeFolder, name: str) -> Tensors:
    """Return the new expert's tensors as the model's files have those of its others."""
    found, first = Tensors(), base.domains[0]
    rows = dict(zip(trained.model.moe_blocks, trained.rows(), strict=True))
    for key, like in base.expert(first).items():
        layer = int(key.split(".layers.")[1].split(".")[0])
        if key.endswith("]"):
            tensor = rows[layer][key.partition("[")[0].rpartition(".")[2]]
        else:
            part = key.partition(f".experts.{first}.")[2]
            tensor = trained.new_experts[str(layer)].get_parameter(part).detach()
        found[renamed(key, first, name)] = tensor.cpu().to(like.dtype).clone()
    return found
