"""How good the answers are: accuracy by several measures, how sure they are, and two models side by side.

>>> from poster_zoo.evaluate import evaluate
>>> evaluate(["Fear", "Anger"], ["Fear", "Fear"], ["Anger", "Fear"]).accuracy
0.5

All numbers are counts and sums over a few arrays, which numpy does in a line each. scipy and torchmetrics, whose
answers the tests compare, would add a hundred megabytes and take nothing off a reader.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from poster_zoo.data.check import check_dataset
from poster_zoo.data.datasets import NO_LABEL
from poster_zoo.errors import ImageError, LabelError, WeightsError
from poster_zoo.labels import canonical_label, match_labels
from poster_zoo.predict import Prediction, Predictor, join_processes
from poster_zoo.progress import is_drawn, progress_bar

if TYPE_CHECKING:
    from accelerate import PartialState

    from poster_zoo.data.datasets import FaceDataset

__all__ = [
    "Answers",
    "Calibration",
    "CalibrationBin",
    "ClassScores",
    "Comparison",
    "Evaluation",
    "Intervals",
    "Sureness",
    "answer_dataset",
    "compare",
    "evaluate",
    "evaluate_model",
    "mcnemar",
]

Counts: TypeAlias = NDArray[np.int64]
Places: TypeAlias = NDArray[np.int64]
Numbers: TypeAlias = NDArray[np.float64]

_RESAMPLES = 2000
_TAILS = (0.025, 0.975)
_Z = 1.959963984540054  # the normal distribution's quantile of the upper tail
_BINS = 15  # as Guo et al. have it


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


Interval: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Where each number would lie for 95 of 100 other samples of images of the same kind: low and high, in 0…1.

    The first three are the middle 95 % of 2,000 bootstrap resamples of the images (Efron 1979), always with the same
    random numbers. A class's recall has Wilson's score interval (1927) instead: of a class with ten images, all
    answered rightly, every resample would say 1.

    Attributes:
        accuracy: Of the accuracy.
        mean_class_accuracy: Of the mean recall of the classes that a resample holds.
        macro_f1: Of the mean F1 of these classes.
        recall: Of each class's recall, by name; None for a class without images.
    """

    accuracy: Interval
    mean_class_accuracy: Interval
    macro_f1: Interval
    recall: dict[str, Interval | None]


@dataclass(frozen=True)
class Sureness:
    """How sure some answers are, and how often right.

    Attributes:
        answers: Number of them.
        mean_score: Their mean score, or None where there are none.
        accuracy: Share of them that are right, or None where there are none.
    """

    answers: int
    mean_score: float | None
    accuracy: float | None


@dataclass(frozen=True)
class CalibrationBin(Sureness):
    """The answers whose score lies above `low` and not above `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Calibration:
    """Whether answers with a score of 0.9 are right nine times in ten.

    Attributes:
        bins: All answers, by their scores.
        by_class: All answers, by the class they name; `accuracy` is that class's precision.
    """

    bins: tuple[CalibrationBin, ...]
    by_class: dict[str, Sureness]


@dataclass(frozen=True)
class Evaluation:
    """Predicted beside true labels.

    Attributes:
        images: Number of images.
        labels: The classes, in the order of the rows and columns below.
        accuracy: Share of the images that were answered rightly, in 0…1.
        mean_class_accuracy: Mean recall of the classes that have images, in 0…1.
        classes_with_images: Number of those classes.
        macro_f1: Mean F1 of those classes, in 0…1.
        per_class: The scores of each class, by name.
        confusion_matrix: Counts: a row is a true class, a column a predicted one.
        confusion_rates: The rows of counts divided by their sums; None throughout for a class without images.
        intervals: How far chance in the choice of the images reaches.
        expected_calibration_error: Mean distance of score and accuracy over the bins, each weighing as many as its
            answers (Guo et al. 2017, arXiv:1706.04599), in 0…1; None where the scores are not known.
        calibration: What it is the mean of; None where the scores are not known.
        images_per_second: From file to answer; None where the answers were given.
    """

    images: int
    labels: tuple[str, ...]
    accuracy: float
    mean_class_accuracy: float
    classes_with_images: int
    macro_f1: float
    per_class: dict[str, ClassScores]
    confusion_matrix: tuple[tuple[int, ...], ...]
    confusion_rates: tuple[tuple[float | None, ...], ...]
    intervals: Intervals
    expected_calibration_error: float | None = None
    calibration: Calibration | None = None
    images_per_second: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, tuples and numbers, ready for JSON."""
        return asdict(self)


