"""Files that are whole or what they were before."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["whole_file"]


@contextlib.contextmanager
def whole_file(out: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a place beside `out` to write at, and rename in the end what is there; after an exception nothing is."""
    place = Path(os.path.realpath(out))
    beside = place.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield beside
        if beside.exists():
            os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)
