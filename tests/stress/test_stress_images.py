"""5,000 broken PNG and JPEG files: each is a picture or an `ImageError`, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.stress.fuzz import try_all
from tests.stress.ledger import Ledger

WANTED, BATCH = 5_000, 250
NAME = "mutated_images"


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's words about broken EXIF tags
def test_no_broken_picture_gives_another_error(ledger: Ledger, tmp_path: Path) -> None:
    faults: list[str] = []
    while ledger.done(NAME) < WANTED:
        first = ledger.done(NAME)
        counts, found = try_all(range(first, first + BATCH), tmp_path)
        ledger.add(NAME, wanted=WANTED, done=BATCH, faults=len(found), **counts)
        faults += found
    assert not faults
    run = ledger.runs[NAME]
    assert run["faults"] == 0
    assert run["picture"] > 0, "no broken picture could be opened: the mutations are too coarse"
    assert run["empty_or_malformed_image"] > 0
