"""What several processes work out together: ``torchrun shares.py OUT``.

Each of them writes the features and router states that it has in the end to ``OUT/<process>.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

COUNT = 300  # three batches of pictures, the last one not whole


def worked_out(cache: Path | None) -> dict[str, Tensor]:
    """Return features of pictures, kept where a folder is given, and router states of images."""
    from tests.model.tiny import MOE_LAYERS, VISION, vision_tower
    from tests.training import toy
    from tests.training.test_features import table

    from medmoe.data.schema import images_of
    from medmoe.training.features import encode_images
    from medmoe.training.phases.phase2_router import collect_states

    records = toy.phantom_records(70)
    context = toy.context(toy.dense(), records=records)
    return {
        "features": encode_images(vision_tower(), table(count=COUNT), VISION, cache),
        "states": collect_states(context, MOE_LAYERS, images_of(records)),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    torch.set_num_threads(1)
    from medmoe.processes import process

    out = Path(sys.argv[1])
    first, again = worked_out(out / "cache"), worked_out(None)
    assert all(torch.equal(first[name], again[name]) for name in first)
    torch.save(first, out / f"{process()}.pt")
