"""Med-MoE (arXiv 2404.10237): lightweight medical vision-language models with domain experts.

Importing this package is light and registers nothing; `register` makes the model known to the Auto
classes of transformers, `MedMoe` loads a trained model. Research use only, not a medical device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medmoe.inference.engine import MedMoe
    from medmoe.model import register

__version__ = "0.1.0"
__all__ = ["MedMoe", "__version__", "register"]

_LAZY = {"MedMoe": "medmoe.inference.engine", "register": "medmoe.model"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch and transformers take seconds to load."""
    if name not in _LAZY:
        raise AttributeError(f"module 'medmoe' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
