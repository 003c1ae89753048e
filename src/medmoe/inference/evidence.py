"""The evidence behind one answer: what else was likely, who answered, and what would change it.

`explain` asks the model again and again (some hundred short passes) and returns one `Evidence`;
`MedMoe.answer(…, evidence=True)` gives the cheap part of it. The page is another module's matter.
For research use only, not a medical device: evidence on a model is no evidence on a patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmoe.data.images import open_picture
from medmoe.errors import ConfigError
from medmoe.inference.answer import told_confidence
from medmoe.inference.attribution import Attribution, attribute
from medmoe.inference.engine import ImageInput, MedMoe, Routing, room_for
from medmoe.routing.hooks import forced_expert, meta_expert_off

NOTE = "Research use only, not a medical device."
BEAM = 5


@dataclass(frozen=True, slots=True)
class Alternative:
    """A possible answer and its probability, 0–1; among options they sum to 1."""

    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """The answer after one change.

    Attributes:
        change: ``image blanked``, ``expert <domain> forced`` or ``meta expert off``.
        confidence: Probability of the new answer, 0–1.
        original_probability: Probability of the unchanged model's answer, 0–1.
    """

    change: str
    answer: str
    confidence: float
    original_probability: float
    differs: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known about one answer. For research use only, not a medical device.

    Attributes:
        confidence: Probability of the answer, 0–1, not calibrated; among options: its share. None
            of a flat picture.
        alternatives: Options, or what a beam search found, most probable first; also none then.
        routing: With the experts' shares of the image's tokens by layer; None for a dense model.
    """

    question: str
    answer: str
    confidence: float | None
    alternatives: tuple[Alternative, ...]
    routing: Routing | None
    attribution: Attribution
    counterfactuals: tuple[Counterfactual, ...]
    note: str = NOTE

    def to_dict(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        content = asdict(self)
        content["attribution"]["deletion"]["passed"] = self.attribution.deletion.passed
        return content


def explain(
    engine: MedMoe, image: ImageInput, question: str, options: Sequence[str] = ()
) -> Evidence:
    """Return the evidence behind the answer to one question about one image.

    Args:
        image: As `MedMoe.answer` takes it.
        options: The closed set of answers of a classification; none: the answer is free.

    Raises:
        ConfigError: The question is empty, or the options are fewer than two, empty or repeated; or
            the model is exported.
        ImageError: The image cannot be used.
    """
    engine.look_inside("the evidence behind an answer")
    check_question(question, options)
    picture = open_picture(Path(image) if isinstance(image, str) else image)
    pixels = engine.pixel_values([picture.image])
    features = engine.encode_pixels(pixels)
    answer, confidence, alternatives = _answer(engine, features, question, options)
    told = told_confidence(confidence, picture.facts)
    if told is None:
        alternatives = ()
    elif not options:
        alternatives = _with_answer(
            candidates(engine, features, question, BEAM), Alternative(answer, confidence)
        )
    return Evidence(
        question=question,
        answer=answer,
        confidence=told,
        alternatives=alternatives,
        routing=engine.route(features)[0],
        attribution=attribute(engine, pixels, question, answer),
        counterfactuals=tuple(
            _counterfactual(engine, change, hook, seen, question, options, answer)
            for change, hook, seen in _changes(engine, pixels, features)
        ),
    )


@torch.no_grad()
def candidates(
    engine: MedMoe, features: Tensor | None, question: str, count: int
) -> list[tuple[str, float]]:
    """Return the likeliest answers that a beam search finds, with their probabilities, 0–1.

    Args:
        features: (1, P, D_vision), None for a question in words only.
        count: Width of the beam, and answers at most; two that read alike are one, with the sum of
            their probabilities.
    """
    prompt = engine.prompt(question, with_image=features is not None)
    ids, mask = engine.left_padded([prompt])
    out = engine.model.generate(
        inputs_embeds=engine.model.model.embed(ids, features),
        attention_mask=mask,
        max_new_tokens=room_for(engine.max_new_tokens, len(prompt), engine.limit),
        do_sample=False,
        num_beams=count,
        num_return_sequences=count,
        length_penalty=0.0,  # the score is then the sum of log-probabilities itself
        return_dict_in_generate=True,
        output_scores=True,
    )
    probabilities: dict[str, float] = {}
    texts = engine.processor.tokenizer.batch_decode(out.sequences, skip_special_tokens=True)
    for text, score in zip(texts, out.sequences_scores.exp().tolist(), strict=True):
        probabilities[text.strip()] = probabilities.get(text.strip(), 0.0) + score
    return sorted(probabilities.items(), key=lambda item: -item[1])


def check_question(question: str, options: Sequence[str] = ()) -> None:
    """Refuse an empty question, and options that are no choice.

    Raises:
        ConfigError: The question is empty, or the options are fewer than two, empty or repeated.
    """
    if not question.strip():
        raise ConfigError("the question is empty; give one in quotes")
    if options and (len(options) < 2 or not all(option.strip() for option in options)):
        raise ConfigError(f"options {list(options)} must be at least two and none empty; add one")
    if len(set(options)) < len(options):
        raise ConfigError(f"options {list(options)} hold one answer twice; give each once")


def _answer(
    engine: MedMoe, features: Tensor, question: str, options: Sequence[str]
) -> tuple[str, float, tuple[Alternative, ...]]:
    """Return the answer, its probability, and among options all of theirs."""
    if not options:
        answer = engine.answer_features(features, [0], [question])[0]
        return answer.text, answer.confidence, ()
    scores, _ = engine.scored_options(features, [0], [question], [tuple(options)])[0]
    shares = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
    ranked = sorted(zip(options, shares, strict=True), key=lambda pair: -pair[1])
    return *ranked[0], tuple(Alternative(*pair) for pair in ranked)


def _with_answer(
    found: Sequence[tuple[str, float]], answer: Alternative
) -> tuple[Alternative, ...]:
    """Return the beam's answers, and the given one too if the beam has lost it."""
    alternatives = [Alternative(*pair) for pair in found]
    if all(alternative.text != answer.text for alternative in alternatives):
        alternatives.append(answer)
    return tuple(sorted(alternatives, key=lambda alternative: -alternative.probability))


def _changes(
    engine: MedMoe, pixels: Tensor, features: Tensor
) -> Iterator[tuple[str, AbstractContextManager[None], Tensor]]:
    """Yield each change: its name, the model's part of it, and the features to ask about."""
    yield "image blanked", nullcontext(), engine.encode_pixels(torch.zeros_like(pixels))
    if not engine.model.config.moe_layers:
        return
    for index, domain in enumerate(engine.domains):
        yield f"expert {domain} forced", forced_expert(engine.model, index), features
    if engine.model.config.meta_expert:  # a recipe may leave it out
        yield "meta expert off", meta_expert_off(engine.model), features


def _counterfactual(
    engine: MedMoe,
    change: str,
    changed: AbstractContextManager[None],
    features: Tensor,
    question: str,
    options: Sequence[str],
    original: str,
) -> Counterfactual:
    with changed:
        answer, confidence, alternatives = _answer(engine, features, question, options)
        if options:
            kept = next(other.probability for other in alternatives if other.text == original)
        else:
            scores, _ = engine.scored_options(features, [0], [question], [(original,)])[0]
            kept = float(torch.tensor(scores[0]).exp())
    return Counterfactual(change, answer, confidence, kept, answer != original)
