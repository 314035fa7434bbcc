"""Checkpoints in the authors' layouts, filled with numbers that any machine makes again."""

from __future__ import annotations

import gzip
import json
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent


@lru_cache(maxsize=1)
def layouts() -> dict[str, dict[str, Any]]:
    """Return every release's layout by its name."""
    parsed: dict[str, dict[str, Any]] = json.loads(gzip.decompress((HERE / "layouts.json.gz").read_bytes()))
    return parsed


def tensor(name: str, shape: list[int], dtype: str) -> torch.Tensor:
    """Return the tensor `name`: its numbers depend on the name and the shape alone."""
    if dtype.startswith("int"):
        return torch.zeros(shape, dtype=torch.int64)
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        numbers = stream.uniform(0.5, 1.5, shape)
    elif name.endswith(("running_mean", "bias")):
        numbers = 0.1 * stream.standard_normal(shape)
    elif name.endswith("cls_token") or "pos_embed" in name or "bias_table" in name:
        numbers = 0.2 * stream.standard_normal(shape)
    elif "gamma" in name:
        numbers = stream.uniform(0.1, 0.5, shape)
    elif len(shape) <= 1:  # scales of norms, slopes of PReLU
        numbers = stream.uniform(0.25, 1.0, shape)
    else:
        numbers = stream.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(numbers, dtype=np.float32))


def tensors(variant: str) -> dict[str, torch.Tensor]:
    """Return a release's tensors without the trainer's prefix; index buffers that it computes are left out."""
    layout = layouts()[variant]
    return {
        name: tensor(name, shape, dtype)
        for name, shape, dtype in layout["tensors"]
        if name not in layout["computed_buffers"]
    }


def checkpoint(variant: str) -> dict[str, Any]:
    """Return what the authors' trainer saves: the tensors, prefixed and wrapped, and what lies beside them."""
    layout = layouts()[variant]
    state = {layout["prefix"] + name: value for name, value in tensors(variant).items()}
    return {layout["wrapper_key"]: state, **layout["extra"]} if layout["wrapper_key"] else state
