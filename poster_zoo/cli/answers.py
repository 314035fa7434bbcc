"""Answers as they come, in the three forms that `predict` prints: a table, JSON lines, CSV; and crops of the faces."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from poster_zoo.cli.output import Columns, print_json
from poster_zoo.errors import ImageError, OutputError
from poster_zoo.files import whole_file

if TYPE_CHECKING:
    from poster_zoo.predict import Prediction, Predictor

__all__ = ["AnswerWriter", "CropWriter", "CsvWriter", "JsonWriter", "TableWriter"]

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
        with_face: Show where the face is: its left and upper edge, width and height.
    """

    def __init__(
        self, labels: Sequence[str], sources: Iterable[str], with_truth: bool, with_face: bool = False
    ) -> None:
        self.labels = labels
        self.with_truth = with_truth
        self.with_face = with_face
        name = min(max(map(len, sources)), _WIDEST_NAME)
        label = max(map(len, labels))
        if with_truth:
            header = ["image", "true", "predicted", "true name", "predicted name", "", "score", "next"]
            self.columns = Columns([max(name, 5), 4, 9, max(label, 9), max(label, 14), 5, 5], right=[1, 2, 6])
        else:
            header = ["image", *["face"] * with_face, "label", "score", "next"]
            face = [len("1000 1000 100×100")] * with_face
            self.columns = Columns([max(name, 5), *face, max(label, 5), 5], right=[2 + with_face])
        click.echo(self.columns.line(header))

    def write(self, prediction: Prediction, true_label: str | None) -> None:
        """Print one line."""
        before_last = [""] * (len(self.columns.widths) - 2)
        if prediction.error is not None:
            cells = [*before_last, prediction.error]
        elif self.with_truth:
            cells = [*self._truth(str(prediction.label), true_label), f"{prediction.score:.2f}", _next(prediction)]
        else:
            face = [_place(prediction)] * self.with_face
            cells = [*face, str(prediction.label), f"{prediction.score:.2f}", _next(prediction)]
        click.echo(self.columns.line([prediction.source, *cells]))

    def _truth(self, predicted: str, true_label: str | None) -> list[str]:
        number = str(self.labels.index(predicted))
        if true_label is None:
            return ["", number, "", predicted, ""]
        wrong = "" if true_label == predicted else "wrong"
        return [str(self.labels.index(true_label)), number, true_label, predicted, wrong]


class JsonWriter:
    """An object a line: what `Prediction.to_dict` gives.

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
        with_face: Add the columns `left`, `upper`, `right` and `lower`, in pixels, and `face_score` after `score`; all
            are empty where the answer is about the whole image.
    """

    def __init__(self, labels: Sequence[str], with_truth: bool, with_face: bool = False) -> None:
        self.labels = labels
        self.with_truth = with_truth
        self.with_face = with_face
        truth = ("true_label", "true_number", "label_number") if with_truth else ()
        face = ("left", "upper", "right", "lower", "face_score") if with_face else ()
        _print_row(["source", "label", "score", *truth, *face, *labels, "error"])

    def write(self, prediction: Prediction, true_label: str | None) -> None:
        """Print one row."""
        cells: list[Any] = [prediction.source, prediction.label, prediction.score]
        if self.with_truth:
            cells += [true_label, self._number(true_label), self._number(prediction.label)]
        if self.with_face:
            face = prediction.face and prediction.face.to_dict()
            cells += [*face["box"], face["score"]] if face else [None] * 5
        _print_row([*cells, *map(prediction.probabilities.get, self.labels), prediction.error])

    def _number(self, label: str | None) -> int | None:
        return None if label is None else self.labels.index(label)


class CropWriter:
    """Writes the aligned crops of faces into class folders, a PNG a face: `LABEL/NAME_1.png`, surest face first.

    Images are read again for it: one that cannot be any more is counted in `failures`, and `first_failure` says why.

    Args:
        folder: Where to; made where it is missing.

    Raises:
        OutputError: The folder holds something, which is never overwritten or mixed up; or it cannot be written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.written = 0
        self.failures = 0
        self.first_failure = ""
        self._taken: set[str] = set()
        _make_folder(self.folder)
        if any(self.folder.iterdir()):
            raise OutputError(f"The crops need a folder of their own, and {folder!r} is not empty; name another one.")

    def write(self, source: str, predictions: Sequence[Prediction], predictor: Predictor) -> None:
        """Write the faces of one image that were answered; `source` is its path."""
        answered = [prediction for prediction in predictions if prediction.face is not None]
        if not answered:
            return
        from poster_zoo.data.datasets.folders import folder_name

        try:
            crops = predictor.crops(source, [prediction.face for prediction in answered if prediction.face])
        except ImageError as error:
            self.failures += 1
            self.first_failure = self.first_failure or str(error)
            return
        stem = self._free(Path(source).stem)
        for number, (prediction, crop) in enumerate(zip(answered, crops, strict=True), 1):
            folder = self.folder / folder_name(str(prediction.label))
            _make_folder(folder)
            try:
                with whole_file(folder / f"{stem}_{number}.png") as beside:
                    crop.save(beside, "PNG")
            except OSError as error:
                raise _cannot_write(folder, error) from error
            self.written += 1

    def _free(self, stem: str) -> str:
        """Return a name that no other image of this run has: two folders may hold files that are called alike."""
        name, another = stem, 2
        while name.casefold() in self._taken:
            name, another = f"{stem}-{another}", another + 1
        self._taken.add(name.casefold())
        return name


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"The crops cannot be written into {str(folder)!r}: {error.strerror or error}; choose a folder you can write."
    )


def _place(prediction: Prediction) -> str:
    """Return where a face is: left and upper edge, width × height."""
    if prediction.face is None:
        return "none: whole image"
    left, upper, right, lower = prediction.face.box
    return f"{left:.0f} {upper:.0f} {right - left:.0f}×{lower - upper:.0f}"


def _print_row(cells: Iterable[Any]) -> None:
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow(cells)
    click.echo(row.getvalue(), nl=False)


def _next(prediction: Prediction) -> str:
    """Return the labels that are next likely, with their probabilities."""
    ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
    others = [item for item in ranked if item[0] != prediction.label][:_NEXT]
    return ", ".join(f"{label} {probability:.2f}" for label, probability in others)
