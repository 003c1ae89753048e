"""The page in a real browser: headless Chromium drives it as a clinician would.

One server and one browser serve the module; every test opens a page of its own and fails on any
request to another host, any script error and any breach of the content security policy. What is
seen is kept as pictures in `$MEDMOE_ARTEFACTS` (default: `runs/page`).
"""

from __future__ import annotations

import gzip
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from io import BytesIO
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
    const label = it.closest('.drop')?.querySelector('label');
    const around = [it, it.parentElement, label].filter(Boolean);
    const lines = around.map((each) => getComputedStyle(each));
    const name = it.ariaLabel || it.labels?.[0]?.innerText || it.innerText || it.id;
    return [
        it === document.body ? '' : name,
        lines.some((s) => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2),
    ];
}"""
SLOW = 60_000  # milliseconds that a loaded machine may take
#: Where all regions together lie, without the frames around the strongest.
EXTENT = """() => {
    const all = document.querySelectorAll('#regions-layer rect:not([stroke])');
    const boxes = [...all].map((each) => each.getBoundingClientRect());
    const x = Math.min(...boxes.map((box) => box.left));
    const y = Math.min(...boxes.map((box) => box.top));
    const width = Math.max(...boxes.map((box) => box.right)) - x;
    return {x, y, width, height: Math.max(...boxes.map((box) => box.bottom)) - y};
}"""
expect = playwright.expect
#: axe-core as its package has it: Copyright Deque Systems, Inc., Mozilla Public License 2.0, source
#: at https://github.com/dequelabs/axe-core. It runs in tests alone and is part of no wheel.
AXE = Path(__file__).with_name("axe-4.14.1.min.js.gz")


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
        told = ("/page/picture", "/page/export")  # where a refusal is told on the page
        if response.status >= 400 and not response.url.endswith(told):
            faults.append(f"{response.status} for {response.url}")

    def see(request: Any) -> None:
        if not request.url.startswith((server, "data:", "blob:")):
            faults.append(f"request to {request.url}")

    def hear(message: Any) -> None:
        refused = "server responded with a status of 4" in message.text  # told on the page
        if message.type == "error" and not refused:
            faults.append(f"console: {message.text}")

    def open_page(rendering: str = "cpu", **options: Any) -> Any:
        contexts.append(
            browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        )
        page = contexts[-1].new_page()
        page.on("request", see)
        page.on("response", answered)
        page.on("console", hear)
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.goto(f"{server}/?rendering={rendering}")
        expect(page.locator("body[data-ready]")).to_be_visible(timeout=SLOW)
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
    expect(page.locator("[data-testid=bot]")).to_have_count(count, timeout=SLOW)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible(timeout=SLOW)
    expect(page.locator("#evidence").get_by_text("Deletion test")).to_be_visible(timeout=SLOW)


def show(page: Any, path: Path) -> None:
    """Open a picture, and wait until it is drawn."""
    page.set_input_files("#picture-file", path)
    expect(page.locator("#hud-zoom")).to_have_text(re.compile("%"), timeout=SLOW)


def drawn(page: Any) -> np.ndarray:
    """Return what the viewer shows, (H, W) 0-255."""
    page.wait_for_timeout(300)  # until the next frame is drawn
    shot = page.locator("#viewport canvas").first.screenshot()
    return np.asarray(Image.open(BytesIO(shot)).convert("L")).astype(float)


def drag(page: Any, x: int, y: int) -> None:
    """Drag from the middle of the viewer."""
    box = page.locator("#viewport").bounding_box()
    left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move(left + x, top + y, steps=4)
    page.mouse.up()


def faults_of(page: Any) -> list[str]:
    """Return what axe-core finds that is serious or worse."""
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": gzip.decompress(AXE.read_bytes()).decode()})
    found = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{each['id']}: {[node['html'] for node in each['nodes']]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def keep(page: Any, path: Path) -> None:
    """Keep a picture of the whole page, from its top."""
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=path, full_page=True)


def answers(page: Any) -> list[str]:
    return [text.strip() for text in page.locator("[data-testid=bot]").all_inner_texts()]


def test_upload_ask_evidence_and_follow_up(
    opened: Callable[..., Any], png: Path, artefacts: Path
) -> None:
    page = opened()
    expect(page.get_by_text(NOTE)).to_be_visible()
    page.screenshot(path=artefacts / "1-start.png")
    show(page, png)
    expect(page.locator("#caption")).to_have_text("The model sees: PNG.")
    bare = drawn(page)
    ask(page, "Is there a mass?", 1)
    evidence = page.locator("#evidence")
    for heading in ("Router", "Experts", "Alternatives", "What would change it", "Regions"):
        expect(evidence.get_by_role("heading", name=heading)).to_be_visible()
    expect(page.locator("#regions-layer rect")).not_to_have_count(0)
    expect(page.locator("#legend")).to_contain_text("for the answer")
    with_regions = drawn(page)
    assert np.abs(with_regions - bare).max() > 20
    page.get_by_label("Opacity").fill("20")
    assert np.abs(drawn(page) - bare).mean() < np.abs(with_regions - bare).mean()
    keep(page, artefacts / "2-answer.png")
    page.get_by_label("Show the regions of the answer").uncheck()
    np.testing.assert_array_equal(drawn(page), bare)
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


@pytest.mark.parametrize("rendering", ["cpu", "webgl"])
def test_regions_lie_where_the_picture_lies_also_mirrored_and_magnified(
    opened: Callable[..., Any], rendering: str, scan: Path
) -> None:
    page = opened(rendering)
    show(page, scan)
    ask(page, "Is there a mass?", 1)

    def place() -> dict[str, float]:
        return page.evaluate(EXTENT)  # type: ignore[no-any-return]

    picture, stage = place(), page.locator("#viewport").bounding_box()
    assert picture["width"] / picture["height"] == pytest.approx(1.5, rel=0.02)  # its true shape
    assert picture["width"] == pytest.approx(stage["width"], rel=0.02)
    first = page.locator("#regions-marks g").first.bounding_box()
    page.get_by_role("button", name="Mirror left and right").click()
    page.wait_for_timeout(300)
    assert place() == pytest.approx(picture, abs=2)
    mirrored = page.locator("#regions-marks g").first.bounding_box()
    middle = picture["x"] + picture["width"] / 2
    assert mirrored["x"] + mirrored["width"] / 2 - middle == pytest.approx(
        middle - first["x"] - first["width"] / 2, abs=2
    )
    page.get_by_role("button", name="Magnify", exact=True).click()
    page.wait_for_timeout(300)
    assert place()["width"] == pytest.approx(1.25 * picture["width"], rel=0.02)
    expect(page.get_by_text("Only the view is changed")).to_be_visible()


def test_an_answer_can_be_stopped_asked_again_and_the_next_question_asked(
    opened: Callable[..., Any],
) -> None:
    page = opened()
    page.get_by_label("Question").fill("Slowly: is there a mass?")
    page.get_by_label("Question").press("Enter")
    bot, stop = page.locator("[data-testid=bot]"), page.get_by_role("button", name="Stop")
    expect(bot).to_be_visible(timeout=SLOW)
    expect(bot).not_to_have_text("Answering …", timeout=SLOW)
    stop.click()
    expect(page.get_by_role("alert")).to_have_text("Stopped.", timeout=SLOW)
    expect(page.locator("#evidence")).to_contain_text("The answer is not complete")
    page.get_by_role("button", name="Ask again").click()
    expect(stop).to_be_visible(timeout=SLOW)
    expect(page.locator("[data-testid=user]")).to_have_count(1)
    page.get_by_label("Question").press("Escape")
    expect(page.get_by_role("alert")).to_have_text("Stopped.", timeout=SLOW)
    page.get_by_label("Question").fill("Is it <b>large</b>?")
    page.get_by_role("button", name="Ask", exact=True).click()
    user = page.locator("[data-testid=user]")
    expect(user).to_have_count(2, timeout=SLOW)
    expect(user.last).to_have_text("Is it <b>large</b>?")  # as text
    expect(page.locator("[data-testid=user] b")).to_have_count(0)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Clear").click()
    expect(bot).to_have_count(0, timeout=SLOW)


def test_a_case_is_copied_as_text(opened: Callable[..., Any]) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy case").click()
    expect(page.get_by_role("alert")).to_have_text("There is no answer to save yet.", timeout=SLOW)
    page.get_by_label("Question").fill("What is a mass?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#evidence")).to_contain_text("not calibrated", timeout=SLOW)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible(timeout=SLOW)
    page.get_by_role("button", name="Copy case").click()
    expect(page.locator("#page-said")).to_have_text("Copied.", timeout=SLOW)
    copied = page.evaluate("() => navigator.clipboard.readText()")
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
    show(page, png)
    expect(alert).to_have_count(0)


@pytest.mark.parametrize("rendering", ["cpu", "webgl"])
def test_a_drag_sets_the_window_and_the_model_sees_the_same(
    opened: Callable[..., Any], rendering: str, scan: Path, artefacts: Path
) -> None:
    page = opened(rendering)
    show(page, scan)
    caption, width = page.locator("#caption"), page.get_by_label("Width")
    expect(caption).to_contain_text("frame 1 of 2, window 40,400 (from the file)")
    expect(page.locator("body")).not_to_contain_text("SMITH")
    before = drawn(page)
    drag(page, 120, -40)
    expect(caption).to_contain_text("(as given)", timeout=SLOW)
    after = drawn(page)
    assert np.abs(after - before).max() > 10
    center, wide = page.get_by_label("Center").input_value(), width.input_value()
    assert float(wide) > 400
    expect(caption).to_contain_text(f"window {center},{wide} (as given)", timeout=SLOW)
    assert page.get_by_label("Window", exact=True).input_value() == "own"
    page.get_by_label("Window", exact=True).select_option("brain")
    expect(caption).to_contain_text("window 40,80 (as given)", timeout=SLOW)
    expect(width).to_have_value("80")
    keep(page, artefacts / "6-window.png")
    page.get_by_role("button", name="Reset").click()
    expect(caption).to_contain_text("window 40,400 (from the file)", timeout=SLOW)
    np.testing.assert_allclose(drawn(page), before, atol=1)


@pytest.mark.parametrize("rendering", ["cpu", "webgl"])
def test_the_viewer_draws_the_window_that_the_model_reads(
    opened: Callable[..., Any], rendering: str, scan: Path
) -> None:
    page = opened(rendering)
    show(page, scan)
    grey = drawn(page)
    height, width = grey.shape
    # The body is 40 HU above the ends of its window at -160 and 240; the round part 60 HU more.
    assert grey[int(0.3 * height), width // 2] == pytest.approx(255 * 200 / 399, abs=3)
    assert grey[int(0.62 * height), int(0.62 * width)] == pytest.approx(255 * 260 / 399, abs=3)
    page.get_by_role("button", name="Invert").click()
    assert drawn(page)[int(0.3 * height), width // 2] == pytest.approx(255 * 199 / 399, abs=3)


@pytest.mark.parametrize("rendering", ["cpu", "webgl"])
def test_wheel_slider_and_keys_change_the_frame(
    opened: Callable[..., Any], rendering: str, scan: Path
) -> None:
    page = opened(rendering)
    show(page, scan)
    caption, hud = page.locator("#caption"), page.locator("#hud-frame")
    first = drawn(page)
    page.get_by_label("Window", exact=True).select_option("brain")
    expect(caption).to_contain_text("window 40,80 (as given)", timeout=SLOW)
    page.locator("#viewport").hover()
    page.mouse.wheel(0, 100)
    expect(hud).to_have_text("2 / 2", timeout=SLOW)
    expect(caption).to_contain_text("frame 2 of 2, window 40,80 (as given)", timeout=SLOW)
    expect(page.get_by_label("Width")).to_have_value("80")
    assert np.abs(drawn(page) - first).max() > 20
    page.get_by_role("slider", name=re.compile("Frame")).focus()
    page.keyboard.press("ArrowLeft")
    expect(hud).to_have_text("1 / 2", timeout=SLOW)
    page.locator("#viewport").focus()
    page.keyboard.press("End")
    expect(hud).to_have_text("2 / 2", timeout=SLOW)
    ask(page, "Is there a mass?", 1)
    expect(page.locator("#regions-layer rect")).not_to_have_count(0)
    page.locator("#viewport").focus()
    page.keyboard.press("Home")
    expect(page.locator("#regions")).to_be_hidden()  # they are of another frame
    page.get_by_role("button", name="Show that frame").click()
    expect(hud).to_have_text("2 / 2", timeout=SLOW)
    expect(page.locator("#regions-layer rect")).not_to_have_count(0)


@pytest.mark.parametrize("rendering", ["cpu", "webgl"])
def test_lengths_and_angles_are_measured_in_the_units_of_the_file(
    opened: Callable[..., Any], rendering: str, scan: Path, artefacts: Path
) -> None:
    page = opened(rendering)
    show(page, scan)
    scale = page.locator("#viewport").bounding_box()["width"] / (96 * 1.5)  # points a millimetre
    page.keyboard.press("l")
    drag(page, round(40 * scale), 0)
    label = page.locator("#viewport text.measured")
    expect(label).to_have_text(re.compile(r"^(39|40|41)(\.\d+)? mm$"), timeout=SLOW)
    keep(page, artefacts / "5-length.png")
    page.keyboard.press("r")
    expect(label).to_have_count(0, timeout=SLOW)


def test_a_volume_has_planes_and_other_pictures_have_none(
    opened: Callable[..., Any], png: Path, tmp_path: Path
) -> None:
    page, volume = opened(), tmp_path / f"{NAME}.nii"
    caption, plane = page.locator("#caption"), page.get_by_label("Plane", exact=True)
    show(page, png)
    expect(plane).to_be_hidden()
    volume.write_bytes(nifti())
    page.set_input_files("#picture-file", volume)
    expect(caption).to_contain_text("NIfTI", timeout=SLOW)
    acquired = caption.inner_text()
    assert "sagittal" not in acquired
    plane.select_option("sagittal")
    expect(caption).to_contain_text("sagittal, slice 10 of 20", timeout=SLOW)
    expect(page.get_by_text("Slice, 1 to 20")).to_be_visible(timeout=SLOW)
    expect(page.locator("#hud-frame")).to_have_text("10 / 20", timeout=SLOW)
    plane.select_option("as acquired")
    expect(caption).to_have_text(acquired, timeout=SLOW)


def test_everything_can_be_done_by_the_keyboard_with_the_focus_in_sight(
    opened: Callable[..., Any], artefacts: Path
) -> None:
    page = opened(color_scheme="dark")
    reached: list[str] = []
    for _ in range(60):
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
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    assert faults_of(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Example: CT").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#hud-zoom")).to_have_text(re.compile("%"), timeout=SLOW)
    expect(page.get_by_label("Question")).not_to_have_value("")
    page.keyboard.press("/")
    page.keyboard.press("Enter")
    expect(page.locator("#evidence").get_by_text("Deletion test")).to_be_visible(timeout=SLOW)
    page.locator("#viewport").focus()
    page.keyboard.press("o")
    expect(page.locator("#regions")).to_be_hidden()
    page.keyboard.press("o")
    assert faults_of(page) == []
    keep(page, artefacts / "7-keyboard-dark.png")


def test_nothing_is_in_the_way_of_a_screen_reader(
    opened: Callable[..., Any], scan: Path, artefacts: Path
) -> None:
    page = opened()
    assert faults_of(page) == []
    show(page, scan)
    ask(page, "Is there a mass?", 1)
    assert faults_of(page) == []


def test_a_narrow_screen_holds_all_of_it(opened: Callable[..., Any], artefacts: Path) -> None:
    page = opened(viewport={"width": 360, "height": 740})
    page.get_by_role("button", name="Example: X-ray").click()
    expect(page.locator("#hud-zoom")).to_have_text(re.compile("%"), timeout=SLOW)
    ask(page, "Is there a mass?", 1)
    width = page.evaluate("() => document.documentElement.scrollWidth")
    assert width <= 360
    assert faults_of(page) == []
    page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    expect(page.get_by_text(NOTE)).to_be_in_viewport()  # wherever one has scrolled to
    keep(page, artefacts / "8-narrow.png")


def test_the_page_speaks_chinese(opened: Callable[..., Any], artefacts: Path) -> None:
    page = opened(locale="zh-CN")
    expect(page.get_by_role("button", name="提问", exact=True)).to_be_visible()
    expect(page.get_by_text("仅供研究使用，不是医疗器械")).to_be_visible()
    page.get_by_role("button", name="示例：CT").click()
    expect(page.locator("#caption")).to_have_text("模型看到: 虚构的示例.", timeout=SLOW)
    keep(page, artefacts / "9-chinese.png")
    page.locator("#language").select_option("en")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    expect(page.locator("#caption")).to_have_text("The model sees: a made-up example.")


def test_nothing_of_a_patient_is_left(
    opened: Callable[..., Any],
    scan: Path,
    server: str,
    server_folder: Path,
    server_log: Callable[[], str],
) -> None:
    page = opened()
    bodies: list[bytes] = []
    page.on("response", lambda reply: "/pixels" in reply.url and bodies.append(reply.body()))
    show(page, scan)
    ask(page, "Is there a mass?", 1)
    files = [path for path in server_folder.rglob("*") if path.is_file()]
    assert files == []  # no temporary file at all
    assert "SMITH" not in page.content() + server_log()
    assert "mass" not in server_log()
    assert bodies
    assert not any(b"SMITH" in body for body in bodies)
    kept = page.evaluate("() => JSON.stringify({...localStorage, ...sessionStorage})")
    assert "mass" not in kept
    page.close()
    for _ in range(40):  # a closed page is noticed, and its case forgotten
        if page.context.request.get(f"{server}/open-cases").text() == "0":
            break
        time.sleep(0.25)
    else:
        pytest.fail("the case of a page that was closed is still held")
