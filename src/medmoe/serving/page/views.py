"""What a case looks like: pixels for the page's viewer, regions, and a case as an HTML file.

All text is escaped by the template engine, whoever wrote it. Nothing is written to a disk: pictures
are data URIs.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from medmoe.data.images import Picture
from medmoe.data.intake.decode import Decoded
from medmoe.data.intake.facts import ImageFacts
from medmoe.inference.case import Exchange
from medmoe.numbers import probability

FOR, AGAINST = "#e07b00", "#2f8fe6"
#: Regions that are framed and numbered, so that the map is readable without colour.
FRAMED = 3
#: Longest side of a picture on the page, in pixels; the model sees the whole one.
MAX_SIDE = 1024
#: Pixels are drawn at least so long: a thumbnail of 28 pixels would be hard to hit and to see.
MIN_SIDE = 512


@dataclass(frozen=True, slots=True)
class Cell:
    """One region of the map, where it is drawn; ``rank`` 1 to 3 are the strongest."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    opacity: float
    rank: int | None


def packed(shown: Decoded) -> bytes:
    """Return a frame for the viewer: the length of a JSON object, that object, and the pixels.

    The length is in 4 bytes, little-endian; spaces behind the object make the pixels begin at a
    multiple of 4. They are (H, W) uint16, little-endian, where the object has a ``scale``; else (H,
    W) or, with 3 ``channels``, (H, W, 3) uint8.
    """
    pixels = shown.pixels
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]  # a third of the bytes
    head = {
        "height": pixels.shape[0], "width": pixels.shape[1], "channels": pixels[0, 0].size,
        "scale": shown.scale and asdict(shown.scale), "facts": asdict(shown.facts),
    }  # fmt: skip
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 4)
    little = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
    return len(text).to_bytes(4, "little") + text + little.tobytes()


def picture_html(picture: Picture, evidence: dict[str, Any] | None = None) -> str:
    """Return the picture as a figure.

    Args:
        evidence: Whose regions are drawn over it.
    """
    width, height = true_size(picture)
    shares = np.abs(evidence["attribution"]["cells"]) if evidence else np.zeros(1)
    cells = cells_of(evidence, picture.image.size, (width, height)) if evidence else []
    return _render(
        "picture",
        uri=data_uri(picture.image),
        width=width,
        height=height,
        cells=cells,
        largest=shares.max(),
        label="The picture" + (", with the regions of the answer" if cells else ""),
        caption=described(picture.facts),
        warnings=picture.facts.sentences(),
    )


def true_size(picture: Picture) -> tuple[int, int]:
    """Return width and height to draw a picture at, in its true shape."""
    width, height = picture.image.size
    longest = min(max(*picture.image.size, MIN_SIDE), MAX_SIDE)
    scale = longest / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def cells_of(evidence: dict[str, Any], size: tuple[int, int], drawn: tuple[int, int]) -> list[Cell]:
    """Return the regions of an `Evidence.to_dict` over a picture.

    Args:
        size: Width and height of the picture, in pixels.
        drawn: Width and height that it is drawn at.
    """
    shares = np.asarray(evidence["attribution"]["cells"], dtype=np.float64)
    across, down = drawn[0] / size[0], drawn[1] / size[1]
    left, top, side = square_of(*size)
    step, count = side / len(shares), len(shares)
    largest = max(float(np.abs(shares).max()), 1e-12)
    columns, rows = (
        [_visible(start + step * i, step, length, scale) for i in range(count)]
        for start, length, scale in ((left, size[0], across), (top, size[1], down))
    )
    cells: list[Cell] = []
    order = np.argsort(-shares, axis=None, kind="stable").tolist()
    for rank, flat in enumerate(order, 1):
        row, column = divmod(flat, count)
        (x, width), (y, height) = columns[column], rows[row]
        if not (width and height):
            continue  # of the padding alone: there is nothing to be seen
        value = float(shares[row, column])
        marked = rank if rank <= FRAMED and value > 0 else None
        colour = FOR if value >= 0 else AGAINST
        cells.append(
            Cell(x, y, width, height, colour, round(0.6 * abs(value) / largest, 3), marked)
        )
    return cells


def square_of(width: int, height: int) -> tuple[float, float, float]:
    """Return left, top and side of the square that a picture is padded to, in its own pixels."""
    side = max(width, height)
    return (width - side) / 2, (height - side) / 2, side


def _visible(start: float, step: float, length: int, scale: float) -> tuple[float, float]:
    """Return where a region begins and how long it is within the picture, as it is drawn."""
    first, last = max(start, 0.0), min(start + step, float(length))
    return round(first * scale, 2), round(max(last - first, 0.0) * scale, 2)


def evidence_html(exchange: Exchange) -> str:
    """Return the evidence card of one exchange."""
    evidence = exchange.evidence
    # That of the evidence has the experts layer by layer.
    routing = evidence["routing"] if evidence else (exchange.routing and asdict(exchange.routing))
    return _render("evidence", exchange=exchange, evidence=evidence, routing=routing)


def export_html(model: str, exchanges: list[Exchange], picture: Picture | None) -> str:
    """Return a case as a page of its own.

    Args:
        picture: Drawn on the page; None leaves it out.
    """
    from markupsafe import Markup

    same = [e for e in exchanges if picture is not None and e.picture == picture.facts]
    last = next((e.evidence for e in reversed(same) if e.evidence), None)
    return _render(
        "case",
        style=Markup(asset("templates/case.css").decode()),  # our own file
        model=model,
        picture=Markup(picture_html(picture, last)) if picture else None,
        cards=[
            {
                "number": number,
                "question": exchange.question,
                "facts": described(exchange.picture) if exchange.picture else "",
                "evidence": Markup(evidence_html(exchange)),
            }
            for number, exchange in enumerate(exchanges, 1)
        ],
    )


def data_uri(image: Image.Image) -> str:
    """Return a picture as PNG in a data URI, no longer than `MAX_SIDE` a side."""
    if max(image.size) > MAX_SIDE:
        image = image.copy()
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    red, green, blue = (np.asarray(image.getchannel(c)) for c in range(3))
    if np.array_equal(red, green) and np.array_equal(red, blue):
        image = image.getchannel(0)  # a third of the bytes
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def asset(name: str) -> bytes:
    """Return a file of the package: of ``built``, the page's own, or of ``templates``."""
    return resources.files("medmoe.serving.page").joinpath(name).read_bytes()


def described(facts: ImageFacts) -> str:
    """Return what is known of a picture in one line."""
    # Of all pictures here only the examples come as pixels, without a file.
    return "a made-up example" if facts.format == "pixels" else facts.description()


def _render(template: str, **content: Any) -> str:
    return str(_environment().get_template(f"{template}.html.j2").render(**content))


@cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(  # what is inserted is escaped, whatever it says
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader("medmoe.serving.page"),
    )
    environment.filters["share"] = probability
    return environment
