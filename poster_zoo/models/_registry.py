"""The zoo's front door: names to models."""

from __future__ import annotations

import fnmatch
import inspect
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import is_model, model_entrypoint
from torch import nn

from poster_zoo.errors import UnknownModelError, WeightsError, WeightsNotFoundError, nearest
from poster_zoo.models._builder import ENTRIES, base_name, weights_name
from poster_zoo.weights.entry import Weights
from poster_zoo.weights.find import (
    CONFIG_FILE,
    Found,
    config_beside,
    fetch_config,
    fetch_repository,
    find_weights,
    read_config,
)

__all__ = ["ModelInfo", "create_model", "list_models", "model_info"]


def list_models(filter: str = "", pretrained: bool = False) -> list[str]:
    """Return the zoo's model names in alphabetical order.

    Args:
        filter: A pattern such as "poster_*"; empty for all.
        pretrained: Only those whose weights can be loaded: in the package, on this machine, or published.
    """
    names = [name for name in sorted(ENTRIES) if fnmatch.fnmatch(name, filter or "*")]
    return [name for name in names if _has_weights(name)] if pretrained else names


def _has_weights(name: str) -> bool:
    entry = ENTRIES[name]
    return bool(entry.sha256) or find_weights(weights_name(name), entry).source in ("bundled", "installed", "cache")


def create_model(
    name: str,
    pretrained: bool | None = None,
    *,
    weights: str | Path | None = None,
    cache_dir: str | Path | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a model by its name, as `timm.create_model` does.

    Args:
        name: A name of `list_models()`, with or without its tag ("poster_tiny.ferplus"); or a repository on the Hub,
            "hf-hub:owner/name" or "hf-hub:owner/name@revision"; or a folder that `save_pretrained` wrote,
            "local-dir:folder".
        pretrained: Load the weights, from the package, this machine or the Hub. None means yes for repositories and
            folders, no for names. Where weights are asked for they are loaded, or an error says why not.
        weights: A safetensors file, or a folder that holds model.safetensors, to load instead. A config.json beside
            model.safetensors says what they are: its label names, mean, input size and arguments count, but for
            those in `kwargs`.
        cache_dir: The Hub's cache; None for huggingface_hub's own.
        **kwargs: Arguments of the architecture (`num_classes`, `in_chans`, `img_size`, `drop_rate`,
            `drop_path_rate`, `global_pool`, …), `features_only`, `device`, `dtype`.

    Returns:
        The model, in training mode as timm leaves it.

    Raises:
        UnknownModelError: There is no such model.
        UnknownArgumentError: The architecture takes no such keyword.
        WeightsNotFoundError: The weights are nowhere to be had; the message says how to get them.
        WeightsError: The weights do not fit, are another model's, or are not those that were recorded.
    """
    if weights is not None:
        kwargs["pretrained_cfg_overlay"] = {"file": str(weights)}
    source, _, place = name.partition(":")
    if source in ("hf-hub", "hf_hub", "local-dir") and place:
        loads = True if pretrained is None else pretrained
        folder = (
            _model_folder(place)
            if source == "local-dir"
            else _repository_folder(place, cache_dir, with_weights=loads and weights is None)
        )
        architecture = _checked_architecture(folder / CONFIG_FILE)
        if weights is None or architecture not in ENTRIES or config_beside(weights) is None:
            loads = loads or weights is not None
            return timm.create_model(f"local-dir:{folder}", pretrained=loads, cache_dir=cache_dir, **kwargs)
        name = architecture  # what else this config says, the one beside the weights says of them
    base = base_name(name)
    _entry(base)
    model: nn.Module = model_entrypoint(base)(
        pretrained=bool(pretrained) or weights is not None, cache_dir=cache_dir, **kwargs
    )
    return model


def _entry(name: str) -> Weights:
    if name not in ENTRIES:
        raise UnknownModelError(
            f"There is no model {name!r}.{nearest(name, ENTRIES)} `poster-zoo list` shows all {len(ENTRIES)}."
        )
    return ENTRIES[name]


def _repository_folder(repository: str, cache_dir: str | Path | None, *, with_weights: bool) -> Path:
    repo_id, _, revision = repository.partition("@")
    if not with_weights:
        return fetch_config(repo_id, revision or None, cache_dir=cache_dir).parent
    config, _ = fetch_repository(repo_id, revision or None, cache_dir=cache_dir)
    return config.parent


def _model_folder(folder: str) -> Path:
    path = Path(folder).expanduser()
    if not (path / CONFIG_FILE).is_file():
        raise WeightsNotFoundError(
            f"The folder {folder} holds no {CONFIG_FILE}; "
            "name a folder that save_pretrained or `poster-zoo convert` wrote."
        )
    return path


def _checked_architecture(path: Path) -> str:
    architecture: str = read_config(path)["architecture"]
    if not is_model(architecture):
        raise WeightsError(
            f"{path} is of the architecture {architecture!r}, which neither this zoo nor timm has."
            f"{nearest(architecture, ENTRIES)} A newer version may have it."
        )
    return architecture


@dataclass(frozen=True)
class ModelInfo:
    """What is known about a model of the zoo.

    Attributes:
        name: Its name.
        doc: One line.
        weights: Its entry.
        parameters: Number of parameters, landmark stream included.
        source: Where `pretrained=True` would take the weights from on this machine, and why.
    """

    name: str
    doc: str
    weights: Weights
    parameters: int
    source: Found

    @cached_property
    def macs(self) -> int:
        """Multiply-adds of one forward of one image, as torch's FlopCounterMode counts them (half its flops)."""
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            model = create_model(self.name).eval()
            image = torch.empty(1, 3, *self.weights.preprocessing.size)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(image)
        return int(counter.get_total_flops()) // 2


def model_info(name: str) -> ModelInfo:
    """Return everything that is known about a model and its weights. Loads nothing.

    Raises:
        UnknownModelError: There is no such model.
    """
    name = base_name(name)
    entry = _entry(name)
    return ModelInfo(
        name=name,
        doc=inspect.getdoc(model_entrypoint(name)) or "",
        weights=entry,
        parameters=_count(name) if entry.parameters is None else entry.parameters,
        source=find_weights(weights_name(name), entry),
    )


def _count(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(name).parameters())
