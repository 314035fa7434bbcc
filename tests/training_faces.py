"""What the tests of training learn from: a few made-up faces, in memory or as class folders, and a very small model."""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner, Result
from PIL import Image

import poster_zoo
from poster_zoo.cli.errors import CommandGroup
from poster_zoo.cli.train import command
from poster_zoo.data.datasets import FaceDataset
from poster_zoo.data.datasets.files import Images
from poster_zoo.errors import ImageError
from poster_zoo.train import Recipe

CLASSES = ("Anger", "Happiness", "Neutral")
SIDE = 32
# `poster_tiny_image`, as small as it can be built.
SMALL: dict[str, Any] = {"depths": (1, 1, 1), "widths": (8, 8, 16), "stem_width": 8, "img_size": SIDE}
# What `poster-zoo train` is told in the fixture `project`.
OPTIONS = [
    "--model", "local-dir:model", "--data", "folder:faces", "--batch-size", "8", "--save-every", "1",
    "--set", "lr=0.001", "--set", "transform=strong", "--set", "drop_rate=0.2", "--set", "warmup_epochs=0.5",
]  # fmt: skip
QUICK = Recipe(epochs=2, batch_size=8, lr=1e-3, transform="strong", drop_path_rate=0.0)


class InMemory(Images):
    """Files that never saw a disk; an empty one cannot be read."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def source(self, index: int) -> str:
        return f"memory/{index}.png"

    def read(self, index: int) -> bytes:
        if not self.files[index]:
            raise ImageError(f"{self.source(index)!r} is empty.")
        return self.files[index]


def png(label: int, random: np.random.RandomState) -> bytes:
    """Return a face whose expression is its colour."""
    pixels = random.randint(0, 100, (SIDE, SIDE, 3)).astype(np.uint8)
    pixels[:, :, label] += 100
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def faces(images: int = 24, seed: int = 0, split: str = "train", **facts: Any) -> FaceDataset:
    """Return faces of each class in turn."""
    random = np.random.RandomState(seed)
    labels = [i % len(CLASSES) for i in range(images)]
    files = [png(label, random) for label in labels]
    return FaceDataset(InMemory(files), labels, CLASSES, name="memory", split=split, **facts)


def valid_faces() -> FaceDataset:
    return faces(9, seed=1, split="valid")


def small_model(classes: int = len(CLASSES), **options: Any) -> Any:
    torch.manual_seed(0)
    return poster_zoo.create_model("poster_tiny_image", num_classes=classes, **SMALL | options)


def write_class_folders(folder: Path, images: int = 24, classes: Sequence[str] = CLASSES) -> None:
    random = np.random.RandomState(0)
    for i in range(images):
        file = folder / classes[i % len(classes)] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i % len(classes), random))


def save_small_model(folder: Path) -> str:
    """Save the small model and return the name that `--model` takes."""
    poster_zoo.save_pretrained(small_model(), folder, CLASSES, SMALL)
    return f"local-dir:{folder}"


def invoke(*arguments: str) -> Result:
    """Run `poster-zoo train` in this process."""
    options: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    result = CliRunner(**options).invoke(CommandGroup("poster-zoo", {"train": command}), ["train", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def numbers(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of metrics without what a clock measured."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]
