"""Model cards: a README.md for a set of weights, written from its entry and from what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from poster_zoo.labels import AFFECTNET8, canonical_label
from poster_zoo.weights.entry import Metric, Weights

__all__ = ["address_card", "evaluation_section", "model_card", "own_card"]

# The Hub knows these by a name of its own, and wants others spelt out.
_HUB_LICENSES = ("unknown", "apache-2.0", "mit")
_EXPRESSIONS = {canonical_label(label) for label in AFFECTNET8}

_LABEL = """\
A label of this model says which expression people would write under the picture. It does not say what the person
feels: the same face is made in many moods, and many moods make no face. One of the names is always chosen, also for a
face that shows none of them, and for a picture without a face."""

_RARE = """\
Classes that were rare in the training data are told apart worst, and the mean class accuracy shows that, not the
accuracy. Age, sex, skin and origin of the people are **not measured**: no number here says that the model works as well
for one group as for another."""

_SURE = """\
A score compares the classes with each other; it is no probability that a person feels something. How sure the answers
of each class are and how often they are right, `poster-zoo eval` measures on labelled faces."""

_LAW = """\
In the European Union, Article 5(1)(f) of the AI Act forbids systems that infer emotions of people at work and in
education, with exceptions for medical and safety reasons; other places have rules of their own."""

_DETECTOR_INPUT = """\
## Input

RGB in 0…255, any size whose height and width are multiples of 32. `poster_zoo.detect_faces` takes photographs as they
are and stretches each side to the next multiple."""

_DETECTOR_ANSWER = """\
## Answer

Four maps at a quarter of the height and width: how surely the middle of a face lies in a cell, and the size, the exact
middle and five points of that face. `poster_zoo.detect_faces` turns them into boxes, scores and points in pixels."""

_NOT_COUNTED = (
    "Whether they are grey or coloured and how many there are of a person was not counted: the images are not here."
)
_DATA = {
    "RAF-DB": (
        "**RAF-DB**, 12,271 training images by its release: Happiness 4,772, Neutral 2,524, Sadness 1,982, Surprise "
        f"1,290, Disgust 717, Anger 705, Fear 281. {_NOT_COUNTED}"
    ),
    "AffectNet-7": (
        "**AffectNet**, 283,901 training images of seven classes by its release: Happiness 134,415, Neutral 74,874, "
        f"Sadness 25,459, Anger 24,882, Surprise 14,090, Fear 6,378, Disgust 3,803. {_NOT_COUNTED}"
    ),
    "AffectNet-8": (
        "**AffectNet**, 287,651 training images of eight classes by its release: Happiness 134,415, Neutral 74,874, "
        "Sadness 25,459, Anger 24,882, Surprise 14,090, Fear 6,378, Disgust 3,803, Contempt 3,750. "
        f"{_NOT_COUNTED}"
    ),
    "FERPlus": (
        "**FERPlus**, 25,045 training images with a majority: Neutral 8,733, Happiness 7,284, Surprise 3,136, Sadness "
        "3,022, Anger 2,098, Fear 536, Contempt 120, Disgust 116. All are grey. Who is on them is not known."
    ),
    "photographs": (
        "**Photographs**, 9,570 training images: Neutral 4,912, Happiness 3,918, Surprise 258, Anger 170, Sadness 163, "
        "Disgust 133, Fear 16, no Contempt. 94 in a hundred are grey. 3,901 persons, of whom 2,777 have one image and "
        "one has 519; 87 of the 133 images of Disgust are one person's."
    ),
}
"""Who is in the data that weights were trained on, by the first word of a metric's dataset."""


def model_card(
    name: str, entry: Weights, label_names: Sequence[str], *, repository: str | None = None, provenance: str = ""
) -> str:
    """Return the card of a set of weights, front matter included.

    Args:
        name: The model's name in the zoo.
        entry: Its entry.
        label_names: Class names in the order of the logits; empty for a model that gives no classes.
        repository: "owner/name" on the Hub, where the weights are or go to; None where they stay on a machine.
        provenance: Where this very file comes from, in Markdown.
    """
    load, pre = f"hf-hub:{repository}" if repository else name, entry.preprocessing
    return _joined(
        _front_matter(_license(entry.license) | _sorted_under(label_names, entry.task) | _measured(name, entry)),
        f"# {name}",
        entry.description,
        _usage(load, bool(label_names), entry.detects),
        _DETECTOR_INPUT if entry.detects else _input("RGB", pre.size, pre.mean, pre.std, pre.interpolation),
        _DETECTOR_ANSWER if entry.detects else _classes(label_names),
        "## Measured\n\n" + _metrics(entry.metrics) if entry.metrics else "",
        _limits(label_names, _trained_on(entry)),
        "## Origin\n\n" + "\n".join(_origin(entry, provenance)),
    )


