"""The page in a real browser: headless Chromium drives it as a clinician would.

One server and one browser serve the module; every test opens a page of its own and fails on any
request to another host, any script error and any breach of the content security policy. What is
seen is kept as pictures in `$MEDMOE_ARTEFACTS` (default: `runs/page`). What the words and numbers
on the cards are is tested in `test_views`.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.samples import dicom, nifti

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
NAME = "SMITH JOHN 1950-01-01"
NOTE = "Research use only, not a medical device"
#: Name of what has the focus (empty: nothing has), and whether a line around it shows that.
FOCUSED = """() => {
    const it = document.activeElement;
    const around = [it, it.parentElement, it.closest('.drop')].filter(Boolean);
    const lines = around.map((each) => getComputedStyle(each));
    const name = it.ariaLabel || it.labels?.[0]?.innerText || it.innerText || it.id;
    return [
        it === document.body ? '' : name,
        lines.some((s) => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2),
    ];
}"""
SLOW = 20_000  # milliseconds that a loaded machine may take
expect = playwright.expect


@pytest.fixture(scope="module")
def artefacts(repository: Path) -> Path:
    folder = Path(os.environ.get("MEDMOE_ARTEFACTS", repository / "runs" / "page"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def opened(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    """Open the page, and hold it to the rules that hold for every use of it."""
    faults: list[str] = []
    contexts: list[Any] = []

    def answered(response: Any) -> None:
        if response.status >= 400 and not response.url.endswith(("/page/picture", "/page/export")):
            faults.append(f"{response.status} for {response.url}")

    def see(request: Any) -> None:
        if not request.url.startswith((server, "data:", "blob:")):
            faults.append(f"request to {request.url}")

    def hear(message: Any) -> None:
        refused = "server responded with a status of 4" in message.text  # told on the page
        if message.type == "error" and not refused:
            faults.append(f"console: {message.text}")

    def open_page(**options: Any) -> Any:
        contexts.append(
            browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        )
        page = contexts[-1].new_page()
        page.on("request", see)
        page.on("response", answered)
        page.on("console", hear)
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.goto(server)
        expect(page.get_by_label("Question")).to_be_visible(timeout=SLOW)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / f"{NAME}.png"
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT of two frames whose pixels are 1.5 times as wide as high."""
    path = tmp_path_factory.mktemp("pictures") / f"{NAME}.dcm"
    y, x = np.mgrid[:96, :96]
    body = ((x - 48) ** 2 / 40**2 + (y - 48) ** 2 / 44**2 < 1).astype(np.uint16)
    values = 24 + 1040 * body + 60 * ((x - 60) ** 2 + (y - 60) ** 2 < 120).astype(np.uint16)
    tags = {"PatientName": "SMITH^JOHN", "Modality": "CT", "BodyPartExamined": "ABDOMEN"}
    path.write_bytes(
        dicom(
            np.stack([values, values[::-1]]), **tags, RescaleSlope=1, RescaleIntercept=-1024,
            WindowCenter=40, WindowWidth=400, PixelSpacing=[1.0, 1.5],
        )
    )  # fmt: skip
    return path


def ask(page: Any, question: str, count: int) -> None:
    """Type a question, press Enter, and wait for its answer and what is behind it."""
    page.get_by_label("Question").fill(question)
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#evidence").get_by_text("Deletion test")).to_be_visible(timeout=SLOW)
    expect(page.locator("[data-testid=bot]")).to_have_count(count, timeout=SLOW)
    expect(page.get_by_role("button", name="Ask")).to_be_visible(timeout=SLOW)


def keep(page: Any, path: Path) -> None:
    """Keep a picture of the whole page, from its top."""
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=path, full_page=True)


def answers(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("[data-testid=bot]").all_inner_texts()]


