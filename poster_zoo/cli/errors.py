"""The one place where a failure becomes a sentence on stderr and an exit status.

0: all went well. 1: something failed. 2: wrong use. 130: interrupted by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import click

from poster_zoo.cli.output import make_encodable
from poster_zoo.errors import OptionError, OutputError, PosterZooError, UnknownArgumentError, UnknownModelError

__all__ = ["CommandGroup", "WrongUse"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells count
_WRONG_USE = (OptionError, OutputError, UnknownArgumentError, UnknownModelError)
# torch has an exception of its own for this on GPUs alone; on a CPU it is a RuntimeError that says so.
_NO_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
# Of other processes torch tells by errors of its own, gloo by a RuntimeError that names a file of its source.
_LOST_PROCESS = ("DistBackendError", "DistNetworkError", "DistStoreError")
_LOST_BY_GLOO = re.compile("/gloo/|^Gloo ")


class WrongUse(click.ClickException):
    """Something that the caller asked for and that cannot be; the usage line would not help."""

    exit_code = 2


class CommandGroup(click.Group):
    """A group whose commands end in one sentence, whatever they raise."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the group's own options, of which `--help` and `--version` print already."""
        with _in_one_sentence():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        make_encodable()
        with _in_one_sentence():
            return super().invoke(ctx)


@contextlib.contextmanager
def _in_one_sentence() -> Iterator[None]:
    """Turn every exception into one that click prints as a sentence; what click raises itself passes."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except KeyboardInterrupt:
        # On a terminal a bar or the echo of ^C may stand in the line.
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        click.echo("\nInterrupted." if on_terminal else "Interrupted.", err=True)
        raise click.exceptions.Exit(_INTERRUPTED) from None
    except _WRONG_USE as error:
        raise WrongUse(_told(error)) from error
    except PosterZooError as error:
        raise click.ClickException(_told(error)) from error
    except BrokenPipeError:
        raise  # the reader has had enough, as `head` does; click ends quietly
    except Exception as error:  # the last stop before the user, who should not see a traceback
        _let_go_of_stdout()
        raise click.ClickException(_told(error, _explain(error))) from error


def _told(error: Exception, message: str | None = None) -> str:
    """Return the sentence for the user; the traceback is printed for whoever asked for it."""
    if os.environ.get("POSTER_ZOO_DEBUG") == "1":
        traceback.print_exception(error)
    return message or str(error)


def _explain(error: Exception) -> str:
    """Return what an exception that is none of ours means to the user."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        return "The memory is full; try a smaller --batch-size, a smaller model or another --device."
    if type(error).__name__ in _LOST_PROCESS or (isinstance(error, RuntimeError) and _LOST_BY_GLOO.search(str(error))):
        reason = str(error).partition("] ")[2].partition(". ")[0] or str(error)
        return (
            f"Another process of this work has ended or cannot be reached; its own message says why "
            f"({' '.join(reason.split())})."
        )
    if isinstance(error, OSError) and error.errno is not None:
        place = f": {os.fsdecode(error.filename)!r}" if isinstance(error.filename, (str, bytes, os.PathLike)) else ""
        advice = "; make room and try again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return f"{os.strerror(error.errno)}{place}{advice}."
    return (
        f"This is a bug in poster-zoo, not your mistake ({type(error).__name__}: {error}). "
        f"Please send the command, this line and what POSTER_ZOO_DEBUG=1 adds to it to {_issue_tracker()}."
    )


def _issue_tracker() -> str:
    """Return where the package's metadata says that bugs are collected."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        for entry in metadata.metadata("poster-zoo").get_all("Project-URL") or []:
            name, _, url = entry.partition(", ")
            if name.casefold() in ("issues", "bug tracker"):
                return str(url)
    return "the project's issue tracker"


def _let_go_of_stdout() -> None:
    """Drop what stdout cannot take, on a full disk say: Python would try again at its end and print a traceback."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as devnull:
            os.dup2(devnull.fileno(), sys.stdout.fileno())
