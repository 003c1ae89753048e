"""The page as `medmoe serve` shows it behind a token: nothing without it, all of it with it."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.samples import dicom
from tests.model.tiny import moe_model, processor
from tests.serving.page.conftest import free_port, running

from medmoe.model.checkpoint import save_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = playwright.expect
TOKEN = "a-token-of-some-length"
SLOW = 60_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("signed-in")
    save_model(moe_model("stablelm"), processor(), folder / "tiny" / "model", {})
    (folder / "token").write_text(TOKEN)
    (folder / "files").mkdir()
    port = free_port()
    words = ["-m", "medmoe", "serve", str(folder / "tiny" / "model"), "--port", str(port)]
    words += ["--token-file", str(folder / "token"), "--max-new-tokens", "4"]
    with running(words, port, folder / "files", folder / "log", repository) as found:
        yield found


def status_of(address: str, path: str, method: str = "GET") -> int:
    request = urllib.request.Request(f"{address}{path}", method=method)
    try:
        return int(urllib.request.build_opener(Stay).open(request, timeout=10).status)
    except urllib.error.HTTPError as error:
        return int(error.code)


class Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/page/page.js"),
        ("GET", "/page/about"),
        ("GET", "/page/line/a"),
        ("POST", "/page/ask"),
        ("POST", "/page/call/stopped"),
        ("POST", "/page/pixels"),
        ("POST", "/page/picture"),
        ("POST", "/page/export"),
    ],
)
def test_nothing_of_the_page_is_reached_without_the_token(
    address: str, method: str, path: str
) -> None:
    assert status_of(address, path, method) == 401


def test_one_signs_in_once_and_has_the_whole_page(
    address: str, browser: Any, tmp_path: Path
) -> None:
    scan = tmp_path / "scan.dcm"
    scan.write_bytes(dicom(Modality="CT"))
    context = browser.new_context()
    page = context.new_page()
    faults: list[str] = []
    page.on("request", lambda r: r.url.startswith((address, "data:")) or faults.append(r.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{address}/login")
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_be_visible()
    page.get_by_label("Token").fill(TOKEN)
    page.keyboard.press("Enter")
    expect(page.get_by_label("Question")).to_be_visible(timeout=SLOW)
    expect(page.get_by_text("Research use only, not a medical device")).to_be_visible()
    page.set_input_files("#picture-file", scan)
    expect(page.locator("#hud-zoom")).to_have_text(re.compile("%"), timeout=SLOW)
    page.get_by_label("Question").fill("Is there a mass?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#evidence").get_by_text("Deletion test")).to_be_visible(timeout=SLOW)
    expect(page.locator("[data-testid=bot]")).to_have_count(1)
    assert faults == []
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert TOKEN not in cookie["value"]
    context.clear_cookies()  # as if the session had ended
    page.set_input_files("#picture-file", scan)
    expect(page.get_by_role("alert")).to_contain_text("sign in again", timeout=SLOW)
    context.close()
