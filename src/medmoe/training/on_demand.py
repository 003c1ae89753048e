"""Vision features encoded when a batch asks for them: for more images than memory or disk can hold.

Stands in for the table of `features`; a picture that comes in several epochs is encoded as often.
Pictures may be read ahead of their batch, in threads that wait for the decoder processes.

Shapes: N images, B of a batch, P patches, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medmoe.backbones.spec import VisionBackbone
from medmoe.data.intake.sandbox import default_pool
from medmoe.data.pixels import normalise, read_pixels
from medmoe.data.schema import ImageRecord, Pixels
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
        self._readers = ThreadPoolExecutor(default_pool().workers, thread_name_prefix="reader")
        self._begun: dict[int, Future[Pixels]] = {}

    @property
    def rows(self) -> dict[str, int]:
        """Row of each image by its id."""
        return {image.id: row for row, image in enumerate(self._images)}

    def begin(self, row: int) -> None:
        """Start reading an image that a coming batch has; any thread may call it."""
        if row not in self._begun:
            self._begun[row] = self._started(row)

    @torch.no_grad()
    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the features (B, P, D) float32 of some rows.

        Raises:
            ImageError: An image cannot be opened.
        """
        wanted = rows.tolist()
        reading = {row: self._taken(row) for row in wanted}
        pixels = np.stack([reading[row].result() for row in wanted])
        unit = torch.from_numpy(pixels).float() / 255
        pixel_values = normalise(unit, self._processor.image_mean, self._processor.image_std)
        return selected_states(self._encoder.eval(), pixel_values, self._vision)

    def _taken(self, row: int) -> Future[Pixels]:
        begun = self._begun.pop(row, None)
        return self._started(row) if begun is None else begun

    def _started(self, row: int) -> Future[Pixels]:
        return self._readers.submit(read_pixels, self._images[row], self._processor)
