"""Scores, held against scikit-learn's and scipy's and against sums done by hand; and models asked about datasets."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn import metrics
from torch import Tensor, nn

from poster_zoo import Predictor
from poster_zoo.data.datasets import NO_LABEL, Benchmark, FaceDataset
from poster_zoo.data.datasets.files import Files
from poster_zoo.errors import FaultyDataError, LabelError, WeightsError
from poster_zoo.evaluate import Answers, ClassScores, answer_dataset, compare, evaluate, evaluate_model, mcnemar
from poster_zoo.labels import FERPLUS, RAFDB
from poster_zoo.published import beside_published


@pytest.fixture(params=[(RAFDB, 0), (FERPLUS, 1), (FERPLUS, 2)], ids=["rafdb", "ferplus", "ferplus-again"])
def answers(request: pytest.FixtureRequest) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Random answers, in which the last class has no images and the first is never the answer."""
    labels, seed = request.param
    random = np.random.default_rng(seed)
    true = random.choice(labels[:-1], 400).tolist()
    guesses = random.choice(labels[1:], 400).tolist()
    right = random.random(400) < 0.6
    kept = [ok and name != labels[0] for name, ok in zip(true, right, strict=True)]
    predicted = [name if keep else guess for name, keep, guess in zip(true, kept, guesses, strict=True)]
    return true, predicted, labels


def close(value: float | None, expected: float) -> bool:
    """Whether two numbers agree, None standing where scikit-learn has no number."""
    return math.isnan(expected) if value is None else math.isclose(value, expected, abs_tol=1e-12)


def test_accuracies_agree_with_scikit_learn(answers: tuple[list[str], list[str], tuple[str, ...]]) -> None:
    true, predicted, labels = answers
    evaluation = evaluate(true, predicted, labels)
    assert evaluation.images == 400
    assert close(evaluation.accuracy, metrics.accuracy_score(true, predicted))
    present = sorted(set(true))
    recall = metrics.recall_score(true, predicted, labels=present, average="macro")
    assert close(evaluation.mean_class_accuracy, recall)
    assert evaluation.classes_with_images == len(present)


def test_each_class_agrees_with_scikit_learn(answers: tuple[list[str], list[str], tuple[str, ...]]) -> None:
    true, predicted, labels = answers
    evaluation = evaluate(true, predicted, labels)
    expected = metrics.precision_recall_fscore_support(true, predicted, labels=list(labels), zero_division=np.nan)
    assert list(evaluation.per_class) == list(labels)
    for label, precision, recall, f1, count in zip(labels, *expected, strict=True):
        scores = evaluation.per_class[label]
        assert close(scores.precision, precision)
        assert close(scores.recall, recall)
        assert close(scores.f1, f1)
        assert scores.count == count


def test_the_confusion_matrix_agrees_with_scikit_learn(answers: tuple[list[str], list[str], tuple[str, ...]]) -> None:
    true, predicted, labels = answers
    evaluation = evaluate(true, predicted, labels)
    expected = metrics.confusion_matrix(true, predicted, labels=list(labels))
    assert np.array_equal(evaluation.confusion_matrix, expected)
    rates = metrics.confusion_matrix(true, predicted, labels=list(labels), normalize="true")
    assert np.allclose(np.array(evaluation.confusion_rates[:-1], dtype=float), rates[:-1])
    assert evaluation.confusion_rates[-1] == (None,) * len(labels)


def test_macro_f1_is_scikit_learns_over_the_classes_that_have_images(
    answers: tuple[list[str], list[str], tuple[str, ...]],
) -> None:
    true, predicted, labels = answers
    expected = metrics.f1_score(true, predicted, labels=sorted(set(true)), average="macro")
    assert close(evaluate(true, predicted, labels).macro_f1, expected)


def test_rows_are_true_and_columns_predicted_in_the_order_given() -> None:
    evaluation = evaluate(["a", "a", "a", "b"], ["a", "b", "b", "b"], ["b", "a", "c"])
    assert evaluation.confusion_matrix == ((1, 0, 0), (2, 1, 0), (0, 0, 0))
    assert evaluation.accuracy == 0.5
    assert evaluation.mean_class_accuracy == pytest.approx((1 + 1 / 3) / 2)
    assert evaluation.classes_with_images == 2


