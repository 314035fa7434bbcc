"""Files to write: whether they can go where they are to go, and whole or what they were before."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from poster_zoo.errors import OutputError

__all__ = ["check_place", "whole_file"]


def check_place(kind: str, path: Path) -> None:
    """Say why a file cannot go to `path`, before anything long begins.

    Args:
        kind: What the message calls it: "picture".
        path: Where it is to go.

    Raises:
        OutputError: The place is a folder, its folder is not there, or that may not be written to.
    """
    if path.is_dir():
        raise OutputError(f"A {kind} cannot be written to {str(path)!r}, which is a folder; add a file name.")
    if not path.parent.is_dir():
        raise OutputError(f"The {kind} {str(path)!r} has no folder to go to; make {str(path.parent)!r} first.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"The {kind} {str(path)!r} cannot be written: the folder {str(path.parent)!r} is read-only.")


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
