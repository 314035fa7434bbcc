"""Progress bars: for whom one is drawn, and when."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["is_drawn", "progress_bar"]

_DELAY = 3.0  # seconds; what is done sooner needs no bar unless one was asked for


def is_drawn(progress: bool | None) -> bool:
    """Return whether a bar is drawn: as was asked, by default where stderr is a terminal."""
    return bool(sys.stderr and sys.stderr.isatty()) if progress is None else progress


def progress_bar(total: int | None, progress: bool | None, **options: Any) -> tqdm[Any]:
    """Return a bar on stderr, one that is not drawn where nobody would see it or the work takes a few seconds.

    Args:
        total: How many images there are, if that is known.
        progress: Whether to draw it; None where stderr is a terminal, after some seconds.
        **options: As for `tqdm`.
    """
    delay = _DELAY if progress is None else 0.0
    options = {"unit": "image", "file": sys.stderr, "delay": delay, "disable": not is_drawn(progress)} | options
    return tqdm(total=total, **options)
