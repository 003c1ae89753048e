"""The watch of a server: what it keeps, that it survives, and that no answer is lost by it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from tests.serving.support import Running, ask, png, running

from medmoe.data.images import open_record
from medmoe.data.phantom import read_phantom
from medmoe.data.schema import images_of
from medmoe.errors import ConfigError, DataError, MedMoeError
from medmoe.inference.answer import Answer, Routing
from medmoe.inference.chat import ChatRequest, Turn
from medmoe.inference.engine import MedMoe
from medmoe.model.checkpoint import identity
from medmoe.serving.drift import QUANTITIES, Tally, reference_of, seen
from medmoe.serving.monitor import Monitor, by_utc, read_watch


@pytest.fixture(scope="module")
def shown() -> list[Image.Image]:
    return [open_record(image) for image in images_of(read_phantom("validation", 240, seed=3))]


@pytest.fixture(scope="module")
def reference(tiny: MedMoe, tiny_model: Path, shown: list[Image.Image]) -> str:
    routings = tiny.route(tiny.encode(shown[:160]))
    pictures = [seen(*each, 0.5) for each in zip(shown[:160], routings, strict=True)]
    return reference_of(identity(tiny_model), pictures, tiny.domains).model_dump_json()


@pytest.fixture
def file(reference: str, tmp_path: Path) -> Path:
    path = tmp_path / "drift.json"
    path.write_text(reference)
    return path


def asked(image: Image.Image, *turns: str) -> ChatRequest:
    told = [Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(turns)]
    return ChatRequest(tuple(told) or (Turn("user", "Is there a mass?"),), image)


def answer(routing: Routing | None) -> Answer:
    return Answer("no", 0.7, routing)


def counted(path: Path, day: date | None = None) -> int:
    tally = read_watch(path).days.get(day or by_utc())
    return sum(tally.mix.values()) if tally else 0


def until(path: Path, pictures: int) -> None:
    end = time.monotonic() + 120  # on a busy machine
    while counted(path) < pictures:
        assert time.monotonic() < end, counted(path)
        time.sleep(0.05)


# ---- what it keeps ----


def test_pictures_are_counted_by_day_once_each_and_come_back_after_a_restart(
    file: Path, tiny: MedMoe, shown: list[Image.Image]
) -> None:
    day, days = date(2026, 1, 5), [date(2026, 1, 5)]
    model = read_watch(file).model
    routings = tiny.route(tiny.encode(shown[:8]))
    for start in (0, 4):
        watch = Monitor(file, model, clock=lambda: days[0])
        for image, routing in zip(shown[start : start + 4], routings[start:], strict=False):
            watch.see(asked(image), answer(routing))
            watch.see(asked(image, "And now?", "no", "And here?"), answer(routing))
        watch.close()
    assert counted(file, day) == 8
    black = Image.new("RGB", (64, 64))
    watch = Monitor(file, model, clock=lambda: days[0])
    for _ in range(3):  # a scanner that only gives black pictures must be seen
        watch.see(asked(black), answer(routings[0]))
    watch.close()
    assert counted(file, day) == 11
    cells = [each["confidence"] for each in read_watch(file).days[day].cells.values()]
    count = sum(sum(cell.counts) for cell in cells)
    assert count >= 1
    assert sum(cell.sum for cell in cells) == pytest.approx(0.7 * count)


def test_an_alarm_stands_once_the_day_is_over_and_older_days_go(
    file: Path, tiny: MedMoe, shown: list[Image.Image]
) -> None:
    inverted = [Image.fromarray(255 - np.asarray(image)) for image in shown[160:230]]
    watch = read_watch(file)
    day = date(2026, 3, 2)
    for number in range(450):
        watch.days[day - timedelta(number + 1)] = Tally(mix={"ct": 1})
    tally = watch.days[day] = Tally()
    for each in zip(inverted, tiny.route(tiny.encode(inverted)), strict=True):
        watch.add(tally, seen(*each, 0.5))
    file.write_text(watch.model_dump_json())
    for today, alarms in ((day, False), (day + timedelta(1), True)):
        monitor = Monitor(file, watch.model, clock=lambda today=today: today)  # type: ignore[misc]
        monitor.see(asked(shown[0]), answer(tiny.route(tiny.encode(shown[:1]))[0]))
        monitor.close()
        standing = monitor.standing()
        assert (standing is not None) == alarms
    assert standing is not None
    assert standing["day"] == "2026-03-02"
    assert any(what == QUANTITIES["brightness"] for _, what in standing["alarms"])
    assert len(read_watch(file).days) <= 401


def test_what_there_is_no_room_for_is_left_out_and_counted(
    file: Path, shown: list[Image.Image], tiny: MedMoe
) -> None:
    monitor = Monitor(file, read_watch(file).model)
    routing = tiny.route(tiny.encode(shown[:1]))[0]
    large = Image.new("RGB", (4000, 3000))
    started = time.perf_counter()
    for _ in range(200):
        monitor.see(asked(large), answer(routing))
    assert time.perf_counter() - started < 5  # 200 pictures of 12 MP take longer to look at
    monitor.close()
    (tally,) = read_watch(file).days.values()
    assert sum(tally.mix.values()) + tally.left_out == 200
    assert tally.left_out > 0


# ---- a whole server ----


@pytest.fixture
def watched(file: Path, tiny_model: Path, tmp_path: Path) -> Iterator[Running]:
    with running(tiny_model, tmp_path / "first", "--monitor", str(file), "--no-page") as server:
        yield server


def test_a_killed_server_has_lost_some_seconds_at_most_and_goes_on(
    watched: Running, file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    secret = "Doe Jane has a fracture"
    for seed in range(3):
        assert ask(watched.address, text=secret, image=png(seed=seed)).status_code == 200
    assert ask(watched.address, text="words alone").status_code == 200
    until(file, 3)
    watched.process.kill()
    watched.process.wait()
    with running(tiny_model, tmp_path / "second", "--monitor", str(file)) as server:
        assert ask(server.address, image=png(seed=7)).status_code == 200
        about = httpx.get(f"{server.address}/page/about").json()
        assert about["drift"] is None
        assert "medmoe_monitor_unwritten 0.0" in httpx.get(f"{server.address}/metrics").text
        server.process.terminate()
        assert server.process.wait(60) == 0
    assert counted(file) == 4  # the last one was written by the orderly end
    names = {"medmoe_monitor", "model", "edges", "reference", "days", "mix", "cells", "left_out"}
    names |= {"counts", "sum", *QUANTITIES, "ct", "mri", "pathology", "xray"}
    text = file.read_text()
    texts = set(re.findall(r'"([^"]*)"', text))
    model = identity(tiny_model)
    assert texts <= names | {model, by_utc().isoformat(), str(by_utc() - timedelta(1))}


def test_a_disk_that_takes_no_more_is_told_of_once_and_answers_go_on(
    watched: Running, file: Path
) -> None:
    before = file.read_text()
    process = psutil.Process(watched.process.pid)
    process.rlimit(psutil.RLIMIT_FSIZE, (len(before) // 2, -1))
    end, seed = time.monotonic() + 120, 0
    while "medmoe_monitor_unwritten 1.0" not in httpx.get(f"{watched.address}/metrics").text:
        assert ask(watched.address, image=png(seed=seed)).status_code == 200
        assert time.monotonic() < end
        seed += 1
    while len(re.findall("drift watch goes on in memory", watched.said())) == 0:
        assert time.monotonic() < end
    assert file.read_text() == before  # whole, as it was
    process.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
    assert ask(watched.address, image=png(seed=1000)).status_code == 200
    until(file, seed + 1)  # what was kept in memory is there
    assert watched.said().count("goes on in memory") == 1


def test_metrics_and_page_tell_of_an_alarm_of_yesterday(
    file: Path, tiny_model: Path, tmp_path: Path, tiny: MedMoe, shown: list[Image.Image]
) -> None:
    inverted = [Image.fromarray(255 - np.asarray(image)) for image in shown[160:230]]
    watch, day = read_watch(file), by_utc() - timedelta(1)
    tally = watch.days[day] = Tally()
    for each in zip(inverted, tiny.route(tiny.encode(inverted)), strict=True):
        watch.add(tally, seen(*each, 0.5))
    file.write_text(watch.model_dump_json())
    with running(tiny_model, tmp_path / "server", "--monitor", str(file)) as server:
        end = time.monotonic() + 120
        while (drift := httpx.get(f"{server.address}/page/about").json()["drift"]) is None:
            assert time.monotonic() < end
        assert drift["day"] == day.isoformat()
        text = httpx.get(f"{server.address}/metrics").text
    assert re.search(
        r'medmoe_drift_alarm\{domain="\w+",quantity="brightness",statistic="\w+"\} 1.0', text
    )
    assert re.search(r'medmoe_drift\{domain="\w+",quantity="share",statistic="PSI"\} 0\.', text)


# ---- bad input ----


def test_what_is_no_monitor_file_of_this_model_is_refused(file: Path, tmp_path: Path) -> None:
    good, model = file.read_text(), read_watch(file).model
    with pytest.raises(ConfigError, match="is of another model; make one of this model by"):
        Monitor(file, "0" * 64)
    bad = [
        "", "{}", "[]", "\x00", '{"medmoe_monitor": 1}', good[:-40],
        good.replace('"medmoe_monitor":1', '"medmoe_monitor":2'),
        good.replace('"counts":[', '"counts":[7,', 1),
        good.replace('"counts":[', '"counts":[-7,', 1),
        good.replace('"sum":', '"sum":1e999,"x":', 1),
    ]  # fmt: skip
    for text in bad:
        file.write_text(text)
        with pytest.raises(DataError, match="is no monitor file, or was altered; make one by"):
            Monitor(file, model)
    with pytest.raises(DataError, match="No such file or directory"):
        Monitor(tmp_path / "nowhere.json", model)


def test_a_file_that_another_server_writes_is_refused(file: Path) -> None:
    model = read_watch(file).model
    first = Monitor(file, model)
    with pytest.raises(ConfigError, match=r"cannot keep other servers from .*; give another file"):
        Monitor(file, model)
    first.close()
    Monitor(file, model).close()


def test_a_place_that_cannot_be_written_is_refused_at_the_start(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medmoe import files

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    model = read_watch(file).model
    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(MedMoeError, match=r"No space left.*another file by --monitor FILE"):
        Monitor(file, model)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--monitor", "nowhere.json"], "cannot read 'nowhere.json'"),
        (["--monitor", "{file}", "--engine", "vllm"], "leave --monitor out"),
    ],
)
def test_serve_refuses_in_one_line(
    file: Path, tiny_model: Path, flags: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from medmoe.cli.main import main

    assert main(["serve", str(tiny_model), *(flag.format(file=file) for flag in flags)]) == 2
    err = capsys.readouterr().err
    assert part in err
    assert err.count("\n") == 1


def test_without_it_nothing_is_kept(server: Running) -> None:
    assert "medmoe_drift" not in httpx.get(f"{server.address}/metrics").text
    assert httpx.get(f"{server.address}/page/about").json()["drift"] is None
