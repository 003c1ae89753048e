"""What lmms-eval's entry points `lmms_eval.models` load: ``--model medmoe``.

Every start of lmms-eval reads it, whatever model is asked, so the model itself is only named here.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Return lmms-eval's `ModelManifest` of our models, which take messages (chat)."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("medmoe", chat_class_path=f"{__package__}.model.MedMoeModel")