def test_upload_ask_evidence_and_follow_up(
    opened: Callable[..., Any], png: Path, artefacts: Path, tmp_path: Path
) -> None:
    page = opened()
    expect(page.get_by_text(NOTE)).to_be_visible()
    page.screenshot(path=artefacts / "1-start.png")
    page.set_input_files("#picture-file", png)
    expect(page.locator(".picture svg")).to_be_visible(timeout=SLOW)
    expect(page.locator(".picture figcaption")).to_have_text("PNG")
    ask(page, "Is there a mass?", 1)
    evidence = page.locator("#evidence")
    for heading in ("Router", "Experts", "Alternatives", "What would change it", "Regions"):
        expect(evidence.get_by_role("heading", name=heading)).to_be_visible()
    marks = page.locator(".picture .regions")
    expect(marks).to_be_visible()
    keep(page, artefacts / "2-answer.png")
    page.get_by_label("Show the regions of the answer").uncheck()
    expect(marks).to_be_hidden()
    ask(page, "Where is it?", 2)
    keep(page, artefacts / "3-follow-up.png")
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save JSON").click()
    case = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    assert saved.value.suggested_filename == "case.json"
    assert [row["question"] for row in case["exchanges"]] == ["Is there a mass?", "Where is it?"]
    assert [row["answer"] for row in case["exchanges"]] == answers(page)
    assert case["exchanges"][0]["evidence"]["routing"]["experts"]
    assert "picture" not in case
    page.get_by_label("Save with the picture").check()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save HTML").click()
    html = Path(saved.value.path()).read_text(encoding="utf-8")
    assert html.count("<article>") == 2
    assert "data:image/png" in html
    assert "SMITH" not in html + json.dumps(case)


def test_an_answer_can_be_stopped_and_the_next_question_asked(opened: Callable[..., Any]) -> None:
    page = opened()
    page.get_by_label("Question").fill("Slowly: is there a mass?")
    page.get_by_label("Question").press("Enter")
    bot = page.locator("[data-testid=bot]")
    expect(bot).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("alert")).to_have_text("Stopped.", timeout=SLOW)
    expect(page.get_by_role("button", name="Ask")).to_be_visible()
    expect(page.locator("#evidence")).to_contain_text("The answer is not complete")
    page.get_by_label("Question").fill("Is it <b>large</b>?")
    page.get_by_role("button", name="Ask").click()
    expect(bot).to_have_count(2, timeout=SLOW)
    expect(page.locator("[data-testid=user]").last).to_have_text("Is it <b>large</b>?")  # as text
    expect(page.locator("[data-testid=user] b")).to_have_count(0)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#evidence")).to_contain_text("will stand here", timeout=SLOW)
    expect(bot).to_have_count(0)
    page.get_by_label("Question").fill("Slowly: and now?")
    page.get_by_label("Question").press("Enter")
    expect(bot).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Example: MRI").click()  # another case ends it, too
    expect(page.locator(".picture svg")).to_be_visible(timeout=SLOW)
    expect(page.get_by_role("button", name="Ask")).to_be_visible(timeout=SLOW)
    expect(bot).to_have_count(0)


def test_a_case_is_copied_as_text(opened: Callable[..., Any]) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy case").click()
    expect(page.get_by_role("alert")).to_have_text("There is no answer to save yet.", timeout=SLOW)
    page.get_by_label("Question").fill("What is a mass?")
    page.get_by_label("Question").press("Enter")
    expect(page.get_by_role("button", name="Ask")).to_be_visible(timeout=SLOW)
    expect(page.locator("#evidence")).to_contain_text("not calibrated", timeout=SLOW)
    page.get_by_role("button", name="Copy case").click()
    expect(page.locator("#page-said")).to_have_text("Copied.", timeout=SLOW)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(NOTE)
    assert "Question: What is a mass?\nAnswer: " in copied


def test_a_bad_file_is_one_plain_line_and_the_page_goes_on(
    opened: Callable[..., Any], png: Path, tmp_path: Path, artefacts: Path
) -> None:
    bad = tmp_path / f"{NAME}.png"
    bad.write_bytes(png.read_bytes()[:-200])
    page = opened()
    page.set_input_files("#picture-file", bad)
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("roken PNG file", timeout=SLOW)
    assert "\n" not in alert.inner_text().strip()
    assert "SMITH" not in page.content()
    page.screenshot(path=artefacts / "4-bad-file.png")
    page.set_input_files("#picture-file", png)
    expect(page.locator(".picture svg")).to_be_visible(timeout=SLOW)
    expect(alert).to_have_count(0)


