"""What the frozen vision encoder says of every image: computed once and kept on disk, or on demand.

The paper freezes the encoder in every phase, so its output never changes: phases 1 to 3 read the
same file. Kept by content: other weights, pictures or preparation give another file. Where there
are more images than memory or disk can hold, those of a batch are encoded when it asks for them.

Shapes: N images, B of a batch, P patches, D encoder width.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from medmoe.backbones.spec import VisionBackbone
from medmoe.data.intake.sandbox import default_pool
from medmoe.data.pixels import PixelTable, normalise, read_pixels
from medmoe.data.schema import ImageRecord, Pixels
from medmoe.errors import CheckpointError
from medmoe.files import lock
from medmoe.model.committed import check_files, committed, read_manifest
from medmoe.model.hashes import bytes_of, take_in
from medmoe.processes import from_main, is_main, joined, process, processes

logger = logging.getLogger(__name__)

_BATCH = 128
_FILE, _TENSOR = "features.safetensors", "features"
#: Part of the free disk that kept features may take.
_SHARE_OF_FREE = 0.8


@torch.no_grad()
def encode_images(
    encoder: Any,
    table: PixelTable,
    vision: VisionBackbone,
    cache: Path | None = None,
    *,
    autocast: bool = False,
) -> Tensor:
    """Return the frozen encoder's selected states of all images, (N, P, D_vision) float32.

    Args:
        encoder: Frozen; put into eval mode.
        vision: Says which layer and which of its states are selected.
        cache: Folder of kept features, shared by runs and processes; None keeps nothing. Where
            they do not fit they are computed and not kept.
        autocast: Compute in bfloat16.

    Returns:
        Mapped from the file where it is kept: read as it is used, shared by all processes.
    """
    parts = _parts(encoder.eval(), table, vision, autocast)
    if cache is None:
        return torch.cat(list(parts))
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / _key(encoder, table, vision, autocast)
    with _alone(directory) if is_main() else nullcontext():
        if not from_main(lambda: _is_whole(directory)):
            first = next(parts)
            shape = (len(table.pixels), *first.shape[1:])
            size, room = 4 * math.prod(shape), _SHARE_OF_FREE * shutil.disk_usage(cache).free
            if not from_main(lambda: size < room):
                logger.warning("%s: the features of %d images do not fit", cache, shape[0])
                return torch.cat([first, *parts])
            fault = None
            try:
                with committed(directory) if is_main() else nullcontext() as staging:
                    if staging is not None:
                        _write(staging / _FILE, shape, first, parts)
            except OSError as error:
                fault = error.strerror
            deque(parts if processes() > 1 else (), maxlen=0)  # all take part to the end
            if fault := from_main(lambda: fault):
                logger.warning("%s: features are not kept (%s)", cache, fault)
                return torch.cat(list(_parts(encoder, table, vision, autocast)))
    with safe_open(directory / _FILE, framework="pt") as file:
        features: Tensor = file.get_tensor(_TENSOR)
    return features


def selected_states(
    encoder: Any, pixel_values: Tensor, vision: VisionBackbone, autocast: bool = False
) -> Tensor:
    """Return the selected states (B, P, D_vision) of pictures (B, 3, H, W), on the CPU."""
    device = next(encoder.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        out = encoder(pixel_values.to(device), output_hidden_states=True).hidden_states
    chosen: Tensor = out[vision.select_layer].float().cpu()
    return chosen[:, 1:] if vision.select_strategy == "default" else chosen


def _parts(
    encoder: Any, table: PixelTable, vision: VisionBackbone, autocast: bool
) -> Iterator[Tensor]:
    """Yield the features batch by batch, in every process; each encodes its share."""
    count = len(table.pixels)
    for start in range(0, count, _BATCH * processes()):
        # Whoever has none left encodes the last image: all take part in the exchange.
        first = min(start + _BATCH * process(), count - 1)
        rows = torch.arange(first, min(first + _BATCH, count))
        states = selected_states(encoder, table.normalised(rows), vision, autocast)
        if processes() > 1:
            padded = functional.pad(states, (0, 0, 0, 0, 0, _BATCH - len(states)))
            states = gather(padded.to(joined().device)).cpu()[: count - start]
        yield states


def _key(encoder: Any, table: PixelTable, vision: VisionBackbone, autocast: bool) -> str:
    """Return a hash of all that the features follow from."""
    digest = hashlib.sha256()
    facts: list[Any] = [vision.select_layer, vision.select_strategy, table.mean, table.std]
    facts += ["bf16"] * autocast + [table.view, table.strength] * bool(table.view)
    digest.update(json.dumps([*map(str, facts), sorted(table.rows.items())]).encode())
    take_in(digest, sorted(encoder.state_dict().items()))
    digest.update(bytes_of(table.pixels))
    return digest.hexdigest()[:32]


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process at a time look for features and make them; the others then find them."""
    with directory.with_name(f".{directory.name}.lock").open("w") as file:
        lock(file.fileno(), wait=True)
        yield


def _is_whole(directory: Path) -> bool:
    fix = "they are computed anew"
    if not directory.is_dir():
        return False
    try:
        check_files(directory, read_manifest(directory, fix), fix)
    except CheckpointError as error:
        logger.warning("%s", error)
        return False
    return True


def _write(path: Path, shape: tuple[int, ...], first: Tensor, rest: Iterator[Tensor]) -> None:
    """Write one tensor as safetensors, part by part: all of it need not fit into memory."""
    size = 4 * math.prod(shape)
    entry = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, size]}
    header = json.dumps({_TENSOR: entry}).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for part in chain([first], rest):
            file.write(bytes_of(part))


class Views:
    """Features of several versions of N pictures, indexed by rows (B,) like one tensor.

    Row ``v * N + i`` is version v of picture i.
    """

    def __init__(self, versions: Sequence[Tensor]) -> None:
        self._versions, self._count = versions, len(versions[0])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Return the features (B, P, D) of some rows."""
        places = (divmod(row, self._count) for row in rows.tolist())
        return torch.stack([self._versions[view][row] for view, row in places])


class FeaturesOnDemand:
    """Indexed like a tensor (N, P, D) by rows (B,), it opens and encodes those images.

    A picture that comes in several epochs is encoded as often; pictures may be read ahead of their
    batch, in threads that wait for the decoder processes. In the training process only: a loader
    process has no encoder on the GPU.

    Args:
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
        begun = self._begun
        reading = {row: begun.pop(row) if row in begun else self._started(row) for row in wanted}
        pixels = np.stack([reading[row].result() for row in wanted])
        unit = torch.from_numpy(pixels).float() / 255
        pixel_values = normalise(unit, self._processor.image_mean, self._processor.image_std)
        return selected_states(self._encoder.eval(), pixel_values, self._vision)

    def _started(self, row: int) -> Future[Pixels]:
        return self._readers.submit(read_pixels, self._images[row], self._processor)
