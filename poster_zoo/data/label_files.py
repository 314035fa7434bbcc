"""Label files: which expression each image shows, and which row of the file belongs to which image.

Two kinds are read:

- RAF-DB's list: lines such as `train_00001.jpg 5`; the numbers are RAF-DB's own, 1…7 in the order of
  `poster_zoo.labels.RAFDB`.
- CSV (comma, semicolon or tab): with a header that names a file column and a label column, or just the two columns,
  file first. A label is a name (`Happy`, `happiness` and `joy` are one), or a number: the position in the model's
  labels, counted from zero. A column may say to which split an image belongs.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from poster_zoo.errors import LabelError
from poster_zoo.labels import RAFDB, canonical_label

__all__ = [
    "FILE_COLUMNS",
    "LABEL_COLUMNS",
    "RAFDB_NUMBERS",
    "SPLIT_COLUMNS",
    "LabelRow",
    "Pairing",
    "pair_labels",
    "read_labels",
    "read_list",
    "read_table",
    "unique_rows",
]

FILE_COLUMNS = ("path", "file", "filename", "file_name", "image", "name")
LABEL_COLUMNS = ("label", "emotion", "expression")
SPLIT_COLUMNS = ("split", "usage", "subset")
RAFDB_NUMBERS = {str(i): name for i, name in enumerate(RAFDB, start=1)}

_DELIMITERS = ",;\t"
_RAFDB_LINE = re.compile(rf"[^{_DELIMITERS}]*\S +\d+\s*")
_SHOWN = 12  # different labels that an error lists; more of them are no list of expressions


@dataclass(frozen=True)
class LabelRow:
    """One line of a label file, as it is written there; `split` is empty where the file does not say."""

    line: int
    file: str
    label: str
    split: str = ""


def read_labels(path: str | Path, label_names: Sequence[str]) -> dict[str, str]:
    """Read a label file.

    Args:
        path: RAF-DB's list, or a CSV.
        label_names: The model's labels, in the order of its outputs.

    Returns:
        For each file, as the label file names it, its label, as the model names it.

    Raises:
        LabelError: no such file; a line that cannot be understood (with its number); a label that is none of the
            model's; a file with two different labels; no labels at all.
    """
    path = Path(path)
    lines = _read_lines(path)
    rows = _rafdb_rows(path, lines) if _RAFDB_LINE.fullmatch(_first(lines)) else _csv_rows(path, lines)
    return _resolve(path, _some(path, rows), label_names)


def read_table(path: str | Path) -> list[LabelRow]:
    """Read the rows of a CSV as they are written, whatever their labels mean.

    Raises:
        LabelError: no such file; a line that cannot be understood (with its number); no rows at all.
    """
    path = Path(path)
    return _some(path, _csv_rows(path, _read_lines(path)))


def read_list(path: str | Path) -> list[LabelRow]:
    """Read lines such as `train_00001.jpg 5`, the form of RAF-DB's and AffectNet's lists, whatever their numbers mean.

    Raises:
        LabelError: no such file; a line of another form (with its number); no lines at all.
    """
    path = Path(path)
    return _some(path, _list_rows(path, _read_lines(path)))


def _first(lines: Sequence[str]) -> str:
    return next((line for line in lines if line.strip()), "")


def _some(path: Path, rows: list[LabelRow]) -> list[LabelRow]:
    if not rows:
        raise LabelError(f"The label file {str(path)!r} holds no labels; give each image a line: its file, its label.")
    return rows


def _read_lines(path: Path) -> list[str]:
    try:
        # Surrogates keep file names that are not UTF-8 as the file system reports them.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            return file.readlines()
    except OSError as error:
        raise LabelError(f"The label file {str(path)!r} cannot be read: {error.strerror}.") from error


def _list_rows(path: Path, lines: Sequence[str], numbers: str = "a number") -> list[LabelRow]:
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        file, _, label = line.strip().rpartition(" ")
        if not file.strip():
            raise LabelError(
                f"{str(path)!r}, line {number}: {line.strip()!r} is no line of such a list, "
                f"which reads 'train_00001.jpg 5': a file, a blank, {numbers}."
            )
        rows.append(LabelRow(number, file.strip(), label))
    return rows


def _rafdb_rows(path: Path, lines: Sequence[str]) -> list[LabelRow]:
    numbers = f"a number from 1 to {len(RAFDB)}"
    rows = _list_rows(path, lines, numbers)
    for row in rows:
        if row.label not in RAFDB_NUMBERS:
            raise LabelError(
                f"{str(path)!r}, line {row.line}: {f'{row.file} {row.label}'!r} is no line of RAF-DB's list, which "
                f"reads 'train_00001.jpg 5' with {numbers}; for other numbers give a CSV of names."
            )
    return [replace(row, label=RAFDB_NUMBERS[row.label]) for row in rows]


def _csv_rows(path: Path, lines: Sequence[str]) -> list[LabelRow]:
    reader = csv.reader(lines, delimiter=max(_DELIMITERS, key=_first(lines).count), strict=True)
    rows: list[LabelRow] = []
    columns: tuple[int, ...] | None = None
    end = 0
    try:
        for cells in reader:
            # A quoted cell may span lines: the row begins after the line where the one before it ended.
            number, end = end + 1, reader.line_num
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                header = _header_columns(cells)
                columns = header or _plain_columns(path, number, cells)
                if header:
                    continue
            if len(cells) <= max(columns):
                raise LabelError(f"{str(path)!r}, line {number}: a file and a label were expected, found {cells!r}.")
            rows.append(LabelRow(number, *(cells[column].strip() for column in columns)))
    except csv.Error as error:
        raise LabelError(f"{str(path)!r}, line {end + 1}: this is no CSV: {error}.") from error
    return rows


def _header_columns(cells: Sequence[str]) -> tuple[int, ...] | None:
    """Return the places of the file, the label and, if there, the split column; None where the row is no header."""
    names = [cell.strip().casefold() for cell in cells]
    file, label, split = (
        next((names.index(name) for name in columns if name in names), None)
        for columns in (FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
    )
    if file is None or label is None:
        return None
    return (file, label) if split is None else (file, label, split)


def _plain_columns(path: Path, number: int, cells: Sequence[str]) -> tuple[int, ...]:
    if len(cells) == 2:
        return 0, 1
    raise LabelError(
        f"{str(path)!r}, line {number}: neither two columns (file, label) nor a header that names them; "
        f"call the columns one of {', '.join(FILE_COLUMNS)} and one of {', '.join(LABEL_COLUMNS)}."
    )


def unique_rows(path: Path, rows: Iterable[LabelRow]) -> dict[str, LabelRow]:
    """Return the row of each file; rows that say the same of a file count once.

    Raises:
        LabelError: a row names no file, or two give one file different labels.
    """
    unique: dict[str, LabelRow] = {}
    for row in rows:
        if not row.file:
            raise LabelError(f"{str(path)!r}, line {row.line}: the name of the file is missing.")
        first = unique.setdefault(row.file, row)
        if canonical_label(first.label) != canonical_label(row.label):
            raise LabelError(
                f"{str(path)!r}, line {row.line}: {row.file!r} is {row.label} here and {first.label} in line "
                f"{first.line}; keep one of them."
            )
    return unique


def _resolve(path: Path, rows: Sequence[LabelRow], label_names: Sequence[str]) -> dict[str, str]:
    """Turn the labels as written into the model's names; refuse unknown and contradicting ones."""
    known = {canonical_label(name): name for name in label_names}
    known_numbers = {str(i): name for i, name in enumerate(label_names)}
    resolved = []
    for row in rows:
        label = known.get(canonical_label(row.label)) or known_numbers.get(row.label)
        if label is None:
            written = sorted({other.label for other in rows})
            more = f" and {len(written) - _SHOWN} more" if len(written) > _SHOWN else ""
            raise LabelError(
                f"{str(path)!r}, line {row.line}: {row.label!r} is none of the model's labels. "
                f"Labels in the file: {', '.join(written[:_SHOWN])}{more}. "
                f"Labels of the model: {', '.join(label_names)} (or their numbers, 0 to {len(label_names) - 1})."
            )
        resolved.append(replace(row, label=label))
    return {file: row.label for file, row in unique_rows(path, resolved).items()}


