"""Transforms for training: the authors', step by step, beside ours."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision import transforms

from poster_zoo.data.transforms import (
    FACE_TRAINING,
    TRAINING_TRANSFORMS,
    create_transform,
    quick_resize,
    split_transform,
    training_transform,
)
from poster_zoo.errors import OptionError

MODEL = {
    "input_size": (3, 32, 32),
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "crop_pct": 1.0,
    "crop_mode": "squash",
}
GREY = Image.new("RGB", (40, 40), (128, 128, 128))


def sided(size: int = 32) -> Image.Image:
    """Return an image whose left half is darker than its right one."""
    pixels = np.full((size, size, 3), 200, dtype=np.uint8)
    pixels[:, : size // 2] = 50
    return Image.fromarray(pixels)


def many(kind: str, image: Image.Image, times: int = 400) -> Tensor:
    torch.manual_seed(0)
    transform = training_transform(MODEL, kind)
    return torch.stack([transform(image) for _ in range(times)])


def share_is(flags: Sequence[bool] | Tensor, expected: float) -> bool:
    """Whether so many are compatible with each being so with that probability."""
    flags = [bool(flag) for flag in flags]
    return stats.binomtest(sum(flags), len(flags), expected).pvalue > 0.001


@pytest.mark.parametrize("kind", TRAINING_TRANSFORMS)
def test_every_kind_gives_the_models_input(kind: str) -> None:
    assert many(kind, sided(), 2).shape == (2, 3, 32, 32)
    assert training_transform(MODEL | {"input_size": (1, 20, 24)}, kind)(sided()).shape == (1, 20, 24)


def test_plain_is_what_evaluation_does() -> None:
    assert torch.equal(training_transform(MODEL, "plain")(sided()), create_transform(MODEL)(sided()))


@pytest.mark.parametrize("kind", ["authors", "authors_v2_rafdb", "authors_v2"])
def test_faces_are_mirrored_half_of_the_time(kind: str) -> None:
    outputs = many(kind, sided())
    # A median over a half of the image is not moved by what is erased or by noise.
    left, right = outputs[..., :16].flatten(1).median(1).values, outputs[..., 16:].flatten(1).median(1).values
    # Mirrored a quarter of the time first, by the authors' code, and half of the time then: half of the time in all.
    assert share_is(left > right, 0.5)


def erased(outputs: Tensor, background: Tensor) -> Tensor:
    """Return the share of each image that is erased: exactly zero, the mean, where grey 128 is not."""
    assert not (background == 0).any()
    return (outputs == 0).all(dim=1).flatten(1).double().mean(dim=1)


@pytest.mark.parametrize("kind", ["authors", "authors_v2_rafdb"])
def test_half_of_the_faces_lose_2_to_10_percent(kind: str) -> None:
    shares = erased(many(kind, GREY), create_transform(MODEL)(GREY))
    assert share_is(shares > 0, 0.5)
    some = shares[shares > 0]
    # Height and width are rounded to whole pixels of 32.
    assert 0.01 < some.min() < 0.04
    assert 0.08 < some.max() < 0.12


def test_poster_v2_erases_a_twentieth_of_every_face_elsewhere() -> None:
    shares = erased(many("authors_v2", GREY), create_transform(MODEL)(GREY))
    assert (shares > 0).all()
    assert shares.mean().item() == pytest.approx(0.05, abs=0.005)


def test_a_quarter_of_the_faces_get_noise_of_variance_30_cut_off_to_whole_greys() -> None:
    outputs = many("authors", GREY.resize((32, 32)), 400)  # no resizing, which would smooth the noise
    mean, std = (torch.tensor(MODEL[key]).view(3, 1, 1) for key in ("mean", "std"))
    greys = (outputs * std + mean) * 255
    kept = ~(outputs == 0).all(dim=1, keepdim=True).expand_as(outputs)
    noisy = torch.stack([(grey[keep].round() != 128).any() for grey, keep in zip(greys, kept, strict=True)])
    assert share_is(noisy, 0.25)
    values = greys[noisy][kept[noisy]].double()
    assert values.sub(values.round()).abs().max() < 1e-3  # images hold whole greys
    # Cutting off moves the mean by one half and adds the variance of a step of one, 1/12.
    assert values.mean().item() == pytest.approx(127.5, abs=0.1)
    assert values.var().item() == pytest.approx(30 + 1 / 12, rel=0.02)


def test_poster_v2_has_no_noise() -> None:
    for kind in ("authors_v2", "authors_v2_rafdb"):
        outputs = many(kind, GREY, 100)
        plain = create_transform(MODEL)(GREY)
        assert ((outputs == 0) | (outputs == plain)).all()


def test_noise_stays_within_0_and_255() -> None:
    black = Image.new("RGB", (32, 32))
    torch.manual_seed(0)
    to_tensor = transforms.ToTensor()
    transform = training_transform(MODEL | {"mean": (0.0,) * 3, "std": (1.0,) * 3}, "authors")
    largest = max(transform(black).max().item() for _ in range(50))
    assert to_tensor(black).max() == 0
    assert 10 / 255 < largest < 40 / 255  # wrapped around it would be near 1


def test_the_same_seed_gives_the_same_face() -> None:
    for kind in ("authors", "authors_v2"):
        assert torch.equal(many(kind, sided(), 5), many(kind, sided(), 5))


def photograph(channels: int = 3) -> Image.Image:
    pixels = np.random.RandomState(0).randint(0, 256, (48, 40, channels), dtype=np.uint8)
    return Image.fromarray(pixels)


# What the releases compose, and timm for ours: normalised first, then erased.
IN_FLOATS = {
    "authors_v2_rafdb": lambda: transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.Resize((32, 32)),
            transforms.ToTensor(),
            transforms.Normalize(MODEL["mean"], MODEL["std"]),
            transforms.RandomErasing(scale=(0.02, 0.1)),
        ]
    ),
    "authors_v2": lambda: transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.Resize((32, 32)),
            transforms.ToTensor(),
            transforms.Normalize(MODEL["mean"], MODEL["std"]),
            transforms.RandomErasing(p=1, scale=(0.05, 0.05)),
        ]
    ),
    "strong": lambda: create_transform(MODEL, is_training=True),
}


@pytest.mark.parametrize("kind", IN_FLOATS)
def test_bytes_that_are_normalised_later_give_the_same_numbers(kind: str) -> None:
    to_bytes, normalise = split_transform(MODEL, kind)
    seeds = range(40)

    def made_by(transform: Callable[[Image.Image], Tensor]) -> Tensor:
        images = []
        for seed in seeds:
            torch.manual_seed(seed)
            random.seed(seed)
            images.append(transform(photograph()))
        return torch.stack(images)

    expected = made_by(IN_FLOATS[kind]())
    bytes_ = made_by(to_bytes)
    assert bytes_.dtype == torch.uint8
    assert (expected == 0).any()  # something is erased
    level = 0 if kind == "strong" else 1.001 / 255 / torch.tensor(MODEL["std"])[:, None, None]
    assert ((normalise(bytes_) - expected).abs() <= level).all()
    assert torch.equal(made_by(training_transform(MODEL, kind)), normalise(bytes_))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 100, 90), (3, 32, 32), (3, 48, 40), (1, 100, 90)])
def test_the_quick_resize_is_pils_to_one_level(size: tuple[int, ...], interpolation: str) -> None:
    model = MODEL | {"input_size": size, "interpolation": interpolation}
    exact = create_transform(model, normalize=False)(photograph()).int()
    quick = quick_resize(model)(photograph())
    assert quick.dtype == torch.uint8
    assert (quick.int() - exact).abs().max() <= (0 if size[1:] == (48, 40) else 1)


@pytest.mark.parametrize("other", [{"interpolation": "lanczos"}, {"crop_pct": 0.8}])
def test_what_torch_does_not_resize_so_is_left_to_pil(other: dict[str, object]) -> None:
    model = MODEL | other
    assert torch.equal(quick_resize(model)(photograph()), create_transform(model, normalize=False)(photograph()))


def test_strong_erases_as_often_as_it_says() -> None:
    marks = [split_transform(MODEL, "strong")[0](GREY)[3] for _ in range(300)]
    assert share_is([(mark == 0).any() for mark in marks], FACE_TRAINING["re_prob"])


def test_an_unknown_kind_is_told_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"'author'\. Did you mean 'authors'"):
        training_transform(MODEL, "author")
