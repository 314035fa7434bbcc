"""From names to what is trained: a model by its name, collections by theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poster_zoo.data.check import Report, without_bad
from poster_zoo.data.datasets import COLLECTIONS, FaceDataset, available_splits, join, open_dataset, open_training
from poster_zoo.data.datasets.spec import parse_spec
from poster_zoo.errors import OptionError
from poster_zoo.labels import canonical_label
from poster_zoo.models._builder import refuse_detector
from poster_zoo.models._registry import create_model
from poster_zoo.train.recipe import Recipe
from poster_zoo.weights.convert import load_checkpoint
from poster_zoo.weights.find import fetch_repository

__all__ = ["Faces", "build_model", "model_arguments", "open_faces", "saved_config"]


@dataclass(frozen=True)
class Faces:
    """What is learned from, and what the best epoch is chosen by.

    Attributes:
        data: Images to learn from, of all collections.
        valid: Images to choose by.
        parts: The same by collection, with the other splits that are there: what is checked.
    """

    data: FaceDataset
    valid: FaceDataset
    parts: tuple[FaceDataset, ...]

    def usable(self, report: Report, skip_bad: bool) -> Faces:
        """Return the faces that can be used.

        Args:
            report: What `check_dataset(self.parts)` returned.
            skip_bad: Leave out what cannot be used, and images that are in another split too.

        Raises:
            FaultyDataError: There are images that cannot be used, and they are not to be left out.
        """
        if not skip_bad:
            report.require()
            return self
        return Faces(without_bad(self.data, report), without_bad(self.valid, report), self.parts)


def open_faces(specs: Sequence[str], recipe: Recipe, labels: Sequence[str] = ()) -> Faces:
    """Open collections, each with its own splits, and join them.

    Args:
        specs: NAME:PATH, as for `open_dataset`.
        recipe: Says by which images the best epoch is chosen.
        labels: The model's classes, in which the collections' are found by name; none for those of the data.

    Raises:
        OptionError: A collection is not there, or lacks the split that the recipe chooses by.
        LabelError: A class of the data is none of `labels`.
    """
    labels = labels or _classes(specs)
    pairs = [_open(spec, recipe, labels) for spec in specs]
    pairs = [(data.with_labels(labels), valid.with_labels(labels)) for data, valid in pairs]
    others = [
        open_dataset(spec, split, labels).with_labels(labels)
        for spec, (data, valid) in zip(specs, pairs, strict=True)
        for split in available_splits(spec)[1:]  # a collection with one part alone was parted for both
        if split not in (data.split, valid.split)
    ]
    datas, valids = zip(*pairs, strict=True)
    return Faces(join(datas), join(valids), (*datas, *valids, *others))


def _open(spec: str, recipe: Recipe, labels: Sequence[str]) -> tuple[FaceDataset, FaceDataset]:
    if recipe.select_on != "test":
        return open_training(spec, labels, recipe.valid_share)
    there = available_splits(spec)
    if not {"train", "test"} <= set(there):
        raise OptionError(
            f"The best epoch is to be chosen on the test images of {spec!r}, which has {', '.join(there)}; "
            "leave out --select-on test."
        )
    return open_dataset(spec, "train", labels), open_dataset(spec, "test", labels)


def _classes(specs: Sequence[str]) -> tuple[str, ...]:
    """Return the classes of all collections, each once, as the first that has it spells it."""
    classes: dict[str, str] = {}
    for name, path in map(parse_spec, specs):
        for label in COLLECTIONS[name](path, "train").label_names:
            classes.setdefault(canonical_label(label), label)
    return tuple(classes.values())


def build_model(
    name: str,
    recipe: Recipe,
    *,
    pretrained: bool | None = None,
    pretrained_streams: bool = False,
    checkpoint: str | None = None,
) -> Any:
    """Build the model that is to be trained, its new numbers by the recipe's seed.

    Args:
        name: A name of the zoo, hf-hub:OWNER/NAME or local-dir:FOLDER.
        recipe: Its dropout and stochastic depth.
        pretrained: As for `create_model`.
        pretrained_streams: Start POSTER's streams from `ir50` and `mobilefacenet`, as the authors' training does.
        checkpoint: Weights as for `load_checkpoint`, instead of `pretrained`.

    Raises:
        OptionError: The model finds faces and is not trained here.
    """
    refuse_detector(name, "training takes")
    torch.manual_seed(recipe.seed)
    options: dict[str, Any] = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path_rate}
    if pretrained_streams:
        options["pretrained_streams"] = True
    if checkpoint is not None:
        return load_checkpoint(checkpoint, name, **options)
    return create_model(name, pretrained, **options)


def saved_config(name: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Return the config.json of a model that is loaded from a folder or from the Hub; an empty one for others."""
    kind, _, place = name.partition(":")
    if checkpoint is not None:
        folder = Path(checkpoint)
    elif place and kind.replace("_", "-") == "hf-hub":
        repository, _, revision = place.partition("@")
        folder = fetch_repository(repository, revision or None)[0].parent
    elif place:
        folder = Path(place)
    else:
        return {}
    file = folder.expanduser() / "config.json"
    if not file.is_file():
        return {}
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without which the factory would build another model than the one of this config.json."""
    arguments: Mapping[str, Any] = config.get("model_args") or {}
    return {key: value for key, value in arguments.items() if key not in ("drop_rate", "drop_path_rate")}
