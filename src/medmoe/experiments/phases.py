"""One phase of a training run: from the results of earlier phases to its own, all on disk.

Each function loads what its phase starts from, trains, and commits ``model/``. What trains, and
how, stands in `medmoe.training`; in what order, and what is skipped, in `run`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from medmoe.backbones.registry import language_backbone, vision_backbone
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.config.phases import PHASE_TABLE
from medmoe.config.schema import PhaseName
from medmoe.data.far_pictures import far_pictures
from medmoe.data.pixels import pixel_table
from medmoe.data.schema import ImageRecord, images_of, turns_of
from medmoe.data.tokenize import train_tokenizer
from medmoe.domains import domain_index, domain_of
from medmoe.evaluation.routes.router_score import RoutedPicture, router_score
from medmoe.experiments.data import sources_of
from medmoe.experiments.expert import run_expert
from medmoe.experiments.handover import load_check, load_router, save_part, save_router
from medmoe.experiments.job import Job, context_of, features_of
from medmoe.experiments.label_curve import label_curve
from medmoe.model.adapter import with_adapter
from medmoe.model.blueprint import config_of_moe
from medmoe.model.build import build_dense, build_processor, match_embeddings
from medmoe.model.checkpoint import load_model, save_model
from medmoe.model.committed import committed
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.domain_check import DomainCheck, fit_domain_check, pooled
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.pretrained import (
    language_of,
    load_language_model,
    load_vision_encoder,
    template_of,
    vision_of,
)
from medmoe.model.processing_medmoe import square_image_processor
from medmoe.model.upcycle import RouterState, take_experts, upcycle
from medmoe.processes import is_main
from medmoe.training.answer_bias import fit_answer_bias
from medmoe.training.by_domain import ByDomain
from medmoe.training.context import PhaseContext, PhaseRun, RunSettings
from medmoe.training.load_balance import BalancedMoe
from medmoe.training.lora import attach_lora, hold_in_4_bits, merge_lora, release_from_4_bits
from medmoe.training.packed import train_packed
from medmoe.training.phases.phase0_encoder import train_encoder
from medmoe.training.phases.phase0_language import train_language_model
from medmoe.training.phases.phase2_router import (
    choose_labelled,
    fit_router,
    labelled_states,
    route,
)
from medmoe.training.trainer import PhaseResult

logger = logging.getLogger(__name__)

#: The type of weights while they train, in whatever type they were saved.
TRAINED = "float32"
#: Size of the vocabulary of captions and answers that an adapted encoder learns from.
_CAPTION_WORDS = 8192


def run_encoder(job: Job) -> PhaseResult:
    """Phase 0 of the vision encoder: train a stand-in, or adapt a pretrained one."""
    records, further = job.data.records(job.phase), dict[str, Any]()
    if job.phase == "phase0_encoder":
        vision, _, processor = _stand_ins(job)
        image_processor, tokenizer = processor.image_processor, processor.tokenizer
    else:
        vision = vision_of(job.spec.model)
        image_processor = square_image_processor(vision.image_size, vision.mean, vision.std)
        texts = (answer for record in records for _, answer in turns_of(record))
        tokenizer = train_tokenizer(texts, _CAPTION_WORDS)
        further["encoder"] = load_vision_encoder(vision, job.spec.model.vision_source)
        further |= {"measured": job.data.validation, "validation": job.spec.validation}
    table = pixel_table(images_of([*records, *further.get("measured", ())]), image_processor)
    run = PhaseRun(**job.run(job.data.samples(job.phase)))
    encoder, result, accuracy = train_encoder(
        run, vision, records, job.spec.data.repeats, table, tokenizer, **further
    )
    if accuracy:
        job.found["attributes"] = accuracy
    if is_main():
        save_part(job.model, job.provenance(result), encoder.save_pretrained)
    return result


def run_language(job: Job) -> PhaseResult:
    """Phase 0, second half: train a stand-in language model and its tokenizer."""
    _, language, processor = _stand_ins(job)
    run = PhaseRun(**job.run(job.data.samples(job.phase)))
    words, result = train_language_model(run, language, job.data.records(job.phase), processor)
    if is_main():
        parts = (words.save_pretrained, processor.tokenizer.save_pretrained)
        save_part(job.model, job.provenance(result), *parts)
    return result


def run_model(job: Job) -> PhaseResult:
    """Phases 1 to 3: train the parts of a whole model that the phase trains, and save it."""
    model, processor = _begun(job)
    context = context_of(job, model, processor)
    if _is_new(job):
        match_embeddings(model, context.features[torch.arange(min(64, len(context.rows)))])
    if job.values.lora is not None:
        return _train_adapters(job, context)
    learns_router = job.phase == "phase3_moe" and job.spec.learns_router()
    balanced = BalancedMoe(model, job.values.load_balance) if learns_router else None
    result = train_packed(context, balanced)
    if PHASE_TABLE[job.phase].answers:
        _calibrate(job, context, model)
    _save(job, model, processor, result)
    return result


def _is_new(job: Job) -> bool:
    """Return whether a phase makes its model of two backbones: phase 1 without one of its own."""
    return job.phase == "phase1_alignment" and job.phase not in job.inputs


def _begun(job: Job) -> tuple[MedMoeForConditionalGeneration, Any]:
    """Return the model that a phase begins with, and its processor."""
    if PHASE_TABLE[job.phase].leaves == "moe":
        return _upcycled(job)
    if _is_new(job):
        return _put_together(job)
    (source,) = job.inputs.values()
    return load_model(source, TRAINED)


def _put_together(job: Job) -> tuple[MedMoeForConditionalGeneration, Any]:
    """Return the dense model of the recipe's backbones, its projector untrained."""
    model = job.spec.model
    vision, language = vision_of(model), language_of(model)
    # Without phase 0 the backbones are pretrained: from the hub, or from a folder.
    encoder = job.inputs.get("phase0_encoder") or job.inputs.get("phase0_adapt")
    text = job.inputs.get("phase0_language")
    tower = load_vision_encoder(vision, str(encoder) if encoder else model.vision_source)
    words, tokenizer = load_language_model(language, str(text) if text else model.language_source)
    template = language.chat_template
    if text is None and model.language_source is not None:
        template = template_of(
            tokenizer, language_backbone(model.language_model), model.language_source
        )
    processor = build_processor(tokenizer, vision, template)
    return build_dense(tower, words, processor.tokenizer, vision, job.plan.seed), processor


