"""Models as folders: config.json and model.safetensors in the layout that timm and transformers read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from poster_zoo.errors import LabelError, OptionError, WeightsError, counted
from poster_zoo.models._registry import create_model
from poster_zoo.models.layers import input_channels

__all__ = ["from_pretrained", "model_config", "refuse_wrapped", "save_pretrained", "write_folder"]


def model_config(
    model: Any, label_names: Sequence[str] | None = None, model_args: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the config.json of a model.

    Args:
        model: A model of the zoo, or any of timm's.
        label_names: Class names in the order of the logits; None for those that the model came with, if their number
            is still right.
        model_args: Arguments without which the factory would build another model, such as `{"depth": 3}`; the zoo's
            own models know theirs. The number of classes does not belong here: transformers passes that itself.

    Raises:
        LabelError: The number of label names is not the number of classes.
        OptionError: The model does not say what it takes and gives.
    """
    refuse_wrapped(model, "save")
    cfg = dict(model.pretrained_cfg)
    classes = int(model.num_classes)
    names = list(label_names) if label_names is not None else list(cfg.get("label_names") or ())
    if label_names is not None and len(names) != classes:
        given = counted(len(names), "label name was", "label names were")
        raise LabelError(f"{given} given for a model of {counted(classes, 'class', 'classes')}; give one a class.")
    names = names if len(names) == classes else []
    for source in ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "label_names"):
        cfg.pop(source, None)
    args = _own_arguments(model) | dict(model_args or {})
    in_chans = input_channels(model)
    if in_chans != cfg["input_size"][0]:
        args.setdefault("in_chans", in_chans)
    cfg["input_size"] = [in_chans, *getattr(model, "img_size", cfg["input_size"][1:])]
    cfg["num_classes"] = classes
    config: dict[str, Any] = {
        "architecture": cfg.pop("architecture"),
        "num_classes": classes,
        "num_features": int(model.num_features),
        "library_name": "timm",
    }
    if names:
        config["label_names"] = names
    if args:
        config["model_args"] = args
    config["pretrained_cfg"] = cfg
    return config


def refuse_wrapped(model: Any, verb: str) -> None:
    """Refuse what is no model that describes itself, as one of `features_only` or in a wrapper; `verb`: what was asked.

    Raises:
        OptionError: It is none.
    """
    if not all(hasattr(model, fact) for fact in ("pretrained_cfg", "num_classes")):
        raise OptionError(
            f"{type(model).__name__} does not say what it takes and gives; {verb} a model as `create_model` makes it, "
            "out of any wrapper and without features_only."
        )


def _own_arguments(model: Any) -> dict[str, Any]:
    """Return the arguments that a model of the zoo was built with and that its factory would not give by itself."""
    built: dict[str, Any] = dict(getattr(model, "built_with", {}))
    if not built:
        return {}
    if "global_pool" in built:
        built["global_pool"] = model.global_pool  # reset_classifier may have changed it
    with torch.device("meta"):
        usual: Any = create_model(model.pretrained_cfg["architecture"])
    # As JSON, where a tuple is the list that it is read back as.
    return {name: value for name, value in built.items() if json.dumps(value) != json.dumps(usual.built_with[name])}


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    label_names: Sequence[str] | None = None,
    model_args: dict[str, Any] | None = None,
) -> Path:
    """Write a model as a folder that timm, transformers and `from_pretrained` load, labels included.

    A folder that is there already keeps its other files; its config.json and model.safetensors are replaced only once
    both new ones are written.

    Args:
        model: The model; of one that torch.compile returned, the one within.
        folder: Where to.
        label_names: Class names in the order of the logits; None for those that the model came with.
        model_args: Arguments without which the factory would build another model, where the model does not know them.

    Returns:
        The folder.

    Raises:
        LabelError: The number of label names is not the number of classes.
        OptionError: The model was optimized, is in a wrapper, or gives features only.
        WeightsError: The folder cannot be written.
    """
    model = getattr(model, "_orig_mod", model)  # whose tensors have the names that a model has
    if getattr(model, "is_optimized", False):
        raise OptionError("An optimized model can only answer; save the model as it was before `optimize`.")
    config = model_config(model, label_names, model_args)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return write_folder(folder, tensors, config)


def write_folder(
    folder: str | Path, tensors: Mapping[str, Tensor] | Path, config: dict[str, Any], **texts: str
) -> Path:
    """Write weights, config and further text files (by name) into a folder; each file is whole or not there.

    Args:
        folder: Where to; made where it is missing.
        tensors: The weights, or a safetensors file to copy.
        config: The config.json.
        **texts: Other files' content.

    Raises:
        WeightsError: The folder cannot be written.
    """
    folder = Path(folder).expanduser()
    beside = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        if isinstance(tensors, Path):
            shutil.copyfile(tensors, beside / "model.safetensors")
        else:
            save_file(dict(tensors), beside / "model.safetensors", metadata={"format": "pt"})
        (beside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        # safetensors keeps its files to their owner; the config has the mode that the umask gives.
        shutil.copymode(beside / "config.json", beside / "model.safetensors")
        for name, text in texts.items():
            (beside / name).write_text(text, encoding="utf-8")
        for file in sorted(beside.iterdir(), reverse=True):  # the weights first, so that a config never lacks them
            os.replace(file, folder / file.name)
    except (OSError, SafetensorError) as error:  # the latter is what a full disk is to safetensors
        reason = getattr(error, "strerror", None) or error
        raise WeightsError(
            f"The model cannot be saved in {folder}: {reason}. Make room there, or choose a folder you can write."
        ) from error
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
    return folder


def from_pretrained(source: str | Path, **kwargs: Any) -> nn.Module:
    """Load a model from a folder that `save_pretrained` wrote, or from "owner/name[@revision]" on the Hub.

    Args:
        source: The folder, or the repository where no such folder exists.
        **kwargs: As for `create_model`.

    Raises:
        WeightsNotFoundError: There is neither.
        WeightsError: The weights do not fit.
    """
    folder = Path(source).expanduser()
    is_repository = not folder.exists() and str(source).count("/") == 1 and not str(source).startswith((".", "/", "~"))
    return create_model(f"{'hf-hub' if is_repository else 'local-dir'}:{source}", **kwargs)
