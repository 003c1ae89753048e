"""`medmoe routes`: the files it writes agree with each other, and bad input is one line."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from tests.model.tiny import DOMAINS, MOE_LAYERS, dense_model, moe_model, processor

from medmoe.cli.main import main
from medmoe.model.checkpoint import save_model
from medmoe.model.upcycle import upcycle

NOTE = "Research use only, not a medical device"
CURVE = "labels,images,accuracy,low,high,n\n0,0,56,46.2,65.3,100\n50,48,98,93,99.4,100\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_model(moe_model("stablelm"), processor(), folder / "run" / "model", {})
    save_model(moe_model("phi", top_k=2), processor(), folder / "learned", {})
    save_model(dense_model("stablelm"), processor(), folder / "dense", {})
    one = upcycle(
        dense_model("phi"), moe_layers=[0], domains=DOMAINS, num_experts_per_tok=1, seed=1
    )
    save_model(one, processor(), folder / "one layer", {})
    nameless = moe_model("phi")
    nameless.config.domains = [f"expert_{e}" for e in range(4)]
    save_model(nameless, processor(), folder / "nameless", {})
    (folder / "curve.csv").write_text(CURVE, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything that can be asked for."""
    out = tmp_path_factory.mktemp("out")
    words = ["routes", str(folder / "run"), "--task", "phantom_vqa", "--limit", "90"]
    words += ["--before", str(folder / "dense"), "--learned", str(folder / "learned")]
    words += ["--label-curve", str(folder / "curve.csv"), "--out", str(out / "routes")]
    assert main([*words, "--json", str(out / "also.json"), "--seed", "3"]) == 0
    return out / "routes"


def result_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "routes.json").read_text(encoding="utf-8"))
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_csv_beside_each_figure_holds_its_data(out: Path) -> None:
    result = result_of(out)
    assert json.loads((out.parent / "also.json").read_text(encoding="utf-8")) == result
    assert set(result["figures"]) == {
        "figure_3_router_embeddings", "figure_4_token_shares", "figure_5_most_used_expert",
        "figure_6_label_curve", "load_and_specialisation",
    }  # fmt: skip
    for stem, rows in [*result["figures"].items(), ("figure_3_silhouettes", result["silhouettes"])]:
        written = rows_of(out / "figures" / f"{stem}.csv")
        known = [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
        assert written == known
        assert rows


def test_figures_are_svg_with_text_and_png_and_show_the_csvs_numbers(out: Path) -> None:
    vectors = sorted((out / "figures").glob("*.svg"))
    assert [path.with_suffix(".png").is_file() for path in vectors] == [True] * len(vectors)
    assert len(vectors) == len(list((out / "figures").glob("*.png"))) == 11
    texts = {
        path.stem: [e.text for e in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]
        for path in vectors
    }
    assert all(texts.values())
    for row in rows_of(out / "figures" / "figure_5_most_used_expert.csv"):
        shown = texts[f"figure_5_most_used_expert_{row['router'].replace(' ', '_')}"]
        assert row["expert"] in shown
        assert f"{float(row['share']):.0f} %" in shown
    for modality in DOMAINS:
        shown = texts[f"figure_4_token_shares_{modality}"]
        for row in rows_of(out / "figures" / "figure_4_token_shares.csv"):
            if row["modality"] == modality and float(row["image_share"]) >= 12:
                assert f"{float(row['image_share']):.0f}" in shown


def test_the_page_is_self_contained_and_has_the_numbers_as_text(out: Path) -> None:
    page = (out / "routes.html").read_text(encoding="utf-8")
    assert NOTE in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("<svg") == 11
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for row in result_of(out)["figures"]["load_and_specialisation"]:
        assert f'<td data-label="Bits">{row["bits"]:.2f}</td>' in page
    for row in result_of(out)["silhouettes"]:
        ends = f"{row['after_low']:.2f} to {row['after_high']:.2f}"
        shown = f'<b>{row["after"]:.2f}</b><span class="interval">{ends}</span>'
        assert shown.replace("-", "−") in page


def test_the_learned_routers_experts_have_numbers(out: Path) -> None:
    rows = rows_of(out / "figures" / "figure_5_most_used_expert.csv")
    assert {r["router"] for r in rows} == {"this router", "learned router"}
    for row in rows:
        names = DOMAINS if row["router"] == "this router" else [f"expert {e}" for e in range(1, 5)]
        assert row["expert"] in names
    assert {int(r["layer"]) for r in rows} == set(MOE_LAYERS)


def test_a_smaller_run_replaces_the_figures_and_says_what_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.csv").write_text("old")
    words = ["routes", str(folder / "learned"), "--task", "phantom_vqa", "--limit", "20"]
    assert main([*words, "--seed", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "note: No map of images" in printed
    assert NOTE in printed
    assert not (tmp_path / "figures" / "old.csv").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "routes.html", "routes.json"]
    assert result_of(tmp_path)["silhouettes"] == []


def test_experts_of_unknown_domains_are_held_against_modalities(
    folder: Path, tmp_path: Path
) -> None:
    words = ["routes", str(folder / "nameless"), "--task", "phantom_vqa", "--limit", "40"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    result = result_of(tmp_path)
    assert any("modalities stand for domains" in note for note in result["notes"])
    assert {r["images"] for r in result["figures"]["load_and_specialisation"]} == {result["images"]}
    used = {r["expert"] for r in result["figures"]["figure_5_most_used_expert"]}
    assert used <= set(result["domains"])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["dense"], "a dense model has no router and no experts; give a model of phase 3"),
        (["gone"], "gone: no such model directory"),
        (["run", "--learned", "one layer"], "has 1 MoE layers, "),
        (["run", "--learned", "dense"], "has 0 MoE layers, "),
        (["run", "--before", "gone"], "gone: no such model directory"),
        (["run", "--label-curve", "gone.csv"], "cannot be read"),
        (["run", "--limit", "1"], "needs images of two of the model's domains (ct, mri, "),
        (["run", "--limit", "0"], "'0' is not a whole number of at least 1"),
        (["run", "--task", "phantom"], "unknown task 'phantom'"),
        (["run", "--split", "gone"], "unknown phantom split 'gone'"),
        (["run", "--out", "curve.csv"], "give another folder by --out"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    folder: Path,
    tmp_path: Path,
    words: list[str],
    part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"--learned", "--before", "--label-curve", "--out"}
    given = [
        str(folder / word) if i == 0 or words[i - 1] in paths else word
        for i, word in enumerate(words)
    ]
    task = [] if "--task" in words else ["--task", "phantom_vqa"]
    place = [] if "--out" in words else ["--out", str(tmp_path / "new")]
    assert main(["routes", *given, *task, *place]) == 2
    printed, error = capsys.readouterr()
    assert (printed, error.count("\n")) == ("", 1)
    assert part in error
    assert not (tmp_path / "new").exists()


def test_data_of_one_domain_is_refused_with_what_it_has(
    folder: Path, tmp_path: Path, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["routes", str(folder / "run"), "--task", "pneumoniamnist", "--limit", "20"]
    words += ["--data", str(shared / "data"), "--out", str(tmp_path / "new")]
    assert main(words) == 2
    assert "these 20 have the modalities: xray" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
