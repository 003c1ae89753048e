"""A phase-3 step without what the engine saves, in bf16, and what kept features give phase 1.

The plain step is what a Trainer does with the stock collator's idea of a batch: each question a row
of its own behind its own image, rows in random order padded to the longest, images encoded anew,
every weight with a gradient and optimiser state, the head on every position. Same model, same
questions, so tokens per second are in the ratio of the times.
"""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from support.timing import options, ratios
from support.tiny import Tiny, tiny
from torch import Tensor
from transformers import AutoConfig, AutoModel, Trainer, TrainingArguments

from medmoe.backbones.language import PHI2, TINY_STABLELM
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.backbones.vision import CLIP_LARGE_336
from medmoe.config.schema import PhaseName, PhaseSpec
from medmoe.data.collate import Packed, pack_batch
from medmoe.data.tokenize import ConversationTokenizer, Segment
from medmoe.model.build import build_dense
from medmoe.training.context import PhaseRun
from medmoe.training.phases.phase0_language import new_language_model
from medmoe.training.schedule import Schedule
from medmoe.training.trainable import set_trainable
from medmoe.training.trainer import run_phase

IMAGES, IMAGES_A_STEP, QUESTIONS = 16, 8, 6
#: Widths of the real models are divided by these: of the encoder alone before the demo's language
#: model, and of both CLIP-L and Phi-2. Depths and token counts stay.
SCALE, SCALE_OF_BOTH = 4, 16
#: Layers that are kept of a language model whose precisions are compared: its widths are the real.
DEPTH = 6


@dataclass(frozen=True)
class Ways:
    """Which savings a step has."""

    packed: bool = True
    grouped: bool = True
    features: bool = True
    frozen: bool = True
    answers_only: bool = True


PLAIN = Ways(False, False, False, False, False)


def length(sample: Packed) -> int:
    return len(sample.prefix) + sum(len(segment.ids) for segment in sample.segments)


def rows(parts: Tiny, packed: bool) -> list[Packed]:
    """Return the questions about all images, behind one prefix per image or each alone."""
    by_image: dict[int, list[Segment]] = defaultdict(list)
    for record in parts.records:
        row = parts.rows[record.image.id]
        if len(by_image[row]) < QUESTIONS:
            by_image[row].append(parts.tokenizer.segment(record.question, record.answer))
    prefix = parts.tokenizer.prefix()
    if packed:
        return [Packed(row, prefix, tuple(found)) for row, found in by_image.items()]
    return [Packed(row, prefix, (one,)) for row, found in by_image.items() for one in found]


def batches(parts: Tiny, ways: Ways) -> list[dict[str, Tensor]]:
    """Return one epoch in batches of the same number of questions."""
    samples = rows(parts, ways.packed)
    random.Random(1).shuffle(samples)
    if ways.grouped:
        samples.sort(key=length)
    size = IMAGES_A_STEP if ways.packed else IMAGES_A_STEP * QUESTIONS
    return [batch(parts, ways, part) for part in _parts(samples, size)]


