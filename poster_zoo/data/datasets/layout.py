"""What the collections' readers share: which splits a folder has, and the errors where it is another's."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from poster_zoo.data.datasets.splits import SPLITS, canonical_split
from poster_zoo.errors import DatasetError, OptionError

__all__ = ["ALL", "choose_split", "in_order", "not_a", "split_folders", "subfolders"]

ALL = "all"
"""The split of images that are not parted into splits."""

_SHOWN = 8  # entries of a folder that a message lists


def in_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Return splits each once, in the order train, valid, test, then any others."""
    return tuple(
        sorted(set(splits), key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    )


def choose_split(collection: str, wanted: str, there: tuple[str, ...]) -> str:
    """Return which of the splits that are there is wanted; where there is one alone, it is read as it is.

    Raises:
        OptionError: There are others, and not this one.
    """
    split = canonical_split(wanted)
    if split in there:
        return split
    if len(there) == 1:
        return there[0]
    raise OptionError(f"{collection} has no split {wanted!r}; it has {', '.join(there)}.")


def split_folders(root: Path) -> dict[str, Path]:
    """Return the subfolders that are named as a split is, by that split; none where there is no such folder.

    Raises:
        DatasetError: Two of them mean the same split.
    """
    found: dict[str, Path] = {}
    for folder in subfolders(root).values():
        split = canonical_split(folder.name)
        if split not in SPLITS:
            continue
        if split in found:
            raise DatasetError(f"{str(found[split])!r} and {str(folder)!r} are both the split {split!r}; keep one.")
        found[split] = folder
    return {split: found[split] for split in in_order(found)}


def not_a(collection: str, root: Path, looked_for: str) -> DatasetError:
    """Return the error for a place that does not hold a collection: what was looked for, and what is there."""
    if not os.path.lexists(root):
        return DatasetError(f"{str(root)!r} does not exist; give the place of {collection}.")
    return DatasetError(f"{str(root)!r} does not hold {collection}: {looked_for} was looked for; {_content(root)}.")


def subfolders(root: Path) -> dict[str, Path]:
    """Return the folders in a folder, by their names, sorted; hidden ones are left out."""
    if not root.is_dir():
        return {}
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] not in "._")
    return {name: root / name for name in names}


def _content(root: Path) -> str:
    if not root.is_dir():
        return "it is a file"
    names = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in root.iterdir())
    if not names:
        return "the folder is empty"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"there is {', '.join(names[:_SHOWN])}{more}"
