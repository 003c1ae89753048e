"""Small CLIP-shaped encoders, trained from scratch where no weights can be had."""

from __future__ import annotations

from medmoe.backbones.spec import VisionBackbone


def _tiny(name: str, image_size: int, patch_size: int, width: int, layers: int) -> VisionBackbone:
    return VisionBackbone(
        name=name,
        hub_id=None,
        revision=None,
        model_type="clip_vision_model",
        config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "image_size": image_size,
            "patch_size": patch_size,
        },
        image_size=image_size,
        patch_size=patch_size,
        # Its last layer is trained for this very use: nothing is gained from the one before.
        select_layer=-1,
        select_strategy="default",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


TINY_CLIP_64 = _tiny("tiny_clip_64", image_size=64, patch_size=8, width=128, layers=4)
TINY_CLIP_128 = _tiny("tiny_clip_128", image_size=128, patch_size=16, width=192, layers=4)
