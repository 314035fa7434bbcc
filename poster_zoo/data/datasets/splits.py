"""Names of splits, and parting the training images where a collection has none for validation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from poster_zoo.data.datasets.base import NO_LABEL, FaceDataset
from poster_zoo.errors import FaultyDataError

__all__ = ["SPLITS", "canonical_split", "split_off"]

SPLITS = ("train", "valid", "test")
"""The splits, in the order in which an image that is in several is taken out of them, the first first."""

_SYNONYMS = {
    "training": "train",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "publictest": "valid",  # FER2013's words
    "testing": "test",
    "privatetest": "test",
}


def canonical_split(name: str) -> str:
    """Return "train", "valid" or "test" for the names that people give these; others come back in lower case."""
    folded = name.strip().casefold()
    return _SYNONYMS.get(folded, folded)


def split_off(dataset: FaceDataset, share: float = 0.1, seed: int = 0) -> tuple[FaceDataset, FaceDataset]:
    """Part a training split in two: the rest, to train on, and `share` of each class, to choose by.

    Where persons are known, nobody is in both: persons are taken in an order that `seed` decides, each if that brings
    the counts a class nearer to what is wanted, rare classes weighing as much as common ones. Where they are not, each
    image counts as a person, which gives `share` of each class, rounded, and one of a class that has two at least.

    Args:
        dataset: The images to part.
        share: In 0…1.
        seed: The same images and seed give the same parts, on any machine.

    Returns:
        Two datasets, of the splits "train" and "valid", neither of them empty.

    Raises:
        FaultyDataError: There are not two persons, or images, to part.
    """
    labels = np.asarray(dataset.labels)
    persons = _persons(dataset)
    if len(persons) < 2:
        raise FaultyDataError(
            f"{dataset.name} {dataset.split} has {len(persons)} {'image' if dataset.persons is None else 'person'}, "
            "too few to part it in two; give more, or a validation split."
        )
    counts = np.stack([_counts(labels[rows], len(dataset.label_names)) for rows in persons])
    sizes = counts.sum(axis=0)
    wanting = np.where(sizes > 1, np.maximum(share * sizes, 1), 0)
    # RandomState's stream is frozen for all versions of numpy; a Generator's is not.
    chosen = _nearest(counts, wanting, 1 / np.maximum(sizes, 1), np.random.RandomState(seed).permutation(len(persons)))
    valid = sorted(row for person in chosen for row in persons[person])
    rest = sorted(set(range(len(dataset))).difference(valid))
    return dataset.subset(rest).in_split("train"), dataset.subset(valid).in_split("valid")


def _nearest(
    counts: NDArray[np.int64], wanting: NDArray[np.float64], weights: NDArray[np.float64], order: NDArray[np.int64]
) -> list[int]:
    """Return persons, some but not all, whose counts a class add up to nearly what is wanted.

    Args:
        counts: (persons, classes)
        wanting: (classes,)
        weights: (classes,) what one image too many or too few of each costs.
        order: In which the persons are looked at.
    """
    chosen = []
    missing = wanting
    for person in order:
        if (np.abs(missing - counts[person]) * weights).sum() < (np.abs(missing) * weights).sum():
            missing = missing - counts[person]
            chosen.append(int(person))
    if not chosen:  # everyone has more images than are wanted: the one with the least excess
        cost = (np.abs(wanting - counts[order]) * weights).sum(axis=1)
        chosen = [int(order[cost.argmin()])]
    return chosen[:-1] if len(chosen) == len(order) else chosen


def _counts(labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return np.bincount(labels[labels != NO_LABEL], minlength=classes)


def _persons(dataset: FaceDataset) -> Sequence[list[int]]:
    """Return the images of each person, persons in the order of their names."""
    if dataset.persons is None:
        return [[i] for i in range(len(dataset))]
    images: dict[str, list[int]] = defaultdict(list)
    for i, person in enumerate(dataset.persons):
        images[person].append(i)
    return [images[person] for person in sorted(images)]
