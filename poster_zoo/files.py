"""Files to write: whether they can go where they are to go, whole or what they were before, and by one process."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from poster_zoo.errors import OutputError, PosterZooError

if sys.platform != "win32":
    import fcntl

__all__ = ["bring_to_disk", "check_place", "locked_folder", "whole_file"]


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
def whole_file(out: str | os.PathLike[str], *, beside: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """Give a place beside `out` to write at, and rename in the end what is there; after an exception nothing is.

    Args:
        out: Where the file goes.
        beside: The place, on the same disk; by default one of a new name in the same folder.
        durable: Bring the file to the disk before it gets its name, so that it is whole after a power cut too.
    """
    place = Path(os.path.realpath(out))
    beside = beside or place.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield beside
        if beside.exists():
            if durable:
                bring_to_disk(beside)
            os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)


def bring_to_disk(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names that a folder holds."""
    folder = path.is_dir()
    if folder and os.name != "posix":
        return  # other systems let no folder be opened
    handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)  # Windows wants a file that can be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked_folder(folder: Path, refusal: PosterZooError, patience: float = 0) -> Iterator[None]:
    """Keep others that lock the folder out of it.

    The lock is the system's, and gone with the process however that ends. A disk without locks keeps nobody out, and
    neither does Windows, where a folder cannot be locked.

    Args:
        folder: The folder.
        refusal: What is raised where another has it.
        patience: Seconds to wait for that one.
    """
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + patience
    try:
        while not _lock(handle):
            if time.monotonic() >= deadline:
                raise refusal
            time.sleep(0.1)
        yield
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # processes that were forked meanwhile have the handle too
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """Lock what is open; return whether another has not done so before."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a disk without locks
    return True
