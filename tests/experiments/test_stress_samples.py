"""Short samples of `make stress`, and the ledger that lets its runs go on where they stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.experiments import micro
from tests.stress import guided, kills
from tests.stress.fuzz import mutated, originals, try_all
from tests.stress.ledger import Ledger, head_of

from medmoe.data.images import open_picture
from medmoe.data.intake.sandbox import DecoderPool


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(workers=1)
    yield pool
    pool.close()


def test_broken_pictures_give_a_picture_or_an_image_error(pool: DecoderPool) -> None:
    counts, faults = try_all(range(600), pool)
    assert not faults
    assert sum(counts.values()) == 600
    # the mutations are neither so rude that nothing opens nor so mild that all does
    assert 100 < counts["picture"] < 400
    assert counts["empty_or_malformed_image"] > 30
    assert counts["undecodable"] > 30
    assert len(counts) >= 6


@pytest.mark.parametrize("name", guided.targets())
def test_what_guided_fuzzing_begins_with_is_read_whole_and_cut(name: str) -> None:
    target = guided.targets()[name]
    seeds = target.seeds()
    assert len(seeds) > 1
    for seed in seeds:
        for end in (len(seed), len(seed) // 2, 1, 0):
            target.read(seed[:end])


def test_a_reader_that_fails_ends_guided_fuzzing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmoe.serving.schema.read_json", lambda data: data[99])
    with pytest.raises(IndexError):
        guided.targets()["json"].read(b"{}")


def test_originals_open_and_mutations_are_by_number(pool: DecoderPool) -> None:
    for data in originals():
        assert open_picture(data, pool=pool).image.mode == "RGB"
    assert [mutated(n) for n in range(50)] == [mutated(n) for n in range(50)]
    assert len({mutated(n) for n in range(200)}) > 150


def test_a_fault_of_the_intake_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr("tests.stress.fuzz.open_picture", broken)
    counts, faults = try_all(range(2), DecoderPool())
    assert counts == Counter()
    assert faults == ["0: MemoryError: out of memory", "1: MemoryError: out of memory"]


def test_what_is_half_written_is_found(tmp_path: Path) -> None:
    assert kills.half_written(tmp_path) == []
    (tmp_path / "summary.json").write_text('{"version": 1', encoding="utf-8")
    (tmp_path / "report.html").write_text("<html><body>", encoding="utf-8")
    (tmp_path / "model").mkdir()
    found = kills.half_written(tmp_path)
    assert [line.partition(":")[0].split()[0] for line in found] == [
        "summary.json",
        "report.html",
        "model/",
    ]
    (tmp_path / "summary.json").write_text('{"version": 1}', encoding="utf-8")
    assert "lacks" in kills.half_written(tmp_path)[0]


def test_ledger_goes_on_where_it_stopped(tmp_path: Path, repository: Path) -> None:
    path = tmp_path / "results" / "stress.json"
    ledger = Ledger.open(path, repository)
    ledger.add("kills", wanted=3, faults=0)
    ledger.add("kills", wanted=3, faults=1, seen=5)
    ledger.note("kills", seconds=61.5)
    again = Ledger.open(path, repository)
    assert again.done("kills") == 2
    assert again.runs["kills"]["faults"] == 1
    assert again.runs["kills"]["seen"] == 5
    assert again.facts("kills") == {"seconds": 61.5}
    assert again.done("other") == 0
    assert json.loads(path.read_text(encoding="utf-8"))["version"] == 1


@pytest.mark.parametrize("key", ["commit", "source", "version"])
def test_another_state_of_the_source_starts_from_nothing(
    tmp_path: Path, repository: Path, key: str
) -> None:
    path = tmp_path / "stress.json"
    ledger = Ledger.open(path, repository)
    replace(ledger, head=ledger.head | {key: "another"}).add("kills", wanted=3)
    assert Ledger.open(path, repository).done("kills") == 0


def test_a_broken_ledger_starts_from_nothing(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "stress.json").write_text("{", encoding="utf-8")
    assert Ledger.open(tmp_path / "stress.json", repository).runs == {}


def test_source_hash_sees_an_uncommitted_change(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = 1\n", encoding="utf-8")
    before = head_of(tmp_path)["source"]
    assert head_of(tmp_path)["source"] == before
    (tmp_path / "src" / "a.py").write_text("x = 2\n", encoding="utf-8")
    assert head_of(tmp_path)["source"] != before


def test_micro_plan_is_as_short_as_the_tests_need() -> None:
    spec = micro.micro_plan(Path("out")).recipe.spec
    assert {values.steps for values in spec.phases.values()} == {micro.STEPS}
    assert (spec.data.phantom_images, spec.data.phantom_test_images) == (24, 8)
