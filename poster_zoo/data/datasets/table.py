"""A CSV of images and labels."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from poster_zoo.data.datasets.base import FaceDataset
from poster_zoo.data.datasets.files import Files
from poster_zoo.data.datasets.layout import ALL, choose_split, in_order, not_a
from poster_zoo.data.datasets.splits import canonical_split
from poster_zoo.data.label_files import SPLIT_COLUMNS, LabelRow, read_table, unique_rows
from poster_zoo.errors import LabelError
from poster_zoo.labels import canonical_label, match_labels

__all__ = ["FaceTable", "spellings"]


class FaceTable(FaceDataset):
    """Images that a CSV lists with their labels, and with their splits where it has a column for that.

    Files are named as seen from the CSV's own folder, or absolutely. Labels are names, for a number means another class
    in each model. The classes are those of all splits, sorted.

    Args:
        root: The CSV's path.
        split: Which split; a CSV without a column for it is read whatever is asked for.

    Raises:
        DatasetError: There is no such file.
        LabelError: A line cannot be understood, a label is a number, or an image has two labels.
        OptionError: There is no such split.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        path = Path(root)
        parts = _parts(path)
        names = spellings(row.label for rows in parts.values() for row in rows)
        if numbers := [name for name in names if not name or name.isdecimal()]:
            raise LabelError(
                f"{str(path)!r}: the label {numbers[0]!r} is no name, and a number means another class in each model; "
                f"write the names of the expressions. Labels in the file: {', '.join(names)}."
            )
        split = choose_split(f"csv:{path}", split, tuple(parts))
        rows = unique_rows(path, parts[split])
        labels = match_labels([row.label for row in rows.values()], names)
        super().__init__(Files(path.parent, list(rows)), labels, names, name="csv", split=split)

    @staticmethod
    def splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return the splits that are there; "all" alone where the CSV does not name any."""
        return tuple(_parts(Path(root)))


def spellings(labels: Iterable[str]) -> tuple[str, ...]:
    """Return each class once, in the spelling that comes first, sorted."""
    names: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        names.setdefault(canonical_label(label), label)
    return tuple(sorted(names.values()))


def _parts(path: Path) -> Mapping[str, Sequence[LabelRow]]:
    """Return the rows of each split."""
    if not path.is_file():
        raise not_a("a CSV of files and labels", path, "a file")
    parts = defaultdict(list)
    for row in read_table(path):
        parts[canonical_split(row.split) or ALL].append(row)
    if ALL in parts and len(parts) > 1:
        row = next(row for row in parts[ALL] if not row.split)
        raise LabelError(
            f"{str(path)!r}, line {row.line}: the split is missing, and other lines have one; fill the column "
            f"({', '.join(SPLIT_COLUMNS)}) in every line, or in none."
        )
    return {split: parts[split] for split in in_order(parts)}
