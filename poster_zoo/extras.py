"""Whether an optional package is there."""

from __future__ import annotations

import importlib.util

__all__ = ["installed"]


def installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it.

    A folder of that name on Python's path is none: `import` takes it for an empty package, and the current folder,
    where people keep their `tensorboard/` and `onnx/`, is on the path of notebooks and of `python -m`.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
