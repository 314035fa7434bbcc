"""From an entry and keywords to a model: the one way that every factory goes.

timm's own builder makes the model and wraps it for `features_only`; weights are loaded here, because timm's loader
turns `strict` off for the whole model as soon as the number of classes differs, checks no hash, and goes on with
ImageNet's mean and std where a factory has no entry.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs
from timm.models._builder import resolve_pretrained_cfg
from timm.models._hub import load_model_config_from_path
from timm.models._manipulate import adapt_input_conv
from timm.models._registry import DefaultCfg
from torch import Tensor, nn

from poster_zoo.errors import (
    OptionError,
    UnknownArgumentError,
    UnknownModelError,
    WeightsError,
    WeightsMismatchError,
    nearest,
)
from poster_zoo.models.layers import default_device, init_weights
from poster_zoo.weights.entry import Weights
from poster_zoo.weights.find import WEIGHTS_FILE, Found, fetch_repository, fetch_weights, read_config
from poster_zoo.weights.tensors import read_tensors

__all__ = [
    "ENTRIES",
    "STREAMS",
    "base_name",
    "build_model",
    "load_weights",
    "refuse_detector",
    "register_weights",
    "weights_name",
    "weights_tensors",
]

_logger = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

ENTRIES: dict[str, Weights] = {}
"""Every factory's entry by the factory's name; filled as the model files are imported."""

STREAMS = ("ir50", "mobilefacenet")
"""Whose weights `pretrained_streams=True` starts POSTER's image and landmark stream from."""

# What timm's builder and its feature wrapper take beside the model's own arguments.
_BUILDER_ARGUMENTS = ("features_only", "out_indices", "feature_cls", "output_fmt", "pretrained_model_args")


# Where weights are: what is found there says nothing new about that.
_PLACES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source")

# What a folder says elsewhere, or what matters while a model learns and not to what it answers.
_NOT_ARCHITECTURE = (
    "num_classes",
    "in_chans",
    "img_size",
    "drop_rate",
    "drop_path_rate",
    "freeze_landmarks",
    "device",
    "dtype",
)


def register_weights(entries: Mapping[str, Weights]) -> dict[str, DefaultCfg]:
    """Add a model file's entries to `ENTRIES` and return them as timm's `default_cfgs`."""
    ENTRIES.update(entries)
    cfgs: dict[str, dict[str, Any] | PretrainedCfg] = {
        f"{name}.{entry.tag}" if entry.tag else name: entry.to_cfg() for name, entry in entries.items()
    }
    default_cfgs: dict[str, DefaultCfg] = generate_default_cfgs(cfgs)
    return default_cfgs


def base_name(name: str) -> str:
    """Return a name without the tag of its weights: "poster_tiny.ferplus" is `poster_tiny`. Other names stay.

    Raises:
        UnknownModelError: The model has no weights of that tag.
    """
    base, _, tag = name.partition(".")
    if base not in ENTRIES or not tag:
        return name
    if tag != ENTRIES[base].tag:
        known = f"{base}.{ENTRIES[base].tag}" if ENTRIES[base].tag else base
        raise UnknownModelError(f"There are no weights {name!r}. Did you mean {known!r}?")
    return base


def weights_name(variant: str) -> str:
    """Return the name under which a factory's weights are published and installed: `poster`'s are `poster_rafdb`."""
    hub_id = ENTRIES[variant].hub_id
    return hub_id.rpartition("/")[2] if hub_id else variant


