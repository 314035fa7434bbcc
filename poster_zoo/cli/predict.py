"""`poster-zoo predict`: the expression on each face, and how right the answers are where labels are given."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from poster_zoo.cli.answers import AnswerWriter, CropWriter, CsvWriter, JsonWriter, TableWriter
from poster_zoo.cli.inputs import check_picture, find_images
from poster_zoo.cli.models import join, load_model, load_predictor, prints
from poster_zoo.cli.options import (
    batch_size_option,
    checkpoint_option,
    device_option,
    examples,
    faces_option,
    json_option,
    model_option,
    plot_option,
)
from poster_zoo.cli.output import earlier, note, print_table
from poster_zoo.errors import LabelError, counted

if TYPE_CHECKING:
    from accelerate import PartialState

    from poster_zoo.data.label_files import Pairing
    from poster_zoo.evaluate import Evaluation
    from poster_zoo.predict import Prediction, Predictor
    from poster_zoo.scale import Outcome


@click.command(
    "predict",
    epilog=examples("poster-zoo predict examples/face.png", "poster-zoo predict examples --faces none --json"),
)
@click.argument("paths", metavar="IMAGE_OR_FOLDER...", nargs=-1, required=True, type=click.Path())
@model_option
@checkpoint_option
@device_option
@batch_size_option
@faces_option(
    "auto: find the faces of each image and answer about each. none: each image is the aligned crop of one face.  "
    "[default: auto; none with --labels]"
)
@json_option("Print one JSON object a line: source, label, score, probabilities, face; or source, error.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, with a header.")
@plot_option
@click.option(
    "--save-crops",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Write the aligned crop of each face into DIR/LABEL, class folders as train takes them.",
)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FILE",
    help="True labels: RAF-DB's list, or a CSV of files and labels (names, or places in the model's labels from zero).",
)
@click.option(
    "--out",
    type=click.Path(),
    metavar="DIR",
    help="Write the answers into this folder, in parts, and print none; what was stopped goes on there.",
)
@click.option(
    "--engine",
    type=click.Choice(["processes", "ray"]),
    default="processes",
    show_default=True,
    help="Who shares the work for --out: the processes of accelerate launch, or a Ray cluster (poster-zoo[ray]).",
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="The Ray cluster to join, as HOST:6379 or auto.  [default: RAY_ADDRESS; else one is started on this machine]",
)
@click.option(
    "--actors",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many processes Ray starts.  [default: one a GPU, or one a CPU where there are no GPUs]",
)
@click.pass_context
def command(
    ctx: click.Context,
    paths: tuple[str, ...],
    model: str,
    checkpoint: str | None,
    device: str | None,
    batch_size: int,
    faces: Literal["auto", "none"] | None,
    as_json: bool,
    as_csv: bool,
    plot: str | None,
    save_crops: str | None,
    labels_file: str | None,
    out: str | None,
    engine: Literal["processes", "ray"],
    address: str | None,
    actors: int | None,
) -> None:
    """Name the expression on each face of each image.

    Of a folder, every image below it is answered. An image in which no face is found is answered as a whole, and said
    to be. An image that cannot be read is reported in its place, the others are answered, and the exit status is 1.

    --plot draws each face's box, label and likeliest expressions on the photographs, at most 24 of them. With --faces
    none it draws a sheet of the first 120 images.

    --labels is for images of one face each, which are taken as they are. It adds to each answer the true label and the
    numbers of both, and ends with accuracy, mean class accuracy and each class's scores; --plot then also draws the
    confusion matrix, beside the sheet: faces.png and faces_confusion.png.

    With --json or --csv, stdout holds nothing else; words and progress go to stderr.

    --out is for many images: it takes Parquet files of paths or of images too, and writes Parquet (without pyarrow, or
    with --json, JSON lines), a part of the images a file and a row for each face. Killed at any moment, the same
    command goes on with the parts that are missing.

    Several processes share the work: accelerate launch --num_processes 4 -m poster_zoo predict ...
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other.")
    if engine != "ray" and (address or actors):
        raise click.UsageError("--address and --actors are for --engine ray.")
    if faces == "auto" and labels_file:
        raise click.UsageError("--labels takes images of one face each, as they are; leave out --faces auto.")
    faces = faces or ("none" if labels_file else "auto")
    if save_crops and faces == "none":
        raise click.UsageError("--save-crops cuts out faces that are found; leave out --faces none and --labels.")
    if out is not None:
        if as_csv or plot or labels_file or save_crops:
            raise click.UsageError(
                "--csv, --plot, --labels and --save-crops are for answers that are printed; leave out --out."
            )
        from poster_zoo.scale import check_request, predict_into

        check_request(paths, out)
        processes = join(ctx, device)
        # Ray's actors each move the model to a device of their own.
        here = "cpu" if engine == "ray" else device
        predictor = load_predictor(load_model(ctx, model, checkpoint), here, batch_size, processes, faces=faces)
        with contextlib.redirect_stdout(sys.stderr):  # where Ray's words about lost machines belong
            outcome = predict_into(
                predictor,
                paths,
                out,
                file_format="jsonl" if as_json else None,
                engine=engine,
                address=address,
                actors=actors,
                device=device,
            )
        ctx.exit(_report_outcome(outcome, out) if prints(processes) else 0)
    if engine == "ray":
        raise click.UsageError("--engine ray writes its answers into a folder; name it by --out DIR.")
    if tables := [path for path in paths if path.lower().endswith(".parquet")]:
        raise click.UsageError(f"{tables[0]!r} is answered into a folder; name it by --out DIR.")
    images = find_images(paths)
    sheet = check_picture(plot, images)
    matrix = check_picture(plot if labels_file else None, images, suffix="_confusion")
    crops = CropWriter(save_crops) if save_crops else None

    processes = join(ctx, device)
    # Where answers scroll by on the terminal, a bar would only be in their way; elsewhere the predictor decides.
    progress = False if sys.stdout is not None and sys.stdout.isatty() else None
    network = load_model(ctx, model, checkpoint)
    predictor = load_predictor(network, device, batch_size, processes, progress=progress, faces=faces)
    answers = _answers(predictor, images, processes)
    if not prints(processes):
        deque(answers, maxlen=0)
        return
    labels = predictor.labels
    truth = _read_truth(labels_file, images, labels)
    sought = faces == "auto"
    writer: AnswerWriter
    if as_json:
        writer = JsonWriter(truth is not None)
    elif as_csv:
        writer = CsvWriter(labels, truth is not None, sought)
    else:
        writer = TableWriter(labels, images, truth is not None, sought)

    tally = _Tally(sought=sought)
    true_labels = truth.labels if truth else [None] * len(images)
    # An image's answers follow each other, and no image is given twice.
    of_images = itertools.groupby(answers, key=lambda prediction: prediction.source)
    for (source, group), true_label in zip(of_images, true_labels, strict=True):
        predictions = list(group)
        for prediction in predictions:
            writer.write(prediction, true_label)
        tally.add(predictions, true_label)
        if crops is not None:
            crops.write(source, predictions, predictor)

    _report_failures(tally.failures, len(images), tally.first_failure)
    _report_without_face(tally.without_face, len(images))
    if crops is not None:
        note(f"Wrote {counted(crops.written, 'crop')} into {save_crops}")
        if crops.failures:
            of = counted(len(images), "image")
            has = "has" if crops.failures == 1 else "have"
            note(f"{crops.failures} of {of} {has} no crops; the first: {crops.first_failure}")
    evaluation = _report_truth(truth, tally, labels, to_stderr=as_json or as_csv) if truth else None
    _draw(sheet, matrix, tally, len(images), evaluation)
    ctx.exit(1 if tally.failures or (crops is not None and crops.failures) else 0)


