"""Answers as they come, in the three forms that `predict` prints: a table, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import click

from poster_zoo.cli.output import Columns, print_json

if TYPE_CHECKING:
    from poster_zoo.predict import Prediction

__all__ = ["AnswerWriter", "CsvWriter", "JsonWriter", "TableWriter"]

_WIDEST_NAME = 48  # a longer file name shifts its own line, not everyone's
_NEXT = 2  # how many of the next likely labels the table names


class AnswerWriter(Protocol):
    """Prints answers, each at once."""

    def write(self, prediction: Prediction, true_label: str | None) -> None:
        """Print one answer; `true_label` is None where the image has none."""


class TableWriter:
    """A line an image, for people.

    Args:
        labels: The model's labels.
        sources: All images to come, for the width of the first column.
        with_truth: Show the true label too, and the numbers of both: their places in `labels`, from zero.
    """

    def __init__(self, labels: Sequence[str], sources: Iterable[str], with_truth: bool) -> None:
        self.labels = labels
        self.with_truth = with_truth
        name = min(max(map(len, sources)), _WIDEST_NAME)
        label = max(map(len, labels))
        if with_truth:
            header = ["image", "true", "predicted", "true name", "predicted name", "", "score", "next"]
            self.columns = Columns([max(name, 5), 4, 9, max(label, 9), max(label, 14), 5, 5], right=[1, 2, 6])
        else:
            header = ["image", "label", "score", "next"]
            self.columns = Columns([max(name, 5), max(label, 5), 5], right=[2])
        click.echo(self.columns.line(header))

    def write(self, prediction: Prediction, true_label: str | None) -> None:
        """Print one line."""
        before_last = [""] * (len(self.columns.widths) - 2)
        if prediction.error is not None:
            cells = [*before_last, prediction.error]
        elif self.with_truth:
            cells = [*self._truth(str(prediction.label), true_label), f"{prediction.score:.2f}", _next(prediction)]
        else:
            cells = [str(prediction.label), f"{prediction.score:.2f}", _next(prediction)]
        click.echo(self.columns.line([prediction.source, *cells]))

    def _truth(self, predicted: str, true_label: str | None) -> list[str]:
        number = str(self.labels.index(predicted))
        if true_label is None:
            return ["", number, "", predicted, ""]
        wrong = "" if true_label == predicted else "wrong"
        return [str(self.labels.index(true_label)), number, true_label, predicted, wrong]


class JsonWriter:
    """An object a line: `source`, `label`, `score`, `probabilities`, or `source` and `error`.

    Args:
        with_truth: Add `true_label`, null where the image has none.
    """

    def __init__(self, with_truth: bool) -> None:
        self.with_truth = with_truth

    def write(self, prediction: Prediction, true_label: str | None) -> None:
        """Print one object."""
        print_json(prediction.to_dict() | ({"true_label": true_label} if self.with_truth else {}))


class CsvWriter:
    """A row an image, after a header: `source,label,score`, a column for each label's probability, `error`.

    Args:
        labels: The model's labels.
        with_truth: Add the columns `true_label`, `true_number` and `label_number` after `score`; numbers are places
            in `labels`, from zero.
    """

    def __init__(self, labels: Sequence[str], with_truth: bool) -> None:
        self.labels = labels
        self.with_truth = with_truth
        truth = ("true_label", "true_number", "label_number") if with_truth else ()
        _print_row(["source", "label", "score", *truth, *labels, "error"])

    def write(self, prediction: Prediction, true_label: str | None) -> None:
        """Print one row."""
        cells: list[Any] = [prediction.source, prediction.label, prediction.score]
        if self.with_truth:
            cells += [true_label, self._number(true_label), self._number(prediction.label)]
        _print_row([*cells, *map(prediction.probabilities.get, self.labels), prediction.error])

    def _number(self, label: str | None) -> int | None:
        return None if label is None else self.labels.index(label)


def _print_row(cells: Iterable[Any]) -> None:
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(cells)
    click.echo(row.getvalue(), nl=False)


def _next(prediction: Prediction) -> str:
    """Return the labels that are next likely, with their probabilities."""
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    others = [item for item in ranked if item[0] != prediction.label][:_NEXT]
    return ", ".join(f"{label} {probability:.2f}" for label, probability in others)
