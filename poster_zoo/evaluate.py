"""How good the answers are: accuracy, mean class accuracy, per-class scores and the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poster_zoo.errors import LabelError
from poster_zoo.labels import match_labels

__all__ = ["ClassScores", "Evaluation", "evaluate"]


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class, each in 0…1, or None where there is nothing to divide by.

    Attributes:
        recall: Share of the class's images that were answered so; None for a class without images.
        precision: Share of these answers that are right; None where the class was never the answer.
        f1: Harmonic mean of the two; None where the class has no images and was never the answer.
        count: Number of the class's images.
    """

    recall: float | None
    precision: float | None
    f1: float | None
    count: int


@dataclass(frozen=True)
class Evaluation:
    """Predicted beside true labels.

    Attributes:
        images: Number of images.
        labels: The classes, in the order of the rows and columns below.
        accuracy: Share of the images that were answered rightly, in 0…1.
        mean_class_accuracy: Mean recall of the classes that have images, in 0…1.
        classes_with_images: Number of those classes.
        per_class: The scores of each class, by name.
        confusion_matrix: Counts: a row is a true class, a column a predicted one.
        confusion_rates: The rows of counts divided by their sums; None throughout for a class without images.
    """

    images: int
    labels: tuple[str, ...]
    accuracy: float
    mean_class_accuracy: float
    classes_with_images: int
    per_class: dict[str, ClassScores]
    confusion_matrix: tuple[tuple[int, ...], ...]
    confusion_rates: tuple[tuple[float | None, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, tuples and numbers, ready for JSON."""
        return asdict(self)


def evaluate(true: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> Evaluation:
    """Compare predicted with true labels.

    Args:
        true: The label of each image; as everywhere, names match without regard to case, and `Happy` is `Happiness`.
        predicted: The answer for each image.
        labels: All classes, in the order wanted.

    Raises:
        LabelError: no images, another number of answers than of images, or a name that is none of `labels`.
    """
    if len(true) != len(predicted):
        raise LabelError(f"There are {len(true)} true and {len(predicted)} predicted labels; each image needs both.")
    if not true:
        raise LabelError("There are no labelled images to evaluate; give at least one true and one predicted label.")
    matrix = _count(match_labels(true, labels), match_labels(predicted, labels), len(labels))
    images, answers, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    present = images > 0
    return Evaluation(
        images=len(true),
        labels=tuple(labels),
        accuracy=float(right.sum() / images.sum()),
        mean_class_accuracy=float((right[present] / images[present]).mean()),
        classes_with_images=int(present.sum()),
        per_class={
            label: ClassScores(
                recall=_ratio(right[i], images[i]),
                precision=_ratio(right[i], answers[i]),
                f1=_ratio(2 * right[i], images[i] + answers[i]),
                count=int(images[i]),
            )
            for i, label in enumerate(labels)
        },
        confusion_matrix=tuple(tuple(row) for row in matrix.tolist()),
        confusion_rates=tuple(
            tuple(_ratio(count, total) for count in row) for row, total in zip(matrix, images, strict=True)
        ),
    )


def _count(true: Sequence[int], predicted: Sequence[int], classes: int) -> NDArray[np.int64]:
    """Return how often each pair occurs: (classes, classes), rows true, columns predicted."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (np.asarray(true), np.asarray(predicted)), 1)
    return matrix


def _ratio(part: np.int64, whole: np.int64) -> float | None:
    return float(part / whole) if whole else None
