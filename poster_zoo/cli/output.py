"""What the commands print with: JSON and tables on stdout, words on stderr."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

from poster_zoo.errors import printable

__all__ = ["Columns", "earlier", "make_encodable", "note", "print_json", "print_table"]


def make_encodable() -> None:
    """Have stdout write what its encoding lacks as escapes: file names may hold anything."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def note(text: str) -> None:
    """Print words for people on stderr."""
    click.echo(text, err=True)


def earlier(before: int, total: int) -> str:
    """Return what is said of how many of `total` an earlier run did."""
    if not before:
        return ""
    return f", {before:,} of them by an earlier run" if total > 1 else ", by an earlier run"


def print_json(value: Any) -> None:
    """Print one JSON value on one line and flush; ASCII only, so that file names of any bytes come back unharmed."""
    click.echo(json.dumps(value, allow_nan=False))


class Columns:
    """Lines of a table whose column widths are known before its rows are.

    Args:
        widths: The least width of each column; the last column has none.
        right: Places of the columns that are set to the right.
    """

    def __init__(self, widths: Sequence[int], right: Iterable[int] = ()) -> None:
        self.widths = (*widths, 0)
        self.right = frozenset(right)

    def line(self, cells: Sequence[str]) -> str:
        """Return one row."""
        padded = (
            printable(cell).rjust(width) if i in self.right else printable(cell).ljust(width)
            for i, (cell, width) in enumerate(zip(cells, self.widths, strict=True))
        )
        return "  ".join(padded).rstrip()


def print_table(rows: Sequence[Sequence[str]], right: Iterable[int] = (), err: bool = False) -> None:
    """Print rows of equal length, the first of them the header, on stdout or with `err` on stderr."""
    columns = Columns([max(len(printable(row[i])) for row in rows) for i in range(len(rows[0]) - 1)], right)
    for row in rows:
        click.echo(columns.line(row), err=err)
