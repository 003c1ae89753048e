"""What every HTML page of ours shares: one self-contained file, its frame and pictures.

A page opens offline in any browser, light and dark, and prints well: no font, script, style or
image from elsewhere; figures are inline SVG, pictures are data URIs, numbers are plain text. What
stands on a page is decided by its own module; all of them extend ``templates/base.html.j2``. The
report alone has a script, a few lines of our own inline, and names its hash to the browser.
"""

from __future__ import annotations

import base64
import hashlib
import io
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from medmoe.evaluation.pages.table import FAILS
from medmoe.numbers import count, percent, probability

Picture = bytes | npt.NDArray[np.uint8]

#: Longest side of an embedded array: sharp at its size on the page, and the file stays small.
MAX_SIDE = 320


def render_page(template: str, **content: Any) -> str:
    """Return a page as HTML.

    Args:
        template: File name in ``templates``, without ``.html.j2``.
        content: What the template shows; all text in it is escaped.
    """
    return _environment().get_template(f"{template}.html.j2").render(**content)


def render_markdown(template: str, **content: Any) -> str:
    """Return Markdown by a template ``.md.j2``, which escapes by the filter ``markdown``."""
    environment = _environment().overlay(autoescape=False)
    return environment.get_template(f"{template}.md.j2").render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(  # what is inserted is escaped, whatever it says
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=PackageLoader("medmoe.evaluation.pages"),
    )
    environment.filters.update(
        picture=data_uri,
        percent=percent,
        count=count,
        number=_number,
        probability=probability,
        code=_code,
        markdown=_markdown,
        lower_words=lambda name: name.lower() if name[1:].islower() else name,
    )
    script = environment.get_template("tables.js.j2").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals.update(script=Markup(script), script_hash=f"sha256-{digest}")  # our own
    return environment


def _number(text: str) -> str:
    """Set a cell ``91.6 (88.9–94.1)`` as a number with its bracket below it."""
    value, _, inside = text.removesuffix(")").partition(" (")
    if value.startswith(FAILS):
        value = Markup('<span class="fails">{}</span>').format(value)
    elif inside:
        value = Markup("<b>{}</b>").format(value)
    interval = Markup('<span class="interval">{}</span>').format(inside) if inside else ""
    return Markup("<span>{}{}</span>").format(value, interval) if inside else value


def _code(text: str) -> Markup:
    """Escape a line and set its `…` parts as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a lone backtick is no code
        return escape(text)
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(p) if i % 2 else escape(p) for i, p in enumerate(parts))


def _markdown(text: str) -> str:
    """Keep what a data set calls things from being read as Markdown or HTML."""
    for mark in "\\|<>`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def data_uri(picture: Picture) -> str:
    """Return a picture as the address of an image tag.

    Args:
        picture: PNG bytes, or pixels (H, W) or (H, W, 3), uint8, shrunk to `MAX_SIDE`.
    """
    if not isinstance(picture, bytes):
        image = Image.fromarray(np.ascontiguousarray(picture))
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        picture = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