def _answers(predictor: Predictor, images: Sequence[str], processes: PartialState | None) -> Iterator[Prediction]:
    if processes is None:
        return predictor.stream(images)
    from poster_zoo.scale import predict_together

    return predict_together(predictor, images, processes)


def _report_outcome(outcome: Outcome, out: str) -> int:
    """Say what a folder of answers holds; return the exit status."""
    before = earlier(outcome.before, outcome.images)
    note(f"{out} holds the answers about {counted(outcome.images, 'image')}{before}.")
    _report_failures(outcome.failures, outcome.images, outcome.first_failure)
    _report_without_face(outcome.without_face, outcome.images)
    return 1 if outcome.failures else 0


def _report_failures(failures: int, images: int, first: str) -> None:
    if failures:
        note(f"{failures} of {counted(images, 'image')} failed; the first: {first}")


def _report_without_face(without: int, images: int) -> None:
    if without:
        note(f"No face was found in {without} of {counted(images, 'image')}; the whole image was answered there.")


@dataclass
class _Tally:
    """What is kept of the answers: a sheet's worth of them, image by image, and the labels."""

    sought: bool
    shown: list[list[Prediction]] = field(default_factory=list)
    shown_labels: list[str | None] = field(default_factory=list)
    true: list[str] = field(default_factory=list)
    predicted: list[str] = field(default_factory=list)
    failures: int = 0
    first_failure: str = ""
    without_face: int = 0

    def add(self, predictions: list[Prediction], true_label: str | None) -> None:
        """Add the answers about one image."""
        from poster_zoo.plots import PHOTOGRAPHS_LIMIT, SHEET_LIMIT

        if len(self.shown) < (PHOTOGRAPHS_LIMIT if self.sought else SHEET_LIMIT):
            self.shown.append(predictions)
            self.shown_labels.append(true_label)
        self.without_face += predictions[0].sought and predictions[0].face is None
        for prediction in predictions:
            if prediction.error is not None:
                self.failures += 1
                self.first_failure = self.first_failure or prediction.error
            elif true_label is not None and prediction.label is not None:
                self.true.append(true_label)
                self.predicted.append(prediction.label)


