from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.model.tiny import moe_model, processor

from medmoe.cli.main import main
from medmoe.evaluation.ask.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from medmoe.model.checkpoint import save_model


def picture() -> Image.Image:
    """Smooth, with an edge and some texture; not square."""
    y, x = np.mgrid[0:90, 0:120] / 90
    grey = (
        0.5 + 0.3 * np.sin(6 * x) * np.cos(5 * y) + 0.15 * ((x - 0.6) ** 2 + (y - 0.5) ** 2 < 0.06)
    )
    return Image.fromarray((255 * np.clip(grey, 0, 1)).astype(np.uint8)).convert("RGB")


def distance(image: Image.Image) -> float:
    return float(np.abs(np.asarray(image, float) - np.asarray(picture(), float)).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_worse_than_the_one_before(name: str) -> None:
    found = [distance(corrupted(picture(), name, severity, "a", 7)) for severity in SEVERITIES]
    assert found[0] > 0
    assert found == sorted(found)
    assert found[-1] > 1.3 * found[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_shape_and_kind_stay_and_the_seed_decides(name: str) -> None:
    one, two = (corrupted(picture(), name, 3, "a", 7) for _ in range(2))
    assert (one.size, one.mode) == (picture().size, "RGB")
    assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise", "impulse_noise"])
def test_what_is_drawn_differs_by_picture_and_seed_and_is_grey(name: str) -> None:
    base, other, seeded = (
        corrupted(picture(), name, 3, k, s) for k, s in (("a", 7), ("b", 7), ("a", 8))
    )
    assert len({base.tobytes(), other.tobytes(), seeded.tobytes()}) == 3
    pixels = np.asarray(base)
    assert (pixels[..., 0] == pixels[..., 1]).all()


def test_tiny_and_flat_pictures_are_no_trouble() -> None:
    for size in ((16, 16), (16, 300)):
        for name in CORRUPTIONS:
            assert corrupted(Image.new("RGB", size, 90), name, 5, "a", 7).size == size


def test_the_report_has_the_clean_score_and_each_severity(tmp_path: Path) -> None:
    save_model(moe_model("stablelm"), processor(), tmp_path / "model", {})
    words = ["eval", str(tmp_path / "model"), "--task", "phantom_vqa", "--limit", "12"]
    words += ["--corruption", "rotation,jpeg_compression", "--severity", "1,5"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "summary.json").read_text())["corruptions"]
    asked = {(row["corruption"], row["severity"]) for row in rows}
    expected = {(name, k) for name in ("rotation", "jpeg_compression") for k in (1, 5)}
    assert asked == expected | {(None, 0)}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Worse pictures" in page
    assert "jpeg compression" in page
    # Nothing is asked twice: a second start finds every answer.
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["asked"] == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--corruption", "rotate"], "did you mean 'rotation'"),
        (["--corruption", "all", "--severity", "6"], "is not a list of 1 to 5"),
        (["--severity", "1"], "add --corruption all"),
    ],
)
def test_bad_flags_are_one_line(
    tmp_path: Path, words: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["eval", str(tmp_path), "--task", "phantom_vqa", "--out", str(out), *words]
    try:
        code = main(command)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 2
    assert part in capsys.readouterr().err
    assert not out.exists()
