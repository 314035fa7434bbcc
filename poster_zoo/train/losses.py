"""Cross-entropy in the forms that the recipes mix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from poster_zoo.data.datasets import NO_LABEL
from poster_zoo.train.recipe import Recipe

__all__ = ["ExpressionLoss", "balanced_weights"]


@dataclass(frozen=True)
class ExpressionLoss:
    """`smoothed` × cross-entropy with label smoothing + `plain` × cross-entropy, of each image by itself.

    Smoothing is spread over all classes, the true one too, as Szegedy et al. 2016 (arXiv:1512.00567) and the authors
    have it.

    Attributes:
        smoothing: The probability that is spread.
        smoothed: Weight of the term with it.
        plain: Weight of the term without.
        class_weights: (classes,) weights, or None for equal ones.
    """

    smoothing: float = 0.0
    smoothed: float = 0.0
    plain: float = 1.0
    class_weights: Tensor | None = None

    @classmethod
    def of(cls, recipe: Recipe, class_weights: Tensor | None = None) -> ExpressionLoss:
        """Return the loss of a recipe."""
        return cls(recipe.smoothing, recipe.smoothed, recipe.plain, class_weights)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each image (B,).

        Args:
            logits: (B, classes).
            targets: (B,) places of the true classes, or (B, classes) probabilities, such as how votes are spread.
        """
        terms = [
            weight * F.cross_entropy(logits, targets, self.class_weights, reduction="none", label_smoothing=smoothing)
            for weight, smoothing in ((self.smoothed, self.smoothing), (self.plain, 0.0))
            if weight
        ]
        return torch.stack(terms).sum(0)


def balanced_weights(labels: Sequence[int], classes: int) -> Tensor:
    """Return a weight a class (classes,), by 1 / its images; 1 for the average image, and for classes without any."""
    every = torch.as_tensor(labels)
    counts = torch.bincount(every[every != NO_LABEL], minlength=classes)
    present = counts > 0
    weights = counts.sum() / (present.sum() * counts.clamp(min=1))
    return torch.where(present, weights, torch.ones(()))
