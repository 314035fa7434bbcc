"""Labelled faces, one split at a time, by name: `open_dataset("rafdb:PATH", "train")`.

A new collection is one class here, a `FaceDataset` with `__init__(root, split)` and a static `splits(root)`, and its
line in `COLLECTIONS`.
"""

from __future__ import annotations

from poster_zoo.data.datasets.affectnet import AffectNet7, AffectNet8
from poster_zoo.data.datasets.base import NO_LABEL, Benchmark, FaceDataset, join
from poster_zoo.data.datasets.ferplus import FERPlus
from poster_zoo.data.datasets.folders import CAERS, ClassFolders
from poster_zoo.data.datasets.hub import HubDataset
from poster_zoo.data.datasets.rafdb import RAFDB
from poster_zoo.data.datasets.spec import COLLECTIONS, available_splits, open_dataset, open_training
from poster_zoo.data.datasets.splits import split_off
from poster_zoo.data.datasets.table import FaceTable

__all__ = [
    "CAERS",
    "COLLECTIONS",
    "NO_LABEL",
    "RAFDB",
    "AffectNet7",
    "AffectNet8",
    "Benchmark",
    "ClassFolders",
    "FERPlus",
    "FaceDataset",
    "FaceTable",
    "HubDataset",
    "available_splits",
    "join",
    "open_dataset",
    "open_training",
    "split_off",
]
