"""Worse pictures, five severities each, in the manner of MedMNIST-C (arXiv 2406.17536).

What happens to pictures on their way from scanner to model: noise, blur, exposure, compression,
coarse pixels, a turned plate. The strengths are ours, set so that the first is hardly seen and the
fifth still shows what it is about; they are no calibrated copy of that work's. A picture's change
depends on seed and image id alone. The paper has no such test.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Array = npt.NDArray[np.float64]
Change = Callable[[Image.Image, float, np.random.Generator], Image.Image]
SEVERITIES = (1, 2, 3, 4, 5)
_BILINEAR = Image.Resampling.BILINEAR


def corrupted(image: Image.Image, name: str, severity: int, key: str, seed: int) -> Image.Image:
    """Return a worse picture, RGB and of the same size.

    Args:
        name: Of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        key: The image's id: with the seed it decides what is drawn at random.
    """
    strengths, change = _CHANGES[name]
    return change(image, strengths[severity - 1], drawn_by(f"{seed}:{name}:{key}"))


def drawn_by(key: str) -> np.random.Generator:
    """Return a generator that a text alone decides."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _of_pixels(change: Callable[[Array, float, np.random.Generator], Array]) -> Change:
    """Return a change of a picture from one of its pixels (H, W, 3), 0 to 1."""

    def changed(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
        pixels = change(np.asarray(image, dtype=np.float64) / 255.0, strength, rng)
        return Image.fromarray(np.round(255.0 * np.clip(pixels, 0.0, 1.0)).astype(np.uint8))

    return changed


def _grey_noise(pixels: Array, rng: np.random.Generator) -> Array:
    """Return one value a pixel: scanners of grey pictures have no coloured noise."""
    return rng.standard_normal((*pixels.shape[:2], 1))


def _impulses(pixels: Array, share: float, rng: np.random.Generator) -> Array:
    drawn = rng.uniform(size=(*pixels.shape[:2], 1))
    return np.where(drawn < share / 2, 0.0, np.where(drawn > 1 - share / 2, 1.0, pixels))


def _moved(pixels: Array, share: float, _: np.random.Generator) -> Array:
    from scipy.ndimage import uniform_filter1d

    length = 1 + 2 * max(1, round(share * pixels.shape[1] / 2))  # odd: it does not shift
    blurred: Array = uniform_filter1d(pixels, length, axis=1, mode="nearest")
    return blurred


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=int(quality))
    return Image.open(stored).convert("RGB")


def _pixelate(image: Image.Image, scale: float, _: np.random.Generator) -> Image.Image:
    small = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    coarse = image.resize(small, Image.Resampling.BOX)
    return coarse.resize(image.size, Image.Resampling.NEAREST)


_brighter = _of_pixels(lambda pixels, step, _: pixels + step)
_CHANGES: Mapping[str, tuple[tuple[float, ...], Change]] = {
    "gaussian_noise": (
        (0.04, 0.08, 0.12, 0.18, 0.26),
        _of_pixels(lambda pixels, sigma, rng: pixels + sigma * _grey_noise(pixels, rng)),
    ),
    "speckle_noise": (
        (0.08, 0.16, 0.25, 0.4, 0.6),
        _of_pixels(lambda pixels, sigma, rng: pixels * (1 + sigma * _grey_noise(pixels, rng))),
    ),
    "impulse_noise": ((0.01, 0.03, 0.06, 0.12, 0.2), _of_pixels(_impulses)),
    "gaussian_blur": (
        (0.004, 0.008, 0.014, 0.022, 0.032),
        lambda image, share, _: image.filter(ImageFilter.GaussianBlur(share * min(image.size))),
    ),
    "motion_blur": ((0.02, 0.035, 0.05, 0.075, 0.1), _of_pixels(_moved)),
    "brightness_up": ((0.1, 0.2, 0.3, 0.4, 0.5), _brighter),
    "brightness_down": ((-0.1, -0.2, -0.3, -0.4, -0.5), _brighter),
    "contrast_down": (
        (0.75, 0.6, 0.45, 0.3, 0.2),
        _of_pixels(lambda pixels, factor, _: pixels.mean() + factor * (pixels - pixels.mean())),
    ),
    "gamma_up": (
        (1.3, 1.6, 2.0, 2.5, 3.2),
        _of_pixels(lambda pixels, exponent, _: pixels**exponent),
    ),
    "jpeg_compression": ((50, 30, 18, 10, 5), _jpeg),
    "pixelate": ((0.6, 0.45, 0.3, 0.2, 0.12), _pixelate),
    "rotation": (
        (5, 10, 15, 22, 30),
        lambda image, most, rng: image.rotate(most * rng.choice((-1, 1)), _BILINEAR),
    ),
}
#: The corruptions by name.
CORRUPTIONS = tuple(_CHANGES)
