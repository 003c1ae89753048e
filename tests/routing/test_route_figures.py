"""The routing figures: valid SVG that holds its numbers as text, PNG, and looks that tell apart."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from medmoe.domains import DOMAINS
from medmoe.routing import route_figures
from medmoe.routing.figure_style import Drawing, look_of, numbered_look

SVG = "{http://www.w3.org/2000/svg}"
LOOKS = {name: look_of(name) for name in DOMAINS}


def shares() -> Drawing:
    rows = [
        {"layer": layer, "expert": name, "image_share": share, "text_share": None}
        for layer in (0, 6)
        for name, share in zip(DOMAINS, (71.4, 20.6, 8.0, 0.0), strict=True)
    ]
    return route_figures.token_shares("<b>ct</b> & co", rows, LOOKS)


def used() -> Drawing:
    rows = [
        {"layer": 4, "modality": name, "expert": "mri", "share": 81.7} for name in ("ct", "fundus")
    ]
    return route_figures.most_used("this router", rows, LOOKS)


def layer_rows() -> list[dict[str, object]]:
    return [
        {"layer": n, "tokens": kind, "load_entropy": 0.5, "bits": 1.25, "by_chance": 0.0625,
         "domain_bits": 2.0}
        for n in (0, 2) for kind in ("image", "text")
    ]  # fmt: skip


def entropy() -> Drawing:
    return route_figures.load_entropy(layer_rows())


def information() -> Drawing:
    return route_figures.specialisation(layer_rows())


def points() -> Drawing:
    rng = np.random.default_rng(0)
    rows = [
        {"modality": name, "after_x": x, "after_y": y}
        for name in ("ct", "fundus")
        for x, y in rng.normal(size=(5, 2)).tolist()
    ]
    numbers = {"after": 0.517, "after_low": 0.4, "after_high": 0.61}
    return route_figures.embedding_map("after", rows, numbers)


def curve() -> Drawing:
    rows = [
        {"labels": n, "accuracy": a, "low": a - 5, "high": a + 3, "n": 100}
        for n, a in ((0, 25.0), (4, 60.0), (1000, 97.0))
    ]
    return route_figures.label_curve(rows)


every_figure = pytest.mark.parametrize(
    ("draw", "words"),
    [
        (shares, {"71", "21", "image", "text", "layer 6", "<b>ct</b> & co images", "pathology"}),
        (used, {"this router", "layer 4", "fundus", "82 %"}),
        (entropy, {"load entropy", "image tokens", "MoE layer"}),
        (information, {"mutual information", "by chance", "entropy of domains"}),
        (points, {"after the router", "silhouette 0.52 (0.40 to 0.61)", "fundus"}),
        (curve, {"router accuracy, %", "1000"}),
    ],
)


@every_figure
def test_figure_is_valid_svg_whose_text_is_text(
    draw: Callable[[], Drawing], words: set[str]
) -> None:
    root = ET.fromstring(draw().svg)
    assert root.tag == f"{SVG}svg"
    written = {element.text for element in root.iter(f"{SVG}text")}
    assert words <= written, words - written
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.get("id") == root.get("aria-labelledby")
    assert root.get("role") == "img"


@every_figure
def test_figure_is_deterministic_and_its_png_is_sharp(
    draw: Callable[[], Drawing], words: set[str]
) -> None:
    first, second = draw(), draw()
    assert first == second
    picture = Image.open(io.BytesIO(first.png))
    assert picture.format == "PNG"
    assert picture.width == 710  # 3.55 inches at 200 dpi
    assert np.asarray(picture.convert("L")).std() > 5


def test_many_modalities_with_long_names_get_a_legend_instead_of_names_in_cells() -> None:
    names = ("ct", "mri", "xray", "ultrasound", "angiography", "fluoroscopy")
    rows = [{"layer": 0, "modality": n, "expert": "pathology", "share": 51.0} for n in names]
    svg = route_figures.most_used("this router", rows, LOOKS).svg
    written = [e.text for e in ET.fromstring(svg).iter(f"{SVG}text")]
    assert written.count("51 %") == 6
    assert written.count("pathology") == 1
    assert set(DOMAINS) <= set(written)


def test_the_description_says_in_words_what_is_drawn() -> None:
    title = ET.fromstring(used().svg).find(f"{SVG}title")
    assert title is not None
    assert "layer 4, ct: mri 82 %" in (title.text or "")


def test_domains_differ_in_colour_hatch_and_marker_and_never_change() -> None:
    looks = [look_of(name) for name in DOMAINS]
    for part in ("colour", "hatch", "marker"):
        assert len({getattr(look, part) for look in looks}) == len(DOMAINS)
    assert [look_of(name) for name in reversed(DOMAINS)] == looks[::-1]
    others = {look_of(name).colour for name in ("ultrasound", "radiology", "of a user's own")}
    assert not others & {look.colour for look in looks}


def test_grey_print_tells_domains_apart_and_numbered_experts_have_no_domains_colour() -> None:
    numbered = [numbered_look(e) for e in range(6)]
    assert len({(look.colour, look.hatch) for look in numbered}) == 6
    assert not {look.colour for look in numbered} & {look_of(name).colour for name in DOMAINS}
