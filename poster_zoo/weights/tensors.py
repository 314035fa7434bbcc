"""Tensors of a safetensors file, read into memory of their own.

The library's own reader maps the file: tensors are its pages, and what is written over them later, by `cp`, `rsync
--inplace` or a training that saves where it loaded from, is in the model at once. Windows lets nobody replace such a
file.
"""

from __future__ import annotations

import json
import struct
import sys
from bisect import bisect
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["read_tensors"]

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by their names; each has its memory to itself.

    Raises:
        SafetensorError: The file is none, or holds numbers of a kind that no model here has.
        OSError: It cannot be read.
    """
    if sys.byteorder == "big":  # whose numbers the library turns round
        return load_file(path)
    with safe_open(path, "pt"):  # refuses a header that is wrong in itself or does not fit the file
        pass
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {name: _empty(name, said) for name, said in header.items()}
    places = sorted((8 + length + said["data_offsets"][0], name) for name, said in header.items())
    half = bisect(places, (path.stat().st_size // 2,))
    # Two at a time: most of it is the system's work, to find memory and to copy.
    with ThreadPoolExecutor(1) as other:
        second = other.submit(_fill, tensors, path, places[half:])
        _fill(tensors, path, places[:half])
        second.result()
    return tensors


def _empty(name: str, said: Mapping[str, Any]) -> Tensor:
    if said["dtype"] not in _DTYPES:
        raise SafetensorError(f"{name} is of the type {said['dtype']}")
    return torch.empty(said["shape"], dtype=_DTYPES[said["dtype"]], device="cpu")


def _fill(tensors: Mapping[str, Tensor], path: Path, places: Sequence[tuple[int, str]]) -> None:
    """Read the numbers of tensors that lie one behind the other, the first from its place on."""
    if not places:
        return
    with path.open("rb") as file:
        file.seek(places[0][0])
        for _, name in places:
            memory: Any = tensors[name].reshape(-1).view(torch.uint8).numpy()
            if file.readinto(memory) != memory.nbytes:
                raise SafetensorError(f"it ends within {name}")
