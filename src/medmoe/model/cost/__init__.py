"""What a model costs to hold and to ask: parameters, bytes, FLOPs (the paper's Tables 8 and 13)."""

from __future__ import annotations

from medmoe.model.cost.parameters import activated_parameters

__all__ = ["activated_parameters"]
