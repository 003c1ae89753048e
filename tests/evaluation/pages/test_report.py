"""The report is one honest, self-contained, deterministic file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoe.errors import ConfigError
from medmoe.evaluation.pages.report import Example, ReportData, render_report, write_report
from medmoe.evaluation.pages.report_rows import results
from medmoe.evaluation.pages.routes_page import share_figure

DOMAINS = ("ct", "mri")
SHARES = [
    {"modality": modality, "layer": 2, "expert": expert, "image_share": share}
    for modality, shares in (("ct", (83.0, 17.0)), ("mri", (6.0, 94.0)))
    for expert, share in zip(DOMAINS, shares, strict=True)
]
VOID = {"meta", "img", "br", "link", "hr", "input"}


def score(
    system: str = "moe", value: float = 96.25, half: float = 2.0, **other: Any
) -> dict[str, Any]:
    return {
        "system": system, "task": "phantom_vqa", "split": "test", "subset": "closed",
        "protocol": "strict", "metric": "accuracy", "value": value, "low": value - half,
        "high": value + half, "n": 613, "constant_baseline": 51.5, "question_only_baseline": 57.75,
        "control": None, **other,
    }  # fmt: skip


def report_data(**other: Any) -> ReportData:
    summary = {
        "version": 1, "seed": 71, "data": "phantom", "commit": "3f2a9c1d7e4b", "model": "model/",
        "config_sha256": "9f86d081884c", "parameters": {"total": 6812416, "activated": 4051200},
        "seconds": {"phase0": 141.0, "phase1": 48.5, "router": 7.25, "eval": 75.0},
        "router": {
            "accuracy": 99.5, "low": 98.25, "high": 100.0, "n": 417,
            "domains": list(DOMAINS), "confusion": [[211, 4], [1, 201]],
        },
        "scores": [
            score(), score("sft", 94.5), score(value=53.5, control="blank"),
            score(protocol="reference", value=88.75),
            score(subset="open", metric="exact_match", value=31.25, question_only_baseline=30.5),
        ],
    }  # fmt: skip
    picture = np.arange(48, dtype=np.uint8).reshape(8, 6)
    data = ReportData(
        title="Demo",
        summary=summary,
        curves={"phase1": [(0, 3.0), (10, 0.625)], "router": [(0, 1.5)]},
        experts=[*share_figure(SHARES, DOMAINS).drawings.values()],
        examples=[
            Example(
                picture,
                "Is it <script>alert(1)</script> & large?",
                "yes",
                "yes",
                True,
                0.875,
                "ct",
                0.97,
            ),
            Example(picture, "How many?", "two", "three", False),
        ],
        notes=["A note with `code` & more."],
        next_steps=["Run `medmoe ask model/ picture.png`"],
    )
    return dataclasses.replace(data, **other)


class Page(HTMLParser):
    """Checks that tags nest, and gathers tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_page_is_well_formed() -> None:
    page = Page(render_report(report_data()))
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    anchors = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert anchors == {"results", "curves", "routing", "examples", "next"}
    assert anchors <= set(ids)


def test_page_needs_nothing_from_elsewhere() -> None:
    html = render_report(report_data())
    addresses = set(
        re.findall(r"(?:https?:)?//[\w.-]+[^\"' <>)]*", re.sub(r"base64,[^\"]+", "", html))
    )
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    page = Page(html)
    assert not {"link", "iframe", "object"} & {tag for tag, _ in page.tags}
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert not re.search(r"fetch|XMLHttp|import|eval|localStorage|cookie", script)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in html
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "@import" not in html
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "number",
    [
        "71", "phantom", "3f2a9c1d7e4b", "9f86d081884c", "6,812,416", "4,051,200",
        "2 min 21 s", "48.5 s", "7.2 s", "1 min 15 s", "4 min 32 s", "99.5", "98.2–100.0", "417",
        "96.2", "94.2–98.2", "94.5", "92.5–96.5", "53.5", "51.5–55.5", "88.8", "31.2", "613",
        "51.5", "57.8", "30.5", "0.625", "1.5", "83", "17", "6", "94", "211", "4", "1", "201",
        "88 %", "97 %", "−42.8",
    ],
)  # fmt: skip
def test_every_number_is_shown(number: str) -> None:
    text = Page(render_report(report_data())).text
    assert re.search(rf"(?<![\w.]){re.escape(number)}(?![\w.]*\w)", text)


@pytest.mark.parametrize(
    "words",
    [
        "Research use only, not a medical device", "How many?", "three",
        "✓ right",
        "✗ wrong", "Our protocol", "Other published protocols", "blank image", "layer 2",
        "A note with code & more.", "Run medmoe ask model/ picture.png", "MoE", "SFT",
    ],
)  # fmt: skip
def test_every_part_is_shown(words: str) -> None:
    assert words in Page(render_report(report_data())).text


def test_notice_stays_in_view_on_screen_and_on_every_printed_page() -> None:
    html = render_report(report_data())
    assert re.search(r"\.notice \{ position: sticky; top: 0", html)
    assert re.search(r"@page \{[^}]*@bottom-center \{ content: \"Research use only, not", html)


