"""A rehearsal of table 1 at the paper's size: its own commands, on copies a thousandth as large.

The folders have the layouts, file names and key names that are published, ``.bin`` included: the
LLaVA-Med files beside their pictures, VQA-RAD, SLAKE and PathVQA, StableLM-2, Phi-2 and CLIP. What
is in them is drawn by a seed and means nothing; neither does a score. Widths are a thirty-second,
so that weights are about a thousandth; depth and picture size stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from medmoe.backbones.registry import LANGUAGE_BACKBONES, VISION_BACKBONES
from medmoe.backbones.spec import LanguageBackbone, VisionBackbone
from medmoe.data.tokenize import train_tokenizer

#: The recipes of table 1, and the backbones that they start from.
RECIPES = ("stablelm2", "phi2")
LANGUAGE, VISION = ("stablelm2_1_6b", "phi2_2_7b"), "clip_large_336"
#: Widths are divided by this; layers, heads' proportions and pictures are not.
_NARROWER = 32
#: A picture's 576 tokens and some words: a model that has learned nothing answers till it is full.
_POSITIONS = 832
#: bf16 is emulated, and a hundred times slower, on processors without units for it; processes that
#: load pictures take longer to start than these few pictures to load. Steps are small as the sets.
SETTINGS = (
    "run.precision=float32",
    "run.loader_workers=0",
    "run.gradient_accumulation=2",
    f"max_length={_POSITIONS}",
    *(f"phases.{phase}.batch_size=8" for phase in ("phase1_alignment", "phase2_instruction")),
    "phases.phase3_moe.batch_size=8",
)
_SIDE = 64
_MODALITIES = {"chest_xray": "X-Ray", "ct_scan": "CT", "mri": "MRI"}
_ASKED = (("Is there a mass?", ("Yes", "No")), ("Where is it?", ("left lung", "liver")))


def write_sources(folder: Path) -> tuple[Path, Path]:
    """Write the data sets and the backbones; return the folder of either."""
    disable_progress_bars()
    data, weights = folder / "data", folder / "weights"
    texts = [*_write_llava_med(data / "llava-med"), *_write_vqa_rad(data / "vqa-rad")]
    texts += [*_write_slake(data / "slake"), *_write_path_vqa(data / "path-vqa")]
    for name in LANGUAGE:
        _write_language(LANGUAGE_BACKBONES[name], weights / name, texts)
    _write_vision(VISION_BACKBONES[VISION], weights / VISION)
    return data, weights


def _picture(*seed: int) -> bytes:
    """Return a JPEG of smooth blobs, far by its hash from those of other seeds."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (10, 10), dtype=np.uint8))
    file = BytesIO()
    coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=95)
    return file.getvalue()


def _save(path: Path, *seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_picture(*seed))


def _write_rows(path: Path, rows: Sequence[Any]) -> None:
    path.write_text(json.dumps(rows), encoding="utf-8")


def _questions(number: int) -> list[tuple[str, str, str]]:
    """Return question, answer and type of answer of one picture."""
    kinds = ("CLOSED", "OPEN")
    return [(q, a[number % len(a)], kind) for (q, a), kind in zip(_ASKED, kinds, strict=True)]


def _write_llava_med(folder: Path) -> Iterable[str]:
    """Write captions and conversations as LLaVA-Med's JSON files, and their pictures."""
    files = ("llava_med_alignment_500k.json", "llava_med_instruct_60k_inline_mention.json")
    for kind, file in enumerate(files):
        rows = []
        for number in range(6):
            name = f"{kind}_{number}.jpg"
            _save(folder / "images" / name, 1 + kind, number)
            flag = [*_MODALITIES, "histology", "gross"][number % 5]
            shown = f"This is picture {number} of a {flag.replace('_', ' ')}."
            said = ["<image>\nDescribe the picture.", shown]
            if kind:
                said += ["What is seen?", "Nothing that means anything."]
            yield from said
            turns = [
                {"from": ("human", "gpt")[place % 2], "value": text}
                for place, text in enumerate(said)
            ]
            domain = {known: known == flag for known in (*_MODALITIES, "histology", "gross")}
            rows.append(
                {"id": f"{kind}_{number}", "image": name, "domain": domain, "conversations": turns}
            )
        _write_rows(folder / file, rows)


def _write_vqa_rad(folder: Path) -> Iterable[str]:
    """Write VQA-RAD's two files; as in the published ones, test pictures stand in train too."""
    parts: dict[str, list[Any]] = {"trainset": [], "testset": []}
    for number in range(2):
        name = f"synpic{number}.jpg"
        _save(folder / "images" / name, 3, number)
        for place, (question, answer, kind) in enumerate(_questions(number)):
            row: dict[str, Any] = {
                "qid": 10 * number + place,
                "image_name": name,
                "image_organ": "CHEST",
            }
            row |= {"question": question, "answer": answer, "answer_type": kind}
            parts["trainset"].append(row | {"question_type": "PRES"})
            if number:
                asked = {"qid": f"{row['qid']} of test", "question": f"{question[:-1]} here?"}
                parts["testset"].append(row | asked | {"question_type": "PRES"})
            yield from (question, answer)
    for part, rows in parts.items():
        _write_rows(folder / f"{part}.json", rows)


def _write_slake(folder: Path) -> Iterable[str]:
    """Write SLAKE as its copy on the hub has it."""
    for part, file in enumerate(("train", "validation", "test")):
        rows = []
        for number in range(1 if part else len(_MODALITIES)):
            name = f"xmlab{10 * part + number}/source.jpg"
            _save(folder / "imgs" / name, 4, part, number)
            for place, (question, answer, kind) in enumerate(_questions(number)):
                row = {"qid": 100 * part + 10 * number + place, "img_name": name, "q_lang": "en"}
                row |= {"question": question, "answer": answer, "answer_type": kind}
                row |= {"modality": [*_MODALITIES.values()][number], "location": "Lung"}
                rows.append(row | {"content_type": "Abnormality"})
                yield from (question, answer)
        _write_rows(folder / f"{file}.json", rows)


def _write_path_vqa(folder: Path) -> Iterable[str]:
    """Write PathVQA's Parquet files of the hub."""
    for part, split in enumerate(("train", "validation", "test")):
        rows = []
        for number in range(1 if part else 2):
            picture = {"bytes": _picture(5, part, number), "path": None}
            for question, answer, _ in _questions(number):
                rows.append({"image": picture, "question": question, "answer": answer.lower()})
                yield from (question, answer)
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_list(rows).to_parquet(path)


def _write_language(entry: LanguageBackbone, folder: Path, texts: Sequence[str]) -> None:
    """Write a language model of an entry's architecture, a thousandth as large, and a tokenizer."""
    tokenizer, known = train_tokenizer(texts, 512), entry.config
    tokenizer.model_max_length = _POSITIONS
    small = {name: known[name] // _NARROWER for name in ("hidden_size", "intermediate_size")}
    heads = dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 4)
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    tokens["max_position_embeddings"] = _POSITIONS
    tokens |= dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    config = AutoConfig.for_model(entry.model_type, **(known | small | heads | tokens))
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_vision(entry: VisionBackbone, folder: Path) -> None:
    """Write a whole CLIP as it is published: both towers, pickled tensors in one ``.bin`` file."""
    known = entry.config
    small = {name: known[name] // _NARROWER for name in ("hidden_size", "intermediate_size")}
    vision = known | small | {"num_attention_heads": 2}
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
    config = AutoConfig.for_model("clip", vision_config=vision, text_config=text, projection_dim=16)
    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    model: Any = AutoModel.from_config(config)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    config.save_pretrained(folder)
