"""RAF-DB, and any faces that lie on disk as it does."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePath

from poster_zoo.data.datasets.base import Benchmark, FaceDataset, places
from poster_zoo.data.datasets.files import Files, Images, ZipMembers
from poster_zoo.data.datasets.folders import class_folders, folder_images
from poster_zoo.data.datasets.layout import ALL, choose_split, in_order, not_a
from poster_zoo.data.datasets.splits import SPLITS, canonical_split
from poster_zoo.data.label_files import RAFDB_NUMBERS, LabelRow, read_list
from poster_zoo.errors import DatasetError, LabelError
from poster_zoo.labels import RAFDB as RAFDB_LABELS

__all__ = ["RAFDB"]

_LIST = Path("EmoLabel", "list_patition_label.txt")  # as the release spells it
_ALIGNED = Path("Image", "aligned")
_PERSONS = "persons.csv"
_TEST_IMAGES = 3068
_LOOKED_FOR = f"{_LIST} beside {_ALIGNED}/, or train/ and test/ (or valid/) with folders 1…7 in them,"


class RAFDB(FaceDataset):
    """RAF-DB: aligned faces of 100×100 pixels, seven classes.

    Read are the release's own layout (`EmoLabel/list_patition_label.txt` beside `Image/aligned`, or `aligned.zip` as
    it comes), in which a file's name begins with its split; and the class folders that POSTER++ was trained from
    (`train/1/…` to `valid/7/…`, its `valid` being the test part). A `persons.csv` beside `EmoLabel` (columns `name`,
    as in the list, and `person`) says who is on which image.

    Args:
        root: The folder that holds `EmoLabel`, or `train`.
        split: Which split; the release has train and test.

    Raises:
        DatasetError: The folder does not hold RAF-DB.
        LabelError: A line of the list, or of persons.csv, cannot be understood.
        OptionError: There is no such split.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        folder = Path(root)
        persons = None
        if (folder / _LIST).is_file():
            parts = _listed(folder)
            split = choose_split("RAF-DB", split, tuple(parts))
            rows = parts[split]
            images = _aligned(folder, [row.file for row in rows])
            labels, written = places([row.label for row in rows], list(RAFDB_NUMBERS))
            persons = _persons(folder / _PERSONS, [row.file for row in rows])
        else:
            classes = _folders(folder)
            split = choose_split("RAF-DB", split, tuple(classes))
            images, labels = folder_images(classes[split], {number: i for i, number in enumerate(RAFDB_NUMBERS)})
            written = {}
        super().__init__(
            images,
            labels,
            RAFDB_LABELS,
            name="rafdb",
            split=split,
            persons=persons,
            written=written,
            benchmark=Benchmark("RAF-DB test", _TEST_IMAGES) if split == "test" else None,
        )

    @staticmethod
    def splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return the splits that are there."""
        folder = Path(root)
        return tuple(_listed(folder) if (folder / _LIST).is_file() else _folders(folder))


def _listed(root: Path) -> dict[str, list[LabelRow]]:
    """Return the rows of the release's list, by split: `train_00001.jpg` is of train."""
    rows = read_list(root / _LIST)
    parts = defaultdict(list)
    for row in rows:
        split = canonical_split(PurePath(row.file).name.partition("_")[0])
        parts[split if split in SPLITS else ALL].append(row)
    if ALL in parts and len(parts) > 1:
        row = parts[ALL][0]
        raise DatasetError(
            f"{str(root / _LIST)!r}, line {row.line}: the name {row.file!r} begins with no split, others do; "
            "name the files train_…, valid_… and test_…, or none of them so."
        )
    return {split: parts[split] for split in in_order(parts)}


def _folders(root: Path) -> dict[str, dict[str, Path]]:
    parts = class_folders(root, "RAF-DB", _LOOKED_FOR)
    if any(name not in RAFDB_NUMBERS for folders in parts.values() for name in folders):
        raise not_a("RAF-DB", root, _LOOKED_FOR)
    if "valid" in parts and "test" not in parts:  # POSTER++'s code calls RAF-DB's test part so
        parts["test"] = parts.pop("valid")
    return parts


def _aligned(root: Path, files: Sequence[str]) -> Images:
    names = [str(PurePath(file).with_stem(f"{PurePath(file).stem}_aligned")) for file in files]
    folder = root / _ALIGNED
    if not folder.is_dir() and folder.with_suffix(".zip").is_file():
        return ZipMembers.by_name(folder.with_suffix(".zip"), names)
    return Files(folder, names)


def _persons(path: Path, files: Sequence[str]) -> list[str] | None:
    """Return who is on each image, or None where there is no such file; an image that it does not name is alone."""
    if not path.is_file():
        return None
    persons: dict[str, str] = {}
    end = 1  # of the last row that is whole: what an open quote swallows begins after it
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        rows = csv.DictReader(lines, strict=True)
        try:
            if not {"name", "person"} <= set(rows.fieldnames or ()):
                raise LabelError(f"{str(path)!r} has no columns `name` and `person`; give it both, or take it away.")
            for row in rows:
                end = rows.line_num
                if None in (name := row["name"], person := row["person"]):
                    raise LabelError(
                        f"{str(path)!r}, line {end}: a name and a person were expected, found {name or person!r}."
                    )
                persons[name] = person
        except csv.Error as error:
            raise LabelError(f"{str(path)!r}, line {end + 1}: this is no CSV: {error}.") from error
    return [persons.get(file) or f"the one on {file}" for file in files]