def test_text_from_data_is_escaped() -> None:
    attack = '"><img src=x onerror=alert(1)>'
    example = Example(np.zeros((4, 4), np.uint8), attack, attack, attack, False, domain=attack)
    data = report_data(
        title=attack,
        examples=[example],
        notes=[attack, f"`{attack}`"],
        next_steps=[attack],
        curves={attack: [(0, 1.0)]},
        experts=[
            *share_figure([row | {"modality": attack} for row in SHARES], DOMAINS).drawings.values()
        ],
    )
    page = Page(render_report(data))
    assert page.text.count(attack) >= 9
    assert all(attrs.get("src", "data:").startswith("data:") for _, attrs in page.tags)
    assert not any("onerror" in attrs for _, attrs in page.tags)


def test_pictures_and_curves_stand_before_the_tables() -> None:
    html = render_report(report_data())
    places = [html.index(f'<h2 id="{part}">') for part in ("examples", "curves", "routing")]
    assert places == sorted(places)
    assert places[-1] < html.index('<h2 id="results">') < html.index('<h2 id="run">')


def test_a_count_is_written_one_way() -> None:
    router = {
        "accuracy": 99.5, "low": 98.25, "high": 100.0, "n": 2417,
        "domains": list(DOMAINS), "confusion": [[1211, 4], [1, 1201]],
    }  # fmt: skip
    summary = {**report_data().summary, "scores": [score(n=1613)], "router": router}
    text = Page(render_report(report_data(summary=summary))).text
    assert {"1,613", "2,417", "1,211"} <= set(re.findall(r"[\d,.]+", text))
    assert not re.search(r"1613|2417|1211", text)


def test_right_and_wrong_differ_in_more_than_colour() -> None:
    html = render_report(report_data())
    assert html.count("✓ right") == html.count("✗ wrong") == 1
    assert re.search(r"article\.wrong \{ border: 2px dashed", html)


def test_a_probability_is_never_rounded_up_to_certainty() -> None:
    picture = np.zeros((4, 4), np.uint8)
    shown = {0.999: "&gt; 99 %", 1.0: "100 %", 0.994: "99 %", 0.001: "&lt; 1 %", 0.0: "0 %"}
    for probability, text in shown.items():
        example = Example(picture, "q", "a", "a", True, confidence=probability)
        html = render_report(report_data(examples=[example]))
        assert f"<dt>confidence</dt><dd>{text}</dd>" in html


def test_empty_parts_are_left_out() -> None:
    page = Page(render_report(ReportData("Empty", {"scores": []})))
    assert page.open == []
    assert "This run has no scores." in page.text
    assert not {"svg", "img", "article"} & {tag for tag, _ in page.tags}
    assert "Examples" not in page.text


def test_report_is_deterministic(tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        write_report(tmp_path / name, report_data())
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_report_is_written_with_its_folder_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, report_data())
    assert path.read_text(encoding="utf-8") == render_report(report_data())
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"report\.html' \(.*; give another place"):
        write_report(tmp_path / "file" / "report.html", report_data())


def embedded(picture: Any) -> Image.Image:
    html = render_report(report_data(examples=[Example(picture, "?", "a", "b", False)]))
    (source,) = [attrs["src"] for tag, attrs in Page(html).tags if tag == "img"]
    return Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3)])