def _parts(samples: list[Packed], size: int) -> list[list[Packed]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def batch(parts: Tiny, ways: Ways, samples: Sequence[Packed]) -> dict[str, Tensor]:
    images = [sample.image for sample in samples]
    made: dict[str, Any] = dict(pack_batch(samples, parts.processor.tokenizer.pad_token_id))
    if ways.features:
        made["vision_features"] = parts.features[images]
    else:
        made["pixel_values"] = parts.pixels[images]
    if ways.answers_only:
        made["answers_only"] = True
    return made


def precisions(title: str, images: int, model: str, repeats: int) -> None:
    """Compare steps in float32 with those in bf16 autocast, of a Med-MoE and of its dense twin."""
    parts = tiny(images, model)
    for net in (parts.moe, parts.dense):
        del net.model.language_model.layers[DEPTH:]
    parts.moe.config.moe_layers = [i for i in parts.moe.config.moe_layers if i < DEPTH]
    given = batch(parts, Ways(), rows(parts, packed=True))

    def step(net: Any, phase: PhaseName, bf16: bool) -> Callable[[], float]:
        def run() -> float:
            set_trainable(net, phase)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = net(**given).loss
            loss.backward()
            net.zero_grad()
            return float(loss.detach())

        return run

    twins: dict[str, tuple[Any, PhaseName]] = {
        "Med-MoE": (parts.moe, "phase3_moe"),
        "dense": (parts.dense, "phase2_instruction"),
    }
    for name, (net, phase) in twins.items():
        runs = {"float32": step(net, phase, False), "bf16": step(net, phase, True)}
        losses = [run() for run in runs.values()]
        assert abs(losses[0] - losses[1]) < 0.05, f"not the same training: losses {losses}"
        print(f"{f'{title}, {name}':<44}{ratios(runs, 'bf16', repeats)['float32']}")


def padding(made: list[dict[str, Tensor]], pad: int) -> float:
    """Return the share of padding among the tokens of all batches."""
    ids = [one["input_ids"] for one in made]
    return sum(int((one == pad).sum()) for one in ids) / sum(one.numel() for one in ids)


def epoch(parts: Tiny, ways: Ways) -> Callable[[], float]:
    """Return an epoch of phase 3 as a function; its learning rate is 0, so repeats are alike."""
    made, model = batches(parts, ways), parts.moe

    def run() -> float:
        set_trainable(model, "phase3_moe")
        if not ways.frozen:
            model.requires_grad_(True)
        chosen = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(chosen, lr=0.0, weight_decay=0.0)
        losses = []
        for one in made:
            optimiser.zero_grad()
            loss = model(**one).loss
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        model.zero_grad()
        return sum(losses) / len(losses)

    return run


class _Plain(Trainer):
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def by_trainers(parts: Tiny, repeats: int) -> None:
    """Compare whole runs: ours, and the stock Trainer's on the plain batches."""
    packed, alone = batches(parts, Ways()), batches(parts, PLAIN)
    spec = PhaseSpec(
        learning_rate=1e-9, batch_size=1, warmup_ratio=0.0, weight_decay=0.0, max_grad_norm=1.0
    )

    def ours() -> None:
        samples: Schedule[Any] = Schedule(lambda i, _: packed[i], len(packed), len(packed), 1)
        run = PhaseRun(phase="phase3_moe", spec=spec, steps=len(packed), seed=1, progress=silent)
        run_phase(run, parts.moe, samples, lambda s: s[0])

    def plain() -> None:
        parts.moe.requires_grad_(True)
        arguments = TrainingArguments(
            output_dir="unused", max_steps=len(alone), per_device_train_batch_size=1,
            learning_rate=1e-9, save_strategy="no", report_to="none", disable_tqdm=True,
            logging_strategy="no", remove_unused_columns=False, use_cpu=True,
        )  # fmt: skip
        _Plain(
            model=parts.moe, args=arguments, train_dataset=alone, data_collator=lambda s: s[0]
        ).train()

    found = ratios({"ours": ours, "plain": plain}, "ours", repeats)["plain"]
    print(f"{'whole runs: stock Trainer ÷ run_phase':<44}{found}")


def silent(*_: Any) -> None:
    """Report progress to nobody."""


def scaled(vision: VisionBackbone, language: LanguageBackbone, parts: Tiny) -> Any:
    """Return a dense model with an encoder of CLIP-L's proportions and a language model."""
    tower = AutoModel.from_config(AutoConfig.for_model(vision.model_type, **vision.config))
    words = new_language_model(language, parts.processor.tokenizer, 0)
    return build_dense(tower, words, parts.processor.tokenizer, vision, 0).eval()


def phase1(parts: Tiny, title: str, language: LanguageBackbone, scale: int, repeats: int) -> None:
    """Compare phase-1 steps that encode their images with those that read kept features."""
    config = CLIP_LARGE_336.config
    widths = {name: config[name] // scale for name in ("hidden_size", "intermediate_size")}
    vision = replace(CLIP_LARGE_336, config=config | widths)
    model = scaled(vision, language, parts)
    tokens = ConversationTokenizer(parts.processor, model.config.image_seq_length)
    caption = tokens.segment("Describe the image.", "A chest radiograph with a small nodule.")
    samples = [Packed(i, tokens.prefix(), (caption,)) for i in range(2)]
    base = dict(pack_batch(samples, parts.processor.tokenizer.pad_token_id))
    pixels = torch.randn(2, 3, vision.image_size, vision.image_size)
    with torch.no_grad():
        features = model.model.encode_images(pixels)
    set_trainable(model, "phase1_alignment")

    def step(**image: Tensor) -> Callable[[], float]:
        def run() -> float:
            model.zero_grad()
            loss = model(**base, **image, answers_only=True).loss
            loss.backward()
            return float(loss.detach())

        return run

    runs = {"kept": step(vision_features=features), "encoded": step(pixel_values=pixels)}
    losses = [run() for run in runs.values()]
    assert abs(losses[0] - losses[1]) < 1e-4, f"not the same training: losses {losses}"
    print(f"{title:<44}{ratios(runs, 'kept', repeats)['encoded']}")


def main() -> None:
    values = options(__doc__.splitlines()[0])
    parts = tiny(IMAGES)
    pad = parts.processor.tokenizer.pad_token_id
    print("\nshare of padding among the tokens of a batch")
    for packed, grouped in itertools.product((False, True), repeat=2):
        share = padding(batches(parts, Ways(packed=packed, grouped=grouped)), pad)
        title = f"{'packed' if packed else 'unpacked'}, {'grouped' if grouped else 'any order'}"
        print(f"{title:<44}{100 * share:6.1f} %")

    print("\nphase 3, time of an epoch of the same questions ÷ with all savings")
    ways = {"all savings": Ways(), "plain: none of them": PLAIN} | {
        f"without {name}": replace(Ways(), **{name: False}) for name in Ways.__dataclass_fields__
    }
    found = ratios({name: epoch(parts, way) for name, way in ways.items()}, "all savings",
                   values.repeats)  # fmt: skip
    for name in list(ways)[1:]:
        print(f"{name:<44}{found[name]}")
    by_trainers(parts, values.repeats)

    print("\na step in float32 ÷ one in bf16 autocast")
    precisions("the demo's model", IMAGES_A_STEP, "tiny", values.repeats)
    precisions("SmolLM2-135M's widths", 1, "smollm2_135m", values.repeats)

    print("\nphase 1, a step that encodes ÷ one that reads kept features")
    title = f"CLIP-L ÷ {SCALE} before the demo's model"
    phase1(parts, title, TINY_STABLELM, SCALE, values.repeats)
    ids = {"vocab_size", "bos_token_id", "eos_token_id"}
    shape = {k: v for k, v in PHI2.config.items() if k not in ids}
    for name in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        shape[name] //= SCALE_OF_BOTH
    title = f"CLIP-L ÷ {SCALE_OF_BOTH} before Phi-2 ÷ {SCALE_OF_BOTH}"
    phase1(parts, title, replace(PHI2, config=shape), SCALE_OF_BOTH, values.repeats)


if __name__ == "__main__":
    main()
