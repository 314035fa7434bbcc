"""What is asked about: images, folders of them and Parquet files, however many, in bounded memory."""

from __future__ import annotations

import contextlib
import itertools
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from poster_zoo.data.images import image_suffixes
from poster_zoo.data.label_files import FILE_COLUMNS
from poster_zoo.errors import OptionError
from poster_zoo.scale.arrow import pyarrow

__all__ = ["CONTENT_COLUMNS", "ParquetRows", "each_once", "listed", "names_in_folder", "parquet_files"]

CONTENT_COLUMNS = ("bytes", "image")
"""In which a Parquet file or a batch of Ray Data holds the images themselves; `FILE_COLUMNS` hold their paths."""

_READ_AHEAD = 64  # rows of a Parquet file that are held at a time


def each_once(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return Parquet files and folders of them, and apart from them the others; nothing that another input holds."""
    places: dict[str, str] = {}
    for path in inputs:
        places.setdefault(os.path.abspath(path), path)
    tables = {place: path for place, path in places.items() if _is_parquet(path)}
    others = {place: path for place, path in places.items() if place not in tables}
    folders = {place for place in others if os.path.isdir(place)}
    alone = (
        path
        for place, path in others.items()
        if not folders or folders.isdisjoint(str(parent) for parent in Path(place).parents)
    )
    return list(tables.values()), list(alone)


def _is_parquet(path: str) -> bool:
    if not os.path.isdir(path):
        return path.lower().endswith(".parquet")
    try:
        return bool(parquet_files(path))
    except PermissionError:  # as looking for images there will say
        return False


def parquet_files(path: str) -> list[str]:
    """Return the Parquet files directly in a folder, or the file itself."""
    if not os.path.isdir(path):
        return [path]
    names = (name for name in os.listdir(path) if name.lower().endswith(".parquet") and name[0] not in "._")
    return [os.path.join(path, name) for name in sorted(names)]


def listed(inputs: Sequence[str]) -> str:
    """Return the first inputs as a sentence that says there are none has them."""
    return " and no ".join(map(repr, inputs[:3])) or "input"


def names_in_folder(folder: str) -> Iterator[str]:
    """Yield what `list_images` lists, holding the names of one folder at a time: there may be a hundred million.

    Each folder's images come in the order of their names, then its subfolders, of which links come last.
    """
    suffixes = image_suffixes()
    unreadable: list[str] = []
    seen: set[str] = set()
    for here, folders, names in os.walk(
        folder, followlinks=True, onerror=lambda error: unreadable.append(str(error.filename))
    ):
        if (real := os.path.realpath(here)) in seen:
            folders.clear()
            continue
        seen.add(real)
        visible = [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(visible, key=lambda name: (os.path.islink(os.path.join(here, name)), name))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                yield os.path.join(here, name)
    yield from unreadable  # as images that cannot be read, so that nothing is missed in silence


class ParquetRows:
    """The images of a Parquet file, read forward in bounded memory.

    Args:
        path: The file.
        shown: What messages and the answers of rows without a name call it.

    Raises:
        OptionError: It is not there, no Parquet file or without images; reading says so where it is damaged within.
    """

    def __init__(self, path: str, shown: str) -> None:
        arrow = pyarrow()
        with _legible(shown):
            # So it is read page by page, not a row group at once, which can be gigabytes.
            self.file = arrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        self.shown = shown
        self.count: int = self.file.metadata.num_rows
        schema = self.file.schema_arrow
        binary = (arrow.types.is_binary, arrow.types.is_large_binary, arrow.types.is_struct)
        text = (arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_dictionary)
        self.content = _first(schema, CONTENT_COLUMNS, binary)
        self.name = _first(schema, FILE_COLUMNS, text)
        if not (self.content or self.name):
            raise OptionError(
                f"{shown!r} has the columns {', '.join(schema.names)}, none of which holds images; call one "
                f"`path`, with their paths, or `bytes`, with their files' content."
            )
        groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.metadata.num_row_groups)]
        self.ends = list(itertools.accumulate(groups))
        self.next = self.count  # the row that `following` gives next; there is none after the last
        self.following: Iterator[tuple[str, Any]] = iter(())

    def read(self, start: int, count: int) -> Iterator[tuple[str, Any]]:
        """Yield names and contents of some rows; a content of None says that the name is a path."""
        group = self._group(start)
        if not (self.next <= start and self._group(self.next) == group):  # else the rows between are read past
            self.next = [0, *self.ends][group]
            self.following = self._from(group)
        for _ in itertools.islice(self.following, start - self.next):
            pass
        self.next = start
        for row in itertools.islice(self.following, count):
            self.next += 1
            yield row

    def _group(self, row: int) -> int:
        return bisect_right(self.ends, row)

    def _from(self, group: int) -> Iterator[tuple[str, Any]]:
        groups = range(group, len(self.ends))
        columns = [column for column in (self.name, self.content) if column]
        place = [0, *self.ends][group]
        batches = self.file.iter_batches(_READ_AHEAD, row_groups=groups, columns=columns)
        while rows := _next_rows(batches, self.shown):
            for row in rows:
                content = row.get(self.content)
                name = row.get(self.name)
                if isinstance(content, Mapping):
                    name, content = name or content.get("path"), content.get("bytes")
                yield name or f"{self.shown}#{place}", content if content is not None or name else b""
                place += 1


def _next_rows(batches: Iterator[Any], shown: str) -> list[Any]:
    """Return the next rows that there are, or none in the end."""
    with _legible(shown):
        return next((batch.to_pylist() for batch in batches if len(batch)), [])


@contextlib.contextmanager
def _legible(shown: str) -> Iterator[None]:
    """Say of a file that cannot be understood that it is damaged."""
    try:
        yield
    except FileNotFoundError as error:
        raise OptionError(f"{shown!r} does not exist; check the path.") from error
    except (ValueError, NotImplementedError, OSError) as error:  # of which Arrow's own derive
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's, not Arrow's
        reason = " ".join(str(error).split()).rstrip(".")
        raise OptionError(f"{shown!r} is damaged or no Parquet file ({reason}); fetch it again.") from error


def _first(schema: Any, names: Sequence[str], kinds: Sequence[Callable[[Any], bool]]) -> str | None:
    """Return the first column of these names that is of one of these kinds."""
    fitting = (name for name in names if name in schema.names and any(kind(schema.field(name).type) for kind in kinds))
    return next(fitting, None)
