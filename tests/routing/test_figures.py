"""The figures are well-formed, deterministic SVG that can stand inline beside each other."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable

import matplotlib as mpl
import pytest

from medmoe.routing import figures

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("ct", "mri")


def curves() -> str:
    return figures.learning_curve("phase1", [(i, 3.0 / (1 + i)) for i in range(90)])


def confusion() -> str:
    return figures.confusion_matrix([[41, 2], [3, 57]], NAMES)


every_figure = pytest.mark.parametrize("draw", [curves, confusion])


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


@every_figure
def test_figure_is_one_svg_element_with_a_title_for_screen_readers(draw: Callable[[], str]) -> None:
    root = ET.fromstring(draw())
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.get("id") == root.get("aria-labelledby")
    assert title.text


@every_figure
def test_figure_is_deterministic(draw: Callable[[], str]) -> None:
    assert draw() == draw()


@every_figure
def test_figure_ignores_and_keeps_the_users_matplotlib_style(draw: Callable[[], str]) -> None:
    plain = draw()
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert draw() == plain
        assert mpl.rcParams["font.size"] == 30


@every_figure
def test_figure_holds_no_metadata_no_page_wide_style_and_no_address(
    draw: Callable[[], str],
) -> None:
    svg = draw()
    assert not re.search(r"<metadata|<style|<!DOCTYPE|<\?xml", svg)
    addresses = set(re.findall(r"https?://[^\"' <]+", svg))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


@every_figure
def test_every_reference_inside_a_figure_leads_to_an_id_of_it(draw: Callable[[], str]) -> None:
    svg = draw()
    ids = re.findall(r'\bid="([^"]+)"', svg)
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', svg)
    assert len(ids) == len(set(ids))
    assert set(used) <= set(ids)


def test_figures_on_one_page_share_no_id() -> None:
    found = [set(re.findall(r'\bid="([^"]+)"', draw())) for draw in (curves, confusion)]
    assert not found[0] & found[1]


def test_confusion_writes_the_counts_and_percent_of_their_row() -> None:
    assert {"41", "2", "3", "57", "95.3", "4.7", "5.0", "95.0"} <= set(texts(confusion()))


def test_curve_writes_its_last_value_and_says_what_it_left_out() -> None:
    svg = figures.learning_curve("router", [(0, 2.0), (1, float("nan")), (2, 0.125)])
    assert {"0.125", "router", "step (1 non-finite points left out)"} <= set(texts(svg))


def test_curve_without_points_says_so() -> None:
    assert "no points" in texts(figures.learning_curve("phase1", []))


def test_names_are_escaped() -> None:
    root = ET.fromstring(figures.learning_curve("<b>&", [(0, 1.0)]))
    title = root.find(f"{SVG}title")
    assert title is not None
    assert "<b>&" in (title.text or "")


def test_validation_is_drawn_beside_the_loss_and_the_score_below() -> None:
    curve = [(1, 2.0), (9, 1.0)]
    svg = figures.learning_curve("phase1", curve, [(4, 1.5), (9, 1.25)], [(4, 20.0), (9, 71.9)])
    found = texts(svg)
    assert found.count("validation loss") == found.count("strict score on validation") == 1
    assert "strict score at the end 71.9 %" in svg
    assert "validation" not in figures.learning_curve("phase1", curve)
