"""One split of labelled faces, and how several become one."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from poster_zoo.data.datasets.files import Images
from poster_zoo.data.images import read_image
from poster_zoo.errors import LabelError, counted
from poster_zoo.labels import canonical_label, match_labels

__all__ = ["NO_LABEL", "Benchmark", "FaceDataset", "join", "places"]

NO_LABEL = -1
"""The label of an image whose label, as it is written, stands for no class."""


class Benchmark(NamedTuple):
    """What published numbers are measured on.

    Attributes:
        name: As `poster_zoo.weights.entry.Metric` calls it.
        images: How many images the release has. Another number of them is another collection that lies on disk as
            this one does, or a part of it, and published numbers are not about it. None where no source is at hand.
    """

    name: str
    images: int | None


class FaceDataset(Dataset[tuple[Any, Any]]):
    """One split of labelled faces.

    An item is an image and its target: the PIL image, upright and RGB, or what `transform` makes of it; and the place
    of its label in `label_names`, or, with `soft_targets`, its row of `distributions`. Instances are never changed:
    `subset`, `with_labels` and `with_transform` return others that share the files. They can be sent to other
    processes.

    Args:
        images: The images' files.
        labels: A place in `label_names` for each, or `NO_LABEL`.
        label_names: The classes.
        name: The collection's name, for messages.
        split: "train", "valid", "test", or "all" for a collection that is not parted.
        distributions: (N, classes) how the votes for each image are spread over the classes.
        persons: Who is on each image; equal texts are one person.
        written: For each image with `NO_LABEL`, by its place, the label as it is written.
        benchmark: What published numbers the split is for, if any.

    Attributes:
        distributions: Float32, rows add up to 1, or None where there are labels alone.
        transform: What is done to each image; None for nothing.
        soft_targets: Whether an item's target is its row of `distributions`, where there are any.
    """

    def __init__(
        self,
        images: Images,
        labels: Sequence[int],
        label_names: Sequence[str],
        *,
        name: str,
        split: str,
        distributions: Tensor | None = None,
        persons: Sequence[str] | None = None,
        written: Mapping[int, str] | None = None,
        benchmark: Benchmark | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.label_names = tuple(label_names)
        self.labels = labels
        self.distributions = distributions
        self.persons = persons
        self.benchmark = benchmark
        self.transform: Callable[[Image.Image], Any] | None = None
        self.soft_targets = False
        self._images = images
        self._rows: Sequence[int] = range(len(images))
        self._written = written or {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.split!r}): {counted(len(self), 'image')}"

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        label = self.labels[index]
        if label == NO_LABEL:
            raise LabelError(
                f"The label {self.written_label(index)!r} of {self.source(index)!r} is none of the classes "
                f"{', '.join(self.label_names)}; mend it, or leave out what is bad (--skip-bad)."
            )
        image = self.image(index)
        prepared = self.transform(image) if self.transform else image
        if self.soft_targets and self.distributions is not None:
            return prepared, self.distributions[index]
        return prepared, label

    def source(self, index: int) -> str:
        """Return a name by which a person finds the image: its path, or its archive's path and its name in there."""
        return self._images.source(self._rows[index])

    def read(self, index: int) -> bytes:
        """Return the bytes of the image's file.

        Raises:
            MissingImageError: There is no such file.
            ImageError: It cannot be read.
        """
        return self._images.read(self._rows[index])

    def image(self, index: int) -> Image.Image:
        """Return the image, upright, as RGB.

        Raises:
            MissingImageError: There is no such file.
            ImageError: It cannot be read.
        """
        return read_image(self.read(index), name=repr(self.source(index)))

    def written_label(self, index: int) -> str:
        """Return the label as it is written where the collection lists it, if that stands for no class."""
        return self._written.get(self._rows[index], "")

    def subset(self, indices: Sequence[int]) -> FaceDataset:
        """Return the dataset of these images, in this order."""
        part = copy.copy(self)
        part._rows = [self._rows[i] for i in indices]
        part.labels = [self.labels[i] for i in indices]
        if self.distributions is not None:
            part.distributions = self.distributions[torch.as_tensor(indices, dtype=torch.long)]
        if self.persons is not None:
            part.persons = [self.persons[i] for i in indices]
        return part

    def with_labels(self, label_names: Sequence[str]) -> FaceDataset:
        """Return the dataset with its labels as places in `label_names`, found by name.

        Raises:
            LabelError: One of this dataset's classes is none of `label_names`.
        """
        known = {canonical_label(name) for name in label_names}
        if missing := [name for name in self.label_names if canonical_label(name) not in known]:
            raise LabelError(
                f"The {'class' if len(missing) == 1 else 'classes'} {', '.join(missing)} of {self.name} "
                f"cannot be had from these labels. Classes of the data: {', '.join(self.label_names)}. "
                f"Labels of the model: {', '.join(label_names)}."
            )
        places = match_labels(self.label_names, label_names)
        renamed = copy.copy(self)
        renamed.label_names = tuple(label_names)
        renamed.labels = [NO_LABEL if label == NO_LABEL else places[label] for label in self.labels]
        if self.distributions is not None:
            renamed.distributions = torch.zeros(len(self), len(label_names))
            renamed.distributions[:, places] = self.distributions
        return renamed

    def with_transform(self, transform: Callable[[Image.Image], Any] | None, soft_targets: bool = False) -> FaceDataset:
        """Return the dataset with this transform, its targets distributions if wanted and there are any."""
        changed = copy.copy(self)
        changed.transform, changed.soft_targets = transform, soft_targets
        return changed

    def in_split(self, split: str) -> FaceDataset:
        """Return the dataset as one of another split."""
        moved = copy.copy(self)
        moved.split = split
        return moved