def test_an_answer_outside_the_datas_classes_counts_as_wrong() -> None:
    evaluation = evaluate(["a", "a"], ["a", "c"], ["a", "b", "c"])
    assert evaluation.accuracy == 0.5
    assert evaluation.mean_class_accuracy == 0.5
    assert evaluation.per_class["c"] == ClassScores(recall=None, precision=0.0, f1=0.0, count=0)


def test_names_match_without_regard_to_spelling() -> None:
    assert evaluate(["happy", "SAD"], ["Happiness", "Sadness"], FERPLUS).accuracy == 1.0


def test_an_unknown_label_is_refused_with_both_lists() -> None:
    with pytest.raises(LabelError, match=r"bored.*Surprise, Fear"):
        evaluate(["bored"], ["Fear"], RAFDB)


def test_no_images_and_uneven_lists_are_refused() -> None:
    with pytest.raises(LabelError, match="no labelled images"):
        evaluate([], [], RAFDB)
    with pytest.raises(LabelError, match="2 true and 1 predicted"):
        evaluate(["Fear", "Fear"], ["Fear"], RAFDB)


def test_the_result_survives_json() -> None:
    evaluation = evaluate(["Fear"], ["Fear"], RAFDB)
    read = json.loads(json.dumps(evaluation.to_dict()))
    assert read["confusion_matrix"][1] == [0, 1, 0, 0, 0, 0, 0]
    assert read["confusion_rates"][0] == [None] * 7
    assert read["per_class"]["Fear"] == {"recall": 1.0, "precision": 1.0, "f1": 1.0, "count": 1}
    assert read["labels"] == list(RAFDB)


# --- how far chance reaches


def drawn(n: int, accuracy: float, seed: int = 0) -> tuple[list[str], list[str]]:
    """Return random true labels among RAF-DB's, common and rare ones, and answers of about that accuracy."""
    random = np.random.default_rng(seed)
    true = random.choice(RAFDB, n, p=[0.4, 0.05, 0.05, 0.3, 0.1, 0.05, 0.05])
    predicted = np.where(random.random(n) < accuracy, true, random.choice(RAFDB, n))
    return true.tolist(), predicted.tolist()


def test_the_interval_of_accuracy_is_that_of_the_binomial_distribution() -> None:
    # Resampling N images of which a share p is right gives Binomial(N, p) / N, whose quantiles are known.
    n = 1000
    evaluation = evaluate(*drawn(n, 0.8), RAFDB)
    expected = stats.binom.ppf([0.025, 0.975], n, evaluation.accuracy) / n
    # With 2,000 draws a quantile is known to about a tenth of the standard deviation, here 0.012.
    assert evaluation.intervals.accuracy == pytest.approx(expected, abs=0.0025)


@pytest.mark.parametrize("measure", ["mean_class_accuracy", "macro_f1"])
def test_the_intervals_of_means_are_those_of_scipys_bootstrap_of_the_images(measure: str) -> None:
    true, predicted = drawn(600, 0.7)
    rows, columns = (np.array([RAFDB.index(name) for name in names]) for names in (true, predicted))

    def sample(rows: np.ndarray, columns: np.ndarray) -> float:
        if measure == "macro_f1":
            return float(metrics.f1_score(rows, columns, labels=np.unique(rows), average="macro"))
        return float(metrics.recall_score(rows, columns, labels=np.unique(rows), average="macro"))

    expected = stats.bootstrap(
        (rows, columns), sample, n_resamples=500, paired=True, vectorized=False, method="percentile", rng=1
    )
    interval = getattr(evaluate(true, predicted, RAFDB).intervals, measure)
    assert interval == pytest.approx(tuple(expected.confidence_interval), abs=0.2 * expected.standard_error)


def test_the_intervals_of_recalls_are_wilsons() -> None:
    true, predicted = drawn(300, 0.9)
    true.append("Fear")
    predicted.append("Fear")
    evaluation = evaluate(true, predicted, [*RAFDB, "Contempt"])
    for label, scores in evaluation.per_class.items():
        interval = evaluation.intervals.recall[label]
        if not scores.count:
            assert interval is None
            continue
        assert scores.recall is not None
        test = stats.binomtest(round(scores.recall * scores.count), scores.count)
        assert interval == pytest.approx(tuple(test.proportion_ci(method="wilson")), abs=1e-9)


