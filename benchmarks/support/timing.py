"""Interleaved timing: what drifts on a busy machine hits all candidates alike."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

REPEATS, QUICK_REPEATS = 9, 3


@dataclass(frozen=True)
class Ratio:
    """A median ratio of times over the repeats, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:6.2f}  [{self.low:.2f}, {self.high:.2f}]"


def options(description: str) -> argparse.Namespace:
    """Read the flags that all benchmarks share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_REPEATS} repeats only")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: 1)")
    values = parser.parse_args()

    import torch

    torch.set_num_threads(values.threads)
    values.repeats = QUICK_REPEATS if values.quick else REPEATS
    print(f"{hardware()}; {values.repeats} interleaved repeats; median [lowest, highest]")
    return values


def hardware() -> str:
    """Return what the ratios were measured on, without the machine's name."""
    import os
    import platform

    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"CPU capability {capability}, torch {torch.__version__}"
    )


def ratios(
    candidates: Mapping[str, Callable[[], Any]], base: str, repeats: int
) -> dict[str, Ratio]:
    """Return each candidate's time in multiples of that of ``base``, repeat by repeat.

    Each candidate runs once before the clock starts; then all run in turn, ``repeats`` times.
    """
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    found = {}
    for name, mine in times.items():
        each = [a / b for a, b in zip(mine, times[base], strict=True)]
        found[name] = Ratio(statistics.median(each), min(each), max(each))
    return found
