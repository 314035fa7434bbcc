"""Datasets by name: `rafdb:PATH`, `folder:PATH` and so on."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from poster_zoo import labels as label_sets
from poster_zoo.data.datasets.affectnet import AffectNet7, AffectNet8
from poster_zoo.data.datasets.base import FaceDataset
from poster_zoo.data.datasets.ferplus import FERPlus
from poster_zoo.data.datasets.folders import CAERS, ClassFolders
from poster_zoo.data.datasets.hub import HubDataset
from poster_zoo.data.datasets.rafdb import RAFDB
from poster_zoo.data.datasets.splits import split_off
from poster_zoo.data.datasets.table import FaceTable
from poster_zoo.errors import LabelError, OptionError, nearest
from poster_zoo.labels import canonical_label

__all__ = ["COLLECTIONS", "available_splits", "open_dataset", "open_training", "parse_spec"]

COLLECTIONS: dict[str, Any] = {
    "rafdb": RAFDB,
    "affectnet7": AffectNet7,
    "affectnet8": AffectNet8,
    "ferplus": FERPlus,
    "caers": CAERS,
    "folder": ClassFolders,
    "csv": FaceTable,
    "hf": HubDataset,
}
"""The collections by name: each a class that takes a place and a split, and lists a place's splits."""

_EXPRESSIONS = tuple(dict.fromkeys((*label_sets.AFFECTNET8, *label_sets.RAFDB, *label_sets.FERPLUS)))
"""Every expression that a release names, each once."""
_KNOWN = {canonical_label(name) for name in _EXPRESSIONS}


def open_dataset(spec: str, split: str, labels: Sequence[str] = ()) -> FaceDataset:
    """Open one split of a collection.

    Args:
        spec: NAME:PATH; the names are those of `COLLECTIONS`. A `~` in the path is the home folder.
        split: "train", "valid" or "test", or a usual word for one of them. A collection that has one part alone is
            read as it is, whatever is asked for; the dataset's `split` says what that part is.
        labels: Names of classes that the data may have beside the known expressions: those of the model.

    Raises:
        OptionError: The name is unknown, the path is missing or holds no such collection, or there is no such split.
        LabelError: A class is neither a known expression nor one of `labels`, or the labels cannot be understood.
    """
    name, path = parse_spec(spec)
    dataset: FaceDataset = COLLECTIONS[name](path, split)
    known = _KNOWN | {canonical_label(label) for label in labels}
    if strange := [label for label in dataset.label_names if canonical_label(label) not in known]:
        raise LabelError(
            f"{spec}: {', '.join(map(repr, strange))} {'is' if len(strange) == 1 else 'are'} no known expression. "
            f"Labels of the data: {', '.join(dataset.label_names)}. "
            f"Labels that are known: {', '.join(dict.fromkeys((*labels, *_EXPRESSIONS)))}."
        )
    return dataset


def available_splits(spec: str) -> tuple[str, ...]:
    """Return the splits of a collection as it lies there, in the order train, valid, test; "all" if it is not parted.

    Raises:
        OptionError: The name is unknown, or the path is missing or holds no such collection.
    """
    name, path = parse_spec(spec)
    splits: tuple[str, ...] = COLLECTIONS[name].splits(path)
    return splits


def open_training(
    spec: str, labels: Sequence[str] = (), share: float = 0.1, seed: int = 0
) -> tuple[FaceDataset, FaceDataset]:
    """Open what a model is trained on and what its epoch is chosen by: the released splits, or train parted in two.

    Args:
        spec: As for `open_dataset`.
        labels: As for `open_dataset`.
        share: How much of train is split off where the collection has no validation part, in 0…1.
        seed: Decides which part that is; see `split_off`.

    Raises:
        OptionError, LabelError: As for `open_dataset`.
    """
    train = open_dataset(spec, "train", labels)
    if "valid" in available_splits(spec) and train.split == "train":
        return train, open_dataset(spec, "valid", labels)
    return split_off(train, share, seed)


def parse_spec(spec: str) -> tuple[str, str]:
    """Return the name and the path of NAME:PATH.

    Raises:
        OptionError: It has another form, or the name is unknown.
    """
    name, colon, path = spec.partition(":")
    known = ", ".join(f"{key}:PATH" for key in COLLECTIONS)
    if re.fullmatch(r"[A-Za-z]:[\\/].*", spec) or not colon:
        raise OptionError(f"{spec!r} does not say what lies there{nearest(name, COLLECTIONS)}; write one of {known}.")
    if name.casefold() not in COLLECTIONS:
        raise OptionError(
            f"There is no collection {name!r}.{nearest(name.casefold(), COLLECTIONS)} Write one of {known}."
        )
    if not path:
        raise OptionError(f"{spec!r} names no place; write {name}:PATH.")
    return name.casefold(), os.path.expanduser(path)