def evaluate(
    true: Sequence[str], predicted: Sequence[str], labels: Sequence[str], scores: ArrayLike | None = None
) -> Evaluation:
    """Compare predicted with true labels.

    Args:
        true: The label of each image; as everywhere, names match without regard to case, and `Happy` is `Happiness`.
        predicted: The answer for each image.
        labels: All classes, in the order wanted.
        scores: The probability that each answer was given, in 0…1, where calibration is wanted.

    Raises:
        LabelError: no images, another number of answers than of images, or a name that is none of `labels`.
    """
    if len(true) != len(predicted):
        raise LabelError(f"There are {len(true)} true and {len(predicted)} predicted labels; each image needs both.")
    if not true:
        raise LabelError("There are no labelled images to evaluate; give at least one true and one predicted label.")
    rows, columns = (np.asarray(match_labels(names, labels)) for names in (true, predicted))
    return _evaluate(rows, columns, labels, None if scores is None else np.asarray(scores, dtype=np.float64))


def _evaluate(true: Counts, predicted: Counts, labels: Sequence[str], scores: Numbers | None) -> Evaluation:
    """Compare places in `labels`; at least one."""
    matrix = _count(true, predicted, len(labels))
    images, answers, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    means = _means(matrix)
    calibration = None if scores is None else _calibration(true, predicted, labels, scores)
    return Evaluation(
        images=len(true),
        labels=tuple(labels),
        accuracy=float(means[0]),
        mean_class_accuracy=float(means[1]),
        classes_with_images=int((images > 0).sum()),
        macro_f1=float(means[2]),
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
        intervals=_intervals(matrix, labels),
        expected_calibration_error=None if calibration is None else _calibration_error(calibration.bins),
        calibration=calibration,
    )


def _count(true: Counts, predicted: Counts, classes: int) -> Counts:
    """Return how often each pair occurs: (classes, classes), rows true, columns predicted."""
    matrix = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(matrix, (true, predicted), 1)
    return matrix


def _ratio(part: np.integer[Any] | np.floating[Any], whole: np.int64) -> float | None:
    return float(part / whole) if whole else None


def _means(matrices: Counts) -> Numbers:
    """Return accuracy, mean class accuracy and macro F1 (3, …) of matrices (…, classes, classes).

    The two means are over the classes that have images.
    """
    images, answers = matrices.sum(axis=-1), matrices.sum(axis=-2)
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    present = images > 0
    recall, f1 = right / np.maximum(images, 1), 2 * right / np.maximum(images + answers, 1)
    return np.stack(
        [
            right.sum(axis=-1) / images.sum(axis=-1),
            np.where(present, recall, 0).sum(axis=-1) / present.sum(axis=-1),
            np.where(present, f1, 0).sum(axis=-1) / present.sum(axis=-1),
        ]
    )


def _intervals(matrix: Counts, labels: Sequence[str]) -> Intervals:
    # Images drawn with replacement: how often each cell is hit is multinomial, and no measure asks for more.
    images = int(matrix.sum())
    draws = np.random.default_rng(0).multinomial(images, matrix.ravel() / images, size=_RESAMPLES)
    quantiles = np.quantile(_means(draws.reshape(-1, *matrix.shape)), _TAILS, axis=-1)
    accuracy, mean_class_accuracy, macro_f1 = ((low, high) for low, high in quantiles.T.tolist())
    rows = zip(labels, matrix.diagonal().tolist(), matrix.sum(axis=1).tolist(), strict=True)
    recall = {label: _wilson(right, count) for label, right, count in rows}
    return Intervals(accuracy, mean_class_accuracy, macro_f1, recall)


