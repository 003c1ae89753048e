"""CLIP ViT-L/14 at 336 px: the paper's vision encoder, 576 patches from the last layer but one."""

from __future__ import annotations

from medmoe.backbones.spec import VisionBackbone

CLIP_LARGE_336 = VisionBackbone(
    name="clip_large_336",
    hub_id="openai/clip-vit-large-patch14-336",
    revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    model_type="clip_vision_model",
    config={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
    image_size=336,
    patch_size=14,
    select_layer=-2,
    select_strategy="default",
    mean=(0.48145466, 0.4578275, 0.40821073),
    std=(0.26862954, 0.26130258, 0.27577711),
)
