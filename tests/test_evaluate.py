"""Scores, held against scikit-learn's and against sums done by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics

from poster_zoo.errors import LabelError
from poster_zoo.evaluate import ClassScores, evaluate
from poster_zoo.labels import FERPLUS, RAFDB


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
