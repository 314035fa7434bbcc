"""Published numbers beside measured ones.

What authors print about weights that the zoo has a place for stands in the entries of these. Here is the rest: results
of others that the study on POSTER compares with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from poster_zoo.data.datasets import Benchmark
from poster_zoo.evaluate import Evaluation
from poster_zoo.labels import canonical_label
from poster_zoo.models._builder import ENTRIES, weights_name

__all__ = ["OTHERS", "Beside", "Published", "beside_published"]


@dataclass(frozen=True)
class Published:
    """One published number.

    Attributes:
        by: Whose it is.
        metric: The quantity: "accuracy", "mean class accuracy", "recall of CLASS".
        value: In 0…1.
    """

    by: str
    metric: str
    value: float


_STUDY = "POSTER, in the study's Table 1"

OTHERS: Mapping[str, tuple[Published, ...]] = {
    "RAF-DB test": (
        Published("POSTER, the study's own run", "accuracy", 0.9201),
        Published("TransFER", "accuracy", 0.9091),
        Published("ARM", "mean class accuracy", 0.8277),
        Published("POSTER", "recall of Surprise", 0.92),
        Published("POSTER", "recall of Happiness", 0.97),
        # The study's, not the paper's: these do not average to the paper's mean class accuracy.
        Published(_STUDY, "recall of Disgust", 0.98),
        Published(_STUDY, "recall of Sadness", 0.96),
        Published(_STUDY, "recall of Anger", 0.89),
        Published(_STUDY, "recall of Neutral", 0.90),
    ),
    "FERPlus test": (
        Published("VGG-13 (Barsoum et al. 2016)", "accuracy", 0.850),
        Published("RAN", "accuracy", 0.892),
        Published("SCN", "accuracy", 0.894),
        Published("TransFER", "accuracy", 0.908),
    ),
}
"""What is published beside the zoo's own weights, by the benchmark's name."""


@dataclass(frozen=True)
class Beside:
    """A published number and the measured one.

    Attributes:
        by: Whose the published one is.
        this_model: Whether it is about the model that was measured. (Its weights may still be others.)
        dataset: What it was measured on, "RAF-DB test".
        dataset_images: How many images that has, None where that is not known. Where another number was measured on, it
            was not that data.
        metric: The quantity.
        published: In 0…1.
        measured: In 0…1, or None where the data has no image of that class.
        difference: `measured` less `published`, or None.
    """

    by: str
    this_model: bool
    dataset: str
    dataset_images: int | None
    metric: str
    published: float
    measured: float | None
    difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self)


def beside_published(evaluation: Evaluation, architecture: str, benchmark: Benchmark | None) -> list[Beside]:
    """Return what is published about a benchmark beside what was measured on it, this model's numbers first.

    Args:
        evaluation: What was measured.
        architecture: The model's name in the zoo, or another.
        benchmark: What the data is, or lies on disk as; None for data about which nothing is published.
    """
    if benchmark is None:
        return []
    own = weights_name(architecture) if architecture in ENTRIES else architecture
    rows = [*_in_entries(benchmark.name), *(("", number) for number in OTHERS.get(benchmark.name, ()))]
    rows.sort(key=lambda row: row[0] != own)
    return [_beside(number, benchmark, evaluation, weights == own) for weights, number in rows]


def _in_entries(dataset: str) -> Iterator[tuple[str, Published]]:
    """Yield the entries' numbers about a data set, each with the name of the weights; several factories share some."""
    seen: set[str] = set()
    for factory, entry in ENTRIES.items():
        weights = weights_name(factory)
        if weights in seen:
            continue
        seen.add(weights)
        for metric in entry.metrics:
            if metric.dataset != dataset:
                continue
            if metric.published is not None:
                yield weights, Published((entry.paper_name or factory).partition(":")[0], metric.name, metric.published)
            elif metric.measured is not None:
                yield weights, Published(f"{weights}, in its entry", metric.name, metric.measured)


def _beside(number: Published, benchmark: Benchmark, evaluation: Evaluation, this_model: bool) -> Beside:
    measured = _measured(evaluation, number.metric)
    return Beside(
        by=number.by,
        this_model=this_model,
        dataset=benchmark.name,
        dataset_images=benchmark.images,
        metric=number.metric,
        published=number.value,
        measured=measured,
        difference=None if measured is None else measured - number.value,
    )


def _measured(evaluation: Evaluation, metric: str) -> float | None:
    known = {"accuracy": evaluation.accuracy, "mean class accuracy": evaluation.mean_class_accuracy}
    if metric in known:
        return known[metric]
    name = canonical_label(metric.removeprefix("recall of "))
    return next((s.recall for label, s in evaluation.per_class.items() if canonical_label(label) == name), None)
