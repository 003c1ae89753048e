"""The model room: config, model and processor, registered with transformers' Auto classes."""

from __future__ import annotations


def register() -> None:
    """Register config, model and processor; safe to call more than once."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    from medmoe.model.blind import BlindConfig, BlindModel
    from medmoe.model.configuration_medmoe import MedMoeConfig
    from medmoe.model.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
    from medmoe.model.modeling_medmoe import MedMoeForConditionalGeneration, MedMoeModel
    from medmoe.model.processing_medmoe import MedMoeProcessor
    from medmoe.model.weights import register_expert_names

    register_expert_names()
    AutoConfig.register("medmoe", MedMoeConfig, exist_ok=True)
    AutoConfig.register("efficientnet_lite", EfficientNetLiteConfig, exist_ok=True)
    AutoConfig.register("blind", BlindConfig, exist_ok=True)
    AutoModel.register(BlindConfig, BlindModel, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
    AutoModel.register(MedMoeConfig, MedMoeModel, exist_ok=True)
    AutoModelForImageTextToText.register(
        MedMoeConfig, MedMoeForConditionalGeneration, exist_ok=True
    )
    AutoProcessor.register(MedMoeConfig, MedMoeProcessor, exist_ok=True)


register()
