"""Features on demand stand in for the table: the same rows, the same numbers, the same training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.tiny import VISION, processor
from tests.training import toy

from medmoe.data.pixels import pixel_table
from medmoe.data.schema import ImageRecord
from medmoe.errors import ImageError
from medmoe.training import features
from medmoe.training.features import FeaturesOnDemand, encode_images
from medmoe.training.packed import train_packed


def test_rows_are_those_of_the_table() -> None:
    model: Any = toy.dense()
    images = list({r.image.id: r.image for r in toy.phantom_records(6)}.values())
    table = pixel_table(images, processor().image_processor)
    kept = encode_images(model.model.vision_tower, table, VISION)
    lazy = FeaturesOnDemand(model.model.vision_tower, VISION, processor().image_processor, images)
    assert lazy.rows == table.rows
    rows = torch.tensor([4, 0, 4, 2])
    # A batch of another size may be summed in another order.
    torch.testing.assert_close(lazy[rows], kept[rows], rtol=1e-5, atol=1e-5)


def test_a_row_begun_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDMOE_CACHE", "off")
    model: Any = toy.dense()
    images = list({r.image.id: r.image for r in toy.phantom_records(4)}.values())
    lazy = FeaturesOnDemand(model.model.vision_tower, VISION, processor().image_processor, images)
    rows = torch.tensor([1, 3])
    wanted = lazy[rows]
    opened: list[str] = []
    read = features.read_pixels

    def counted(image: ImageRecord, image_processor: Any) -> Any:
        opened.append(image.id)
        return read(image, image_processor)

    monkeypatch.setattr(features, "read_pixels", counted)
    for row in (1, 3, 3):
        lazy.begin(row)
    assert torch.equal(lazy[rows], wanted)
    assert sorted(opened) == sorted([images[1].id, images[3].id])


def test_a_picture_begun_that_cannot_be_opened_fails_in_its_batch(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    model: Any = toy.dense()
    images = [ImageRecord("bad", tmp_path / "bad.png")]
    lazy = FeaturesOnDemand(model.model.vision_tower, VISION, processor().image_processor, images)
    lazy.begin(0)
    with pytest.raises(ImageError, match="image bad: neither PNG nor JPEG"):
        lazy[torch.tensor([0])]


def test_a_phase_trains_on_them_as_on_the_table() -> None:
    curves = []
    for lazily in (False, True):
        model: Any = toy.dense()
        records = toy.phantom_records(6)
        images = list({r.image.id: r.image for r in records}.values())
        tower, prepare = model.model.vision_tower, processor().image_processor
        lazy = FeaturesOnDemand(tower, VISION, prepare, images)
        kept = encode_images(tower, pixel_table(images, prepare), VISION)
        context = toy.context(model, steps=4, records=records)
        context = replace(context, features=lazy if lazily else kept)
        curves.append([loss for _, loss in train_packed(context).curve])
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-5)
