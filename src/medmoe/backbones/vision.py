"""The vision encoders: CLIP, SigLIP and EfficientNet-Lite, and small CLIPs trained from scratch.

Adding one = one entry here. The numbers of `_vit` are a picture's and a patch's side in pixels,
then width, FFN width, layers and heads.
"""

from __future__ import annotations

from typing import Any, Literal

from medmoe.backbones.spec import VisionBackbone

_CLIP_COLOURS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_EVEN_COLOURS = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# EfficientNet-Lite: pixels of 0 to 255 enter as (x − 127) / 128.
_LITE_COLOURS = (127 / 255,) * 3, (128 / 255,) * 3


def _vit(
    kind: Literal["clip", "siglip"],
    name: str,
    hub: tuple[str | None, str | None],
    sides: tuple[int, int],
    shape: tuple[int, int, int, int],
    *,
    layer: int = -2,
    colours: Any = _EVEN_COLOURS,
    **config: Any,
) -> VisionBackbone:
    """Return a transformer: CLIP's class token is dropped, SigLIP has none."""
    side, patch = sides
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config |= dict(zip(names, shape, strict=True)) | {"image_size": side, "patch_size": patch}
    strategy: Literal["default", "full"] = "default" if kind == "clip" else "full"
    model_type = f"{kind}_vision_model"
    return VisionBackbone(name, *hub, model_type, config, side, patch, layer, strategy, *colours)


#: The paper's: 576 patches from the last layer but one.
CLIP_LARGE_336 = _vit(
    "clip",
    "clip_large_336",
    ("openai/clip-vit-large-patch14-336", "ce19dc912ca5cd21c8a653c79e251e808ccabcd1"),
    (336, 14),
    (1024, 4096, 24, 16),
    colours=_CLIP_COLOURS,
    projection_dim=768,
)
_CLIP_BASE_16 = _vit(
    "clip",
    "clip_base_16",
    ("openai/clip-vit-base-patch16", "57c216476eefef5ab752ec549e440a49ae4ae5f3"),
    (224, 16),
    (768, 3072, 12, 12),
    colours=_CLIP_COLOURS,
    projection_dim=512,
)
# 384 px hold 27 whole patches of 14 px a side (the last 6 px are read by none), 448 px hold 32.
_SO400M = (1152, 4304, 27, 16)
_SIGLIPS = (
    _vit(
        "siglip",
        "siglip2_so400m_384",
        ("google/siglip2-so400m-patch14-384", "e8e487298228002f3d8a82e0cd5c8ea9c567f57f"),
        (384, 14),
        _SO400M,
    ),
    _vit(
        "siglip",
        "medsiglip_448",
        ("google/medsiglip-448", "9cea28a1a1195f665105faa6e8544c112fd960a4"),
        (448, 14),
        _SO400M,
    ),
    _vit(
        "siglip",
        "siglip_base_224",
        ("google/siglip-base-patch16-224", "7fd15f0689c79d79e38b1c2e2e2370a7bf2761ed"),
        (224, 16),
        (768, 3072, 12, 12),
    ),
)
# Trained from scratch: nothing is gained from the layer before the last, trained for this very use.
_TINY_CLIPS = (
    _vit("clip", "tiny_clip_64", (None, None), (64, 8), (128, 512, 4, 4), layer=-1),
    _vit("clip", "tiny_clip_128", (None, None), (128, 16), (192, 768, 4, 6), layer=-1),
)


def _lite(name: str, width: float, depth: float, side: int, cell: int) -> VisionBackbone:
    """Return an EfficientNet-Lite, whose tokens are means of cells of its last map.

    Args:
        cell: Pixels a side of what one token stands for: 32, or 64 for the mean of 2 × 2 cells.
    """
    sizes = {"image_size": side, "patch_size": cell}
    config = {"width": width, "depth": depth, "hidden_size": 1280, **sizes}
    kind, last = "efficientnet_lite", -1
    return VisionBackbone(name, None, None, kind, config, side, cell, last, "full", *_LITE_COLOURS)


#: 3 to 5 million weights (ImageNet-1k), in files of their own, on no hub. Trained at 224 to 260 px;
#: read at 320, where small findings are left to be seen, or at the side that a name ends in.
EFFICIENTNET_LITE = (
    _lite("efficientnet_lite0", 1.0, 1.0, 320, 32),
    _lite("efficientnet_lite1", 1.0, 1.1, 320, 32),
    *(
        _lite(name, 1.1, 1.2, side, cell)
        for kind, cell in (("efficientnet_lite2", 32), ("efficientnet_lite2_pooled", 64))
        for name, side in ((kind, 320), (f"{kind}_256", 256), (f"{kind}_384", 384))
    ),
)

VISION_BACKBONES = {
    entry.name: entry
    for entry in (CLIP_LARGE_336, *_SIGLIPS, _CLIP_BASE_16, *EFFICIENTNET_LITE, *_TINY_CLIPS)
}
