"""AffectNet, of seven classes and of eight."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from poster_zoo.data.datasets.base import Benchmark, FaceDataset, places
from poster_zoo.data.datasets.files import Files
from poster_zoo.data.datasets.layout import choose_split, not_a
from poster_zoo.data.datasets.splits import canonical_split
from poster_zoo.data.label_files import read_list
from poster_zoo.labels import AFFECTNET7, AFFECTNET8

__all__ = ["AffectNet7", "AffectNet8"]

_FOLDERS = {"train": "train", "test": "valid"}
"""Which part of the release is which split. Its test part was never given away: all numbers are on its validation."""

_VALIDATION_IMAGES = {7: 3500, 8: 3999}  # by the number of classes


class AffectNet7(FaceDataset):
    """AffectNet without Contempt, as POSTER's authors lay it out: lists of files and numbers beside the images.

    The release's validation part is the split `test`, as every published number is on it; `valid` names it too.
    Training chooses by a part of train, as for other collections without a part for that.

    Args:
        root: The folder that holds `train_set` and `valid_set`.
        split: Which split.

    Raises:
        DatasetError: The folder does not hold the collection.
        LabelError: A line of a list cannot be understood.
        OptionError: There is no such split.
    """

    label_set: ClassVar[Sequence[str]] = AFFECTNET7

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        classes = len(self.label_set)
        validation = Benchmark(f"AffectNet-{classes} validation", _VALIDATION_IMAGES[classes])
        split = choose_split(f"AffectNet-{classes}", _renamed(split), self.splits(root))
        path = self._list(root, split)
        rows = read_list(path)
        labels, written = places([row.label for row in rows], [str(i) for i in range(classes)])
        super().__init__(
            Files(path.parent / "images", [row.file for row in rows]),
            labels,
            self.label_set,
            name=f"affectnet{classes}",
            split=split,
            written=written,
            benchmark=validation if split == "test" else None,
        )

    @classmethod
    def splits(cls, root: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return the splits that are there."""
        splits = tuple(split for split in _FOLDERS if cls._list(root, split).is_file())
        if not splits:
            looked_for = " or ".join(str(cls._list("", split)) for split in _FOLDERS)
            raise not_a(f"AffectNet-{len(cls.label_set)}", Path(root), f"{looked_for}, beside images/,")
        return splits

    @classmethod
    def _list(cls, root: str | os.PathLike[str], split: str) -> Path:
        part = _FOLDERS[split]
        return Path(root, f"{part}_set", f"{part}_annotations_{len(cls.label_set)}class.txt")


class AffectNet8(AffectNet7):
    """AffectNet with all eight classes; otherwise as `AffectNet7`."""

    label_set = AFFECTNET8


def _renamed(split: str) -> str:
    return "test" if canonical_split(split) == "valid" else split
