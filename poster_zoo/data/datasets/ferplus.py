"""FERPlus: the faces of FER2013 with ten votes each.

Barsoum et al., "Training Deep Networks for Facial Expression Recognition with Crowd-Sourced Label Distribution",
ICMI 2016.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from poster_zoo.data.datasets.base import Benchmark, FaceDataset
from poster_zoo.data.datasets.files import Files, Images, ZipMembers, archive_names
from poster_zoo.data.datasets.layout import choose_split, not_a
from poster_zoo.data.datasets.splits import canonical_split
from poster_zoo.errors import LabelError
from poster_zoo.labels import FERPLUS as FERPLUS_LABELS

__all__ = ["FERPlus"]

_FOLDERS = {"train": "FER2013Train", "valid": "FER2013Valid", "test": "FER2013Test"}
_VOTES = "label.csv"  # in each folder: file, box, votes
_ALL_VOTES = "fer2013new.csv"  # beside the folders: usage, file, votes
_BALLOT = len(FERPLUS_LABELS) + 2  # the expressions, then "unknown" and "not a face"
_TEST_IMAGES = 3137

Votes = Mapping[str, tuple[int, ...]]
"""The votes for each file, in the order of the release."""


class FERPlus(FaceDataset):
    """FERPlus: grey faces of 48×48 pixels, eight classes, with a majority of their votes.

    The reference protocol: votes of one are dropped; the label is the class with more than half of the votes that
    remain; images without one, or whose winner is "unknown" or "not a face", are left out. `distributions` are the
    remaining votes for the eight classes. Folders and zip archives are read, with `label.csv` in them or
    `fer2013new.csv` beside them.

    Args:
        root: The folder that holds `FER2013Train`, `FER2013Valid` and `FER2013Test`, or these with `.zip`.
        split: Which split.

    Raises:
        DatasetError: The folder does not hold FERPlus, or an archive cannot be read.
        LabelError: A line of votes cannot be understood.
        OptionError: There is no such split.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        split = choose_split("FERPlus", split, self.splits(root))
        votes = _votes(Path(root), split)
        ballots = np.array(list(votes.values()), dtype=np.int64).reshape(-1, _BALLOT)
        ballots[ballots == 1] = 0
        winners = ballots.argmax(axis=1)
        kept = (2 * ballots.max(axis=1) > ballots.sum(axis=1)) & (winners < len(FERPLUS_LABELS))
        expressions = ballots[kept, : len(FERPLUS_LABELS)]
        super().__init__(
            _images(Path(root, _FOLDERS[split]), [file for file, keep in zip(votes, kept, strict=True) if keep]),
            winners[kept].tolist(),
            FERPLUS_LABELS,
            name="ferplus",
            split=split,
            distributions=torch.from_numpy(expressions / expressions.sum(axis=1, keepdims=True)).float(),
            benchmark=Benchmark("FERPlus test", _TEST_IMAGES) if split == "test" else None,
        )

    @staticmethod
    def splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return the splits that are there."""
        folders = {split: Path(root, folder) for split, folder in _FOLDERS.items()}
        splits = tuple(split for split, folder in folders.items() if folder.is_dir() or _archive(folder).is_file())
        if not splits:
            raise not_a("FERPlus", Path(root), "a folder or zip archive FER2013Train, FER2013Valid or FER2013Test")
        return splits


def _archive(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.zip")


def _images(folder: Path, files: list[str]) -> Images:
    """Return the images of a part: from its folder, or from its archive where the folder has none of them.

    The authors' repository holds the folders with `label.csv` alone in them.
    """
    unpacked = folder.is_dir() and any(entry.suffix == ".png" for entry in folder.iterdir())
    if not unpacked and _archive(folder).is_file():
        return ZipMembers.by_name(_archive(folder), files)
    return Files(folder, files)


def _votes(root: Path, split: str) -> Votes:
    """Return the votes of one part, from the first place that has them."""
    folder, archive = root / _FOLDERS[split], _archive(root / _FOLDERS[split])
    if (folder / _VOTES).is_file():
        return _own_votes(folder / _VOTES, (folder / _VOTES).read_bytes())
    packed = (
        [name for name in archive_names(archive) if PurePosixPath(name).name == _VOTES] if archive.is_file() else []
    )
    if packed:
        return _own_votes(archive / packed[0], ZipMembers(archive, packed).read(0))
    if (root / _ALL_VOTES).is_file():
        rows = _rows(root / _ALL_VOTES, (root / _ALL_VOTES).read_bytes())
        # The rows without a file are those of FER2013 that are no usable images.
        return {file: votes for usage, file, votes in rows if file and canonical_split(usage) == split}
    raise not_a("the votes of FERPlus", root, f"{_FOLDERS[split]}/{_VOTES}, there or in the archive, or {_ALL_VOTES}")


def _own_votes(path: Path, table: bytes) -> Votes:
    return {file: votes for file, _, votes in _rows(path, table)}


def _rows(path: Path, table: bytes) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Read rows of two texts and the votes; a first row without votes is the header."""
    lines = csv.reader(io.StringIO(table.decode("utf-8-sig", errors="replace")))
    for number, (first, second, *votes) in enumerate(filter(None, lines), start=1):
        if len(votes) == _BALLOT and all(vote.strip().isdecimal() for vote in votes):
            yield first, second, tuple(map(int, votes))
        elif number > 1:
            raise LabelError(
                f"{str(path)!r}, line {number}: {_BALLOT} numbers of votes were expected, found {','.join(votes)!r}; "
                "fetch the file again."
            )