def own_card(config: Mapping[str, Any], entry: Weights, *, repository: str) -> str:
    """Return the card of somebody's own weights, which says no more than their config.json does.

    The entry's numbers, licence and data are those of other weights; only the paper on the architecture is named.
    The front matter states no licence: that is for the owner to do.

    Args:
        config: The config.json, as `save_pretrained` writes it.
        entry: The architecture's entry.
        repository: "owner/name" on the Hub, with "@branch" where it is not the main one.
    """
    name, labels = config["architecture"], config.get("label_names", ())
    args = ", ".join(f"{key}={value!r}" for key, value in config.get("model_args", {}).items())
    origin = [f"- Architecture: `{name}` of poster-zoo" + (f", built with `{args}`" if args else "")]
    if entry.paper_name:
        origin.append(f"- Paper on the architecture: {entry.paper_name} ({entry.paper_ids[0]})")
    origin += [
        "- The weights are their owner's: no number that is published about the architecture was measured with them.",
        "- Licence of the weights: not stated. If they were trained from others, the terms of those hold for them too.",
    ]
    return _joined(
        _front_matter(_sorted_under(labels, entry.task)),
        f"# {repository.partition('@')[0].rpartition('/')[2]}",
        f"Weights for the architecture `{name}`" + (f", with {len(labels)} classes of their own." if labels else "."),
        _usage(f"hf-hub:{repository}", bool(labels), entry.detects),
        _DETECTOR_INPUT if entry.detects else _own_input(config["pretrained_cfg"]),
        _DETECTOR_ANSWER if entry.detects else _classes(labels),
        _limits(labels),
        "## Origin\n\n" + "\n".join(origin),
    )


def address_card(card: str, name: str, repository: str) -> str:
    """Return a card whose example loads the weights from a repository.

    It comes to do so where it loads them by the model's name, or from OWNER/RUN, as the card of a training run does,
    which cannot know its repository. Other examples stay.
    """
    for kind in ((True, False), (False, False), (False, True)):
        there = _usage(f"hf-hub:{repository}", *kind)
        of_a_run = re.escape(_usage("hf-hub:OWNER/RUN", *kind)).replace("RUN", r'[^"\n]+')
        card = re.sub(of_a_run, there.replace("\\", r"\\"), card.replace(_usage(name, *kind), there))
    return card


def evaluation_section(title: str, evaluation: Mapping[str, Any]) -> str:
    """Return the section of a card about one measurement.

    Args:
        title: The data and its split, "FERPlus test".
        evaluation: What `poster-zoo eval --json` printed, or `Evaluation.to_dict()` of answers with scores.
    """
    labels, intervals = evaluation["labels"], evaluation["intervals"]
    matrix = [[label, *map(str, row)] for label, row in zip(labels, evaluation["confusion_matrix"], strict=True)]
    overall = [
        [name.replace("_", " "), _rate(evaluation[name]), _interval(intervals.get(name))]
        for name in ("accuracy", "mean_class_accuracy", "macro_f1", "expected_calibration_error")
    ]
    classes = ["class", "images", "recall", "95 % interval", "answers", "mean score", "share that is right"]
    return "\n\n".join(
        [
            f"## {title}, {evaluation['images']:,} images",
            _table(["", "value", "95 % interval"], overall),
            f"Means are over the {evaluation['classes_with_images']} of {len(labels)} classes that have images. How "
            "well each class is found, and, of the answers that name it, how sure they are and how many are right:",
            _table(classes, [_class_row(label, evaluation) for label in labels]),
            "Confusion matrix; a row is a true class, a column an answer:",
            _table(["", *labels], matrix),
        ]
    )


def _class_row(label: str, evaluation: Mapping[str, Any]) -> list[str]:
    scores, sure = evaluation["per_class"][label], evaluation["calibration"]["by_class"][label]
    recall = [_rate(scores["recall"]), _interval(evaluation["intervals"]["recall"][label])]
    answers = [f"{sure['answers']:,}", _rate(sure["mean_score"]), _rate(sure["accuracy"])]
    return [label, f"{scores['count']:,}", *recall, *answers]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _rate(value: float | None, none: str = "–") -> str:
    return none if value is None else f"{value:.4f}"


def _interval(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.4f} … {interval[1]:.4f}"


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(fields: Mapping[str, Any]) -> str:
    # Each value as JSON, which is YAML too: no text can break out of its field.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _license(license: str) -> dict[str, str]:
    return {"license": license} if license in _HUB_LICENSES else {"license": "other", "license_name": license.lower()}


