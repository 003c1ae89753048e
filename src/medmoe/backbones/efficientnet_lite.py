"""EfficientNet-Lite 0 to 2 (ImageNet-1k): convolutional encoders of 3 to 5 million weights.

A picture's tokens are the cells of the last map, one for 32 px: 10 × 10 at 320 px. Of ``…_pooled``
they are the means of 2 × 2 cells, a quarter as many. A number behind is the picture's side where
it is not 320. The weights are files of their own, on no hub.
"""

from __future__ import annotations

from medmoe.backbones.spec import VisionBackbone


def _lite(name: str, width: float, depth: float, *, image_size: int, cell: int) -> VisionBackbone:
    return VisionBackbone(
        name=name,
        hub_id=None,
        revision=None,
        model_type="efficientnet_lite",
        config={
            "width": width,
            "depth": depth,
            "hidden_size": 1280,
            "image_size": image_size,
            "patch_size": cell,
        },
        image_size=image_size,
        patch_size=cell,
        select_layer=-1,
        select_strategy="full",
        # Pixels of 0 to 255 enter as (x − 127) / 128.
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
    )


# Trained at 224, 240 and 260 px; read at 320, where small findings are left to be seen.
EFFICIENTNET_LITE = {
    "efficientnet_lite0": _lite("efficientnet_lite0", 1.0, 1.0, image_size=320, cell=32),
    "efficientnet_lite1": _lite("efficientnet_lite1", 1.0, 1.1, image_size=320, cell=32),
} | {
    name: _lite(name, 1.1, 1.2, image_size=side, cell=cell)
    for kind, cell in (("efficientnet_lite2", 32), ("efficientnet_lite2_pooled", 64))
    for name, side in ((kind, 320), (f"{kind}_256", 256), (f"{kind}_384", 384))
}
