"""`poster-zoo eval`: how good the answers about labelled faces are, of one model or of two side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.errors import WrongUse
from poster_zoo.cli.models import join, load_model, load_predictor, model_name, prints
from poster_zoo.cli.options import (
    batch_size_option,
    checkpoint_option,
    device_option,
    examples,
    json_option,
    model_option,
)
from poster_zoo.cli.output import note, print_json, print_table
from poster_zoo.errors import counted, printable

if TYPE_CHECKING:
    from poster_zoo.data.datasets import FaceDataset
    from poster_zoo.evaluate import Answers, Comparison, Evaluation, Interval
    from poster_zoo.predict import Predictor
    from poster_zoo.published import Beside

_NAMED = 10  # bad images that are named; all are counted


@click.command(
    "eval",
    epilog=examples(
        "poster-zoo eval --data rafdb:RAF-DB",
        "poster-zoo eval --checkpoint rafdb_best.pth --data rafdb:RAF-DB --flip --json",
    ),
)
@model_option
@checkpoint_option
@click.option(
    "--data",
    "specs",
    metavar="NAME:PATH",
    multiple=True,
    required=True,
    help="Labelled faces: rafdb:DIR, affectnet7:DIR, affectnet8:DIR, ferplus:DIR, caers:DIR, folder:DIR (a folder a "
    "class), csv:FILE, hf:ID. Given several times, the collections are joined.",
)
@click.option("--split", default="test", show_default=True, help="Which part of the data: train, valid or test.")
@click.option("--compare", nargs=2, metavar="MODEL MODEL", help="Two models instead of one, on the same images.")
@click.option("--flip", is_flag=True, help="Answer by the mean over each image and its mirror image.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read and labels that are no class.")
@click.option("--plot", type=click.Path(file_okay=False), metavar="DIR", help="Draw figures. Needs poster-zoo[plot].")
@device_option
@batch_size_option
@json_option("Print one JSON object.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    checkpoint: str | None,
    specs: tuple[str, ...],
    split: str,
    compare: tuple[str, str] | None,
    flip: bool,
    skip_bad: bool,
    plot: str | None,
    device: str | None,
    batch_size: int,
    as_json: bool,
) -> None:
    """Measure how good a model's answers are.

    Images are taken as crops around one face. Accuracy, mean class accuracy (over the classes that have images), macro
    F1 (likewise), each with its 95 % interval, calibration, every class's scores, the confusion matrix, and what is
    published about this data beside it. An answer counts as wrong where it is none of the data's classes.

    --compare A B prints two models side by side, with McNemar's exact test.

    --plot writes into DIR: the confusion matrix, how sure the answers are, and the most confident mistakes, each as
    .png with its data as .csv, and evaluation.json; with --compare both confusion matrices in one figure.

    Several processes share the work: accelerate launch --num_processes 4 -m poster_zoo eval ...
    """
    if compare and (checkpoint or ctx.get_parameter_source("model") is click.core.ParameterSource.COMMANDLINE):
        raise click.UsageError("--compare names both models; --model and --checkpoint do not go with it.")
    folder = None if plot is None else _figure_folder(plot)

    from poster_zoo.data.datasets import available_splits
    from poster_zoo.data.datasets import join as join_parts
    from poster_zoo.evaluate import answer_dataset

    for spec in specs:
        available_splits(spec)  # a wrong name or place is told before a model is built
    models = compare or [load_model(ctx, model, checkpoint)]
    processes = join(ctx, device)
    predictors = [load_predictor(one, device, batch_size, processes) for one in models]
    parts = _open(specs, split, [label for predictor in predictors for label in predictor.labels])
    dataset = join_parts(parts)
    answers = [answer_dataset(predictor, dataset, flip=flip, skip_bad=skip_bad) for predictor in predictors]
    if not prints(processes):
        return
    names = [model_name(one) for one in models]
    _warn(parts, split, dict(zip(names, answers, strict=True)))
    report = _TwoModels(compare, *answers) if compare else _OneModel(names[0], predictors[0], answers[0])
    facts = {
        **report.facts(),
        "checkpoint": checkpoint,
        "data": specs,
        "split": dataset.split,
        "splits": [part.split for part in parts],
        "flip": flip,
        "bad_images": _bad_images(answers[0]),
    }
    if as_json:
        print_json(facts)
    else:
        report.tell()
    if folder is not None:
        report.draw(folder)
        _write_json(folder / "evaluation.json", facts)
        note(f"Wrote the figures and their data into {folder}")


def _figure_folder(plot: str) -> Path:
    """Return the folder for the figures, made where it is missing."""
    from poster_zoo.plots import check_output

    folder = Path(plot)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUse(f"The folder {plot!r} for the figures cannot be made: {error.strerror}.") from error
    return check_output(folder / "confusion_matrix.png").parent


def _open(specs: Sequence[str], split: str, model_labels: Sequence[str]) -> list[FaceDataset]:
    """Return the split of each collection, all with the same labels."""
    from poster_zoo.data.datasets import open_dataset
    from poster_zoo.labels import canonical_label

    parts = [open_dataset(spec, split, model_labels) for spec in specs]
    names = {canonical_label(name): name for part in parts for name in part.label_names}
    return [part.with_labels(list(names.values())) for part in parts] if len(parts) > 1 else parts


def _warn(parts: Sequence[FaceDataset], split: str, answers: Mapping[str, Answers]) -> None:
    """Say on stderr what a reader of the numbers must know about the data."""
    from poster_zoo.data.datasets.splits import canonical_split

    for part in parts:
        if part.split != canonical_split(split):
            note(f"{part.name} has no part {split!r}; its only part, {part.split!r}, was read.")
    for name, of in answers.items():
        for label in of.only_data:
            count = of.evaluation.per_class[label].count
            wrong = "the 1 image of it counts" if count == 1 else f"the {count:,} images of it count"
            note(f"{name} has no class {label}; {wrong} as wrong.")
    any_answers = next(iter(answers.values()))
    bad = _bad_images(any_answers)
    for one in bad["first"][:1]:
        out = counted(bad["count"], "image was", "images were")
        note(f"{out} left out; the first: {printable(one['source'])}: {one['reason']}")
    benchmark, images = any_answers.dataset.benchmark, len(any_answers.places)
    if benchmark is not None and benchmark.images not in (None, images):
        here = "is 1" if images == 1 else f"are {images:,}"
        note(
            f"{benchmark.name} has {benchmark.images:,} images, and here {here}: other data in its layout, or "
            "a part of it. Published numbers are not about these images."
        )


def _bad_images(answers: Answers) -> dict[str, Any]:
    first = list(answers.bad.items())[:_NAMED]
    named = [{"source": answers.dataset.source(place), "reason": reason} for place, reason in first]
    return {"count": len(answers.bad), "first": named}


@dataclass
class _OneModel:
    """The report about one model."""

    name: str
    predictor: Predictor
    answers: Answers

    @cached_property
    def beside(self) -> list[Beside]:
        from poster_zoo.published import beside_published

        cfg = getattr(self.predictor.model, "pretrained_cfg", None) or {}
        architecture = cfg.get("architecture") or self.name
        return beside_published(self.answers.evaluation, architecture, self.answers.dataset.benchmark)

    def facts(self) -> dict[str, Any]:
        published = [number.to_dict() for number in self.beside]
        return {"model": self.name, **self.answers.evaluation.to_dict(), "published": published}

    def tell(self) -> None:
        evaluation, dataset = self.answers.evaluation, self.answers.dataset
        click.echo(printable(f"{self.name} on {dataset.name} {dataset.split}: {_counted(evaluation)}"))
        click.echo()
        print_table([("", "value", "95 % interval"), *_summary(evaluation)], right=[1])
        click.echo()
        _tell_classes(evaluation)
        click.echo("\nA row is a true class, a column an answer:")
        _tell_matrix(evaluation)
        if self.beside:
            click.echo()
            _tell_published(self.beside, evaluation.images)

    def draw(self, folder: Path) -> None:
        from poster_zoo import plots

        plots.confusion_matrix(self.answers.evaluation, out=folder / "confusion_matrix.png", table=True)
        plots.calibration(self.answers.evaluation, out=folder / "calibration.png")
        plots.mistakes(self.answers, out=folder / "mistakes.png")


@dataclass
class _TwoModels:
    """The report about two models on the same images."""

    names: tuple[str, str]
    first: Answers
    second: Answers

    @cached_property
    def comparison(self) -> Comparison:
        from poster_zoo.evaluate import compare

        return compare(self.first, self.second)

    def facts(self) -> dict[str, Any]:
        return {"compare": self.names, **self.comparison.to_dict()}

    def tell(self) -> None:
        compared, dataset = self.comparison, self.first.dataset
        click.echo(printable(f"{dataset.name} {dataset.split}, {counted(compared.first.images, 'image')}"))
        click.echo()
        rows = zip(_side(compared.first), _side(compared.second), strict=True)
        print_table(
            [("", *self.names, "difference"), *((a[0], _rate(a[1]), _rate(b[1]), _gap(a[1], b[1])) for a, b in rows)],
            right=[1, 2, 3],
        )
        click.echo(
            f"\nRight by both: {compared.both_right:,}; by {printable(self.names[0])} alone: "
            f"{compared.only_first_right:,}; by {printable(self.names[1])} alone: {compared.only_second_right:,}; "
            f"by neither: {compared.both_wrong:,}.\nMcNemar's exact test: p = {compared.p_value:.3g}"
        )
        for name, evaluation in zip(self.names, (compared.first, compared.second), strict=True):
            click.echo(f"\n{printable(name)}; a row is a true class, a column an answer:")
            _tell_matrix(evaluation)

    def draw(self, folder: Path) -> None:
        from poster_zoo import plots

        plots.comparison(self.comparison, self.names, out=folder / "comparison.png")


def _counted(evaluation: Evaluation) -> str:
    speed = "" if evaluation.images_per_second is None else f", {evaluation.images_per_second:.1f} a second"
    return f"{counted(evaluation.images, 'image')}{speed}"


def _summary(evaluation: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Yield what is said about all images together: name, value, interval."""
    present, classes = evaluation.classes_with_images, len(evaluation.labels)
    over = (
        f"over all {classes} classes"
        if present == classes
        else f"over the {present} of {classes} classes that have images"
    )
    intervals = evaluation.intervals
    yield "accuracy", _rate(evaluation.accuracy), _interval(intervals.accuracy)
    yield (
        "mean class accuracy",
        _rate(evaluation.mean_class_accuracy),
        f"{_interval(intervals.mean_class_accuracy)}  {over}",
    )
    yield "macro F1", _rate(evaluation.macro_f1), f"{_interval(intervals.macro_f1)}  {over}"
    yield "expected calibration error", _rate(evaluation.expected_calibration_error), ""


