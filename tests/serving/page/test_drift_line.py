"""The line in the head of the page while the last day that is over has an alarm, in a browser."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.serving.support import running

from medmoe.model.checkpoint import identity
from medmoe.serving.drift import Tally, reference_of
from medmoe.serving.monitor import by_utc


@pytest.mark.parametrize("alarm", [True, False])
def test_an_alarm_stands_in_the_head_of_the_page_in_both_languages(
    browser: Any, tiny_model: Path, tmp_path: Path, alarm: bool
) -> None:
    seen = [("ct", {"brightness": 0.2 + n / 1000}) for n in range(200)]
    watch = reference_of(identity(tiny_model), seen, ("ct", "mri"))
    day = by_utc() - timedelta(1)
    tally = watch.days[day] = Tally()
    for domain, numbers in seen[::4]:
        watch.add(tally, (domain, {"brightness": numbers["brightness"] + 0.5 * alarm}))
    file = tmp_path / "drift.json"
    file.write_text(watch.model_dump_json())
    with running(tiny_model, tmp_path / "server", "--monitor", str(file)) as server:
        page = browser.new_page(locale="en-GB")
        page.set_default_timeout(120_000)
        line, end = page.locator("#drift"), time.monotonic() + 120
        while True:  # the server judges the day beside its start
            page.goto(server.address)
            page.wait_for_function("document.querySelector('#model').textContent !== ''")
            if line.is_visible() == alarm:
                break
            assert time.monotonic() < end
        if alarm:
            said = line.inner_text()
            assert f"on {day} the pictures asked about were unlike" in said
            assert "ct: mean brightness" in said
            page.locator("#language").select_option("zh")
            assert f"漂移监测：{day}" in line.inner_text()
            assert "ct: 平均亮度" in line.inner_text()
        page.close()