def test_the_interval_of_a_class_that_is_always_right_has_a_width() -> None:
    interval = evaluate(["a"] * 5, ["a"] * 5, ["a", "b"]).intervals.recall["a"]
    assert interval == pytest.approx((5 / (5 + 1.96**2), 1), abs=1e-4)  # Wilson's in closed form, all of n right


def test_the_same_answers_give_the_same_intervals() -> None:
    assert evaluate(*drawn(200, 0.6), RAFDB).intervals == evaluate(*drawn(200, 0.6), RAFDB).intervals


# --- how sure the answers are


def test_the_calibration_error_is_the_one_done_by_hand() -> None:
    # Bins of a fifteenth: 0.95 and 0.98 share the last one; 0.61 and 0.62 the one from 0.6.
    evaluation = evaluate(["a", "a", "a", "b"], ["a", "b", "a", "b"], ["a", "b"], scores=[0.95, 0.98, 0.61, 0.62])
    last, tenth = abs(0.5 - (0.95 + 0.98) / 2), abs(1.0 - (0.61 + 0.62) / 2)
    assert evaluation.expected_calibration_error == pytest.approx((2 * last + 2 * tenth) / 4)
    assert evaluation.calibration is not None
    assert [group.answers for group in evaluation.calibration.bins] == [0] * 9 + [2] + [0] * 4 + [2]
    by_class = evaluation.calibration.by_class
    assert (by_class["a"].answers, by_class["a"].accuracy) == (2, 1.0)
    assert by_class["a"].mean_score == pytest.approx((0.95 + 0.61) / 2)
    assert (by_class["b"].answers, by_class["b"].accuracy) == (2, 0.5)


def test_the_calibration_error_of_many_answers_is_that_of_the_definition() -> None:
    random = np.random.default_rng(0)
    true, predicted = drawn(500, 0.7)
    scores = random.uniform(1 / 7, 1, 500)
    scores[:3] = 1.0, 0.2, 3 / 15  # the end, and edges of bins, which belong to the bin below
    right = np.array([a == b for a, b in zip(true, predicted, strict=True)])
    expected, counts = 0.0, []
    for i in range(15):
        inside = (scores > i / 15) & (scores <= (i + 1) / 15)
        counts.append(inside.sum())
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - scores[inside].mean())
    evaluation = evaluate(true, predicted, RAFDB, scores=scores)
    assert evaluation.expected_calibration_error == pytest.approx(expected, abs=1e-12)
    assert evaluation.calibration is not None
    assert [group.answers for group in evaluation.calibration.bins] == counts
    assert sum(counts) == 500
    for label, sureness in evaluation.calibration.by_class.items():
        assert sureness.accuracy == pytest.approx(evaluation.per_class[label].precision)


def test_a_class_that_was_never_the_answer_has_no_calibration() -> None:
    calibration = evaluate(["a"], ["a"], ["a", "b"], scores=[0.7]).calibration
    assert calibration is not None
    assert vars(calibration.by_class["b"]) == {"answers": 0, "mean_score": None, "accuracy": None}


def test_without_scores_there_is_no_calibration() -> None:
    evaluation = evaluate(["a"], ["a"], ["a", "b"])
    assert evaluation.calibration is None
    assert evaluation.expected_calibration_error is None


# --- two models


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (1, 0), (0, 5), (3, 9), (10, 10), (120, 80), (2000, 2100), (40_000, 40_500)]
)
def test_mcnemars_p_value_is_that_of_the_exact_binomial_test(first: int, second: int) -> None:
    n = first + second
    expected = stats.binomtest(min(first, second), n, 0.5).pvalue if n else 1.0
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(expected, rel=1e-7)


def test_mcnemars_p_value_of_very_many_images_is_not_lost() -> None:
    # The normal distribution's, corrected for continuity, is as good as the exact one there.
    n, k = 4_000_000, 1_997_000
    expected = 2 * stats.norm.cdf((k + 0.5 - n / 2) / math.sqrt(n / 4))
    assert mcnemar(n - k, k) == pytest.approx(expected, rel=1e-3)
    assert mcnemar(10_000, 0) == 0.0  # far below the smallest number there is