def run_router(job: Job) -> PhaseResult:
    """The router: learn the domain of labelled images, score it, and draw the label-count curve."""
    assert job.spec.router is not None
    router, domains = job.spec.router, job.spec.model.domains
    dense, processor = load_model(job.inputs["phase2_instruction"], TRAINED)
    pool = job.data.images(job.phase)
    most = max([router.labels, *job.plan.label_counts])
    chosen = choose_labelled(pool, domains, router.labels, job.plan.seed)
    widest = choose_labelled(pool, domains, most, job.plan.seed)
    held_out = job.data.router_test()
    context = context_of(job, dense, processor, [*widest, *held_out], len(chosen))
    config = config_of_moe(dense.config, job.spec.model)
    states = labelled_states(context, config, widest)
    state, result = fit_router(context, config, states.of(chosen), router.loss, router.per_layer)
    check = _domain_check(job, dense, processor, chosen)
    if is_main():
        known = {"domains": list(domains), "labels": len(chosen)}
        facts = job.provenance(result) | known
        save_router(job.model, state, job.spec.model.moe_layers, facts, check)
    if held_out:
        test = labelled_states(context, config, held_out)
        score = partial(_router_score, job, config, held_out, test.states)
        told = check.facts if isinstance(check, DomainCheck) else check
        job.found["router"] = score(state) | {"out_of_domain": told}
        if job.plan.label_counts:  # every process trains them, the first one writes
            plain = replace(context, settings=RunSettings())
            folder = job.model.parent if is_main() else None
            job.found["label_curve"] = label_curve(
                plain, config, router, pool, states, score, job.plan.label_counts, folder
            )
    return result