def places(written: Sequence[str], known: Sequence[str]) -> tuple[list[int], dict[int, str]]:
    """Return the place of each label in `known`, or `NO_LABEL`; and by their places those that are not there."""
    place = {label: i for i, label in enumerate(known)}
    labels = [place.get(label, NO_LABEL) for label in written]
    return labels, {i: written[i] for i, label in enumerate(labels) if label == NO_LABEL}


class _Joined(Images):
    """The images of several datasets, one after the other."""

    def __init__(self, parts: Sequence[FaceDataset]) -> None:
        self.parts = parts
        self.ends = list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def _find(self, index: int) -> tuple[FaceDataset, int]:
        place = bisect_right(self.ends, index)
        return self.parts[place], index - (self.ends[place] - len(self.parts[place]))

    def source(self, index: int) -> str:
        part, place = self._find(index)
        return part.source(place)

    def read(self, index: int) -> bytes:
        part, place = self._find(index)
        return part.read(place)


def join(datasets: Sequence[FaceDataset]) -> FaceDataset:
    """Return one dataset of the images of several; the transform is that of the first.

    Where some have distributions, the labels of the others become distributions that are sure of one class. Persons
    are kept where all have them; those of two collections are never one.

    Raises:
        LabelError: Their label names differ; `with_labels` makes them equal.
        ValueError: There is no dataset.
    """
    if not datasets:
        raise ValueError("There is nothing to join; give at least one dataset.")
    first = datasets[0]
    if len(datasets) == 1:
        return first
    if other := next((other for other in datasets if other.label_names != first.label_names), None):
        raise LabelError(
            f"{first.name} and {other.name} have different labels: {', '.join(first.label_names)}; "
            f"{', '.join(other.label_names)}. Give both the same by with_labels."
        )
    soft = any(dataset.distributions is not None for dataset in datasets)
    named = all(dataset.persons is not None for dataset in datasets)
    starts = accumulate(map(len, datasets), initial=0)
    joined = FaceDataset(
        _Joined(datasets),
        [label for dataset in datasets for label in dataset.labels],
        first.label_names,
        name=" + ".join(dict.fromkeys(dataset.name for dataset in datasets)),
        split=" + ".join(dict.fromkeys(dataset.split for dataset in datasets)),
        distributions=torch.cat([_distributions(dataset) for dataset in datasets]) if soft else None,
        persons=[f"{d.name}:{person}" for d in datasets for person in d.persons or ()] if named else None,
        written={
            start + i: dataset.written_label(i)
            for start, dataset in zip(starts, datasets, strict=False)
            for i, label in enumerate(dataset.labels)
            if label == NO_LABEL
        },
    )
    return joined.with_transform(first.transform, any(dataset.soft_targets for dataset in datasets))


def _distributions(dataset: FaceDataset) -> Tensor:
    """Return a dataset's distributions (N, classes), or those that its labels stand for."""
    if dataset.distributions is not None:
        return dataset.distributions
    labels = torch.as_tensor(dataset.labels, dtype=torch.long)
    rows = F.one_hot(labels.clamp(min=0), len(dataset.label_names)).float()
    return rows * (labels != NO_LABEL).unsqueeze(1)
