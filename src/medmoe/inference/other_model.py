"""A model of another kind, of any class that transformers has for pictures and text.

It is asked in its own chat template and sees what its own processor makes of a picture, anew for
every question. Nothing of its folder is run: no code, and of pickles tensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LogitsProcessorList

from medmoe.errors import CheckpointError, first_line
from medmoe.inference.answer import Answer, ChosenTokens
from medmoe.inference.engine import LONG_ANSWER, room_for
from medmoe.model.checkpoint import check_content
from medmoe.model.strange_template import check_template
from medmoe.processes import own_gpu

#: Role and words of each contribution to a conversation; the last one is the user's.
Turns = Sequence[tuple[str, str]]
#: Further pictures, each with the number of the contribution before whose words it stands.
Further = Sequence[tuple[int, Image.Image]]


class OtherModel:
    """A model of a folder; it runs on a GPU if there is one.

    Args:
        batch_size: Questions answered together.
        dtype: Of the weights, None for the one they were saved in.

    Raises:
        CheckpointError: The folder holds foreign code or damaged files, lacks weights or a chat
            template, or needs what is not installed.
    """

    def __init__(self, folder: Path, batch_size: int, dtype: str | None = None) -> None:
        self.max_new_tokens = LONG_ANSWER
        for path in sorted(folder.iterdir()):
            check_content(path)
        try:
            self._model, self._processor = _loaded(folder, dtype or "auto")
        except Exception as error:  # of transformers, tokenizers, PyTorch: whatever they raise
            reason, fix = first_line(error).partition(". ")[0], "copy it again"
            if "torchvision" in str(error).lower():
                reason, fix = "its processor needs torchvision", "install that of this torch"
            raise CheckpointError(
                f"{folder}: no model to ask ({reason}); {fix}, or serve it by another program and "
                "give --model-api URL"
            ) from None
        self._model.eval().to(own_gpu() if torch.cuda.is_available() else "cpu")
        self._batch_size, self._tokenizer = batch_size, self._processor.tokenizer
        self._tokenizer.padding_side = "left"
        ends = self._model.generation_config.eos_token_id or self._tokenizer.eos_token_id
        self._ends = ends if isinstance(ends, list) else [ends]

    @torch.no_grad()
    def answers(
        self,
        pictures: Sequence[Image.Image],
        talks: Sequence[Turns],
        further: Sequence[Further] = (),
    ) -> list[Answer]:
        """Go on with conversations about a picture each; one too long raises `ConfigError`.

        Args:
            further: Of each conversation its further pictures.
        """
        more = further or [()] * len(talks)
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        answers: list[Answer] = []
        for start in range(0, len(talks), self._batch_size):
            part = slice(start, start + self._batch_size)
            inputs = self._inputs(pictures[part], talks[part], more[part])
            chosen = ChosenTokens()
            said = self._model.generate(
                **inputs,
                max_new_tokens=room_for(self.max_new_tokens, inputs["input_ids"].shape[1], limit),
                do_sample=False,
                num_beams=1,
                logits_processor=LogitsProcessorList([chosen]),
            )[:, -len(chosen) :]
            texts = self._tokenizer.batch_decode(said, skip_special_tokens=True)
            told = zip(texts, *chosen.told(said, self._ends), strict=True)
            answers += [Answer(text.strip(), sure, None, cut) for text, sure, cut in told]
        return answers

    def _inputs(
        self, pictures: Sequence[Image.Image], talks: Sequence[Turns], further: Sequence[Further]
    ) -> Any:
        shown = [[(0, picture), *more] for picture, more in zip(pictures, further, strict=True)]
        messages = [
            conversation(talk, [(place, {"type": "image"}) for place, _ in own])
            for talk, own in zip(talks, shown, strict=True)
        ]
        texts = self._processor.apply_chat_template(messages, add_generation_prompt=True)
        begun = self._tokenizer.bos_token
        inputs = self._processor(
            text=texts,
            images=[[picture for _, picture in own] for own in shown],
            padding=True,
            add_special_tokens=not (begun and texts[0].startswith(begun)),
            return_tensors="pt",
        )
        return inputs.to(self._model.device, self._model.dtype)


def _loaded(folder: Path, dtype: str) -> tuple[Any, Any]:
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if not processor.chat_template:
        raise ValueError("its processor has no chat template, which says how to ask it")
    check_template(str(processor.chat_template))
    model, found = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, weights_only=True, output_loading_info=True, local_files_only=True
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{len(missing)} weights are missing, such as {missing[0]}")
    return model, processor


def conversation(
    turns: Turns, pictures: Sequence[tuple[int, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Return a conversation as messages, each picture before the words of its contribution."""
    return [
        {
            "role": role,
            "content": [*(p for at, p in pictures if at == place), {"type": "text", "text": text}],
        }
        for place, (role, text) in enumerate(turns)
    ]
