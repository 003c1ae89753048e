"""The evidence behind one answer: what else was likely, who answered, and what would change it.

`explain` asks the model about some hundred pictures and changes, in batches, for one `Evidence`;
`MedMoe.answer(…, evidence=True)` gives the cheap part of it. The page is another module's matter.
For research use only, not a medical device: evidence on a model is no evidence on a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medmoe.data.images import open_picture
from medmoe.errors import ConfigError
from medmoe.inference.answer import ranked, told_confidence
from medmoe.inference.attribution import Attribution, attribute, log_probability
from medmoe.inference.engine import ImageInput, MedMoe, Routing, room_for
from medmoe.notice import RESEARCH_ONLY
from medmoe.routing.hooks import forced_expert, meta_expert_off

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


#: An answer, its probability, and among options all of theirs.
_Answered = tuple[str, float, tuple[Alternative, ...]]


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
    note: str = RESEARCH_ONLY

    def to_dict(self) -> dict[str, Any]:
        """Return it as an object for JSON."""
        content = asdict(self)
        content["attribution"]["deletion"]["passed"] = self.attribution.deletion.passed
        return content


def explain(
    engine: MedMoe,
    image: ImageInput,
    question: str,
    options: Sequence[str] = (),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evidence:
    """Return the evidence behind the answer to one question about one image.

    Args:
        image: As `MedMoe.answer` takes it.
        options: The closed set of answers of a classification; none: the answer is free.
        on_progress: Told how many changed pictures the model has seen, and of how many.

    Raises:
        ConfigError: The question is empty, or the options are fewer than two, empty or repeated; or
            the model is exported.
        ImageError: The image cannot be used.
    """
    engine.look_inside("the evidence behind an answer")
    check_question(question, options)
    picture = open_picture(Path(image) if isinstance(image, str) else image)
    pixels = engine.pixel_values([picture.image])
    shown = engine.encode_pixels(torch.cat([pixels, torch.zeros_like(pixels)]))
    features = shown[:1]
    (answer, confidence, alternatives), counterfactuals = _asked(engine, shown, question, options)
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
        attribution=attribute(engine, pixels, question, answer, on_progress),
        counterfactuals=counterfactuals,
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
        picture_tokens=ids == engine.processor.image_token_id,
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


@dataclass(frozen=True, slots=True)
class _Change:
    """What is changed of the picture or of the model; nothing for the answer itself."""

    name: str = ""
    blank: bool = False
    expert: int | None = None
    meta_off: bool = False


def _changes(engine: MedMoe) -> list[_Change]:
    changes = [_Change(), _Change("image blanked", blank=True)]
    if engine.model.config.moe_layers:
        for index, domain in enumerate(engine.domains):
            changes.append(_Change(f"expert {domain} forced", expert=index))
        if engine.model.config.meta_expert:  # a recipe may leave it out
            changes.append(_Change("meta expert off", meta_off=True))
    return changes


def _asked(
    engine: MedMoe, shown: Tensor, question: str, options: Sequence[str]
) -> tuple[_Answered, tuple[Counterfactual, ...]]:
    """Return the answer and what each change makes of it, all asked in the same batches.

    Args:
        shown: (2, P, D_vision), of the picture and of a blank one.
    """
    changes = _changes(engine)
    given: list[_Answered] = []
    kept: list[float] = []
    for start in range(0, len(changes), engine.batch_size):
        part = changes[start : start + engine.batch_size]
        features = shown[[int(change.blank) for change in part]]
        experts, off = [change.expert for change in part], [change.meta_off for change in part]
        with ExitStack() as changed:
            if any(expert is not None for expert in experts):
                changed.enter_context(forced_expert(engine.model, experts))
            if any(off):
                changed.enter_context(meta_expert_off(engine.model, off))
            given += _answers(engine, features, question, options)
            if not options:
                kept += log_probability(engine, features, question, given[0][0]).exp().tolist()
    original = given[0][0]
    if options:
        kept = [{a.text: a.probability for a in others}[original] for _, _, others in given]
    return given[0], tuple(
        Counterfactual(change.name, answer, confidence, before, answer != original)
        for change, (answer, confidence, _), before in zip(changes, given, kept, strict=True)
        if change.name
    )


def _answers(
    engine: MedMoe, features: Tensor, question: str, options: Sequence[str]
) -> list[_Answered]:
    """Return of each picture (N, P, D_vision) the answer."""
    rows, questions = range(len(features)), [question] * len(features)
    if not options:
        answers = engine.answer_features(features, rows, questions)
        return [(answer.text, answer.confidence, ()) for answer in answers]
    found: list[_Answered] = []
    for scores, _ in engine.scored_options(features, rows, questions, [options] * len(features)):
        among = ranked(options, scores)
        found.append((*among[0], tuple(Alternative(*pair) for pair in among)))
    return found


def _with_answer(
    found: Sequence[tuple[str, float]], answer: Alternative
) -> tuple[Alternative, ...]:
    """Return the beam's answers, and the given one too if the beam has lost it."""
    alternatives = [Alternative(*pair) for pair in found]
    if all(alternative.text != answer.text for alternative in alternatives):
        alternatives.append(answer)
    return tuple(sorted(alternatives, key=lambda alternative: -alternative.probability))
