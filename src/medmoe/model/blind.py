"""The vision encoder of a blind twin: it says the same of every picture, and has no weights.

A Med-MoE trained with it learns what can be read from the questions alone; what the seeing model
scores above it is the picture's share.

Shapes: B pictures, P image tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from medmoe.backbones.spec import VisionBackbone


@strict
class BlindConfig(PreTrainedConfig):
    """Shape of the pictures that are not seen: as many image tokens as the seeing twin has.

    Attributes:
        hidden_size: Width of an image's state, all zeros.
    """

    model_type = "blind"

    image_size: int = 32
    patch_size: int = 32
    hidden_size: int = 1


class BlindModel(PreTrainedModel):
    """Pictures (B, 3, H, H) to zeros (B, P, hidden_size): the projector's biases remain."""

    config_class = BlindConfig
    config: BlindConfig
    main_input_name = "pixel_values"

    def __init__(self, config: BlindConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutput:
        """Return zeros, also as the only hidden state.

        Args:
            pixel_values: (B, 3, H, H); their number and kind count.
            kwargs: Of other encoders; of no effect.
        """
        patches = (self.config.image_size // self.config.patch_size) ** 2
        states = pixel_values.new_zeros(len(pixel_values), patches, self.config.hidden_size)
        return BaseModelOutput(last_hidden_state=states, hidden_states=(states,))


def blinded(vision: VisionBackbone) -> VisionBackbone:
    """Return what takes the place of an encoder in its blind twin."""
    sizes = {"image_size": vision.image_size, "patch_size": vision.patch_size}
    return replace(
        vision,
        name="blind",
        hub_id=None,
        revision=None,
        model_type=BlindConfig.model_type,
        config={**sizes, "hidden_size": 1},
        select_layer=-1,
        select_strategy="full",
    )
