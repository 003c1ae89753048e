"""What was read is kept: pictures as the encoder sees them, and how prompts begin.

Many questions about one picture, and the turns of one conversation, begin with the same tokens.
What those left in the attention of every layer (keys and values) depends on nothing behind them: it
is read once and taken over. What was not used for longest goes first. What it does not do: read
anything (see `medmoe.inference.engine` and `medmoe.inference.chat`).

Shapes: N pictures of a prompt, P patches, S tokens, H key-value heads.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from PIL import Image
from torch import Tensor

from medmoe.data.images import digest_of
from medmoe.inference.answer import Routing

#: Pictures whose encoding is kept (about 2.4 MB each at CLIP-L's size, float32).
KEPT_PICTURES = 64
#: Bytes of keys and values that are kept at most, and seconds since their last use.
MOST_BYTES, MOST_SECONDS = 256 * 2**20, 60.0
#: Tokens that must begin alike for taking them over to be worth more than it costs.
_WORTH = 16
States = tuple[tuple[Tensor, Tensor], ...]


class PictureCache:
    """The features of the pictures that were shown last, by their content."""

    def __init__(self, encode: Callable[[Sequence[Image.Image]], Tensor]) -> None:
        self._encode = encode
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def features(self, images: Sequence[Image.Image]) -> Tensor | None:
        """Return the features (N, P, D_vision) of pictures, None of no picture."""
        keys = [digest_of(image) for image in images]
        new = {k: i for k, i in zip(keys, images, strict=True) if k not in self._kept}
        if new:
            self._kept.update(zip(new, self._encode(list(new.values())), strict=True))
        features = [self._kept[key] for key in keys]
        for key in keys:
            self._kept.move_to_end(key)
        while len(self._kept) > KEPT_PICTURES:
            self._kept.popitem(last=False)
        return torch.stack(features) if features else None


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """The beginning of a prompt, as it was read.

    Attributes:
        ids: Its tokens, the pictures' placeholders among them.
        pictures: A digest of each picture's features, in order.
        routings: Of the pictures.
        states: Keys and values of every layer, (1, H, S, width) each.
        pictured: (1, E), what the first picture decided; None where tokens are routed.
    """

    ids: tuple[int, ...] = ()
    pictures: tuple[bytes, ...] = ()
    routings: tuple[Routing | None, ...] = ()
    states: States = ()
    pictured: Tensor | None = None

    def cut(self, tokens: int, pictures: int) -> Prefix:
        """Return its first tokens and pictures."""
        return Prefix(
            self.ids[:tokens],
            self.pictures[:pictures],
            self.routings[:pictures],
            tuple((k[:, :, :tokens], v[:, :, :tokens]) for k, v in self.states),
            self.pictured,
        )

    def begins(self, ids: Sequence[int], pictures: Sequence[bytes]) -> bool:
        """Return whether a prompt begins with the whole of it."""
        return (
            tuple(ids[: len(self.ids)]) == self.ids
            and tuple(pictures[: len(self.pictures)]) == self.pictures
        )


class PrefixCache:
    """The prompts that were read last.

    Args:
        image_id: The token that stands for a part of a picture.
        image_tokens: How many of them stand for a picture.
    """

    def __init__(self, image_id: int, image_tokens: int, most_bytes: int = MOST_BYTES) -> None:
        self._image_id, self._image_tokens = image_id, image_tokens
        self._most_bytes = most_bytes
        self._kept: dict[Prefix, float] = {}  # and its last use; the one used last at the end

    def longest(self, ids: tuple[int, ...], pictures: Sequence[bytes]) -> Prefix:
        """Return the longest beginning of a prompt that is kept; an empty one where none is.

        At least the last token is left to be read: its state says how the answer begins.
        """
        best, source = Prefix(), None
        for kept in self._kept:
            alike = sum(1 for _ in takewhile(_same, zip(ids[:-1], kept.ids, strict=False)))
            if alike < max(_WORTH, len(best.ids) + 1):
                continue
            shown = ids[:alike].count(self._image_id)
            whole, part = divmod(shown, self._image_tokens)
            seen = sum(1 for _ in takewhile(_same, zip(pictures, kept.pictures, strict=False)))
            if part or seen < whole:
                alike, whole = self._before_image(ids, min(seen, whole)), min(seen, whole)
            if kept.pictured is not None and not whole and (pictures or kept.pictures):
                continue  # the first picture decided how even what stands before it was read
            if alike >= max(_WORTH, len(best.ids) + 1):
                best, source = kept.cut(alike, whole), kept
        if source is not None:
            del self._kept[source]
            self._kept[source] = time.monotonic()
        return best

    def keep(self, prefix: Prefix) -> None:
        """Keep a prompt, its states its own, in place of those that it goes on; drop the oldest."""
        if any(prefix.begins(kept.ids, kept.pictures) for kept in self._kept):
            return
        for kept in [k for k in self._kept if k.begins(prefix.ids, prefix.pictures)]:
            del self._kept[kept]
        self._kept[prefix] = time.monotonic()
        while sum(map(_bytes, self._kept)) > self._most_bytes:
            del self._kept[next(iter(self._kept))]

    def forget(self) -> None:
        """Drop what was not used for `MOST_SECONDS`."""
        oldest = time.monotonic() - MOST_SECONDS
        self._kept = {kept: used for kept, used in self._kept.items() if used > oldest}

    def _before_image(self, ids: Sequence[int], pictures: int) -> int:
        """Return how many tokens stand before the picture of a number."""
        places = [place for place, token in enumerate(ids) if token == self._image_id]
        return places[pictures * self._image_tokens]


def digests(features: Tensor | None) -> tuple[bytes, ...]:
    """Return a digest of each picture's features (N, P, D_vision)."""
    pictures = () if features is None else features.float().cpu().contiguous().numpy()
    return tuple(hashlib.sha256(picture.tobytes()).digest() for picture in pictures)


def _same(pair: tuple[object, object]) -> bool:
    return pair[0] == pair[1]


def _bytes(prefix: Prefix) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in prefix.states)
