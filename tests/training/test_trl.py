"""TRL's trainers run on our model class as they are: what they train on is what we train on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import IMAGE_TOKENS, processor
from tests.training import toy
from torch import Tensor

from medmoe.data.exchange import to_dataset
from medmoe.data.images import open_record
from medmoe.data.schema import Record, question_text
from medmoe.data.tokenize import ConversationTokenizer
from medmoe.model.adopt import adopt
from medmoe.model.checkpoint import load_model

trl = pytest.importorskip("trl", reason="trl is not installed: pip install 'medmoe[dev]'")
STEPS, BATCH, WRONG = 4, 2, "liver"


def questions() -> list[Record]:
    """Return a question about each of some pictures, a batch for each step."""
    asked = {r.image.id: r for r in toy.phantom_records() if r.task == "vqa"}
    assert len(asked) == STEPS * BATCH
    return list(asked.values())


def rows(*columns: str) -> Any:
    """Return the questions as `medmoe data export --target trl` writes them, in other columns.

    Args:
        columns: The answer goes into the first, a wrong one into the second.
    """

    def parted(row: dict[str, Any]) -> dict[str, Any]:
        asked, answered = row["messages"]
        wrong = answered | {"content": WRONG}
        answers = zip(columns, ([answered], [wrong]), strict=False)
        return {"prompt": [asked], **dict(answers)}

    dataset = to_dataset(questions(), target="trl").select_columns(["messages", "images"])
    return dataset.map(parted, remove_columns=["messages"])


def arguments(folder: Path) -> dict[str, Any]:
    """Return what both trainers are told: each step is logged, and rows come in their order."""
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 3e-3,
        "max_length": None,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }


def told(model: Any, record: Record, answer: str) -> Tensor:
    """Return the log-probability (A,) of each token of an answer, by our own way to tokens."""
    tokenizer = ConversationTokenizer(processor(), IMAGE_TOKENS)
    asked = tokenizer.prompt(question_text(record))
    answered = tokenizer.segment(question_text(record), answer).ids
    ids = torch.tensor([[*tokenizer.prefix(), *answered]])
    picture = processor().image_processor(open_record(record.image), return_tensors="pt")
    with torch.no_grad():
        logits = model.eval()(input_ids=ids, pixel_values=picture["pixel_values"]).logits
    scores: Tensor = logits[0, len(asked) - 1 : -1].log_softmax(-1)
    return scores.gather(-1, ids[0, len(asked) :, None])[:, 0]


def test_sft_trains_on_our_answers_to_our_pictures_and_leaves_a_model(tmp_path: Path) -> None:
    model = toy.moe()
    answers = [told(model, record, record.answer) for record in questions()]
    before = toy.weights(model)
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(**arguments(tmp_path / "run")),
        train_dataset=rows("completion"),
        processing_class=processor(),
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == STEPS
    # The first step's weights are known; padded rows and unpadded ones round differently.
    assert losses[0] == pytest.approx(-float(torch.cat(answers[:BATCH]).mean()), rel=1e-5)
    assert losses[-1] < losses[0]
    changed = toy.changed(before, toy.weights(model))
    for part in (".mlp.experts.", ".mlp.meta_expert.", "multi_modal_projector.", "lm_head."):
        assert any(part in name for name in changed), part
    trainer.save_model(str(tmp_path / "saved"))
    adopt(tmp_path / "saved", tmp_path / "adopted")
    assert not toy.changed(toy.weights(model), toy.weights(load_model(tmp_path / "adopted")[0]))


def test_dpo_prefers_our_answers_to_those_it_rejects(tmp_path: Path) -> None:
    model, reference = toy.moe(), toy.moe()
    first = questions()[:BATCH]
    chosen = [float(told(model, record, record.answer).sum()) for record in first]
    rejected = [float(told(model, record, WRONG).sum()) for record in first]
    before = toy.weights(reference)
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=trl.DPOConfig(**arguments(tmp_path)),
        train_dataset=rows("chosen", "rejected"),
        processing_class=processor(),
    )
    trainer.train()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == STEPS
    # Before the first step the model is its reference, and prefers neither answer.
    assert logs[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert logs[0]["logps/chosen"] == pytest.approx(sum(chosen) / BATCH, rel=1e-5)
    assert logs[0]["logps/rejected"] == pytest.approx(sum(rejected) / BATCH, rel=1e-5)
    assert logs[-1]["rewards/margins"] > 0
    assert not toy.changed(before, toy.weights(reference))
    for record in first:
        preferred, wrong = (told(model, record, a).sum() for a in (record.answer, WRONG))
        was, was_wrong = (told(reference, record, a).sum() for a in (record.answer, WRONG))
        assert preferred - wrong > was - was_wrong