# --- a model on a dataset


LEVELS = (20, 120, 220)
"""The grey values that stand for the classes below."""


class ByGrey(nn.Module):
    """Answers by how near an image's mean grey, or that of its left half, is to each class's level.

    Logits are linear in the grey value g: with the slope s, class k has s · (2 g lₖ - lₖ²), which is largest for the
    nearest level.
    """

    levels: Tensor

    def __init__(self, labels: Sequence[str] = ("Sadness", "Neutral", "Happiness"), left: bool = False) -> None:
        super().__init__()
        cfg = {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "nearest"}
        self.pretrained_cfg = cfg | {"label_names": tuple(labels), "crop_pct": 1.0, "architecture": "by_grey"}
        self.num_classes = len(labels)
        self.register_buffer("levels", torch.tensor(LEVELS[: len(labels)]) / 255)
        self.left = left

    def forward(self, x: Tensor) -> Tensor:
        grey = (x[..., : x.shape[-1] // 2] if self.left else x).mean((1, 2, 3))[:, None]
        return 8 * (2 * grey * self.levels - self.levels**2)


Make = Callable[..., FaceDataset]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return what makes a dataset of grey images: each as its grey value, and the place of its label."""

    def made(
        images: Sequence[tuple[int, int]],
        label_names: Sequence[str] = ("Happiness", "Neutral", "Sadness"),
        **facts: Any,
    ) -> FaceDataset:
        names = [f"{i}.png" for i in range(len(images))]
        for name, (grey, _) in zip(names, images, strict=True):
            Image.new("RGB", (10, 10), (grey,) * 3).save(tmp_path / name)
        labels = [label for _, label in images]
        return FaceDataset(Files(tmp_path, names), labels, label_names, name="greys", split="test", **facts)

    return made


# The classes' order in the data is not the model's: Happiness, Neutral, Sadness have the greys 220, 120, 20.
SEVEN = [(220, 0), (20, 2), (120, 1), (220, 1), (120, 1), (20, 0), (20, 2)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_a_model_is_measured_on_each_image_once_whatever_the_batches(make: Make, batch_size: int) -> None:
    evaluation = evaluate_model(ByGrey(), make(SEVEN), batch_size=batch_size)
    assert evaluation.labels == ("Sadness", "Neutral", "Happiness")
    assert evaluation.confusion_matrix == ((2, 0, 0), (0, 2, 1), (1, 0, 1))
    assert evaluation.images == 7
    assert evaluation.accuracy == pytest.approx(5 / 7)
    assert evaluation.mean_class_accuracy == pytest.approx((1 + 2 / 3 + 1 / 2) / 3)
    assert evaluation.images_per_second is not None
    assert evaluation.images_per_second > 0


def test_the_scores_are_the_softmax_over_all_the_models_classes(make: Make) -> None:
    answers = answer_dataset(Predictor(ByGrey()), make(SEVEN))
    levels = np.array(LEVELS) / 255
    for place, (grey, _) in enumerate(SEVEN):
        logits = 8 * (2 * grey / 255 * levels - levels**2)
        probabilities = np.exp(logits) / np.exp(logits).sum()
        assert answers.predicted[place] == probabilities.argmax()
        assert answers.scores[place] == pytest.approx(probabilities.max(), abs=1e-6)


def test_an_answer_outside_the_datas_classes_stays_in_the_matrix_and_is_wrong(make: Make) -> None:
    evaluation = evaluate_model(ByGrey(), make([(220, 0), (20, 0)], label_names=("joy",)))
    assert evaluation.labels == ("Sadness", "Neutral", "Happiness")
    assert evaluation.confusion_matrix == ((0, 0, 0), (0, 0, 0), (1, 0, 1))
    assert (evaluation.accuracy, evaluation.classes_with_images) == (0.5, 1)


def test_a_class_that_only_the_data_has_joins_the_labels_and_its_images_are_wrong(make: Make) -> None:
    dataset = make([(220, 1), (120, 0), (20, 0)], label_names=("Contempt", "happy"))
    answers = answer_dataset(Predictor(ByGrey()), dataset)
    assert answers.labels == ("Sadness", "Neutral", "Happiness", "Contempt")
    assert answers.only_data == ("Contempt",)
    assert answers.evaluation.confusion_matrix == ((0, 0, 0, 0), (0, 0, 0, 0), (0, 0, 1, 0), (1, 1, 0, 0))


def test_with_flip_the_answer_is_that_of_the_mean_probabilities_of_image_and_mirror_image(make: Make) -> None:
    dataset = make([(0, 0)])
    halves = Image.new("RGB", (8, 8), (220, 220, 220))
    halves.paste((110, 110, 110), (4, 0, 8, 8))
    halves.save(dataset.source(0))
    predictor = Predictor(ByGrey(left=True))
    levels = np.array(LEVELS) / 255

    def softmax(grey: float) -> np.ndarray:
        powers = np.exp(8 * (2 * grey / 255 * levels - levels**2))
        return np.asarray(powers / powers.sum())

    plain, flipped = answer_dataset(predictor, dataset), answer_dataset(predictor, dataset, flip=True)
    expected = (softmax(220) + softmax(110)) / 2
    assert plain.scores[0] == pytest.approx(softmax(220).max(), abs=1e-6)
    assert flipped.scores[0] == pytest.approx(expected.max(), abs=1e-6)
    assert flipped.labels[flipped.predicted[0]] == ("Sadness", "Neutral", "Happiness")[int(expected.argmax())]
    assert isinstance(predictor.model, ByGrey)  # what was given is as it was


def test_images_that_cannot_be_read_are_all_named_and_nothing_is_measured(make: Make) -> None:
    dataset = make(SEVEN)
    Path(dataset.source(1)).write_bytes(b"no image")
    os.remove(dataset.source(5))
    with pytest.raises(FaultyDataError) as error:
        evaluate_model(ByGrey(), dataset, batch_size=1)
    assert "1 of 7 images missing" in str(error.value)
    assert "1 of 7 images unreadable" in str(error.value)
    for place in (1, 5):
        assert dataset.source(place) in str(error.value)
    assert "--skip-bad" in str(error.value)


def test_bad_images_can_be_left_out_and_are_named(make: Make) -> None:
    dataset = make([*SEVEN, (20, NO_LABEL)], written={7: "9"})
    Path(dataset.source(1)).write_bytes(b"no image")
    os.remove(dataset.source(5))
    answers = answer_dataset(Predictor(ByGrey(), batch_size=3), dataset, skip_bad=True)
    assert answers.places.tolist() == [0, 2, 3, 4, 6]
    assert answers.evaluation.confusion_matrix == ((1, 0, 0), (0, 2, 1), (0, 0, 1))
    assert list(answers.bad) == [1, 5, 7]
    assert "damaged or no image" in answers.bad[1]
    assert "does not exist" in answers.bad[5]
    assert "'9'" in answers.bad[7]


def test_a_label_that_stands_for_no_class_is_refused(make: Make) -> None:
    with pytest.raises(FaultyDataError, match="1 of 2 images with a label out of range"):
        evaluate_model(ByGrey(), make([(20, 2), (20, NO_LABEL)], written={1: "9"}))


def test_data_without_an_image_that_can_be_used_has_no_scores(make: Make) -> None:
    dataset = make([(20, 0)])
    os.remove(dataset.source(0))
    with pytest.raises(LabelError, match="No image of greys test can be used"):
        evaluate_model(ByGrey(), dataset, skip_bad=True)
    with pytest.raises(LabelError, match="No image of greys test can be used"):
        evaluate_model(ByGrey(), make([]))


def test_answers_that_are_no_numbers_are_the_models_fault_and_never_left_out(make: Make) -> None:
    model = ByGrey()
    model.levels = model.levels * float("nan")
    with pytest.raises(WeightsError, match="not a number"):
        evaluate_model(model, make(SEVEN), skip_bad=True)


def test_mistakes_come_with_the_surest_first(make: Make) -> None:
    answers = answer_dataset(Predictor(ByGrey()), make([(220, 0), (20, 1), (70, 0), (255, 1)]))
    wrong = answers.mistakes()
    assert set(wrong) == {1, 2, 3}
    assert answers.scores[wrong].tolist() == sorted(answers.scores[[1, 2, 3]], reverse=True)


# --- two models on a dataset


def test_two_models_are_compared_image_by_image_among_the_classes_of_both(make: Make) -> None:
    # Right by both: the two images of grey 20. By the first alone: 120 as Neutral. By the second alone, which calls
    # the brightest Surprise: 220 as Surprise.
    dataset = make([(20, 2), (20, 2), (120, 1), (220, 0), (220, 1)], label_names=("Surprise", "Neutral", "Sadness"))
    first = answer_dataset(Predictor(ByGrey()), dataset)
    second = answer_dataset(Predictor(ByGrey(("Sadness", "Fear", "Surprise"))), dataset)
    compared = compare(first, second)
    assert compared.first.labels == compared.second.labels == ("Sadness", "Neutral", "Happiness", "Surprise", "Fear")
    assert (compared.both_right, compared.only_first_right) == (2, 1)
    assert (compared.only_second_right, compared.both_wrong) == (1, 1)
    assert (compared.first.accuracy, compared.second.accuracy) == (0.6, 0.6)
    matrices = compared.first.confusion_matrix, compared.second.confusion_matrix
    absent = (0, 0, 0, 0, 0)
    assert matrices[0] == ((2, 0, 0, 0, 0), (0, 1, 1, 0, 0), absent, (0, 0, 1, 0, 0), absent)
    assert matrices[1] == ((2, 0, 0, 0, 0), (0, 0, 0, 1, 1), absent, (0, 0, 0, 1, 0), absent)
    assert compared.accuracy_difference == 0
    assert compared.p_value == 1.0
    json.dumps(compared.to_dict(), allow_nan=False)


def test_answers_about_different_images_are_not_compared(make: Make) -> None:
    def answers(images: Sequence[tuple[int, int]]) -> Answers:
        return answer_dataset(Predictor(ByGrey()), make(images))

    with pytest.raises(LabelError, match="same images"):
        compare(answers(SEVEN), answers(SEVEN[:3]))


# --- beside published numbers


def published(architecture: str, benchmark: Benchmark | None) -> list[tuple[str, str, float, bool]]:
    evaluation = evaluate(RAFDB, RAFDB, RAFDB)
    found = beside_published(evaluation, architecture, benchmark)
    assert all(number.measured == 1.0 for number in found)
    assert all(number.difference == pytest.approx(1 - number.published) for number in found)
    return [(number.by, number.metric, number.published, number.this_model) for number in found]


def test_the_models_own_published_numbers_come_first_and_then_those_of_others() -> None:
    numbers = published("poster_rafdb", Benchmark("RAF-DB test", 3068))
    assert numbers[:2] == [("POSTER", "accuracy", 0.9205, True), ("POSTER", "mean class accuracy", 0.8603, True)]
    others = numbers[2:]
    assert not any(own for *_, own in others)
    assert ("POSTER++", "accuracy", 0.9221, False) in others
    assert ("TransFER", "accuracy", 0.9091, False) in others
    assert ("ARM", "mean class accuracy", 0.8277, False) in others
    assert ("POSTER, the study's own run", "accuracy", 0.9201, False) in others
    assert len(others) == len(set(others))  # several factories share one set of weights
    assert published("poster", Benchmark("RAF-DB test", 3068)) == numbers


def test_a_model_of_ones_own_has_only_the_others_beside_it() -> None:
    numbers = published("a_model_of_mine", Benchmark("AffectNet-7 validation", 3500))
    assert sorted(numbers) == [("POSTER", "accuracy", 0.6731, False), ("POSTER++", "accuracy", 0.6749, False)]


def test_nothing_is_published_about_a_folder_of_ones_own() -> None:
    assert published("poster_rafdb", None) == []


def test_a_published_recall_has_no_measured_one_beside_it_where_the_class_has_no_images() -> None:
    found = beside_published(evaluate(["Fear"], ["Fear"], RAFDB), "poster_rafdb", Benchmark("RAF-DB test", 3068))
    surprise = next(number for number in found if number.metric == "recall of Surprise")
    assert (surprise.measured, surprise.difference) == (None, None)
    assert surprise.published == 0.92
