"""The tokenizer and the chat template in a foreign checkpoint's folder; no code of it is run."""

from __future__ import annotations

from pathlib import Path

from transformers import (
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)

from medmoe.errors import CheckpointError, first_line
from medmoe.model.build import IMAGE_TOKEN
from medmoe.model.locate import read_json

_WHOLE = "tokenizer.json"
_SIGNS = (_WHOLE, "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")


def read_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer in a folder, or None where there is none.

    Args:
        vocab_size: Rows of its embedding; every token must have one, but for the image's.

    Raises:
        CheckpointError: There is one, but it needs code, is damaged, or has tokens without a row.
    """
    if not any((folder / name).is_file() for name in _SIGNS):
        return None
    settings = folder / "tokenizer_config.json"
    needs_code = settings.is_file() and "auto_map" in read_json(settings)
    if needs_code and not (folder / _WHOLE).is_file():
        raise CheckpointError(
            f"{settings}: this tokenizer runs code of its own (auto_map), which is refused; put "
            f"the {_WHOLE} of its language model beside it"
        )
    try:
        if (folder / _WHOLE).is_file():
            tokenizer = TokenizersBackend.from_pretrained(folder, local_files_only=True)
        else:
            # With a config given it does not read the folder's, whose model type it cannot know.
            tokenizer = AutoTokenizer.from_pretrained(
                folder, config=PreTrainedConfig(), local_files_only=True
            )
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise CheckpointError(
            f"{folder}: its tokenizer cannot be read ({first_line(error)}); copy its files again, "
            "or remove them to convert without a processor"
        ) from None
    usable: PreTrainedTokenizerBase = tokenizer
    last = max((i for token, i in usable.get_vocab().items() if token != IMAGE_TOKEN), default=-1)
    if last >= vocab_size:
        raise CheckpointError(
            f"{folder}: its tokenizer has ids up to {last}, the checkpoint {vocab_size} rows; "
            "give the tokenizer that it was trained with"
        )
    return usable


def read_chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template that a folder holds, of its processor or of its tokenizer."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json"):
        template = (
            read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        )
        if isinstance(template, str):
            return template
    own = tokenizer.chat_template
    return own if isinstance(own, str) else None


def with_first_token(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a chat template that begins a prompt as the tokenizer begins a text.

    Some tokenizers (Llama's) put a token before every text; our prompts are the template's
    rendering and nothing else, so it must stand there.
    """
    first = tokenizer.bos_token
    begins = tokenizer("x").input_ids[:1] == [tokenizer.bos_token_id]
    if not first or not begins or first in template or "bos_token" in template:
        return template
    return "{{ " + repr(first) + " }}" + template
