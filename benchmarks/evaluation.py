"""Evaluating in batches, as `medmoe eval` does, against asking one by one through `generate`.

The tiny MoE model with random weights, phantom pictures of eight questions each, answers of up to
eight tokens. One by one is what a user of transformers writes: the processor on the picture and the
chat prompt, then `generate`, question by question. In batches is `ask_chunk`: each picture is
decoded and encoded once for all its questions, and confidence and routing are computed as well.
Both start from the same pixels. How many answers are the same word for word stands beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from support.timing import options, ratios
from support.tiny import tiny

from medmoe.data.images import open_record
from medmoe.data.schema import Record
from medmoe.evaluation.ask.asker import ask_chunk
from medmoe.inference.engine import MedMoe

IMAGES, NEW_TOKENS = 16, 8
FLOOR = 5.0


@torch.no_grad()
def one_by_one(model: Any, processor: Any, records: list[Record]) -> list[str]:
    """Return the answers of `generate` to one question at a time."""
    answers = []
    for record in records:
        content = [{"type": "image"}, {"type": "text", "text": record.question}]
        prompt = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        inputs = processor(
            images=open_record(record.image),
            text=prompt,
            add_special_tokens=False,
            return_tensors="pt",
        )
        out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return answers


def main() -> None:
    values = options(__doc__.splitlines()[0])
    parts = tiny(IMAGES)
    engine = MedMoe(parts.moe, parts.processor, max_new_tokens=NEW_TOKENS)
    records = parts.records
    alone = one_by_one(parts.moe, parts.processor, records)
    together = [prediction.text for prediction in ask_chunk(engine, records)]
    same = sum(map(str.__eq__, alone, together))
    candidates = {
        "one by one": lambda: one_by_one(parts.moe, parts.processor, records),
        "in batches": lambda: ask_chunk(engine, records),
    }
    found = ratios(candidates, "in batches", values.repeats)["one by one"]
    print(f"{len(records)} questions about {IMAGES} images, {same} answers the same")
    verdict = "reached" if found.median >= FLOOR else "NOT reached"
    print(f"questions/s in batches ÷ one by one: {found}   (at least {FLOOR:.0f}: {verdict})")


if __name__ == "__main__":
    main()
