"""Answers as they come, in the three forms that `predict` prints: a table, JSON lines, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import click

from poster_zoo.cli.output import Columns, print_json
from poster_zoo.labels import match_labels

if TYPE_CHECKING:
    from poster_zoo.predict import Prediction

__all__ = ["AnswerWriter", "CsvWriter", "JsonWriter", "TableWriter"]

_WIDEST_NAME = 48  # a longer file name shifts its own line, not everyone's
_NEXT = 2  # how many of the next likely labels the table names


class AnswerWriter(Protocol):
    """Prints one answer; `true_label` is None where there is none, or where none was asked for."""

    def write(self, prediction: Prediction, true_label: str | None) -> None:
        """Print the answer and flush."""


class TableWriter:
    """A line an image, for people.

    Args:
        labels: The model's labels.
        sources: All images to come, for the width of the first column.
        with_truth: Add the true label, and the numbers of both labels in the order of `labels`, from zero.
    """

    def __init__(self, labels: Sequence[str], sources: Iterable[str], with_truth: bool) -> None:
        self.labels = labels
        self.with_truth = with_truth
        name = min(max((len(source) for source in sources), default=0), _WIDEST_NAME)
        label = max(map(len, [*labels, "predicted"]))
        if with_truth:
            self.columns = Columns([name, 4, 9, label, label, 6, 5], right=[1, 2, 6])
            head = ("image", "true", "predicted", "true", "predicted", "", "score", "next")
        else:
            self.columns = Columns([name, label, 5], right=[2])
            head = ("image", "label", "score", "next")
        click.echo(self.columns.line(head))

    def write(self, prediction: Prediction, true_label: str | None) -> None:
        """Print the answer and flush."""
        if prediction.error is not None:
            click.echo(self.columns.line((prediction.source, *[""] * (len(self.columns.widths) - 2), prediction.error)))
            return
        score, others = f"{prediction.score:.2f}", self._next(prediction)
        cells = [prediction.label, score, others]
        if self.with_truth:
            number = str(_number(prediction.label, self.labels))
            if true_label is None:
                cells = ["", number, "", prediction.label, "", score, others]
            else:
                verdict = "" if true_label == prediction.label else "wrong"
                true_number = str(_number(true_label, self.labels))
                cells = [true_number, number, true_label, prediction.label, verdict, score, others]
        click.echo(self.columns.line([prediction.source, *cells]))