def refuse_detector(model: str | nn.Module, asked: str) -> None:
    """Refuse a model that finds faces where one is asked for that answers about a face.

    Args:
        model: A model, or its name.
        asked: What was asked, as it begins the sentence: "`export` takes".

    Raises:
        OptionError: The model is a detector.
    """
    name = (
        base_name(model)
        if isinstance(model, str)
        else (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    )
    if name in ENTRIES and ENTRIES[name].detects:
        raise OptionError(
            f"{name} finds faces in pictures of any size; {asked} models that answer about one face, as poster_tiny."
        )


def build_model(
    cls: type[Model],
    variant: str,
    pretrained: bool,
    kwargs: dict[str, Any],
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> Model:
    """Build a model of the registry.

    Where a config.json lies beside the weights, it is of that config's classes, preprocessing and arguments.

    Args:
        cls: The architecture.
        variant: The factory's name.
        pretrained: Load the weights that the entry, or `pretrained_cfg` among `kwargs`, says. Either they are loaded
            or an error is raised.
        kwargs: Arguments of the architecture and of timm's builder; `pretrained_streams=True` starts the two streams
            of a POSTER from the weights of `ir50` and `mobilefacenet`, as the authors' training does.
        defaults: The factory's own arguments, which those of a config.json and of `kwargs` replace.

    Raises:
        UnknownArgumentError: A keyword that the architecture does not take.
        WeightsNotFoundError: The weights are nowhere to be had.
        WeightsError: The weights do not fit, or are another model's.
    """
    options = dict(kwargs)
    cfg = resolve_pretrained_cfg(
        variant, options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
    )
    cache_dir = options.pop("cache_dir", None)
    pretrained_streams = options.pop("pretrained_streams", False) if hasattr(cls, "load_streams") else False
    _refuse_unknown_arguments(cls, variant, options)
    found = _find(variant, cfg, cache_dir) if pretrained and cfg.state_dict is None else None
    if found and found.config:
        cfg, saved = _as_saved(variant, cfg, found.config)
        _refuse_unknown_arguments(cls, variant, saved)
        options = saved | options
    options = dict(defaults) | options

    def construct(**arguments: Any) -> Any:
        if pretrained:
            tensors = _tensors(variant, cfg, found)
            device = torch.device(arguments.pop("device", None) or default_device())
            # Built without numbers of its own: to draw them takes longer than to read the weights.
            with torch.device("meta"):
                model: Any = cls(**arguments)
            load_weights(model, tensors, cfg.first_conv, cfg.classifier, variant, device=device)
        else:
            model = cls(**arguments)
        model.built_with = _architecture(cls, arguments)
        if pretrained_streams and not pretrained:
            model.load_streams(*(weights_tensors(name, cache_dir=cache_dir) for name in STREAMS))
        return model

    features = {"feature_cls": "getter", "out_indices": None} if options.get("features_only") else None
    build: Any = build_model_with_cfg  # it takes a resolved cfg, whatever its annotation says
    model: Model = build(construct, variant, False, pretrained_cfg=cfg, feature_cfg=features, **options)
    return model


def _architecture(cls: type[nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments that decide what a model of these arguments computes, defaults included."""
    bound = inspect.signature(cls).bind(**arguments)
    bound.apply_defaults()
    return {name: value for name, value in bound.arguments.items() if name not in _NOT_ARCHITECTURE}


def _refuse_unknown_arguments(cls: type[nn.Module], variant: str, options: Mapping[str, Any]) -> None:
    known = [name for name in inspect.signature(cls).parameters if name != "self"]
    for name in options:
        if name not in known and name not in _BUILDER_ARGUMENTS:
            raise UnknownArgumentError(
                f"{variant} takes no argument {name!r}.{nearest(name, known)} It takes {', '.join(known)}."
            )


def weights_tensors(variant: str, cache_dir: str | Path | None = None) -> dict[str, Tensor]:
    """Return the tensors of an entry's weights."""
    cfg = resolve_pretrained_cfg(variant)
    return _tensors(variant, cfg, _find(variant, cfg, cache_dir))


def _tensors(variant: str, cfg: PretrainedCfg, found: Found | None) -> dict[str, Tensor]:
    """Return the tensors that `cfg` gives, or else those of the file that was found."""
    if found is None or found.path is None:
        given: dict[str, Tensor] = cfg.state_dict or {}
        return {key: tensor.clone() for key, tensor in given.items()}  # the caller goes on using his own
    try:
        return read_tensors(found.path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"The weights of {variant} cannot be read from {found.path}: {error}. "
            f"Weights are safetensors files; `poster-zoo convert` makes one of an authors' checkpoint."
        ) from error


def _find(variant: str, cfg: PretrainedCfg, cache_dir: str | Path | None) -> Found:
    """Return the file that `cfg` points at: a given one, one of a repository of its own, or else the entry's."""
    entry = ENTRIES[variant]
    _refuse_other_sources(variant, cfg)
    if cfg.source == "hf-hub" or (cfg.hf_hub_id and cfg.hf_hub_id != entry.to_cfg().get("hf_hub_id")):
        repository, _, revision = str(cfg.hf_hub_id).partition("@")
        config, weights = fetch_repository(repository, revision or None, cache_dir=cache_dir)
        return Found("hub", weights, config, f"They are those of {repository} on the Hub.")
    found = fetch_weights(weights_name(variant), entry, file=cfg.file, cache_dir=cache_dir)
    if found.path is None:
        raise WeightsError(f"The weights of {variant} were asked for and not found: {found.reason}")
    return found


def _refuse_other_sources(variant: str, cfg: PretrainedCfg) -> None:
    """Refuse places and formats of weights that timm knows and that are not loaded here."""
    asked = {} if cfg.file else {"url": cfg.url, "hf_hub_filename": cfg.hf_hub_filename}
    if asked.get("hf_hub_filename") == WEIGHTS_FILE:
        del asked["hf_hub_filename"]
    for name, value in (asked | {"custom_load": cfg.custom_load}).items():
        if value:
            raise WeightsError(
                f"The weights of {variant} cannot be loaded by {name}={value!r}: they come from a safetensors file, a "
                f"folder, or {WEIGHTS_FILE} of a repository on the Hub. Download them yourself and name the file "
                "(weights=, or file= in pretrained_cfg_overlay)."
            )


def _as_saved(variant: str, cfg: PretrainedCfg, config: Path) -> tuple[PretrainedCfg, dict[str, Any]]:
    """Return classes and preprocessing, and the arguments of the model, as the config.json beside its weights has them.

    Where it says nothing else than `cfg`, as that of a file that was converted here, `cfg` stays.

    Raises:
        WeightsError: It cannot be read, or is of another model.
    """
    architecture = read_config(config)["architecture"]
    if architecture != variant and (architecture not in ENTRIES or weights_name(architecture) != weights_name(variant)):
        raise WeightsError(
            f"The folder {config.parent} holds a {architecture} and no {variant}; name the model {architecture}, "
            f"or local-dir:{config.parent}, which says so itself."
        )
    stated, _, arguments = load_model_config_from_path(config.parent)
    before = cfg.to_dict(remove_null=False)
    stated = {"label_names": None} | {key: stated[key] for key in stated if key in before and key not in _PLACES}
    if any(_as_json(value) != _as_json(before[key]) for key, value in stated.items()):
        cfg = replace(cfg, **stated)
    return cfg, dict(arguments or {})


def _as_json(value: Any) -> str:
    return json.dumps(value)  # where a tuple is a list


def load_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    first_conv: str | tuple[str, ...] | None = None,
    classifier: str | tuple[str, ...] | None = None,
    name: str = "the model",
    device: torch.device | None = None,
) -> None:
    """Load `tensors` strictly; only what the caller changed on purpose may differ.

    A head with another number of classes stays newly initialised, one log line says so. Parts that the model was built
    without (its head, by `num_classes=0`) are left out. Stems for another number of channels get timm's adaptation:
    the sum over the channels for grey images.

    Args:
        model: Where to.
        tensors: By the model's names.
        first_conv: Names of the layers that see the image.
        classifier: Names of the layers that give the logits.
        name: The model's, for messages.
        device: For a model on the meta device, where it goes. `tensors` become its own, in the types that it was
            built with; what they leave out is initialised there.

    Raises:
        WeightsMismatchError: Names or shapes differ elsewhere; the first few are named, expected and found.
    """
    wanted = model.state_dict()
    given = {key: tensor for key, tensor in tensors.items() if not _stands_on_identity(model, key)}
    heads = _as_tuple(classifier)
    kept = set(wanted)
    fresh_head = [h for h in heads if _shape(given, f"{h}.weight")[:1] != _shape(wanted, f"{h}.weight")[:1]]
    new_classes = 0
    if fresh_head and all(f"{h}.weight" in wanted and f"{h}.weight" in given for h in fresh_head):
        prefixes = _head_prefixes(fresh_head)
        given = {key: tensor for key, tensor in given.items() if not key.startswith(prefixes)}
        kept -= {key for key in wanted if key.startswith(prefixes)}
        new_classes = wanted[f"{fresh_head[0]}.weight"].shape[0]
    for layer in _as_tuple(first_conv):
        key = f"{layer}.weight"
        if key in given and key in wanted and given[key].shape[1] != wanted[key].shape[1]:
            given[key] = adapt_input_conv(wanted[key].shape[1], given[key])
    _refuse_mismatch(name, {key: wanted[key] for key in wanted if key in kept}, given)
    if new_classes:
        _logger.warning(
            "%s: the head is new, for %d classes; every other tensor comes from the weights.", name, new_classes
        )
    if device is None:
        model.load_state_dict(given, strict=not fresh_head)
        return
    given = {key: tensor.to(device, wanted[key].dtype) for key, tensor in given.items()}
    model.load_state_dict(given, strict=not fresh_head, assign=True)
    if device.type != "meta":
        _initialise_missing(model, device)


def _initialise_missing(model: nn.Module, device: torch.device) -> None:
    """Put on `device` what is still on the meta device, with the numbers that a new model would have there."""
    for module in model.modules():
        if any(tensor.is_meta for tensor in (*module.parameters(False), *module.buffers(False))):
            module.to_empty(device=device, recurse=False)
            reset: Any = module.reset_parameters
            reset()
            init_weights(module)


def _as_tuple(names: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def _shape(tensors: Mapping[str, Tensor], key: str) -> tuple[int, ...]:
    return tuple(tensors[key].shape) if key in tensors else ()


def _head_prefixes(heads: list[str]) -> tuple[str, ...]:
    """Return the prefixes of the parts that go with the classifier: it and the norm behind it, where there is one."""
    return tuple(f"{h}{end}" for h in heads for end in (".", "_bn."))


def _stands_on_identity(model: nn.Module, key: str) -> bool:
    """Whether the tensor belongs to a part, such as the head, for which the model holds a placeholder.

    Only the model's own parts count: deeper down a placeholder is another network, as a block without token mixing.
    """
    return isinstance(model._modules.get(key.partition(".")[0]), nn.Identity)


def _refuse_mismatch(name: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    faults = [f"{key}: expected {tuple(wanted[key].shape)}, not in the file" for key in wanted if key not in given]
    faults += [f"{key}: not in the model, found {tuple(given[key].shape)}" for key in given if key not in wanted]
    faults += [
        f"{key}: expected {tuple(wanted[key].shape)}, found {tuple(given[key].shape)}"
        for key in wanted
        if key in given and wanted[key].shape != given[key].shape
    ]
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise WeightsMismatchError(
            f"The weights do not fit {name}: {len(faults)} of its tensors differ ({'; '.join(faults[:3])}{more}). "
            f"Build the model that they were saved from, with the same arguments."
        )
