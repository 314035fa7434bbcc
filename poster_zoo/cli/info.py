"""`poster-zoo info`: all that is known about one model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.options import examples, json_option
from poster_zoo.cli.output import print_json

if TYPE_CHECKING:
    from poster_zoo import ModelInfo
    from poster_zoo.weights.entry import Metric, Preprocessing


@click.command("info", epilog=examples("poster-zoo info poster_tiny", "poster-zoo info poster_rafdb --json"))
@click.argument("model")
@json_option("Print one JSON object.")
def command(model: str, as_json: bool) -> None:
    """Tell all that is known about MODEL.

    Its size, input, labels in order, origin, licence and numbers, and which weights it would be given here, and why.
    """
    import poster_zoo

    known = poster_zoo.model_info(model)
    if as_json:
        print_json(_facts(known))
        return
    click.echo(f"{known.name}: {known.weights.description or known.doc.partition(chr(10))[0]}\n")
    for topic, text in _topics(known):
        click.echo(f"{topic:<15}{text}".rstrip())


def _facts(model: ModelInfo) -> dict[str, Any]:
    place = model.source
    return {
        "name": model.name,
        "doc": model.doc,
        "macs": model.macs,
        "num_classes": model.weights.num_classes,
        **asdict(model.weights),
        "parameters": model.parameters,
        "source": {
            "source": place.source,
            "path": None if place.path is None else str(place.path),
            "reason": place.reason,
        },
    }


def _topics(model: ModelInfo) -> Iterator[tuple[str, str]]:
    """Yield what to print, topic by topic; a topic that goes on in the next line has no name there."""
    entry = model.weights
    yield "parameters", f"{model.parameters:,}"
    if model.macs is not None:
        size = " of {} × {}".format(*entry.preprocessing.size) if entry.detects else ""
        yield "cost", f"{model.macs / 1e9:.2f} GMACs an image{size}"
    yield "input", _DETECTOR_INPUT if entry.detects else _input(entry.preprocessing, entry.fixed_input_size)
    if entry.detects:
        yield "answers", "faces: boxes, scores and five points each"
    elif entry.label_names:
        yield "labels", ", ".join(f"{i} {label}" for i, label in enumerate(entry.label_names))
    elif entry.num_outputs:
        yield "outputs", f"{entry.num_outputs} numbers, no classes"
    yield "weights", f"{model.source.source}: {model.source.reason}"
    if model.source.path is not None:
        yield "", str(model.source.path)
    if entry.hub_id:
        yield "Hub", f"{entry.hub_id} at {entry.revision or 'its newest revision'}"
    yield "sha256", entry.sha256 or "not recorded"
    yield "licence", entry.license
    if entry.origin_url:
        yield "origin", entry.origin_url
    if entry.upstream_file:
        yield "authors' file", entry.upstream_file
    if entry.paper_name or entry.paper_ids:
        yield "paper", " ".join(filter(None, [entry.paper_name, ", ".join(entry.paper_ids)]))
    if entry.recipe:
        yield "recipe", f"{entry.recipe}, of `poster-zoo train`"
    for i, metric in enumerate(entry.metrics):
        yield "" if i else "metrics", _metric(metric)
        if metric.command:
            yield "", f"    {metric.command}"
    for i, text in enumerate(entry.notes):
        yield "" if i else "notes", text


_DETECTOR_INPUT = "RGB in 0…255, any size in multiples of 32, to which pictures are stretched"


def _input(preprocessing: Preprocessing, fixed: bool) -> str:
    height, width = preprocessing.size
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (preprocessing.mean, preprocessing.std))
    return (
        f"RGB, resized to {height} × {width}{' (no other size)' if fixed else ''} by the "
        f"{preprocessing.interpolation} filter, mean {mean}, std {std}"
    )


def _metric(metric: Metric) -> str:
    published = "not published" if metric.published is None else f"{metric.published:.4f} published"
    measured = "not measured" if metric.measured is None else f"{metric.measured:.4f} measured"
    return f"{metric.dataset}, {metric.name}: {published}, {measured}"