def _domain_check(
    job: Job, model: MedMoeForConditionalGeneration, processor: Any, taught: Sequence[ImageRecord]
) -> DomainCheck | dict[str, Any]:
    """Fit the out-of-domain check of a router's pictures, and measure what it warns of.

    In float32 whatever the run's precision: pictures are held against it as they are asked about.
    """
    domains = job.spec.model.domains

    def states(images: Sequence[ImageRecord]) -> Tensor:
        features, rows = features_of(job, model, processor, images, autocast=False)
        places = torch.tensor([rows[image.id] for image in images])
        return torch.cat([pooled(features[part]).cpu() for part in places.split(64)])

    known = [i for i in images_of(job.data.validation) if domain_of(i.modality, domains)]
    # Noise of another seed than that which the check is measured on.
    drawn = [replace(i, id=f"fit/{i.id}") for i in far_pictures(job.plan.seed + 1)["noise"]]
    held_out, noise = (states(images) if known else torch.empty(0) for images in (known, drawn))
    labels = torch.tensor([domain_index(image.modality, domains) for image in taught])
    check = fit_domain_check(states(taught), labels, held_out, noise)
    if isinstance(check, DomainCheck):
        asked = {"test": job.data.router_test(), **far_pictures(job.plan.seed)}
        for image in job.data.strangers():
            asked.setdefault(str(image.modality), []).append(image)
        check.facts["measured"] = {
            name: {"n": len(images), "warned": int(check.warns(states(images)).sum())}
            for name, images in asked.items()
            if images
        }
    return check


def _router_score(
    job: Job,
    config: MedMoeConfig,
    images: Sequence[ImageRecord],
    states: Tensor,
    router: RouterState | Sequence[RouterState],
) -> dict[str, Any]:
    """Return a router's score on labelled images, from their hidden states."""
    assert job.spec.router is not None
    domains = job.spec.model.domains
    chosen = route(config, router, states).tolist()
    pictures = [
        RoutedPicture.of(image, domains[found]) for image, found in zip(images, chosen, strict=True)
    ]
    per_domain, sources = job.spec.router.test_per_domain, sources_of(job.spec)
    score = router_score(
        pictures, domains, per_domain=per_domain, seed=job.plan.seed, sources=sources
    )
    tested = job.data.tested()
    shared = sum(k for name, k in job.facts["shared_images"].items() if name in tested)
    return score | ({"shared_images": shared} if shared else {})


def run_experts(job: Job) -> PhaseResult:
    """Phase 3a: tune a copy of the FFN for each domain, on that domain's records alone."""
    moe, processor = _upcycled(job)
    context = context_of(job, moe, processor)
    experts = torch.full((len(context.rows),), -1)  # an image of no domain is not trained on
    for image in images_of(context.records):
        index = domain_index(image.modality, job.spec.model.domains)
        assert index is not None
        experts[context.rows[image.id]] = index
    by_domain = ByDomain(moe)
    result = train_packed(context, by_domain, experts)
    by_domain.release()
    _save(job, moe, processor, result)
    return result


def _train_adapters(job: Job, context: PhaseContext) -> PhaseResult:
    """Train adapters in the context's model, and merge them; where asked, keep them apart too."""
    lora, model, processor = job.values.lora, context.model, context.processor
    assert lora is not None
    if lora.bits:
        held = hold_in_4_bits(model)
        stacked = sum(p.numel() for p in model.parameters() if p.dim() == 3)
        rest = f"; {stacked:,} of stacked experts stay in {model.dtype}" if stacked else ""
        logger.info("%s: %s weights are held in 4 bits%s", job.phase, f"{held:,}", rest)
    adapted = attach_lora(model, lora, job.plan.seed)
    result = train_packed(context, model)
    release_from_4_bits(adapted)
    _calibrate(job, context, model)
    if lora.keep and is_main():
        adapter = job.model.with_name("adapter")
        adapted.peft_config["default"].base_model_name_or_path = "../base"
        with committed(adapter) as staging, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT looks for the base from where it runs
            adapted.save_pretrained(staging, save_embedding_layers=False)
        _save(job, adapted.unload(), processor, None)
        merged = with_adapter(model, adapter)
    else:
        merged = merge_lora(adapted)
    _save(job, merged, processor, result)
    return result


