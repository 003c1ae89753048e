"""The built page is that of its sources, and small; its words are there in every language."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest
from scripts.page_hash import BUILT, hash_of_sources

from medmoe.data.intake.facts import WARNINGS
from medmoe.serving.drift import QUANTITIES
from medmoe.serving.page.actions import ENDED, EXAMPLES

MOST_BYTES = 1_500_000
#: All of them let a copy be given away with their text, and ask for no more.
FREE = {"MIT", "ISC", "BSD-3-Clause", "BSL-1.0", "Apache-2.0", "(WTFPL OR MIT)"}


def test_the_built_page_is_that_of_its_sources() -> None:
    told = (BUILT / "sources.sha256").read_text().strip()
    assert told == hash_of_sources(), "the page is stale: run `make page` and commit what it builds"


def test_the_lock_of_the_page_names_no_registry(repository: Path) -> None:
    lock = json.loads((repository / "page" / "package-lock.json").read_text())
    resolved = {each.get("resolved") for each in lock["packages"].values()} - {None}
    assert all(str(each).startswith("https://registry.npmjs.org/") for each in resolved)
    assert all(each.get("integrity") for name, each in lock["packages"].items() if name)


def test_the_built_page_is_small() -> None:
    assert 0 < sum(path.stat().st_size for path in BUILT.glob("*.gz")) < MOST_BYTES


def test_the_licences_of_what_was_built_in_are_told(repository: Path) -> None:
    told = (BUILT / "licences.txt").read_text(encoding="utf-8")
    asked = json.loads((repository / "page" / "package.json").read_text())["dependencies"]
    for name in asked.keys() - {"url"}:  # which may be left out as unused
        assert f"{name} {asked[name]}: MIT" in told
    assert not re.findall(
        r"^\S+ \S+: (?!MIT|ISC|BSD-\d-Clause|BSL-1\.0|Apache-2\.0|0BSD|\(WTFPL OR MIT\))",
        told,
        re.M,
    )


@pytest.fixture
def words(repository: Path) -> set[str]:
    """All that the page says by itself, as its sources write it."""
    found: set[str] = set()
    for path in (repository / "page" / "src").glob("*.ts"):
        said = path.read_text(encoding="utf-8")
        found.update(re.findall(r'\bt\(\s*"([^"]+)"', said))
        found.update(re.findall(r'\b(?:tile|button)\("([^"]+)"', said))
    html = (repository / "page" / "index.html").read_text(encoding="utf-8")
    marked = re.findall(r"<[^>]*\bdata-t\b[^>]*>([^<]+)<", html)
    named = re.findall(r'(?:aria-label|title)="([^"]+)"', html)
    return found | {" ".join(unescape(each).split()) for each in marked + named}


def test_all_words_of_the_page_are_there_in_chinese(repository: Path, words: set[str]) -> None:
    table = json.loads((repository / "page" / "src" / "zh.json").read_text(encoding="utf-8"))
    server = {
        *QUANTITIES.values(),
        *WARNINGS.values(),
        ENDED,
        "Stopped.",
        *(label for label, _ in EXAMPLES.values()),
    }
    assert len(words) > 100
    assert (words | server) - set(table) == set()
    for english, chinese in table.items():  # what is put into a sentence is in both
        assert set(re.findall(r"\{\d\}", english)) == set(re.findall(r"\{\d\}", chinese))
