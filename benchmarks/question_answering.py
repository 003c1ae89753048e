"""Answering questions in batches against answering them one by one, in the engine.

`MedMoe.answer_features` on images that are encoded already, with the tiny MoE model and random
weights, eight new tokens an answer: 32 questions about 8 images. How many answers are the same word
for word is printed beside the ratio: sums of float32 in another order may turn a close choice.

Then eight questions about one picture, at SmolLM2-135M's shape: asked separately, in one batch in
which each reads the picture for itself, and in one that reads it once.

Last, the evidence behind one answer against the answer itself, with the tiny model: `explain` asks
about some 160 pictures and seven changes of the model, in batches. The floating-point operations of
both, counted by torch, say what is left to batching: nothing where an answer keeps all units busy.
"""

from __future__ import annotations

from collections.abc import Callable

from support.timing import options, ratios
from support.tiny import Tiny, tiny
from torch.utils.flop_counter import FlopCounterMode

from medmoe.data.images import open_record
from medmoe.inference.engine import Answer, MedMoe
from medmoe.inference.evidence import explain

IMAGES, QUESTIONS, NEW_TOKENS = 8, 32, 8
BATCHES = (4, 16, 32)
ABOUT_ONE, AT_LEAST = 8, 4.0


def asking(parts: Tiny, batch_size: int) -> Callable[[], list[Answer]]:
    """Return a function that answers all questions in batches of some size."""
    engine = MedMoe(parts.moe, parts.processor, batch_size=batch_size, max_new_tokens=NEW_TOKENS)
    chosen = parts.records[:: max(1, len(parts.records) // QUESTIONS)][:QUESTIONS]
    rows = [parts.rows[record.image.id] for record in chosen]
    return lambda: engine.answer_features(parts.features, rows, [r.question for r in chosen])


def about_one(parts: Tiny) -> dict[str, Callable[[], list[Answer]]]:
    """Return the ways of asking eight questions about one picture."""
    alone = MedMoe(parts.moe, parts.processor, batch_size=1, max_new_tokens=NEW_TOKENS)
    together = MedMoe(parts.moe, parts.processor, max_new_tokens=NEW_TOKENS)
    asked = [record.question for record in parts.records[:ABOUT_ONE]]
    one = parts.features[:1]
    copies = one.expand(ABOUT_ONE, -1, -1)
    return {
        "separately": lambda: alone.answer_features(one, [0] * ABOUT_ONE, asked),
        "in one batch": lambda: together.answer_features(copies, range(ABOUT_ONE), asked),
        "read once": lambda: together.answer_features(one, [0] * ABOUT_ONE, asked),
    }


def evidence_and_answer(parts: Tiny) -> dict[str, Callable[[], object]]:
    """Return the evidence behind an answer of up to four tokens, and the answer alone."""
    engine = MedMoe(parts.moe, parts.processor, max_new_tokens=4)
    asked = parts.records[0]
    picture = open_record(asked.image)
    return {
        "explain": lambda: explain(engine, picture, asked.question),
        "answer": lambda: engine.answer(picture, asked.question),
    }


def operations(run: Callable[[], object]) -> int:
    """Return the floating-point operations of one run."""
    with FlopCounterMode(display=False) as counted:
        run()
    return int(counted.get_total_flops())


def main() -> None:
    values = options(__doc__.splitlines()[0])
    parts = tiny(IMAGES)
    runs = {size: asking(parts, size) for size in (1, *BATCHES)}
    texts = {size: [answer.text for answer in run()] for size, run in runs.items()}
    same = {size: sum(map(str.__eq__, found, texts[1])) for size, found in texts.items()}
    found = ratios({str(size): run for size, run in runs.items()}, "1", values.repeats)
    print(f"{'batch':<8}{'same answers':<16}one by one ÷ in batches (speed-up)")
    for size in BATCHES:
        ratio = found[str(size)]
        inverse = f"{1 / ratio.median:6.2f}  [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
        print(f"{size:<8}{same[size]:>3} of {QUESTIONS:<10}{inverse}")
    ways = about_one(tiny(2, "smollm2_135m"))
    said = {name: [answer.text for answer in run()] for name, run in ways.items()}
    found = ratios(ways, "read once", values.repeats)
    print(f"{ABOUT_ONE} questions about one picture, ÷ read once (at least {AT_LEAST:g})")
    for name in list(ways)[:2]:
        equal = sum(map(str.__eq__, said[name], said["read once"]))
        print(f"{name:<16}{equal} of {ABOUT_ONE} the same   {found[name]}")
    both = evidence_and_answer(tiny(1))
    found = ratios(both, "answer", values.repeats)
    work = operations(both["explain"]) / operations(both["answer"])
    print(f"explain ÷ one answer: {found['explain']}; operations: {work:.0f}")


if __name__ == "__main__":
    main()
