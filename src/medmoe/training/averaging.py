"""The mean of a phase's weights over its last steps, which may answer better than the last ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medmoe.training.parallel import trained_parameters


class WeightMean:
    """The running mean of the weights that train.

    Args:
        steps: Of the phase.
        share: Part of them, at the end, whose weights are taken; of 0 none are.
    """

    def __init__(self, steps: int, share: float) -> None:
        self._first = steps + 1 - max(round(share * steps), share > 0)
        self.count = 0
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, model: nn.Module, step: int) -> None:
        """Take the weights after a step in, if it is one of the last."""
        if step < self._first:
            return
        self.count += 1
        for name, parameter in trained_parameters(model):
            mean = self.weights.setdefault(name, parameter.detach().clone())
            mean.lerp_(parameter, 1 / self.count)

    def resume(self, model: nn.Module, count: int) -> None:
        """Go on with the model's weights as the mean of so many steps'."""
        self.count = count
        self.weights = {name: p.detach().clone() for name, p in trained_parameters(model)}

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the mean, if there is one yet."""
        for name, parameter in trained_parameters(model) if self.count else ():
            kept = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name] = kept
