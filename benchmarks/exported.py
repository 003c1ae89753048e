"""A model's exported graphs against the model itself: a whole answer, reading, and decoding.

On folders of your own, as `medmoe export` wrote them, or on the demonstration's model with random
weights; phantom pictures. A whole answer is one
picture, one question and five tokens; reading is a prompt of 512 tokens; decoding is 64 tokens
behind a short prompt, one at a time. What a run holds in memory is printed beside them.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from support.timing import QUICK_REPEATS, REPEATS, hardware, ratios
from support.tiny import tiny

from medmoe.data.phantom import read_phantom
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import save_model
from medmoe.model.export import export_openvino

QUESTION = "Is there any nodule?"
READ, SAID = 512, 64


def reading(engine: MedMoe) -> Callable[[], object]:
    """Return a function that reads a prompt of `READ` tokens."""
    ids = torch.randint(10, 100, (1, READ), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(READ)[None]
    return lambda: engine.read(ids, None, torch.ones_like(ids), positions, engine.new_cache())


@torch.inference_mode()
def decoding(engine: MedMoe) -> Callable[[], object]:
    """Return a function that says `SAID` tokens, one at a time."""
    start = torch.randint(10, 100, (1, 32), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        cache = engine.new_cache()
        engine.read(start, None, torch.ones_like(start), torch.arange(32)[None], cache)
        for place in range(32, 32 + SAID):
            mask, positions = torch.ones(1, place + 1, dtype=torch.long), torch.tensor([[place]])
            engine.read(start[:, :1], None, mask, positions, cache)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="folder of the model")
    parser.add_argument("exported", type=Path, nargs="?", help="what `medmoe export` wrote of it")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REPEATS} repeats only")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    values = parser.parse_args()
    torch.set_num_threads(values.threads)
    repeats = QUICK_REPEATS if values.quick else REPEATS
    print(f"{hardware()}; {repeats} interleaved repeats; median [lowest, highest]")
    with tempfile.TemporaryDirectory() as folder:
        model, exported = values.model, values.exported
        if exported is None:
            model, exported = Path(folder) / "model", Path(folder) / "exported"
            made = tiny(8)
            save_model(made.moe, made.processor, model, {})
            export_openvino(model, exported)
        engines = {
            name: MedMoe.load(where, max_new_tokens=5)
            for name, where in (("exported", exported), ("model", model))
        }
    picture = read_phantom("train", 1, seed=7)[0].image.source
    ways: dict[str, Callable[[MedMoe], Callable[[], object]]] = {
        "whole answer": lambda engine: lambda: engine.answer(picture, QUESTION),
        f"read {READ} tokens": reading,
        f"say {SAID} tokens": decoding,
    }
    print(f"{'':<20}model ÷ exported")
    with torch.inference_mode():
        for name, way in ways.items():
            runs = {kind: way(engine) for kind, engine in engines.items()}
            print(f"{name:<20}{ratios(runs, 'exported', repeats)['model']}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"both loaded, at most {peak:.2f} GiB of memory")


if __name__ == "__main__":
    main()
