"""20,000 broken files through the decoder processes: each is a picture or an `ImageError`.

The caller neither dies nor hangs, and its memory does not grow.
"""

from __future__ import annotations

import os

import psutil
from tests.stress.fuzz import try_all
from tests.stress.ledger import Ledger

from medmoe.data.intake.sandbox import DecoderPool

WANTED, BATCH = 20_000, 500
NAME = "mutated_images"
MAX_GROWTH = 64 * 2**20


def test_no_broken_picture_gives_another_error(ledger: Ledger) -> None:
    faults: list[str] = []
    pool = DecoderPool(workers=1)
    caller = psutil.Process(os.getpid())
    try_all(range(BATCH), pool)  # what is imported and allocated once is there from here on
    before = caller.memory_info().rss
    while ledger.done(NAME) < WANTED:
        first = ledger.done(NAME)
        counts, found = try_all(range(first, first + BATCH), pool)
        growth = caller.memory_info().rss - before
        highest = max(growth, ledger.facts(NAME).get("caller_growth_bytes", 0))
        ledger.add(NAME, wanted=WANTED, done=BATCH, faults=len(found), **counts)
        ledger.note(NAME, caller_growth_bytes=highest)
        faults += found
    pool.close()
    assert not faults
    run = ledger.runs[NAME]
    assert run["faults"] == 0
    assert run["facts"]["caller_growth_bytes"] <= MAX_GROWTH
    assert run["picture"] > 0, "no broken picture could be opened: the mutations are too coarse"
    for code in ("empty_or_malformed_image", "undecodable", "no_pixel_data", "image_too_large"):
        assert run[code] > 0, f"nothing was refused as {code}: the mutations are too mild"