def _read_truth(labels_file: str | None, images: Sequence[str], labels: Sequence[str]) -> Pairing | None:
    """Return the label of each image, before any work, or None where no labels were given."""
    if labels_file is None:
        return None
    from poster_zoo.data.label_files import pair_labels, read_labels

    named = read_labels(labels_file, labels)
    truth = pair_labels(images, named)
    if len(truth.without_label) == len(images):
        raise LabelError(
            f"The label file {labels_file!r} names none of the images: it has {next(iter(named))!r}, "
            f"the images are like {images[0]!r}."
        )
    return truth


def _report_truth(truth: Pairing, tally: _Tally, labels: Sequence[str], to_stderr: bool) -> Evaluation | None:
    """Print what the labels say of the answers; return it, or None where no labelled image could be read."""
    if truth.without_label:
        without, of = len(truth.without_label), counted(len(truth.labels), "image")
        note(f"{without} of {of} {'has' if without == 1 else 'have'} no label, as {truth.without_label[0]!r}.")
    if truth.without_file:
        without_file = counted(len(truth.without_file), "label has", "labels have")
        note(f"{without_file} no image here, as that of {truth.without_file[0]!r}.")
    if not tally.true:
        note("No image with a label could be read; there is no accuracy.")
        return None
    from poster_zoo.evaluate import evaluate

    evaluation = evaluate(tally.true, tally.predicted, labels)
    present, classes = evaluation.classes_with_images, len(labels)
    click.echo(
        f"\n{counted(evaluation.images, 'labelled image')}: accuracy {evaluation.accuracy:.4f}, mean class accuracy "
        f"{evaluation.mean_class_accuracy:.4f} over the {present} of {classes} classes that have images\n",
        err=to_stderr,
    )
    rows = [
        (label, str(scores.count), _rate(scores.recall), _rate(scores.precision), _rate(scores.f1))
        for label, scores in evaluation.per_class.items()
    ]
    print_table([("class", "images", "recall", "precision", "f1"), *rows], right=[1, 2, 3, 4], err=to_stderr)
    return evaluation


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _draw(sheet: Path | None, matrix: Path | None, tally: _Tally, images: int, evaluation: Evaluation | None) -> None:
    from poster_zoo import plots

    if sheet is not None:
        sources = [predictions[0].source for predictions in tally.shown]
        if tally.sought:
            plots.photographs(sources, tally.shown, out=sheet, total=images)
        else:
            answers = [prediction for (prediction,) in tally.shown]
            plots.contact_sheet(sources, answers, tally.shown_labels, out=sheet, total=images)
        note(f"Wrote {sheet}")
    if matrix is not None and evaluation is not None:
        plots.confusion_matrix(evaluation, out=matrix, table=True)
        note(f"Wrote {matrix}")
