"""Upright RGB → what a model takes: resized, scaled and normalised as the model's own entry says.

The transforms are timm's. For the entries of this zoo the one for evaluation is PIL's antialiased resize to exactly
the model's height and width (the aspect ratio is not kept), division by 255, and mean and standard deviation a
channel, all in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Any, cast

from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform as timm_transform
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms.functional import normalize

from poster_zoo.errors import OptionError, UnknownArgumentError, nearest

__all__ = ["FACE_TRAINING", "create_transform", "split_transform"]

FACE_TRAINING: dict[str, Any] = {
    "scale": (0.8, 1.0),  # of the area: a crop of a face without its mouth shows no expression
    "ratio": (0.9, 1 / 0.9),
    "hflip": 0.5,  # an expression has no side
    "color_jitter": 0.3,  # brightness, contrast and saturation; never the hue of a skin
    "re_prob": 0.25,
    "re_mode": "const",
}
"""What training changes, in the words of `timm.data.create_transform`: milder than timm's settings for ImageNet."""

# What makes no single transform from an image to a tensor, or is said otherwise.
_NOT_TAKEN = ("is_training", "separate")


def create_transform(
    model: nn.Module | Mapping[str, Any], is_training: bool = False, **overrides: Any
) -> Callable[[Image.Image], Tensor]:
    """Return the transform from an RGB image to the input of `model`.

    A model of one channel gets grey (PIL's luma), normalised by the mean of the three channels' values.

    Args:
        model: A model with a `pretrained_cfg`, or that dictionary itself. A model's own `img_size` and `in_chans`
            count before its entry's.
        is_training: Add what `FACE_TRAINING` says: a mild random crop, a horizontal flip, colour jitter, and a
            rectangle erased to the mean. It draws from the random numbers of Python and of torch.
        overrides: Keywords of `timm.data.create_transform`, which win over both.

    Returns:
        A callable that takes a PIL image of mode RGB and gives a float32 tensor (channels, height, width).

    Raises:
        OptionError: Nothing is known about the model's input, or it takes neither one channel nor three.
        UnknownArgumentError: A keyword that timm's `create_transform` does not take.
    """
    settings = _settings(model, is_training, overrides)
    transform: transforms.Compose = timm_transform(is_training=is_training, **settings)
    if _channels(settings) == 1:
        transform.transforms.insert(0, transforms.Grayscale())
    return cast("Callable[[Image.Image], Tensor]", transform)


def split_transform(
    model: nn.Module | Mapping[str, Any],
) -> tuple[Callable[[Image.Image], Tensor], Callable[[Tensor], Tensor]]:
    """Return the transform for evaluation in two steps, which together give what `create_transform` gives, bit for bit.

    Threads can take the first while batches are small; the second is one operation for a whole batch, wherever it is.

    Args:
        model: As for `create_transform`.

    Returns:
        A callable from a PIL image of mode RGB to a uint8 tensor (channels, height, width), and one from a batch of
        those (B, channels, height, width) to the float32 input.

    Raises:
        OptionError: As for `create_transform`.
    """
    settings = _settings(model, False, {})
    normalise = partial(_normalise, mean=settings["mean"], std=settings["std"])
    return create_transform(model, normalize=False), normalise


def _normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    normalised: Tensor = normalize(batch.float() / 255, mean, std)
    return normalised


def _settings(model: nn.Module | Mapping[str, Any], is_training: bool, overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords for timm's `create_transform`."""
    known = [name for name in inspect.signature(timm_transform).parameters if name not in _NOT_TAKEN]
    for name in overrides:
        if name not in known:
            raise UnknownArgumentError(f"create_transform takes no argument {name!r}.{nearest(name, known)}")
    settings: dict[str, Any] = _input_of(model) | (FACE_TRAINING if is_training else {}) | overrides
    channels = _channels(settings)
    if channels not in (1, 3):
        raise OptionError(f"A model with {channels} input channels was given; images are RGB (3) or grey (1).")
    if channels == 1:
        settings |= {key: (fmean(settings[key]),) for key in ("mean", "std")}
    return settings


def _channels(settings: Mapping[str, Any]) -> int:
    size: Any = settings["input_size"]
    return int(size[0]) if isinstance(size, (tuple, list)) and len(size) == 3 else 3


def _input_of(model: nn.Module | Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's data configuration, with the size and channels that the model was really built for."""
    cfg = model if isinstance(model, Mapping) else getattr(model, "pretrained_cfg", None)
    if not cfg:
        raise OptionError(
            f"{type(model).__name__} says nothing about its input; give it a `pretrained_cfg` with input_size, mean, "
            f"std and interpolation, or pass such a dictionary."
        )
    config: dict[str, Any] = resolve_data_config(pretrained_cfg=dict(cfg))
    channels, *size = config["input_size"]
    size = getattr(model, "img_size", None) or size
    height, width = (size, size) if isinstance(size, int) else size
    return config | {"input_size": (getattr(model, "in_chans", channels), height, width)}
