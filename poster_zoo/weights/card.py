"""Model cards: a README.md for a set of weights, written from its entry and from what was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from poster_zoo.weights.entry import Metric, Weights

__all__ = ["model_card"]

# The Hub knows these by a name of its own, and wants others spelt out.
_HUB_LICENSES = {"unknown": "unknown", "apache-2.0": "apache-2.0", "mit": "mit"}

_LIMITS = """\
A label of this model says which expression people would write under the picture. It does not say what the person
feels: the same face is made in many moods, and many moods make no face. Classes that were rare in the training data
are told apart worst. In the European Union, Article 5(1)(f) of the AI Act forbids systems that infer emotions of
people at work and in education, with exceptions for medical and safety reasons; other places have rules of their own.
"""


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
    front = _front_matter(name, entry, bool(label_names))
    load = f"hf-hub:{repository}" if repository else name
    parts = [
        f"---\n{front}---",
        f"# {name}",
        entry.description,
        _usage(load, bool(label_names)),
        "## Input\n\n" + _input(entry),
    ]
    if label_names:
        listed = "\n".join(f"{i}. {label}" for i, label in enumerate(label_names))
        parts.append(f"## Classes, in the order of the logits\n\n{listed}")
    if entry.metrics:
        parts.append("## Measured\n\n" + _metrics(entry.metrics))
    if label_names:
        parts.append("## What it can and cannot tell\n\n" + _LIMITS.strip())
    parts.append("## Origin\n\n" + "\n".join(_origin(entry, provenance)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(name: str, entry: Weights, classifies: bool) -> str:
    fields: dict[str, Any] = {
        "license": _HUB_LICENSES.get(entry.license, "other"),
        "library_name": "timm",
        "pipeline_tag": "image-classification" if classifies else "image-feature-extraction",
        "tags": ["timm", "poster-zoo", *(["facial-expression-recognition"] if classifies else ["face"])],
    }
    index = [_indexed(metric) for metric in entry.metrics if metric.measured is not None]
    if index:
        fields["model-index"] = [{"name": name, "results": index}]
    # Each value as JSON, which is YAML too: no text can break out of its field.
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items())


def _indexed(metric: Metric) -> dict[str, Any]:
    return {
        "task": {"type": "image-classification"},
        "dataset": {"name": metric.dataset, "type": metric.dataset.split()[0].lower()},
        "metrics": [{"type": metric.name.replace(" ", "_"), "value": metric.measured, "name": metric.name}],
    }


def _usage(load: str, classifies: bool) -> str:
    if not classifies:
        return f'```python\nimport poster_zoo\n\nmodel = poster_zoo.create_model("{load}", pretrained=True)\n```'
    return (
        "```python\nimport poster_zoo\n\n"
        f'predictor = poster_zoo.Predictor("{load}")\n'
        'print(predictor("face.jpg"))\n```'
    )


def _input(entry: Weights) -> str:
    pre = entry.preprocessing
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (pre.mean, pre.std))
    return (
        f"RGB, resized to {pre.size[0]} × {pre.size[1]} pixels ({pre.interpolation}, antialiased, aspect ratio not kept), "
        f"scaled to 0…1, mean ({mean}), standard deviation ({std}). `poster_zoo.create_transform(model)` does it."
    )


def _metrics(metrics: Sequence[Metric]) -> str:
    def number(value: float | None) -> str:
        return "not measured" if value is None else f"{value:.4f}"

    rows = ["| data | metric | published | measured by us | command |", "|---|---|---|---|---|"]
    for metric in metrics:
        published = "–" if metric.published is None else f"{metric.published:.4f}"
        command = f"`{metric.command}`" if metric.command else "–"
        rows.append(f"| {metric.dataset} | {metric.name} | {published} | {number(metric.measured)} | {command} |")
    return "\n".join(rows)


def _origin(entry: Weights, provenance: str) -> list[str]:
    lines = [f"- {provenance}"] if provenance else []
    if entry.paper_name:
        lines.append(f"- Paper: {entry.paper_name} ({', '.join(entry.paper_ids)})")
    if entry.origin_url:
        lines.append(f"- Authors' code: {entry.origin_url}")
    lines.append(f"- Licence of the weights: {'not stated by their authors' if entry.license == 'unknown' else entry.license}")
    return lines + [f"- {note}" for note in entry.notes]