def _side(evaluation: Evaluation) -> list[tuple[str, float | None]]:
    """Return what is put side by side of two models."""
    return [
        ("accuracy", evaluation.accuracy),
        ("mean class accuracy", evaluation.mean_class_accuracy),
        ("macro F1", evaluation.macro_f1),
        ("expected calibration error", evaluation.expected_calibration_error),
        *((f"recall of {label} ({scores.count:,})", scores.recall) for label, scores in evaluation.per_class.items()),
    ]


def _tell_classes(evaluation: Evaluation) -> None:
    header = ("class", "images", "recall", "95 % interval", "precision", "f1", "answers", "mean score")
    sureness = evaluation.calibration.by_class if evaluation.calibration else {}
    rows = [
        (
            label,
            f"{scores.count:,}",
            _rate(scores.recall),
            _interval(evaluation.intervals.recall[label]),
            _rate(scores.precision),
            _rate(scores.f1),
            f"{sureness[label].answers:,}",
            _rate(sureness[label].mean_score),
        )
        for label, scores in evaluation.per_class.items()
    ]
    print_table([header, *rows], right=[1, 2, 4, 5, 6])


def _tell_matrix(evaluation: Evaluation) -> None:
    # An empty last column, as the last one is never set to the right.
    rows = [
        (label, *(f"{count:,}" for count in row), "")
        for label, row in zip(evaluation.labels, evaluation.confusion_matrix, strict=True)
    ]
    print_table([("", *evaluation.labels, ""), *rows], right=range(1, len(rows) + 1))


def _tell_published(beside: Sequence[Beside], images: int) -> None:
    dataset, size = beside[0].dataset, beside[0].dataset_images
    other = "" if images == size else ", which this 1 is not" if images == 1 else f", which these {images:,} are not"
    click.echo(f"Published about {dataset}" + ("" if size is None else f", {size:,} images{other}") + ":")
    rows = [
        (
            number.by,
            number.metric,
            _rate(number.published),
            _rate(number.measured),
            _gap(number.measured, number.published),
        )
        for number in beside
    ]
    print_table([("by", "quantity", "published", "here", "difference"), *rows], right=[2, 3])


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _gap(value: float | None, other: float | None) -> str:
    if value is None or other is None:
        return "–"
    return f"{round(value - other, 4) + 0.0:+.4f}"  # + 0.0, as there is no -0.0000


def _interval(interval: Interval | None) -> str:
    return "–" if interval is None else f"{interval[0]:.4f} … {interval[1]:.4f}"


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    from poster_zoo.files import whole_file

    text = json.dumps(facts, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as place:
        place.write_text(text, encoding="utf-8")
