"""Features on demand stand in for the table: the same rows, the same numbers, the same training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from tests.model.tiny import VISION, processor
from tests.training import toy

from medmoe.data.pixels import pixel_table
from medmoe.training.features import encode_images
from medmoe.training.on_demand import FeaturesOnDemand
from medmoe.training.phases.phase1_alignment import train_alignment


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
        context = replace(context, features=cast(torch.Tensor, lazy if lazily else kept))
        curves.append([loss for _, loss in train_alignment(context).curve])
    torch.testing.assert_close(*map(torch.tensor, curves), rtol=1e-4, atol=1e-5)
