"""Rows of the routing figures from a hand-made observation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medmoe.data.schema import ImageRecord
from medmoe.errors import DataError
from medmoe.evaluation.routes import tables
from medmoe.evaluation.routes.embedding import embed, mapped_images
from medmoe.evaluation.routes.observe import Observation
from medmoe.evaluation.routing_report import read_label_curve

DOMAINS = ("ct", "mri")


def observation() -> Observation:
    """One MoE layer, two experts; images of ct, mri, ultrasound and nothing known."""
    names = ("ct", "mri", "ultrasound", None)
    images = tuple(ImageRecord(f"i{n}", Path(), name) for n, name in enumerate(names))
    counts = np.zeros((4, 1, 3, 2), dtype=np.int64)
    counts[0, 0] = [[8, 0], [3, 1], [0, 2]]  # image, question, answer
    counts[1, 0] = [[2, 6], [0, 0], [0, 0]]
    counts[2, 0] = [[1, 1], [0, 4], [0, 0]]
    counts[3, 0] = [[5, 0], [0, 0], [0, 0]]
    empty = np.zeros((0, 1, 0), dtype=np.float32)
    return Observation(images, (6,), counts, (), empty, empty)


def test_domains_come_first_then_other_modalities() -> None:
    assert tables.modalities_of(observation(), ("mri", "ct")) == ["mri", "ct", "ultrasound"]


def test_shares_are_of_the_modalitys_tokens_of_that_kind() -> None:
    rows = tables.token_shares(observation(), ["ct", "mri"], DOMAINS)
    assert rows[0] == {
        "modality": "ct", "layer": 6, "expert": "ct", "image_tokens": 8, "text_tokens": 3,
        "image_share": 100.0, "text_share": 50.0, "text_part": pytest.approx(100 * 3 / 11),
    }  # fmt: skip
    assert [row["image_share"] for row in rows] == [100, 0, 25, 75]
    assert [row["text_share"] for row in rows] == [50, 50, None, None]
    assert rows[2]["text_part"] == 0


def test_the_most_used_expert_is_that_of_the_image_tokens() -> None:
    rows = tables.most_used(observation(), "this", ["ct", "mri", "ultrasound"], DOMAINS)
    assert [(r["modality"], r["expert"], r["share"], r["tokens"]) for r in rows] == [
        ("ct", "ct", 100, 8),
        ("mri", "mri", 75, 8),
        ("ultrasound", "ct", 50, 2),
    ]
    assert {(r["router"], r["layer"]) for r in rows} == {("this", 6)}


def test_load_is_of_all_images_and_specialisation_of_those_with_a_domain() -> None:
    image, text = tables.by_layer(observation(), DOMAINS, seed=0)
    load = np.array([16, 7]) / 23
    assert image["load_entropy"] == pytest.approx(-(load * np.log2(load)).sum())
    assert (image["tokens"], image["images"], image["domain_bits"]) == ("image", 2, 1)
    # ct: (1, 0), mri: (1/4, 3/4): H(expert) − H(expert | domain)
    share = np.array([0.625, 0.375])
    conditional = -0.5 * (0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))
    assert image["bits"] == pytest.approx(-(share * np.log2(share)).sum() - conditional)
    # One image with text is left: one domain tells nothing.
    assert (text["images"], text["bits"], text["normalised"]) == (1, 0, None)


def images_of(*sizes: int) -> list[ImageRecord]:
    names = ("ct", "mri", "xray")
    return [
        ImageRecord(f"{name}{n}", Path(), name)
        for name, size in zip(names, sizes, strict=False)
        for n in range(size)
    ]


def test_the_map_leaves_out_what_has_no_silhouette() -> None:
    assert mapped_images(images_of(8), 0) == []
    assert mapped_images(images_of(8, 1), 0) == []
    assert mapped_images(images_of(4, 3), 0) == []
    shown = mapped_images([*images_of(5, 4, 1), ImageRecord("unknown", Path())], 0)
    assert sorted(shown) == sorted(image.id for image in images_of(5, 4))
    assert len(mapped_images(images_of(400, 400), 0)) == 500
    assert mapped_images(images_of(400, 400), 0) == mapped_images(images_of(400, 400), 0)
    assert mapped_images(images_of(400, 400), 0) != mapped_images(images_of(400, 400), 1)


def test_silhouettes_are_those_of_the_spaces_and_not_of_the_map() -> None:
    images = images_of(6, 6)
    rng = np.random.default_rng(0)
    before = rng.normal(size=(12, 2, 5)).astype(np.float32)
    after = np.repeat([[0.0, 1.0], [4.0, 1.0]], 6, axis=0)[:, None].repeat(2, axis=1)
    found = embed(images, (0, 2), before, after.astype(np.float32), seed=3)
    assert [(r["layer"], r["metric"]) for r in found.silhouettes] == [
        (layer, metric) for layer in ("all", 0, 2) for metric in ("euclidean", "cosine")
    ]
    row = found.silhouettes[0]
    assert (row["after"], row["after_low"], row["after_high"]) == (1, 1, 1)
    flat = before.reshape(12, -1).astype(np.float64)
    distance = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    own = [np.delete(distance[i, i // 6 * 6 :][:6], i % 6).mean() for i in range(12)]
    other = [distance[i, (1 - i // 6) * 6 :][:6].mean() for i in range(12)]
    each = (np.array(other) - own) / np.maximum(own, other)
    assert row["before"] == pytest.approx(each.mean())
    assert row["difference"] == pytest.approx(1 - each.mean())
    assert row["before_low"] <= row["before"] <= row["before_high"]
    assert row["images"] == 12
    assert [point["image"] for point in found.points] == [image.id for image in images]
    assert all(np.isfinite(list(point.values())[2:]).all() for point in found.points)
    assert embed(images, (0, 2), before, after.astype(np.float32), seed=3) == found


GOOD = "labels,images,accuracy,low,high,n\n50,48,98,93,99.4,100\n0,0,56,46.2,65.3,100\n"


def test_a_curve_is_read_from_csv_json_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(GOOD, encoding="utf-8-sig")
    rows = read_label_curve(tmp_path / "c.csv")
    assert [row["labels"] for row in rows] == [0, 50]
    assert rows[1] == {
        "labels": 50, "images": 48, "accuracy": 98.0, "low": 93.0, "high": 99.4, "n": 100,
    }  # fmt: skip
    (tmp_path / "label_curve.json").write_text(json.dumps(rows), encoding="utf-8")
    assert read_label_curve(tmp_path) == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", b"", "holds no rows"),
        ("c.json", b"{}", "holds no rows"),
        ("c.json", b"[", "not readable as JSON"),
        ("c.csv", b"\xff\xfe\x00", "not readable as JSON or UTF-8"),
        (
            "c.csv",
            GOOD.replace("98", "many").encode(),
            "row 1: accuracy is 'many': Input",
        ),
        ("c.csv", GOOD.replace("98", "980").encode(), "accuracy is '980'"),
        ("c.csv", GOOD.replace("48", "nan").encode(), "row 1: images is 'nan': Input should be"),
        ("c.csv", GOOD.replace("48", "4.8").encode(), "row 1: images is '4.8'"),
        ("c.json", b"[3]", "row 1: is 3: Input should be"),
        ("gone.csv", None, "cannot be read"),
    ],
)
def test_what_is_no_curve_is_named(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_label_curve(tmp_path / name)