@dataclass(frozen=True)
class Pairing:
    """Which image has which label.

    Attributes:
        labels: The label of each source, in order; None where the label file does not name it.
        without_label: Sources that the label file does not name.
        without_file: Files that the label file names and that are none of the sources.
    """

    labels: tuple[str | None, ...]
    without_label: tuple[str, ...]
    without_file: tuple[str, ...]


def pair_labels(sources: Sequence[str], labels: Mapping[str, str]) -> Pairing:
    """Find the label of each image by its name.

    `train_00001_aligned.jpg` and `train_00001.jpg` are one name. Where several images, or several files of the label
    file, have the same name, those go together that share most of their folders, read from the end.

    Args:
        sources: Paths of the images.
        labels: What `read_labels` returned.

    Raises:
        LabelError: it cannot be told which label an image has, or which of two images a label is for.
    """
    by_name: dict[str, list[str]] = defaultdict(list)
    for file in labels:
        by_name[_plain_name(file)].append(file)
    claims: dict[str, list[str]] = defaultdict(list)
    for source in dict.fromkeys(sources):
        if files := by_name.get(_plain_name(source)):
            claims[_closest_file(source, files, labels)].append(source)
    owners = {_closest_source(file, claimants): file for file, claimants in claims.items()}
    return Pairing(
        labels=tuple(labels[owners[source]] if source in owners else None for source in sources),
        without_label=tuple(source for source in sources if source not in owners),
        without_file=tuple(file for file in labels if file not in claims),
    )


def _closest_file(source: str, files: Sequence[str], labels: Mapping[str, str]) -> str:
    best = _closest(source, files)
    if len({labels[file] for file in best}) > 1:
        raise LabelError(
            f"The label of {source!r} could be that of {best[0]!r} ({labels[best[0]]}) or of {best[1]!r} "
            f"({labels[best[1]]}); name the images in the label file with the folders that tell them apart."
        )
    return best[0]


def _closest_source(file: str, sources: Sequence[str]) -> str:
    best = _closest(file, sources)
    if len(best) > 1:
        raise LabelError(
            f"The label of {file!r} could be for {best[0]!r} or for {best[1]!r}; name the images in the label file "
            "with the folders that tell them apart, or give one of the two."
        )
    return best[0]


def _closest(file: str, others: Sequence[str]) -> list[str]:
    """Return those of `others` that share most folders with `file`."""
    shared = {other: _shared_folders(file, other) for other in others}
    most = max(shared.values())
    return [other for other in others if shared[other] == most]


def _shared_folders(a: str, b: str) -> int:
    count = 0
    for one, other in zip(reversed(PurePath(a).parts[:-1]), reversed(PurePath(b).parts[:-1]), strict=False):
        if one != other:
            break
        count += 1
    return count


def _plain_name(file: str) -> str:
    """Return the name of a file without its folders and without RAF-DB's `_aligned`."""
    name = PurePath(file)
    return name.stem.removesuffix("_aligned") + name.suffix
