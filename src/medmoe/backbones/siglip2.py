"""SigLIP's so400m/14 shape: SigLIP2 at 384 px and MedSigLIP at 448 px.

No class token, so all states are kept; 384 px hold 27 whole patches a side (729 in all, the last
6 px are read by none), 448 px hold 32 (1,024).
"""

from __future__ import annotations

from medmoe.backbones.spec import VisionBackbone


def _so400m(name: str, hub_id: str, revision: str, image_size: int) -> VisionBackbone:
    return VisionBackbone(
        name=name,
        hub_id=hub_id,
        revision=revision,
        model_type="siglip_vision_model",
        config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": image_size,
            "patch_size": 14,
        },
        image_size=image_size,
        patch_size=14,
        select_layer=-2,
        select_strategy="full",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


SIGLIP2_SO400M_384 = _so400m(
    "siglip2_so400m_384",
    "google/siglip2-so400m-patch14-384",
    "e8e487298228002f3d8a82e0cd5c8ea9c567f57f",
    image_size=384,
)
MEDSIGLIP_448 = _so400m(
    "medsiglip_448",
    "google/medsiglip-448",
    "9cea28a1a1195f665105faa6e8544c112fd960a4",
    image_size=448,
)
