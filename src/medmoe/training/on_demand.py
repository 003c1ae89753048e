"""Vision features encoded when a batch asks for them: for more images than memory or disk can hold.

Stands in for the table of `features`; a picture that comes in several epochs is encoded as often.

Shapes: N images, B of a batch, P patches, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from medmoe.backbones.spec import VisionBackbone
from medmoe.data.pixels import pixel_table
from medmoe.data.schema import ImageRecord
from medmoe.training.features import selected_states


class FeaturesOnDemand:
    """Indexed like a tensor (N, P, D) by rows (B,), it opens and encodes those images.

    In the training process only: a loader process has no encoder on the GPU.

    Args:
        encoder: The frozen vision encoder.
        images: In the order of the rows.
    """

    def __init__(
        self,
        encoder: Any,
        vision: VisionBackbone,
        image_processor: Any,
        images: Sequence[ImageRecord],
    ) -> None:
        self._encoder, self._vision = encoder, vision
        self._processor, self._images = image_processor, images

    @property
    def rows(self) -> dict[str, int]:
        """Row of each image by its id."""
        return {image.id: row for row, image in enumerate(self._images)}

    @torch.no_grad()
    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the features (B, P, D) float32 of some rows.

        Raises:
            ImageError: An image cannot be opened.
        """
        table = pixel_table([self._images[row] for row in rows.tolist()], self._processor)
        pixel_values = table.normalised(torch.arange(len(table.pixels)))
        return selected_states(self._encoder.eval(), pixel_values, self._vision)
