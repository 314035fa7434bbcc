"""Sharpness-aware minimisation: step down the gradient found at the worst weights nearby, over any optimizer.

Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR
2021, arXiv:2010.01412; adaptive: Kwon, Kim, Park and Choi, "ASAM", ICML 2021, arXiv:2102.11600.

A step has two passes over the same images, and everything else stays where plain PyTorch has it:

    loss(model(images), targets).backward()  # at the weights
    sam.climb()
    loss(model(images), targets).backward()  # at the worst weights nearby
    sam.descend()
    optimizer.step()
    optimizer.zero_grad()

The first gradient is used only for its direction: one that a `GradScaler` has multiplied, or that is summed over
pieces of a batch, leads to the same place. Clipping and unscaling belong between `descend` and `step`. With several
processes, each must have the gradient of the whole batch when it climbs, or they climb to different places.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["SAM"]

_TINY = 1e-12  # the authors': no division by zero where the gradient vanishes


class SAM:
    """Moves the weights of an optimizer uphill, and back.

    Args:
        optimizer: Any optimizer; it is asked for its parameters alone.
        rho: How far: the norm of the move.
        adaptive: Measure the move of each weight in units of that weight (ASAM, whose rho is some ten times larger).
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        self.optimizer = optimizer
        self.rho = rho
        self.adaptive = adaptive
        self._weights: list[Tensor] = []
        self._moves: list[Tensor] = []

    @torch.no_grad()
    def climb(self) -> float:
        """Move the weights along their gradient, whose norm over all of them is returned, and clear the gradient.

        Where that norm is infinite or no number, nothing is moved and the gradient stays.
        """
        weights = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        moves = [p.grad for p in weights]
        norm = length = nn.utils.get_total_norm(moves)
        if self.adaptive:
            length = nn.utils.get_total_norm(torch._foreach_mul(moves, torch._foreach_abs(weights)))
        if not math.isfinite(length):
            return float(length)
        if self.adaptive:
            torch._foreach_mul_(moves, torch._foreach_mul(weights, weights))
        # The gradients become the moves, so that no weight is copied; the next pass makes gradients of its own.
        torch._foreach_mul_(moves, self.rho / (length + _TINY))
        torch._foreach_add_(weights, moves)
        for weight in weights:
            weight.grad = None
        self._weights, self._moves = weights, moves
        return float(norm)

    @torch.no_grad()
    def descend(self) -> None:
        """Move the weights back (to the last bit or the one before it) and leave the gradient as it is."""
        torch._foreach_sub_(self._weights, self._moves)
        self._weights, self._moves = [], []
