"""The open cases are few, small in all, and end by themselves; a handle cannot be guessed."""

from __future__ import annotations

import asyncio

import pytest

from medmoe.serving.page.cases import CaseStore


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_an_idle_case_ends_and_a_used_one_does_not(clock: Clock) -> None:
    store = CaseStore(idle_seconds=10, clock=clock)
    idle, used = store.open(b"1"), store.open(b"2")
    clock.now += 6
    assert store.get(used.handle) is used
    clock.now += 6
    assert store.get(idle.handle) is None
    assert store.get(used.handle) is used
    assert len(store) == 1


def test_a_case_ends_soon_after_its_page_was_closed_unless_the_page_is_back(clock: Clock) -> None:
    store = CaseStore(idle_seconds=100, grace_seconds=5, clock=clock)
    gone, back, twice, other = (store.open() for _ in range(4))
    with store.shown(twice):
        for case in (gone, back, twice):
            with store.shown(case):
                pass
        assert store.get(back.handle) is back
        clock.now += 6
        assert store.get(gone.handle) is None
        assert store.get(back.handle) is back
        assert store.get(twice.handle) is twice
        assert store.get(other.handle) is other
    clock.now += 6
    assert store.get(twice.handle) is None


def test_the_longest_untouched_case_makes_room(clock: Clock) -> None:
    store = CaseStore(max_cases=3, clock=clock)
    first, second, third = (store.open() for _ in range(3))
    store.get(first.handle)
    fourth = store.open()
    found = [case for case in (first, second, third, fourth) if store.get(case.handle)]
    assert found == [first, third, fourth]


def test_all_cases_together_hold_at_most_the_bytes_that_are_allowed(clock: Clock) -> None:
    store = CaseStore(max_bytes=100, clock=clock)
    cases = [store.open(bytes(40)) for _ in range(5)]
    assert [case for case in cases if store.get(case.handle)] == cases[-2:]
    alone = store.open(bytes(500))  # a file within the limits is never refused for its size
    assert len(store) == 1
    assert store.get(alone.handle) is alone


def test_a_case_is_swept_on_an_idle_server_too() -> None:
    async def idle() -> tuple[int, int]:
        store = CaseStore(idle_seconds=0.05)
        store.open(b"picture")
        before = len(store)
        await asyncio.sleep(0.4)  # nobody asks for anything
        return before, len(store)

    assert asyncio.run(idle()) == (1, 0)


def test_handles_are_long_and_never_alike() -> None:
    store = CaseStore(max_cases=1000)
    handles = {store.open().handle for _ in range(500)}
    assert len(handles) == 500
    assert min(map(len, handles)) >= 32  # 24 random bytes


def test_an_unknown_or_closed_handle_finds_nothing() -> None:
    store = CaseStore()
    case = store.open()
    store.close(case.handle)
    store.close("never there")
    for handle in (case.handle, "", "x" * 10_000):
        assert store.get(handle) is None
