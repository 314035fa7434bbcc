"""Collections of Hugging Face `datasets`: by their id on the Hub, or a copy on this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from poster_zoo.data.datasets.base import FaceDataset, places
from poster_zoo.data.datasets.files import Files, Images
from poster_zoo.data.datasets.layout import ALL, choose_split, in_order
from poster_zoo.data.datasets.splits import canonical_split
from poster_zoo.data.datasets.table import spellings
from poster_zoo.data.label_files import FILE_COLUMNS, LABEL_COLUMNS
from poster_zoo.errors import DatasetError, MissingExtraError, MissingImageError, OptionError, nearest
from poster_zoo.extras import installed
from poster_zoo.labels import canonical_label

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["HubDataset"]

_OPTIONS = ("image", "label", "person", "config", "revision")


class HubDataset(FaceDataset):
    """Images and labels of a Hugging Face dataset.

    Its columns are found by their kind (an image; a label with names), else by their usual names; what follows a `?`
    names them: `OWNER/NAME?image=photo&label=mood`. `person=COLUMN` says who is on an image, `config=` and `revision=`
    are the Hub's. No code of a dataset is run.

    Args:
        root: An id on the Hub; a folder that `save_to_disk` wrote; a Parquet file; or a folder of Parquet, CSV or JSON
            files, as a dataset's repository is one.
        split: Which split.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DatasetError: The dataset cannot be loaded, or its columns cannot be told.
        OptionError: There is no such split, or what follows the `?` is not understood.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        place, options = _parse(os.fspath(root))
        parts = _load(place, options.get("config"), options.get("revision"))
        split = choose_split(f"hf:{place}", split, in_order(parts))
        table = parts[split]
        image = _column(place, table, "image", options.get("image"), FILE_COLUMNS)
        label = _column(place, table, "label", options.get("label"), LABEL_COLUMNS)
        names, labels, written = _labels(place, list(parts.values()), table, label)
        person = options.get("person")
        super().__init__(
            _Column(f"{place}[{split}]", table, image),
            labels,
            names,
            name="hf",
            split=split,
            persons=[str(one) for one in table[_checked(place, table, person)]] if person else None,
            written=written,
        )

    @staticmethod
    def splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return the splits that are there."""
        place, options = _parse(os.fspath(root))
        return in_order(_load(place, options.get("config"), options.get("revision")))


class _Column(Images):
    """The images of one column: their bytes, or paths of their files.

    Args:
        name: The dataset's place and split.
        table: The dataset.
        column: The column of images.
    """

    def __init__(self, name: str, table: Dataset, column: str) -> None:
        from datasets import Image

        self.name = name
        self.column = column
        self.table = table.select_columns([column]).cast_column(column, Image(decode=False))

    def __len__(self) -> int:
        return len(self.table)

    def source(self, index: int) -> str:
        """Return the dataset, the split and the row."""
        return f"{self.name}[{index}]"

    def read(self, index: int) -> bytes:
        """Return the bytes that the row holds, or that lie where it says."""
        image: dict[str, Any] = self.table[index][self.column] or {}
        if image.get("bytes"):
            return bytes(image["bytes"])
        if image.get("path"):
            return Files("", [image["path"]]).read(0)
        raise MissingImageError(f"{self.source(index)!r} holds no image; leave the row out.")


def _parse(root: str) -> tuple[str, dict[str, str]]:
    """Return the place, and the options that follow a `?`."""
    place, mark, query = root.partition("?")
    if not mark or os.path.exists(root):
        return root, {}
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := [name for name in options if name not in _OPTIONS]:
        raise OptionError(
            f"hf:{root}: there is no option {unknown[0]!r}.{nearest(unknown[0], _OPTIONS)} "
            f"Write hf:{place}?image=COLUMN&label=COLUMN; there are {', '.join(_OPTIONS)}."
        )
    return place, options


def _load(place: str, config: str | None, revision: str | None) -> dict[str, Dataset]:
    """Return the tables of all splits."""
    if not installed("datasets"):
        raise MissingExtraError('Reading hf:… needs datasets, which is not installed: pip install "poster-zoo[hf]".')
    import datasets

    path = Path(place)
    try:
        if path.is_file():
            loaded = datasets.load_dataset("parquet", data_files=place)
        elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            loaded = datasets.load_from_disk(place)
        else:
            loaded = datasets.load_dataset(place, name=config, revision=revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        where = "lies there" if path.exists() else "the Hub has by this id, or is on this machine"
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"hf:{place} cannot be loaded as a dataset that {where}: {reason}") from error
    if isinstance(loaded, datasets.DatasetDict):
        return {canonical_split(str(name)): table for name, table in loaded.items()}
    return {canonical_split(str(loaded.split or ALL)): loaded}


def _column(place: str, table: Dataset, kind: str, named: str | None, usual: Sequence[str]) -> str:
    """Return the column that is named, or the only one of its kind, or the first of the usual names that is there."""
    if named is not None:
        return _checked(place, table, named)
    from datasets import ClassLabel, Image

    wanted = Image if kind == "image" else ClassLabel
    of_kind = [column for column, feature in table.features.items() if isinstance(feature, wanted)]
    names = {column.casefold(): column for column in of_kind or table.column_names}
    found = next((names[name] for name in usual if name in names), None)
    if len(of_kind) == 1 or found:
        return found or of_kind[0]
    raise DatasetError(
        f"hf:{place}: which column holds the {kind} cannot be told; write hf:{place}?{kind}=COLUMN. "
        f"Columns: {', '.join(table.column_names)}."
    )


def _checked(place: str, table: Dataset, column: str) -> str:
    if column not in table.column_names:
        raise DatasetError(
            f"hf:{place} has no column {column!r}.{nearest(column, table.column_names)} "
            f"Columns: {', '.join(table.column_names)}."
        )
    return column


def _labels(
    place: str, parts: Sequence[Dataset], table: Dataset, column: str
) -> tuple[tuple[str, ...], list[int], dict[int, str]]:
    """Return the names of the classes, the label of each row, and what is written where that is none of the classes."""
    from datasets import ClassLabel

    feature = table.features[column]
    if isinstance(feature, ClassLabel):
        names = tuple(feature.names)
        return names, *places([str(number) for number in table[column]], [str(i) for i in range(len(names))])
    if feature.dtype not in ("string", "large_string"):
        raise DatasetError(
            f"hf:{place}: the labels in {column!r} are of type {feature.dtype} and have no names, and a number means "
            "another class in each model; give the column names (a ClassLabel, or texts) and save the dataset again."
        )
    names = spellings(label for part in parts for label in part[column] if label)
    return names, *places(
        [canonical_label(label or "") for label in table[column]], [canonical_label(name) for name in names]
    )