def _sorted_under(label_names: Sequence[str], task: str | None = None) -> dict[str, Any]:
    """Return the fields by which the Hub sorts models."""
    subject = "facial-expression-recognition" if _names_expressions(label_names) else "face"
    return {
        "library_name": "timm",
        "pipeline_tag": task or ("image-classification" if label_names else "image-feature-extraction"),
        "tags": ["timm", "poster-zoo", subject],
    }


def _measured(name: str, entry: Weights) -> dict[str, Any]:
    """Return the data and the numbers, where there are any."""
    index = [_indexed(metric) for metric in entry.metrics if metric.measured is not None]
    fields = {"datasets": list(entry.datasets), "model-index": [{"name": name, "results": index}] if index else []}
    return {key: value for key, value in fields.items() if value}


def _names_expressions(label_names: Sequence[str]) -> bool:
    return any(canonical_label(label) in _EXPRESSIONS for label in label_names)


def _classes(label_names: Sequence[str]) -> str:
    listed = "\n".join(f"{i}. {label}" for i, label in enumerate(label_names))
    return f"## Classes, in the order of the logits\n\n{listed}" if listed else ""


def _limits(label_names: Sequence[str], data: Sequence[str] = ()) -> str:
    if not _names_expressions(label_names):
        return ""
    listed = ["\n".join(f"- {facts}" for facts in data)] if data else []
    return "\n\n".join(["## What it can and cannot tell", _LABEL, _RARE, *listed, _SURE, _LAW])


def _trained_on(entry: Weights) -> list[str]:
    """Return what is known of the data behind an entry's numbers."""
    names = dict.fromkeys(metric.dataset.split()[0] for metric in entry.metrics)
    return [_DATA[name] for name in names if name in _DATA]


def _indexed(metric: Metric) -> dict[str, Any]:
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": metric.dataset, "type": metric.dataset.split()[0].lower()},
        "metrics": [{"type": metric.name.replace(" ", "_"), "value": metric.measured, "name": metric.name}],
    }


def _usage(load: str, classifies: bool, detects: bool) -> str:
    if detects:
        return (
            f'```python\nimport poster_zoo\n\ndetector = poster_zoo.FaceDetector("{load}")\n'
            'print(detector("photograph.jpg"))\n```'
        )
    if not classifies:
        return f'```python\nimport poster_zoo\n\nmodel = poster_zoo.create_model("{load}", pretrained=True)\n```'
    return (
        f'```python\nimport poster_zoo\n\npredictor = poster_zoo.Predictor("{load}")\nprint(predictor("face.jpg"))\n```'
    )


def _own_input(cfg: Mapping[str, Any]) -> str:
    channels, *size = cfg["input_size"]
    if channels == 1:  # as `create_transform` does
        return _input("Grey", size, [fmean(cfg["mean"])], [fmean(cfg["std"])], cfg["interpolation"])
    colours = "RGB" if channels == 3 else f"{channels} channels"
    return _input(colours, size, cfg["mean"], cfg["std"], cfg["interpolation"])


def _input(colours: str, size: Sequence[int], mean: Sequence[float], std: Sequence[float], interpolation: str) -> str:
    means, stds = (", ".join(f"{value:g}" for value in values) for values in (mean, std))
    return (
        f"## Input\n\n{colours}, resized to {size[0]} × {size[1]} pixels ({interpolation}, antialiased, aspect ratio "
        f"not kept), scaled to 0…1, mean ({means}), standard deviation ({stds}). "
        "`poster_zoo.create_transform(model)` does it."
    )


def _metrics(metrics: Sequence[Metric]) -> str:
    rows = [
        [
            metric.dataset,
            metric.name,
            _rate(metric.published),
            _rate(metric.measured, "not measured"),
            f"`{metric.command}`" if metric.command else "–",
        ]
        for metric in metrics
    ]
    return _table(["data", "metric", "published", "measured by us", "command"], rows)


def _origin(entry: Weights, provenance: str) -> list[str]:
    lines = [f"- {provenance}"] if provenance else []
    if entry.paper_name:
        lines.append(f"- Paper: {entry.paper_name} ({', '.join(entry.paper_ids)})")
    if entry.origin_url:
        lines.append(f"- Authors' code: {entry.origin_url}")
    licence = "not stated by their authors" if entry.license == "unknown" else entry.license
    lines.append(f"- Licence of the weights: {licence}")
    return lines + [f"- {note}" for note in entry.notes]
