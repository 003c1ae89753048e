"""`MedMoeProcessor`: image and text to model inputs, one policy for training and evaluation.

Images are padded to a square (background = the encoder's mean colour), then resized: nothing of the
picture is ever cropped away. The reference pads in training and centre-crops in evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.processing_utils import MultiModalData


class MedMoeProcessor(LlavaProcessor):
    """Llava's processor; also counts image tokens for encoders without crop size (SigLIP)."""

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        # differs from Llava: reads `size` where the image processor has no `crop_size`.
        if image_sizes is None:
            return MultiModalData()
        size = self.image_processor.crop_size or self.image_processor.size
        side = size.get("height") or size["shortest_edge"]
        tokens = (side // self.patch_size) ** 2 + self.num_additional_image_tokens
        if self.vision_feature_select_strategy == "default":
            tokens -= 1
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[tokens] * count, num_image_patches=[1] * count)


def square_image_processor(
    image_size: int, mean: Sequence[float], std: Sequence[float]
) -> LlavaImageProcessorPil:
    """Return the image processor that pads to a square and resizes to ``image_size`` pixels."""
    return LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
    )
