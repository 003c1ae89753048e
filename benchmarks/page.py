"""The page in a real browser: how soon a picture is seen, how smoothly windowed, and what it holds.

A real `medmoe serve` with random weights and headless Chromium, which draws on the processor.
Pictures are made up: grey DICOM of 16 bits. The time runs from the choice of a file to its first
drawing.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright
from support.timing import options

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.data.samples import dicom
from tests.model.tiny import moe_model, processor
from tests.serving.page.conftest import CHROMIUM
from tests.serving.support import running

from medmoe.model.checkpoint import save_model

#: After how many pictures memory is read.
KEPT = (10, 25, 50, 100, 200, 300, 400, 500)
_WATCH = """() => {
  window.drawn = [];
  document.getElementById('viewport').addEventListener(
    'CORNERSTONE_IMAGE_RENDERED', () => window.drawn.push(performance.now()));
  document.getElementById('picture-file').addEventListener(
    'change', () => { window.drawn = []; window.chosen = performance.now(); }, true);
}"""
_DRAG = """(milliseconds) => new Promise((done) => {
  const canvas = document.querySelector('#viewport canvas');
  const place = canvas.getBoundingClientRect();
  const mouse = (kind, x, y, on) => on.dispatchEvent(new MouseEvent(kind, {
    bubbles: true, cancelable: true, button: 0, buttons: 1,
    clientX: place.left + x, clientY: place.top + y}));
  mouse('mousedown', 200, 200, canvas);
  window.drawn = [];
  const start = performance.now();
  let moves = 0;
  const step = () => {
    moves += 1;
    mouse('mousemove', 200 + (moves % 100), 200 + (moves % 60), document);
    const spent = performance.now() - start;
    if (spent < milliseconds) return requestAnimationFrame(step);
    mouse('mouseup', 200, 200, document);
    done(window.drawn.length / spent * 1000);
  };
  requestAnimationFrame(step);
})"""


def scan(side: int, rng: np.random.Generator) -> bytes:
    """Return a square CT picture of 12 bits in 16 as a DICOM file."""
    grey = rng.normal(2000, 300, (side, side)) + np.linspace(-1500, 1500, side)
    grey = grey.clip(0, 4095).astype(np.uint16)
    file: bytes = dicom(
        grey, Modality="CT", WindowCenter=2000, WindowWidth=4000, PixelSpacing=[0.14, 0.14]
    )
    return file


def seen_after(page: Any, picture: bytes) -> float:
    """Return the milliseconds from choosing a file to its first drawing."""
    file = {"name": "x.dcm", "mimeType": "", "buffer": picture}
    page.set_input_files("#picture-file", file)
    page.wait_for_function("() => window.drawn.length > 0")
    return float(page.evaluate("() => window.drawn[0] - window.chosen"))


def renderer_memory() -> float:
    """Return the MiB that the largest of Chromium's renderers holds."""
    held = [0.0]
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"--type=renderer" in (process / "cmdline").read_bytes():
                pages = int((process / "statm").read_text().split()[1])
                held.append(pages * resource.getpagesize() / 2**20)
    return max(held)


def told(values: list[float], unit: str) -> str:
    """Return the median and range of some values."""
    return f"{statistics.median(values):,.0f} {unit} [{min(values):,.0f}, {max(values):,.0f}]"


def main() -> None:
    values = options(__doc__.splitlines()[0])
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        model = Path(folder) / "model"
        save_model(moe_model("stablelm"), processor(), model, {})
        with running(model, Path(folder) / "server") as server:
            browser = driver.chromium.launch(
                executable_path=CHROMIUM, args=["--no-sandbox", "--js-flags=--expose-gc"]
            )
            print(f"Chromium {browser.version}")
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(120_000)
            page.goto(server.address)
            page.wait_for_selector("body[data-ready]")
            page.evaluate(_WATCH)
            print(f"first picture of all, 512 × 512: {seen_after(page, scan(512, rng)):,.0f} ms")
            for side in (512, 2048):
                times = [seen_after(page, scan(side, rng)) for _ in range(values.repeats)]
                print(f"picture seen, {side} × {side}: {told(times, 'ms')} (bar: 1,000)")
            frames = [float(page.evaluate(_DRAG, 3000)) for _ in range(values.repeats)]
            print(f"windowing 2048 × 2048: {told(frames, 'frames/s')} (bar: 20)")
            print_memory(page, rng, KEPT[:3] if values.quick else KEPT)
            browser.close()


def print_memory(page: Any, rng: np.random.Generator, after: tuple[int, ...]) -> None:
    """Open one picture after the other, and print what is held after some of them."""
    session = page.context.new_cdp_session(page)
    for number in range(1, after[-1] + 1):
        seen_after(page, scan(512, rng))
        if number in after:
            session.send("HeapProfiler.collectGarbage")
            heap = session.send("Runtime.getHeapUsage")
            script, data = heap["usedSize"], heap.get("backingStorageSize", 0)
            print(
                f"{number} pictures, MiB: {script / 2**20:.1f} of JavaScript, "
                f"{data / 2**20:.1f} of its data, {renderer_memory():.0f} of the renderer"
            )


if __name__ == "__main__":
    main()
