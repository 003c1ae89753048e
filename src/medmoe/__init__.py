"""Med-MoE (arXiv 2404.10237): lightweight medical vision-language models with domain experts.

Importing this package is light. It leaves a hook that makes the model known to the Auto classes of
transformers once transformers is imported, or does so at once where it is imported already;
`register` does it by name. `MedMoe` loads a trained model. Research use only, not a medical device.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

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


class _RegisterAfterTransformers:
    """A finder that finds transformers as the others do, and registers once it has been run."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return the spec of transformers; None for any other module."""
        if name != "transformers":
            return None
        # It stays in place until the module runs: looking for a spec is not yet an import.
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            run = loader.exec_module

            def run_and_register(module: Any) -> None:
                run(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            loader.exec_module = run_and_register
        return spec


def _register() -> None:
    """Register; where that cannot be done, transformers still imports for whoever asked for it."""
    try:
        import_module("medmoe.model").register()
    except ImportError as error:
        import warnings

        warnings.warn(
            f"medmoe is not registered with transformers ({error}); see `medmoe doctor`",
            stacklevel=2,
        )


if "transformers" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterTransformers())
