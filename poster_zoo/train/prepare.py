"""From names to what is trained: a model by its name, collections by theirs."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poster_zoo.data.check import Report, without_bad
from poster_zoo.data.datasets import COLLECTIONS, FaceDataset, available_splits, join, open_dataset, open_training
from poster_zoo.data.datasets.spec import parse_spec
from poster_zoo.errors import FaultyDataError, OptionError, WeightsNotFoundError
from poster_zoo.labels import canonical_label
from poster_zoo.models._builder import STREAMS, load_weights, refuse_detector, weights_tensors
from poster_zoo.models._registry import create_model
from poster_zoo.models.poster import TwoStreams
from poster_zoo.train.recipe import Recipe
from poster_zoo.weights.convert import load_checkpoint
from poster_zoo.weights.find import config_beside, fetch_config, read_config

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
            FaultyDataError: There are images that cannot be used, and they are not to be left out; or none is left.
        """
        if not skip_bad:
            report.require()
            return self
        data, valid = (without_bad(part, report) for part in (self.data, self.valid))
        for part, purpose in ((data, "to train on"), (valid, "to choose the best epoch by")):
            if not len(part):
                raise FaultyDataError(
                    f"Without the images that cannot be used or are in a later split too, {part.name} has none "
                    f"{purpose}; `poster-zoo data` shows what is wrong with it."
                )
        return Faces(data, valid, self.parts)


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
    pretrained_streams: bool | None = None,
    checkpoint: str | None = None,
    last: Path | None = None,
) -> Any:
    """Build the model that is to be trained, its new numbers by the recipe's seed.

    Args:
        name: A name of the zoo, hf-hub:OWNER/NAME or local-dir:FOLDER.
        recipe: Its dropout and stochastic depth.
        pretrained: As for `create_model`.
        pretrained_streams: What a POSTER begins with whose own weights are not loaded. Unless this is False, its
            streams start from `ir50` and `mobilefacenet`, as the authors' training does; of the tiny family, the
            landmark stream starts from that of `poster_tiny`. False: from random numbers, and the landmark stream,
            which is frozen otherwise, learns with the rest.
        checkpoint: Weights as for `load_checkpoint`, instead of `pretrained`.
        last: What a run goes on from, a folder: its model is built, and no weights are loaded, as all will be replaced
            by those that are there.

    Raises:
        OptionError: The model finds faces and is not trained here; or it has no streams, and theirs are wanted.
        WeightsNotFoundError: The weights, or those of the streams, are nowhere to be had.
    """
    refuse_detector(name, "training takes")
    torch.manual_seed(recipe.seed)
    options: dict[str, Any] = {"drop_rate": recipe.drop_rate, "drop_path_rate": recipe.drop_path_rate}
    if last is not None:
        model: Any = create_model(f"local-dir:{last}", False, **options)
    elif checkpoint is not None:
        model = load_checkpoint(checkpoint, name, **options)
    else:
        model = create_model(name, pretrained, **options)
    if checkpoint is not None:
        return model
    if not isinstance(model, TwoStreams):
        if pretrained_streams:
            raise OptionError(f"{name} has no streams that could start from other weights; leave that out.")
    elif not (":" in name if pretrained is None else pretrained):  # as `create_model` has it
        if pretrained_streams is False:
            model.freeze_landmark_stream(False)
        elif last is None:
            _start_streams(model)
    return model


def _start_streams(model: Any) -> None:
    """Start a POSTER's streams from the weights of the networks they are."""
    try:
        if model.built_with.get("tiny"):
            start = "landmark_stream."
            tensors = {key: t for key, t in weights_tensors("poster_tiny").items() if key.startswith(start)}
            tensors = {key.removeprefix(start): tensor for key, tensor in tensors.items()}
            load_weights(model.landmark_stream, tensors, "stem.0.conv", name="the landmark stream")
        else:
            model.load_streams(*map(weights_tensors, STREAMS))
    except WeightsNotFoundError as error:
        raise WeightsNotFoundError(
            f"{error}\nA POSTER without weights of its own begins with those of {' and '.join(STREAMS)}. "
            "--no-pretrained-streams trains all of it from random numbers instead, the landmark stream too."
        ) from error


def saved_config(name: str, checkpoint: str | None = None) -> dict[str, Any]:
    """Return the config.json of a model that is loaded from a folder or from the Hub; an empty one for others.

    Raises:
        WeightsError: It cannot be read.
    """
    kind, _, place = name.partition(":")
    with contextlib.suppress(WeightsNotFoundError):  # which is for whoever loads it to say
        if checkpoint is not None and (config := config_beside(checkpoint)):
            return read_config(config)
    if place and kind.replace("_", "-") == "hf-hub":
        repository, _, revision = place.partition("@")
        folder = fetch_config(repository, revision or None).parent
    elif place:
        folder = Path(place)
    else:
        return {}
    file = folder.expanduser() / "config.json"
    return read_config(file) if file.is_file() else {}


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without which the factory would build another model than the one of this config.json."""
    arguments: Mapping[str, Any] = config.get("model_args") or {}
    return {key: value for key, value in arguments.items() if key not in ("drop_rate", "drop_path_rate")}