def _upcycled(job: Job) -> tuple[MedMoeForConditionalGeneration, Any]:
    """Return the Med-MoE to go on with, or that made of dense model, router and tuned experts."""
    if own := job.inputs.get(job.phase):
        return load_model(own, TRAINED)
    model = job.spec.model_of(job.phase)
    dense, processor = load_model(job.inputs["phase2_instruction"], TRAINED)
    router, check = None, None
    if "phase2_router" in job.inputs:
        router = load_router(job.inputs["phase2_router"], model.moe_layers, model.domains)
        check = load_check(job.inputs["phase2_router"])
    moe = upcycle(
        dense,
        moe_layers=model.moe_layers,
        domains=model.domains,
        num_experts_per_tok=model.num_experts_per_tok,
        init=model.upcycle_init,
        router=router,
        router_layers=model.router_layers,
        meta_expert=model.meta_expert,
        routing=model.routing,
        seed=job.plan.seed,
    )
    if "phase3_experts" in job.inputs:
        take_experts(moe, load_model(job.inputs["phase3_experts"], TRAINED)[0])
    if check:
        moe.take_check(check)
    return moe, processor


PHASE_FUNCTIONS: dict[PhaseName, Callable[[Job], PhaseResult]] = {
    "phase0_encoder": run_encoder,
    "phase0_language": run_language,
    "phase0_adapt": run_encoder,
    "phase1_alignment": run_model,
    "phase2_instruction": run_model,
    "phase2_router": run_router,
    "phase3_experts": run_experts,
    "phase3_moe": run_model,
    "phase4_expert": run_expert,
    "sft": run_model,
}


def _stand_ins(job: Job) -> tuple[VisionBackbone, LanguageBackbone, Any]:
    """Return the backbones' entries, and the processor trained on the phase's texts."""
    model = job.spec.model
    vision = vision_backbone(model.vision_encoder)
    language = language_backbone(model.language_model)
    records = job.data.records(job.phase)
    texts = (
        " ".join(f"user: {question} assistant: {answer}" for question, answer in turns_of(record))
        for record in records
    )
    assert job.spec.vocab_size is not None
    tokenizer = train_tokenizer(texts, job.spec.vocab_size)
    return vision, language, build_processor(tokenizer, vision, language.chat_template)


def _calibrate(job: Job, context: PhaseContext, model: MedMoeForConditionalGeneration) -> None:
    """Set right on validation answers how readily a model's answers end and are yes, if asked."""
    watched, spec = context.validation, job.spec.validation
    if watched is None or spec is None or not spec.calibrate or not is_main():
        return
    size, samples = job.values.batch_size, watched.samples
    parts = (samples[start : start + size] for start in range(0, len(samples), size))
    batches = map(watched.collate, parts)
    end = context.processor.tokenizer.eos_token_id
    bias = fit_answer_bias(model, context.tokenizer, end, batches)
    job.found["answer_bias"] = bias
    logger.info("%s: added to logits, end %+.2f, yes against no %+.2f", job.phase, *bias.values())


def _save(
    job: Job, model: MedMoeForConditionalGeneration, processor: Any, result: PhaseResult | None
) -> None:
    """Save a phase's model; with no result the ``base`` beside it that its adapter belongs to."""
    if is_main():
        dtype = torch.bfloat16 if job.spec.run.save_dtype == "bf16" else None
        folder = job.model if result else job.model.with_name("base")
        facts = job.provenance(result) if result else job.facts
        save_model(model, processor, folder, facts, dtype)
