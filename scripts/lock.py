"""Writes requirements.lock: the pins of all that medmoe[dev] needs, read from this environment.

Run it by `make lock` after changing a dependency. It asks no index and pins no platform: torch
stands without its local build tag, and the CUDA packages that a GPU build brings are left to it.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HEADER = """\
# Written by `make lock`: exact versions of everything that the demo, the tests and the checks need.
# Install torch first, then this file, so that no other build of torch is pulled in:
#   pip install torch=={torch}
#   pip install -r requirements.lock
"""
BROUGHT_BY_TORCH = ("nvidia-", "cuda-", "triton", "pytorch-triton")


def closure(name: str, extras: frozenset[str], seen: dict[str, str], done: set[str]) -> None:
    """Collect the installed version of a distribution's dependencies, and of theirs."""
    for line in distribution(name).requires or []:
        need = Requirement(line)
        marks = [{"extra": extra} for extra in (extras or {""})]
        if need.marker and not any(need.marker.evaluate(mark) for mark in marks):
            continue
        key = canonicalize_name(need.name)
        if key.startswith(BROUGHT_BY_TORCH):
            continue
        visit = f"{key}[{','.join(sorted(need.extras))}]"
        if visit in done:
            continue
        done.add(visit)
        seen[key] = Version(distribution(key).version).public
        closure(key, frozenset(need.extras), seen, done)


def main() -> None:
    """Write the file beside pyproject.toml."""
    pins: dict[str, str] = {}
    closure("medmoe", frozenset({"", "dev"}), pins, set())
    text = HEADER.format(torch=pins["torch"])
    text += "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    Path(__file__).resolve().parents[1].joinpath("requirements.lock").write_text(text)


if __name__ == "__main__":
    main()