def test_pixels_are_embedded_exactly(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(np.asarray(embedded(pixels)), pixels)


def test_large_pixels_are_shrunk_and_png_bytes_kept() -> None:
    assert embedded(np.zeros((800, 400), np.uint8)).size == (160, 320)
    buffer = io.BytesIO()
    Image.new("RGB", (500, 7), "red").save(buffer, format="PNG")
    assert embedded(buffer.getvalue()).size == (500, 7)


@pytest.mark.parametrize(
    ("half", "said"),
    [(2.0, []), (50.0, ["constant-answer baseline (51.5) and the question-only baseline (57.8)"]),
     (40.0, ["does not clear the question-only baseline (57.8) outside its interval"])],
)  # fmt: skip
def test_a_baseline_inside_the_interval_is_said(half: float, said: list[str]) -> None:
    found = results([score(half=half)])
    assert len(found.baseline_sentences) == len(said)
    assert all(part in line for part, line in zip(said, found.baseline_sentences, strict=True))
    assert found.headlines[0].fails == bool(said)


def test_a_baseline_equal_to_the_lower_end_is_not_cleared() -> None:
    assert results([score(value=59.75)]).baseline_sentences


def test_a_score_below_its_baseline_is_said_for_every_system() -> None:
    lines = results([score("sft", 20.0), score("other", 21.0)]).baseline_sentences
    assert [line.split(",")[0] for line in lines] == ["SFT", "other"]


def test_a_score_without_baseline_or_interval_is_said() -> None:
    bare = score(constant_baseline=None, question_only_baseline=None)
    assert "has no baseline beside it" in results([bare]).baseline_sentences[0]
    assert "has no interval" in results([score(low=None, high=None)]).baseline_sentences[0]
    undefined = results([score(value=0.0) | {"value": None, "low": None, "high": None}])
    assert undefined.tables["Our protocol"].rows[0][2] == "▽ –"


@pytest.mark.parametrize(
    ("ends", "fails", "said"),
    [((1.0, 9.0), False, "points."), ((-1.0, 9.0), True, "read from the questions."),
     ((-9.0, -1.0), True, "the pictures made it worse."),
     ((None, None), True, "so this shows nothing.")],
)  # fmt: skip
def test_a_score_is_held_against_its_blind_twin(
    ends: tuple[float | None, float | None], fails: bool, said: str
) -> None:
    share = dict(zip(("value", "low", "high"), (4.0, *ends), strict=True))
    found = results([score(half=2.0, blind_twin=60.0, share=share)])
    assert found.headlines[0].fails == fails
    assert found.share_sentences[0].endswith(said)
    table = found.tables["Our protocol"]
    assert table.columns[-3:] == ["Blind twin", "Picture's share", "n"]
    assert table.rows[0][-3] == "60.0"
    assert any("where its interval holds zero" in line for line in found.legend)
    html = render_report(report_data(summary={"scores": [score(blind_twin=60.0, share=share)]}))
    assert "What the pictures gave" in html
    assert "picture’s share +4.0" in html


def test_without_a_twin_nothing_is_said_of_one() -> None:
    found = results([score()])
    assert "Blind twin" not in found.tables["Our protocol"].columns
    assert found.share_sentences == []


def comparison(low: float | None, high: float | None) -> dict[str, Any]:
    middle = 0.5 if low is None or high is None else (low + high) / 2
    return {
        "task": "vqa_rad", "split": "test", "subset": "closed", "a": "sft", "b": "moe",
        "difference": middle, "low": low, "high": high, "p": 0.4545, "n": 272,
    }  # fmt: skip


def test_moe_against_sft_claims_a_winner_only_where_the_interval_leaves_zero_out() -> None:
    rows = [comparison(-4.0, 1.0), comparison(1.0, 5.0), comparison(-5.0, -1.0)]
    none, moe, sft = results([score()], rows).comparison_sentences
    assert "vqa_rad (shared images) test, closed: MoE against SFT −1.5 points" in none
    assert "(−4.0 to +1.0, McNemar p = 0.45, n = 272)" in none
    assert "neither is shown to be better" in none
    assert moe.endswith("MoE is better in this run.")
    assert sft.endswith("SFT is better in this run.")
    (single,) = results([score()], [comparison(None, None)]).comparison_sentences
    assert "shows nothing" in single
    assert results([score()]).comparison_sentences == []


def test_control_says_how_much_of_the_score_needs_the_picture() -> None:
    (needs,) = results([score(), score(value=53.5, control="blank")]).control_sentences
    assert "53.5 (51.5–55.5, n = 613) with blank image. 42.8 points of the score need" in needs
    share = {"value": 4.0, "low": -1.0, "high": 9.0}
    twin = score(blind_twin=60.0, share=share)
    (lost,) = results([twin, score(value=53.5, control="blank")]).control_sentences
    assert "42.8 points are lost; what the picture gave, its twin says" in lost
    (same,) = results([score(), score(value=95.0, control="shuffled")]).control_sentences
    assert "with shuffled images. This does not show that the score needs the picture" in same
    (odd,) = results([score(value=60.0), score(control="blank")]).control_sentences
    assert "better without the picture" in odd


def test_control_without_its_score_is_still_in_the_table() -> None:
    found = results([score(value=53.5, control="blank")])
    assert found.controls is not None
    assert found.controls.rows[0][4:6] == ("–", "53.5 (51.5–55.5)")
    assert found.control_sentences == []
    html = render_report(report_data(summary={"scores": [score(), score("sft", control="blank")]}))
    assert "blank image" in Page(html).text


def test_systems_stand_in_order_and_a_missing_one_is_a_gap() -> None:
    found = results([score("zeroshot"), score("sft"), score(subset="open"), score("moe")])
    assert found.systems == ["MoE", "SFT", "zeroshot"]
    first, second = found.tables["Our protocol"].rows
    assert [cell == "–" for cell in first[2:5]] == [False, False, False]
    assert [cell == "–" for cell in second[2:5]] == [False, True, True]


def test_different_numbers_of_questions_in_a_row_are_both_shown() -> None:
    found = results([score(), score("sft", n=600)])
    assert found.tables["Our protocol"].rows[0][-1] == "613 / 600"


def test_a_constant_chosen_on_the_scored_answers_is_called_an_upper_bound() -> None:
    found = results([score(constant_chosen_on="scored answers", question_only_baseline=None)])
    table = found.tables["Our protocol"]
    assert table.columns == ["Task", "Score", "MoE", "Constant", "n"]  # nothing known is left out
    assert table.rows[0][3] == "≤ 51.5"
    assert found.legend == [
        "≤ this constant answer was chosen on the scored answers: an upper bound."
    ]
    assert results([score()]).legend == []
