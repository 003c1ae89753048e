"""What a server of the tiny model takes to start, to its first token, and what its batching saves.

A real `medmoe serve` with random weights in a process of its own; the clients are beside it on the
same machine. Bars: ready within 15 s, first token of a warm server within 100 ms, many clients
answered at least twice as often a second as one (batching).
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import httpx
from support.timing import options

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.model.tiny import moe_model, processor
from tests.serving.support import Running, png, question, running
from tests.stress.load import closed_loops, percentile

from medmoe.model.checkpoint import save_model

CLIENTS = 32


def first_tokens(server: Running, times: int) -> list[float]:
    """Return the seconds to the first word of streams about pictures that are new each time."""
    found = []
    with httpx.Client(base_url=server.address, timeout=60) as client:
        for seed in range(times):
            body = json.dumps(question(image=png(seed=seed), stream=True))
            begun = time.perf_counter()
            headers = {"Content-Type": "application/json"}
            with client.stream(
                "POST", "/v1/chat/completions", content=body, headers=headers
            ) as reply:
                for place, _ in enumerate(reply.iter_bytes()):
                    if place == 0:
                        found.append(time.perf_counter() - begun)
    return found


def main() -> None:
    values = options(__doc__.splitlines()[0])
    seconds = 3.0 * values.repeats
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny" / "model"
        save_model(moe_model("stablelm"), processor(), model, {})
        begun = time.perf_counter()
        with running(model, Path(folder) / "server") as server:
            print(f"start to ready: {time.perf_counter() - begun:.1f} s (bar: 15)")
            first_tokens(server, 5)
            found = first_tokens(server, 10 * values.repeats)
            middle, late = statistics.median(found), percentile(found, 0.95)
            print(f"first token, warm: median {1e3 * middle:.0f} ms, p95 {1e3 * late:.0f} ms (100)")
            one, _ = asyncio.run(closed_loops(server, 1, seconds))
            many, _ = asyncio.run(closed_loops(server, CLIENTS, seconds))
            ratio = many.count(200) / one.count(200)
            print(f"answers a second, {CLIENTS} clients ÷ one: {ratio:.2f} (bar: 2)")


if __name__ == "__main__":
    main()
