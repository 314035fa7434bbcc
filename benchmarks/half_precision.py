"""What half precision on disk would change of CenterFace's answers: boxes, scores and points, against single precision.

    python benchmarks/half_precision.py --data rafdb:faces

The weights are rounded to half precision and back; arithmetic stays in single precision. Both sides answer about the
astronaut that scikit-image carries and about collages of faces of a collection, each face at a random place of its own
cell on grey. Half a pixel and a thousandth of a score are what a smaller file may cost.
"""

from __future__ import annotations

import copy
import importlib
import math

import click
import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

import poster_zoo
from poster_zoo.data.datasets import open_dataset
from poster_zoo.data.datasets.base import FaceDataset

# Faces, and their smallest and largest side in pixels.
COLLAGES = ((100, 32, 50), (100, 50, 70), (72, 70, 170), (12, 200, 380))
PIXELS, SCORE = 0.5, 1e-3


@click.command()
@click.option("--data", "spec", required=True, metavar="NAME:PATH", help="Faces to make collages of.")
@click.option("--split", default="test", show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(spec: str, split: str, seed: int) -> None:
    """Compare the answers of weights in half precision with those of the weights in the package."""
    single = poster_zoo.create_model("centerface", pretrained=True)
    half = copy.deepcopy(single)
    half.load_state_dict({name: rounded(tensor) for name, tensor in single.state_dict().items()})
    sides = [poster_zoo.FaceDetector(poster_zoo.optimize(model)) for model in (single, half)]
    dataset, chance = open_dataset(spec, split), np.random.default_rng(seed)
    pictures = {"astronaut": Image.fromarray(importlib.import_module("skimage.data").astronaut())}
    for count, smallest, largest in COLLAGES:
        pictures[f"{smallest} to {largest} pixels"] = collage(dataset, chance, count, smallest, largest)
    every = []
    for name, picture in pictures.items():
        before, after = (side.find([picture])[0] for side in sides)
        changes = differences(before, after)
        every.append(changes)
        report(name, f"{len(before)} faces, {len(after)} in half precision", changes)
    report("all", f"{sum(map(len, every))} faces", np.concatenate(every))


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """Return the numbers that half precision keeps; counters stay."""
    return tensor.half().to(tensor.dtype) if tensor.is_floating_point() else tensor


def collage(dataset: FaceDataset, chance: np.random.Generator, count: int, smallest: int, largest: int) -> Image.Image:
    """Return a picture of faces drawn at random, of random sizes."""
    cell, columns = largest + 20, math.ceil(count**0.5 * 1.3)
    picture = Image.new("RGB", (columns * cell, math.ceil(count / columns) * cell), (127, 127, 127))
    for i, row in enumerate(chance.choice(len(dataset), count, replace=False)):
        side = int(chance.integers(smallest, largest + 1))
        left, upper = (cell * k + int(chance.integers(4, cell - side - 3)) for k in (i % columns, i // columns))
        face = dataset.image(int(row)).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
        picture.paste(face, (left, upper))
    return picture


def differences(before: poster_zoo.Faces, after: poster_zoo.Faces) -> np.ndarray:
    """Return for each face by how much its box, its score and its points change, (N, 3); NaN where it is gone."""
    overlap = box_iou(torch.from_numpy(before.boxes), torch.from_numpy(after.boxes)).numpy()
    same = overlap.argmax(1)
    changes = np.stack(
        [
            np.abs(after.boxes[same] - before.boxes).max(1),
            np.abs(after.scores[same] - before.scores),
            np.abs(after.points[same] - before.points).max((1, 2)),
        ],
        axis=1,
    )
    changes[overlap.max(1) < 0.5] = np.nan
    return changes


def report(name: str, found: str, changes: np.ndarray) -> None:
    """Print the median and the largest differences, and how many are beyond what is allowed."""
    (box, score, points), medians = np.nanmax(changes, axis=0), np.nanmedian(changes, axis=0)
    beyond = [int((changes[:, i] > limit).sum()) for i, limit in ((0, PIXELS), (1, SCORE))]
    click.echo(
        f"{name:18} {found:36} box {medians[0]:.3f}, at most {box:.3f} pixels ({beyond[0]} beyond {PIXELS})  "
        f"score {medians[1]:.5f}, at most {score:.5f} ({beyond[1]} beyond {SCORE})  points at most {points:.3f} pixels"
    )


if __name__ == "__main__":
    main()
