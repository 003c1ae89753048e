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
SEVERITIES = (1, 2, 3, 4, 5)


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


def _pixels(image: Image.Image) -> Array:
    return np.asarray(image, dtype=np.float64) / 255.0


def _picture(pixels: Array) -> Image.Image:
    return Image.fromarray(np.round(255.0 * np.clip(pixels, 0.0, 1.0)).astype(np.uint8))


def _gaussian_noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    # One value a pixel: scanners of grey pictures have no coloured noise.
    return _picture(pixels + sigma * rng.standard_normal((*pixels.shape[:2], 1)))


def _speckle_noise(image: Image.Image, sigma: float, rng: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    return _picture(pixels * (1 + sigma * rng.standard_normal((*pixels.shape[:2], 1))))


def _impulse_noise(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    drawn = rng.uniform(size=(*pixels.shape[:2], 1))
    return _picture(np.where(drawn < share / 2, 0.0, np.where(drawn > 1 - share / 2, 1.0, pixels)))


def _blur(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(share * min(image.size)))


def _motion_blur(image: Image.Image, share: float, _: np.random.Generator) -> Image.Image:
    from scipy.ndimage import uniform_filter1d

    length = 1 + 2 * max(1, round(share * image.width / 2))  # odd: it does not shift
    return _picture(uniform_filter1d(_pixels(image), length, axis=1, mode="nearest"))


def _brightness(image: Image.Image, step: float, _: np.random.Generator) -> Image.Image:
    return _picture(_pixels(image) + step)


def _contrast(image: Image.Image, factor: float, _: np.random.Generator) -> Image.Image:
    pixels = _pixels(image)
    return _picture(pixels.mean() + factor * (pixels - pixels.mean()))


def _gamma(image: Image.Image, exponent: float, _: np.random.Generator) -> Image.Image:
    return _picture(_pixels(image) ** exponent)


def _jpeg(image: Image.Image, quality: float, _: np.random.Generator) -> Image.Image:
    stored = io.BytesIO()
    image.save(stored, "JPEG", quality=int(quality))
    return Image.open(stored).convert("RGB")


def _pixelate(image: Image.Image, scale: float, _: np.random.Generator) -> Image.Image:
    small = (max(1, round(scale * image.width)), max(1, round(scale * image.height)))
    coarse = image.resize(small, Image.Resampling.BOX)
    return coarse.resize(image.size, Image.Resampling.NEAREST)


def _rotation(image: Image.Image, degrees: float, rng: np.random.Generator) -> Image.Image:
    return image.rotate(degrees * rng.choice((-1, 1)), Image.Resampling.BILINEAR)


Change = Callable[[Image.Image, float, np.random.Generator], Image.Image]
_CHANGES: Mapping[str, tuple[tuple[float, ...], Change]] = {
    "gaussian_noise": ((0.04, 0.08, 0.12, 0.18, 0.26), _gaussian_noise),
    "speckle_noise": ((0.08, 0.16, 0.25, 0.4, 0.6), _speckle_noise),
    "impulse_noise": ((0.01, 0.03, 0.06, 0.12, 0.2), _impulse_noise),
    "gaussian_blur": ((0.004, 0.008, 0.014, 0.022, 0.032), _blur),
    "motion_blur": ((0.02, 0.035, 0.05, 0.075, 0.1), _motion_blur),
    "brightness_up": ((0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
    "brightness_down": ((-0.1, -0.2, -0.3, -0.4, -0.5), _brightness),
    "contrast_down": ((0.75, 0.6, 0.45, 0.3, 0.2), _contrast),
    "gamma_up": ((1.3, 1.6, 2.0, 2.5, 3.2), _gamma),
    "jpeg_compression": ((50, 30, 18, 10, 5), _jpeg),
    "pixelate": ((0.6, 0.45, 0.3, 0.2, 0.12), _pixelate),
    "rotation": ((5, 10, 15, 22, 30), _rotation),
}
#: The corruptions by name.
CORRUPTIONS = tuple(_CHANGES)