def _wilson(hits: int, count: int) -> Interval | None:
    if not count:
        return None
    share, z2 = hits / count, _Z**2
    middle = share + z2 / (2 * count)
    reach = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    low, high = ((middle - reach) / (1 + z2 / count), (middle + reach) / (1 + z2 / count))
    return max(0.0, low), min(1.0, high)


def _calibration(true: Counts, predicted: Counts, labels: Sequence[str], scores: Numbers) -> Calibration:
    right = true == predicted
    edges = np.linspace(0, 1, _BINS + 1)
    bins = np.digitize(scores, edges[1:-1], right=True)
    return Calibration(
        bins=tuple(
            CalibrationBin(**vars(_sureness(right[bins == i], scores[bins == i])), low=float(low), high=float(high))
            for i, (low, high) in enumerate(pairwise(edges))
        ),
        by_class={label: _sureness(right[predicted == i], scores[predicted == i]) for i, label in enumerate(labels)},
    )


def _sureness(right: NDArray[np.bool_], scores: Numbers) -> Sureness:
    return Sureness(len(right), float(scores.mean()), float(right.mean())) if len(right) else Sureness(0, None, None)


def _calibration_error(bins: Sequence[CalibrationBin]) -> float:
    gaps = (
        b.answers * abs(b.mean_score - b.accuracy) for b in bins if b.mean_score is not None and b.accuracy is not None
    )
    return sum(gaps) / sum(b.answers for b in bins)


# --- a model on a dataset


@dataclass(frozen=True)
class Answers:
    """What a model answered about a dataset.

    Attributes:
        dataset: The images and their labels.
        labels: The model's classes, joined by any that only the data has.
        only_data: Those that only the data has; their images can only be answered wrongly.
        places: (N,) the places in the dataset of the images that could be used, rising.
        true: (N,) the places of their true labels in `labels`.
        predicted: (N,) the places of the answers in `labels`.
        scores: (N,) the answers' probabilities among the model's classes, in 0…1.
        bad: For each place that was left out, why.
        images_per_second: From file to answer, the images that were left out included.
    """

    dataset: FaceDataset
    labels: tuple[str, ...]
    only_data: tuple[str, ...]
    places: Places
    true: Places
    predicted: Places
    scores: Numbers
    bad: dict[int, str]
    images_per_second: float

    @cached_property
    def evaluation(self) -> Evaluation:
        """The answers beside the true labels."""
        evaluation = _evaluate(self.true, self.predicted, self.labels, self.scores)
        return replace(evaluation, images_per_second=self.images_per_second)

    def mistakes(self) -> Places:
        """Return where in `places` the wrong answers are, the surest first."""
        wrong = np.flatnonzero(self.true != self.predicted)
        return wrong[np.argsort(-self.scores[wrong], kind="stable")]

    def among(self, labels: Sequence[str]) -> Answers:
        """Return the same answers, counted among other classes, which hold all of these."""
        places = np.asarray(match_labels(self.labels, labels))
        return replace(self, labels=tuple(labels), true=places[self.true], predicted=places[self.predicted])


