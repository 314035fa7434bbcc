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

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.config import resolve_data_config
from timm.data.random_erasing import RandomErasing as TimmErasing
from timm.data.transforms_factory import create_transform as timm_transform
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms
from torchvision.transforms.functional import normalize

from poster_zoo.errors import OptionError, UnknownArgumentError, nearest
from poster_zoo.models.layers import input_channels

__all__ = ["FACE_TRAINING", "TRAINING_TRANSFORMS", "create_transform", "split_transform", "training_transform"]

FACE_TRAINING: dict[str, Any] = {
    "scale": (0.8, 1.0),  # of the area: a crop of a face without its mouth shows no expression
    "ratio": (0.9, 1 / 0.9),
    "hflip": 0.5,  # an expression has no side
    "color_jitter": 0.3,  # brightness, contrast and saturation; never the hue of a skin
    "re_prob": 0.25,
    "re_mode": "const",
}
"""What training changes, in the words of `timm.data.create_transform`: milder than timm's settings for ImageNet."""

_NOISE_VARIANCE = 30.0  # of grey values 0…255
_ERASING = {  # of the authors' releases; torchvision's other defaults are theirs
    "authors": {"p": 0.5, "scale": (0.02, 0.1)},
    "authors_v2_rafdb": {"p": 0.5, "scale": (0.02, 0.1)},
    "authors_v2": {"p": 1.0, "scale": (0.05, 0.05)},
}

TRAINING_TRANSFORMS: dict[str, str] = {
    "plain": "what evaluation does, and nothing more",
    "strong": "a mild crop, mirroring, colour jitter and erasing: `FACE_TRAINING`",
    "authors": "POSTER's: mirroring, sometimes once more or noise, and erasing",
    "authors_v2_rafdb": "POSTER++'s for RAF-DB: mirroring and erasing",
    "authors_v2": "POSTER++'s for AffectNet and CAER-S: mirroring, and a twentieth of each face erased",
}
"""What can be done to training images, by the names that `training_transform` takes."""

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


def training_transform(model: nn.Module | Mapping[str, Any], kind: str = "strong") -> Callable[[Image.Image], Tensor]:
    """Return a transform for training, from an RGB image to the input of `model`.

    The authors' are those of their code. POSTER (Zheng et al., ICCVW 2023): with probability one half, either the
    image is mirrored or every pixel gets Gaussian noise of variance 30; then it is mirrored with probability one half,
    resized, normalised, and with probability one half a rectangle of 2 to 10 % of its area is set to the mean.
    POSTER++ (Mao et al., 2023) leaves the first step out; for AffectNet and CAER-S it erases 5 % of every image.

    Args:
        model: As for `create_transform`.
        kind: One of `TRAINING_TRANSFORMS`; "plain" is the one for evaluation. All but "strong" draw from torch's random
            numbers alone.

    Raises:
        OptionError: There is no such kind; and as for `create_transform`.
    """
    to_bytes, normalise = split_transform(model, kind)
    return transforms.Compose([to_bytes, partial(_alone, normalise)])


def _alone(normalise: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    return normalise(image[None])[0]


def _training_steps(model: nn.Module | Mapping[str, Any], kind: str) -> Callable[[Image.Image], Tensor]:
    """Return the transform to bytes, which marks what it has erased in one more channel."""
    if kind == "strong":
        changes = create_transform(model, is_training=True, normalize=False)
        erase: Callable[[Tensor], Tensor] = TimmErasing(
            FACE_TRAINING["re_prob"], mode=FACE_TRAINING["re_mode"], max_count=1, device="cpu"
        )
        return transforms.Compose([changes, _add_mark, erase])
    steps = [_MirrorOrNoise()] if kind == "authors" else []
    erase = transforms.RandomErasing(**_ERASING[kind])
    return transforms.Compose([*steps, transforms.RandomHorizontalFlip(), quick_resize(model), _add_mark, erase])


def _add_mark(image: Tensor) -> Tensor:
    """Add a channel that stays above 0 where nothing is erased."""
    return torch.cat((image, image.new_full((1, *image.shape[1:]), 255)))


class _MirrorOrNoise:
    """With probability one half: either mirroring or Gaussian noise, on the image as it comes."""

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(()) < 0.5:
            return image
        if torch.rand(()) < 0.5:
            return ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image, dtype=np.float32))
        noisy = pixels + _NOISE_VARIANCE**0.5 * torch.randn(pixels.shape)
        return Image.fromarray(noisy.clamp(0, 255).byte().numpy())  # cut off, not rounded, as the authors do


