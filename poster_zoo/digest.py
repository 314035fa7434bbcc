"""What tells one model's weights from another's, in whatever form the model answers."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

__all__ = ["keep_digest", "weights_digest"]

_SAMPLES = 1024  # numbers of a tensor that are looked at: training moves all of them


def weights_digest(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return what tells a model's weights from others; that of `keep_digest` where the form was changed.

    Of each tensor some numbers are looked at, spread over all of it, which takes some hundredths of a second.

    Args:
        model: The model.
        dtype: The floating type that its numbers will be cast to; None for none.
    """
    if kept := getattr(model, "weights_digest", None):
        return str(kept)
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        numbers = tensor.detach().reshape(-1)
        numbers = numbers[:: max(1, -(-len(numbers) // _SAMPLES))]
        numbers = numbers.to("cpu", dtype if numbers.is_floating_point() else None).contiguous()
        digest.update(f"{name} {numbers.dtype} {tuple(tensor.shape)}".encode())
        digest.update(numbers.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keep_digest(model: nn.Module, digest: str) -> None:
    """Let a model that answers in another form keep the digest that it had: the form may be another tomorrow."""
    model.weights_digest = digest  # type: ignore[assignment]
