"""What a conversion made and did: printed, written as JSON, kept as the model's provenance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from transformers.initialization import no_init_weights

from medmoe.errors import CheckpointError, MedMoeError, first_line
from medmoe.model.checkpoint import check_replaceable, save_model
from medmoe.model.configuration_medmoe import MedMoeConfig
from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration
from medmoe.model.processing_medmoe import MedMoeProcessor

NO_PROCESSOR = (
    "none: there is no tokenizer in the folder, so the model runs on token ids but cannot be asked "
    "in words; put the tokenizer of its language model there and convert again"
)


@dataclass(frozen=True, slots=True)
class Conversion:
    """The account of one conversion.

    Attributes:
        kind: ``reference`` or ``llava``, with the checkpoint's own model type.
        moe_layers, domains, num_experts_per_tok: Of the model that was made; empty and 0 if dense.
        vision_tower, router, processor: Where each comes from, in one line.
        filled: What the checkpoint lacks and the model has, with the reason.
        dropped: What the checkpoint holds and the model has not, with the reason.
        notes: What a user should know besides.
    """

    source: str
    kind: str
    files: tuple[str, ...]
    tensors: int
    vision_tower: str
    processor: str
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    moe_layers: tuple[int, ...] = ()
    domains: tuple[str, ...] = ()
    num_experts_per_tok: int = 0
    router: str = "none: a dense model"
    filled: tuple[str, ...] = ()

    def provenance(self) -> dict[str, Any]:
        """Return what is kept beside the model, in the words of a trained model's provenance."""
        return {"converted": asdict(self), "notes": [f"Converted from {self.kind}.", *self.notes]}


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted model in memory, its processor if it has one, and the account."""

    model: MedMoeForConditionalGeneration
    processor: MedMoeProcessor | None
    account: Conversion


def written(destination: Path, load: Callable[[], Converted]) -> Conversion:
    """Write the model that ``load`` makes of a checkpoint as a model directory of ours.

    It is written whole or not at all; an older model is replaced, anything else is refused before
    the checkpoint is read.
    """
    check_replaceable(destination)
    made = load()
    save_model(made.model, made.processor, destination, made.account.provenance())
    return made.account


@contextmanager
def config_of(source: Path) -> Iterator[None]:
    """Refuse what a checkpoint's config makes transformers' configs and modules raise.

    Raises:
        CheckpointError: In place of whatever they raise on odd sizes, types and names.
    """
    try:
        yield
    except MedMoeError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{source / 'config.json'}: no model can be made from it "
            f"({type(error).__name__}: {first_line(error)}); copy it again"
        ) from None


def empty_model(config: MedMoeConfig) -> MedMoeForConditionalGeneration:
    """Return a model whose parameters take no memory until tensors are assigned to them."""
    with init_empty_weights(), no_init_weights():
        return MedMoeForConditionalGeneration(config)