def test_a_dicom_picture_has_windows_frames_and_its_true_shape(
    opened: Callable[..., Any], scan: Path, artefacts: Path
) -> None:
    page = opened()
    page.set_input_files("#picture-file", scan)
    caption = page.locator(".picture figcaption")
    expect(caption).to_contain_text("frame 1 of 2, window 40,400 (from the file)", timeout=SLOW)
    expect(page.locator(".picture").get_by_text("SMITH")).to_have_count(0)
    box = page.locator(".picture svg").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(1.5, rel=0.02)  # whole pixels
    seen = {page.locator(".picture image").get_attribute("href")}
    keep(page, artefacts / "5-dicom.png")
    page.get_by_label("Window", exact=True).select_option("brain")
    expect(caption).to_contain_text("window 40,80 (as given)", timeout=SLOW)
    expect(page.get_by_label("Width").first).to_have_value("80")
    seen.add(page.locator(".picture image").get_attribute("href"))
    page.get_by_role("slider", name=re.compile("Width")).focus()
    page.keyboard.press("ArrowRight")
    expect(caption).to_contain_text("window 40,81 (as given)", timeout=SLOW)
    expect(page.get_by_label("Window", exact=True)).to_have_value("own")
    page.get_by_role("slider", name=re.compile("Frame")).focus()
    page.keyboard.press("ArrowRight")
    expect(caption).to_contain_text("frame 2 of 2, window 40,81", timeout=SLOW)
    seen.add(page.locator(".picture image").get_attribute("href"))
    assert len(seen) == 3
    keep(page, artefacts / "6-window.png")


def test_a_volume_has_planes_and_other_pictures_have_none(
    opened: Callable[..., Any], png: Path, tmp_path: Path
) -> None:
    page, volume = opened(), tmp_path / f"{NAME}.nii"
    caption, plane = page.locator(".picture figcaption"), page.get_by_label("Plane", exact=True)
    page.set_input_files("#picture-file", png)
    expect(caption).to_contain_text("PNG", timeout=SLOW)
    expect(plane).to_be_hidden()
    volume.write_bytes(nifti())
    page.set_input_files("#picture-file", volume)
    expect(caption).to_contain_text("NIfTI", timeout=SLOW)
    acquired = caption.inner_text()
    assert "sagittal" not in acquired
    plane.select_option("sagittal")
    expect(caption).to_contain_text("sagittal, slice 10 of 20", timeout=SLOW)
    expect(page.get_by_text("Slice, 1 to 20")).to_be_visible()
    plane.select_option("as acquired")
    expect(caption).to_have_text(acquired, timeout=SLOW)


def test_everything_can_be_done_by_the_keyboard_with_the_focus_in_sight(
    opened: Callable[..., Any], artefacts: Path
) -> None:
    page = opened(color_scheme="dark")
    reached: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(FOCUSED)
        if not name:
            break  # out of the page again: no trap
        reached.append(" ".join(name.split()))
        assert outline, f"{name} has the focus and does not show it"
    else:
        pytest.fail(f"the focus does not leave the page: {reached}")
    for wanted in ("Open a picture", "Example: CT", "Question", "Ask", "Copy case", "Save JSON"):
        assert any(wanted in name for name in reached), (wanted, reached)
    page.get_by_role("button", name="Example: CT").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".picture svg")).to_be_visible(timeout=SLOW)
    expect(page.get_by_label("Question")).not_to_have_value("")
    page.get_by_label("Question").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#evidence").get_by_text("Deletion test")).to_be_visible(timeout=SLOW)
    keep(page, artefacts / "7-keyboard-dark.png")


def test_a_narrow_screen_holds_all_of_it(opened: Callable[..., Any], artefacts: Path) -> None:
    page = opened(viewport={"width": 360, "height": 740})
    page.get_by_role("button", name="Example: X-ray").click()
    expect(page.locator(".picture svg")).to_be_visible(timeout=SLOW)
    ask(page, "Is there a mass?", 1)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= 360
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.get_by_text(NOTE)).to_be_in_viewport()  # wherever one has scrolled to
    keep(page, artefacts / "8-narrow.png")


def test_nothing_of_a_patient_is_left(
    opened: Callable[..., Any],
    scan: Path,
    server: str,
    server_folder: Path,
    server_log: Callable[[], str],
) -> None:
    page = opened()
    page.set_input_files("#picture-file", scan)
    expect(page.locator(".picture svg")).to_be_visible(timeout=SLOW)
    ask(page, "Is there a mass?", 1)
    files = [path for path in server_folder.rglob("*") if path.is_file()]
    assert files == []  # no temporary file at all
    assert "SMITH" not in page.content() + server_log()
    assert "mass" not in server_log()
    page.close()
    for _ in range(40):  # a closed page is noticed, and its case forgotten
        if page.context.request.get(f"{server}/open-cases").text() == "0":
            break
        time.sleep(0.25)
    else:
        pytest.fail("the case of a page that was closed is still held")