def quick_resize(model: nn.Module | Mapping[str, Any]) -> Callable[[Image.Image], Tensor]:
    """Return the first step of `split_transform` as training takes it: the same to one grey level, in less time.

    torch resizes bytes by the arithmetic of PIL, but for some roundings, in a half or a third of the time. Where a
    model wants more than its whole image resized by a bilinear or bicubic filter, PIL does it.

    Args:
        model: As for `create_transform`.

    Returns:
        A callable from a PIL image of mode RGB to a uint8 tensor (channels, height, width).

    Raises:
        OptionError: As for `create_transform`.
    """
    exact = cast("transforms.Compose", create_transform(model, normalize=False))
    *before, resize, crop, _ = exact.transforms
    whole = type(resize) is transforms.Resize and resize.size == crop.size and resize.interpolation in _QUICK_FILTERS
    if not whole:
        return exact
    return transforms.Compose([*before, partial(_resized, size=resize.size, mode=_QUICK_FILTERS[resize.interpolation])])


_QUICK_FILTERS = {
    transforms.InterpolationMode.BILINEAR: "bilinear",
    transforms.InterpolationMode.BICUBIC: "bicubic",
}


def _resized(image: Image.Image, size: tuple[int, int], mode: str) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1).permute(2, 0, 1)
    if pixels.shape[1:] == size:
        return pixels
    return F.interpolate(pixels[None], size=size, mode=mode, antialias=True)[0]


def split_transform(
    model: nn.Module | Mapping[str, Any], kind: str = "plain"
) -> tuple[Callable[[Image.Image], Tensor], Callable[[Tensor], Tensor]]:
    """Return a transform in two steps, of which the second is one operation for a whole batch, wherever that is.

    For evaluation, the two together give what `create_transform` gives, bit for bit. Between them, images are bytes:
    a quarter of what would have to be handed from one process to another, and to a GPU.

    Args:
        model: As for `create_transform`.
        kind: As for `training_transform`; "plain" is the one for evaluation.

    Returns:
        A callable from a PIL image of mode RGB to a uint8 tensor (channels, height, width), and one from a batch of
        those (B, channels, height, width) to the float32 input. Where a kind erases parts of images, there is one
        more channel between the two, 0 where something is erased.

    Raises:
        OptionError: As for `training_transform`.
    """
    if kind not in TRAINING_TRANSFORMS:
        raise OptionError(
            f"There is no training transform {kind!r}.{nearest(kind, TRAINING_TRANSFORMS)} "
            f"Choose one of {', '.join(TRAINING_TRANSFORMS)}."
        )
    settings = _settings(model, False, {})
    normalise = partial(_normalise, mean=settings["mean"], std=settings["std"])
    return create_transform(model, normalize=False) if kind == "plain" else _training_steps(model, kind), normalise


def _normalise(batch: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    channels = len(mean)
    normalised = batch[:, :channels].float()
    normalised = normalize(normalised.div_(255), mean, std, inplace=True)
    if batch.shape[1] > channels:  # what is erased is exactly the mean, which is no whole number of a byte
        normalised.masked_fill_(batch[:, channels:] == 0, 0)
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
    if not isinstance(model, Mapping):
        channels = input_channels(model)
    size = getattr(model, "img_size", None) or size
    height, width = (size, size) if isinstance(size, int) else size
    return config | {"input_size": (channels, height, width)}
