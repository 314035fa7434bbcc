"""A face's five points → its crop, as upright and as large as those that the weights were trained on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from poster_zoo.data.images import ImageSource, read_image
from poster_zoo.errors import OptionError
from poster_zoo.faces.found import Face, Faces, Floats
from poster_zoo.weights.entry import FIVE_POINTS, Points

__all__ = ["align_faces", "cut_out", "similarity"]


def align_faces(
    image: ImageSource,
    faces: Faces | Iterable[Face] | np.ndarray[Any, Any],
    *,
    size: int | tuple[int, int] = 112,
    alignment: Points = FIVE_POINTS,
) -> list[Image.Image]:
    """Cut out each face, turned and scaled so that its five points come as near as they can to fixed places.

    A similarity (turn, scale and shift, no shear and no mirroring) is fitted by least squares, so a rolled head comes
    out upright. Where a crop reaches beyond the image, the image's outermost pixels go on, as in the crops that
    `poster_tiny` was trained on. A face larger than the crop is averaged down, so that nothing flickers; a smaller
    one is enlarged linearly, which adds nothing to what little is there.

    Args:
        image: Whatever `read_image` takes.
        faces: What a detector found in it, or points (N, 5, 2) in pixels of the upright image.
        size: Height and width of the crops in pixels, one number for both.
        alignment: Where the points are to come, x and y as fractions of the crop's width and height; the `alignment`
            of a weights entry.

    Returns:
        One RGB crop for each face, in their order; an empty list for none.

    Raises:
        ImageError: The image cannot be read.
        OptionError: A face's points lie in one place or are no numbers, or there are not five of them.
    """
    upright = read_image(image)
    height, width = (size, size) if isinstance(size, int) else size
    points = _points(faces)
    target = np.asarray(alignment, np.float64) * (width, height)
    return [cut_out(upright, transform, (height, width)) for transform in similarity(points, target)]


def similarity(points: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Fit the similarities that take points to `target` with the least squared distance.

    The closed form of Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    1991, which for turns in the plane is a division: with the points as complex numbers around their mean, z and w,
    the turn and scale are Σ z̄ w / Σ |z|².

    Args:
        points: (N, K, 2) x and y.
        target: (K, 2).

    Returns:
        (N, 2, 3): what `[x, y, 1]` is multiplied with.

    Raises:
        OptionError: All points of one face lie in one place, or are no numbers.
    """
    z = points[..., 0].astype(np.float64) + 1j * points[..., 1]
    w = target[..., 0] + 1j * target[..., 1]
    z_mean, w_mean = z.mean(-1, keepdims=True), w.mean()
    spread = (abs(z - z_mean) ** 2).sum(-1)
    if not (spread > 0).all() or not np.isfinite(spread).all():
        raise OptionError("The points of a face lie in one place or are no numbers, so there is no way to turn it.")
    turn = (np.conj(z - z_mean) * (w - w_mean)).sum(-1) / spread
    shift = w_mean - turn * z_mean[..., 0]
    rows = [[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]]
    return np.moveaxis(np.array(rows), 2, 0)


def _points(faces: Faces | Iterable[Face] | np.ndarray[Any, Any]) -> Floats:
    if isinstance(faces, Faces):
        return faces.points
    found = faces if isinstance(faces, np.ndarray) else [face.points for face in faces]
    points = np.asarray(found, np.float32)
    if not len(points):
        return np.empty((0, 5, 2), np.float32)
    if points.shape[1:] != (5, 2):
        raise OptionError(f"The points have the shape {points.shape}; give (N, 5, 2), x and y of five points a face.")
    return points


def cut_out(image: Image.Image, transform: np.ndarray[Any, Any], size: tuple[int, int]) -> Image.Image:
    """Return the crop of `size` (height and width) that a similarity makes of an upright RGB image."""
    height, width = size
    turn = transform[:, :2]
    back = np.linalg.inv(turn)
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    reach = (corners - transform[:, 2]) @ back.T  # in the image
    step = math.sqrt(abs(np.linalg.det(back)))  # pixels of the image to one of the crop
    reduce = max(1, int(step))
    box = _within(reach, image.size, margin=2 * reduce)
    part = image.reduce(reduce, box) if reduce > 1 else image.crop(box)

    # Each pixel of the crop is the mean of `fine` × `fine` samples, which lie no further apart than the part's pixels.
    fine = 1 if step < 1.001 else 2  # a crop at the picture's own scale comes out of rounding as a little more than 1
    x, y = ((np.arange(side * fine) + 0.5) / fine for side in (width, height))
    to_part = np.diag(2 / (reduce * np.array(part.size, np.float64)))  # -1…1 from edge to edge, as torch counts
    (of_x, of_y), start = (to_part @ back).T, to_part @ (-back @ transform[:, 2] - box[:2]) - 1
    places = (np.outer(x, of_x) + start)[None].astype(np.float32) + np.outer(y, of_y)[:, None].astype(np.float32)
    grid = torch.from_numpy(places)[None]
    pixels = torch.from_numpy(np.array(part, np.float32)).permute(2, 0, 1)[None]
    crop = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if fine > 1:
        crop = F.avg_pool2d(crop, fine)
    return Image.fromarray(crop[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def _within(reach: np.ndarray[Any, Any], size: tuple[int, int], margin: int) -> tuple[int, int, int, int]:
    """Return the box, at least one pixel large, of the image of `size` that holds what `reach` touches of it."""
    low, high = np.floor(reach.min(0)) - margin, np.ceil(reach.max(0)) + margin
    left, upper = (int(min(max(value, 0), side - 1)) for value, side in zip(low, size, strict=True))
    right, lower = (
        int(min(max(value, start + 1), side)) for value, start, side in zip(high, (left, upper), size, strict=True)
    )
    return left, upper, right, lower