def evaluate_model(
    model: str | nn.Module,
    dataset: FaceDataset,
    *,
    device: str | torch.device | None = None,
    flip: bool = False,
    skip_bad: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> Evaluation:
    """Measure a model on a dataset.

    Args:
        model: Name of a model, whose weights are loaded, or a model. One of the zoo stays as it is, and a faster copy
            of it answers; another one is put into eval mode.
        dataset: Labelled faces; they are read as they are, through the model's own transform for evaluation.
        device: As for `Predictor`; where there are several processes, by default a GPU for each, if there are GPUs.
        flip: As for `answer_dataset`.
        skip_bad: As for `answer_dataset`.
        progress: As for `answer_dataset`.
        **options: Further arguments of `Predictor`: `batch_size`, `dtype`, `labels`, `num_workers`; and `optimize`,
            by default True here.

    Raises:
        As `answer_dataset` and `Predictor`.
    """
    processes = join_processes(device)
    if processes is not None and ":" not in str(device or ""):  # "cuda" is the same GPU for all of them
        device = processes.device
    predictor = Predictor(model, device=device, **{"optimize": True, **options})
    return answer_dataset(predictor, dataset, flip=flip, skip_bad=skip_bad, progress=progress).evaluation


def answer_dataset(
    predictor: Predictor,
    dataset: FaceDataset,
    *,
    flip: bool = False,
    skip_bad: bool = False,
    progress: bool | None = None,
) -> Answers:
    """Ask a model about each image of a dataset, once.

    Where `accelerate launch` or torchrun started several processes, each takes every so many-th batch, and all return
    all answers. The batches are those that one process alone would cut, and so the answers are the same.

    Args:
        predictor: The model.
        dataset: Labelled faces.
        flip: Answer by the mean of the probabilities of each image and of its mirror image.
        skip_bad: Leave out images that cannot be read, and labels that stand for no class.
        progress: Whether to draw a progress bar on stderr; by default where stderr is a terminal and it takes long.

    Raises:
        FaultyDataError: Images cannot be read or labels stand for no class, and `skip_bad` is false.
        LabelError: The model gives no classes, or no image is left.
        WeightsError: The model's answer is not a number.
        MissingExtraError, OptionError: As `join_processes`.
    """
    predictor = copy.copy(predictor)
    predictor.progress = False  # it would not know how many images there are
    if flip:
        predictor.model = _WithMirrorImage(predictor.model)
    processes = join_processes(predictor.device)
    if processes is not None and not processes.is_main_process:
        progress = False
    labels, only_data = _joined(predictor.labels, dataset.label_names)
    places, bad = _labelled(dataset, skip_bad)
    start = time.perf_counter()
    part = _answered(predictor, dataset, _share(places, predictor.batch_size, processes), skip_bad, progress)
    whole = _gathered(part, processes)
    seconds = time.perf_counter() - start
    if not len(whole.places):
        raise LabelError(f"No image of {dataset.name} {dataset.split} can be used; there is nothing to measure.")
    rows = np.asarray(match_labels(dataset.label_names, labels))
    return Answers(
        dataset=dataset,
        labels=labels,
        only_data=only_data,
        places=whole.places,
        true=rows[np.asarray(dataset.labels)[whole.places]],
        predicted=whole.predicted,
        scores=whole.scores,
        bad=dict(sorted((bad | whole.bad).items())),
        images_per_second=len(places) / seconds,
    )


def _joined(labels: Sequence[str], others: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labels joined by those of the others that mean none of them, and the latter alone."""
    known = {canonical_label(label) for label in labels}
    new = tuple(label for label in others if canonical_label(label) not in known)
    return (*labels, *new), new


def _labelled(dataset: FaceDataset, skip_bad: bool) -> tuple[Places, dict[int, str]]:
    """Return the places of the images that have a label, and why the others have none."""
    labels = np.asarray(dataset.labels)
    nowhere = np.flatnonzero(labels == NO_LABEL).tolist()
    if nowhere and not skip_bad:
        check_dataset(dataset).require()
    reasons = {place: f"Its label {dataset.written_label(place)!r} stands for no class." for place in nowhere}
    return np.flatnonzero(labels != NO_LABEL), reasons


def _share(places: Places, batch_size: int, processes: PartialState | None) -> Places:
    """Return what this process answers: every so many-th batch, so that batches are those of a single process."""
    if processes is None:
        return places
    batches = np.arange(len(places)) // batch_size
    return places[batches % processes.num_processes == processes.process_index]


@dataclass(frozen=True)
class _Part:
    """The answers of one process, or of all: as in `Answers`, and why there is none for the other places."""

    places: Places
    predicted: Places
    scores: Numbers
    bad: dict[int, str]


def _answered(
    predictor: Predictor, dataset: FaceDataset, places: Places, skip_bad: bool, progress: bool | None
) -> _Part:
    position = {label: i for i, label in enumerate(predictor.labels)}
    predicted, scores = np.full(len(places), -1), np.zeros(len(places))
    bad: dict[int, str] = {}
    answers = predictor.stream_named((dataset.source(place), _bytes(dataset, place)) for place in map(int, places))
    for i, answer in enumerate(_with_bar(answers, len(places), progress)):
        if answer.error is None:
            predicted[i], scores[i] = position[str(answer.label)], answer.score
            continue
        bad[int(places[i])] = reason = _reason(dataset, int(places[i]), answer.error)
        if not skip_bad:
            check_dataset(dataset).require()  # names not just this one
            raise ImageError(reason)
    used = predicted >= 0
    return _Part(places[used], predicted[used], scores[used], bad)


def _bytes(dataset: FaceDataset, place: int) -> bytes:
    """Return an image's file, or nothing where it cannot be had: that is no image either, and `_reason` tells more."""
    try:
        return dataset.read(place)
    except ImageError:
        return b""


def _reason(dataset: FaceDataset, place: int, error: str) -> str:
    """Return why an image cannot be read; it is read once more, as where that works the model is to blame."""
    try:
        dataset.image(place)
    except ImageError as reason:
        return str(reason)
    raise WeightsError(error)


def _with_bar(answers: Iterable[Prediction], total: int, progress: bool | None) -> Iterable[Prediction]:
    """Return the same answers, with a progress bar on stderr; there is none by itself where nobody would see it."""
    return progress_bar(total, progress, iterable=answers, leave=False) if is_drawn(progress) else answers


def _gathered(part: _Part, processes: PartialState | None) -> _Part:
    """Return the answers of all processes, in the order of the dataset."""
    if processes is None:
        return part
    from accelerate.utils import gather_object

    parts: list[_Part] = gather_object([part])
    places, predicted, scores = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("places", "predicted", "scores")
    )
    order = np.argsort(places)
    bad = {place: reason for part in parts for place, reason in part.bad.items()}
    return _Part(places[order], predicted[order], scores[order], bad)


class _WithMirrorImage(nn.Module):
    """A model whose answer is the mean of its probabilities for each image and for its mirror image, as logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        both = [self.model(image).float().softmax(1) for image in (x, x.flip(-1))]
        return torch.stack(both).mean(0).log()


# --- two models on one dataset


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images.

    Attributes:
        first: What the first one answered.
        second: What the second one answered, counted among the same classes.
        both_right: Number of images that both answered rightly.
        only_first_right: That the first one alone did.
        only_second_right: That the second one alone did.
        both_wrong: That neither did.
        accuracy_difference: The first one's accuracy less the second one's.
        p_value: Of McNemar's exact test.
    """

    first: Evaluation
    second: Evaluation
    both_right: int
    only_first_right: int
    only_second_right: int
    both_wrong: int
    accuracy_difference: float
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, tuples and numbers, ready for JSON."""
        return asdict(self)


def compare(first: Answers, second: Answers) -> Comparison:
    """Put the answers of two models about the same images side by side.

    Raises:
        LabelError: The images are not the same.
    """
    if first.dataset is not second.dataset or not np.array_equal(first.places, second.places):
        raise LabelError("Two models are compared on the same images; ask both about the same dataset.")
    labels, _ = _joined(first.labels, second.labels)
    first, second = first.among(labels), second.among(labels)
    a, b = (answers.predicted == answers.true for answers in (first, second))
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    return Comparison(
        first=first.evaluation,
        second=second.evaluation,
        both_right=int((a & b).sum()),
        only_first_right=only_first,
        only_second_right=only_second,
        both_wrong=int((~a & ~b).sum()),
        accuracy_difference=(only_first - only_second) / len(a),
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test (1947), two-sided.

    It is how often chance alone would part the images on which just one of two models is right at least so unevenly,
    were both equally good: the two tails of a binomial distribution of one half.

    Args:
        only_first: Number of images that the first model alone answered rightly.
        only_second: Number of images that the second model alone answered rightly.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    term = tail = math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
    while k and term > 1e-17 * tail:  # the terms fall, and further ones would change no digit
        term *= k / (n - k + 1)
        tail += term
        k -= 1
    return min(1.0, 2 * tail)
