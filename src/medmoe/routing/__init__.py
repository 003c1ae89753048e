"""What the routers decide: traces, statistics and figures.

Importing this package is light: torch is loaded with the first use of `record_routing`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medmoe.routing.trace import record_routing

__all__ = ["record_routing"]

_LAZY = {"record_routing": "medmoe.routing.trace"}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'medmoe.routing' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
