"""A photograph → the faces in it.

`FaceDetector` runs CenterFace. A picture is taken as the release's own code takes it: whole, each side stretched to
the next multiple of 32, so that its answers are that code's. What goes beyond that code is decided here:

- A picture whose shorter side is under 128 pixels is enlarged to that, at most fourfold.
- The network sees some 500 pixels around each cell and misses larger faces. A picture that is longer
  than 640 pixels, and has room for a face of more than 400, is therefore looked at again at half its size, and again,
  until it is not. Faces up to 400 pixels are taken from the finest look, larger ones from the coarser.
- The points of a head that is rolled by more than 20° come from a second look at it, turned upright: the network's own
  draw together then, and lie beside eyes and mouth. Boxes and scores stay those of the first look.
- A picture of more than 32 megapixels is first looked at at half its size.
- Memory is bounded by computing the layers of the finest grids in strips, which changes nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

from poster_zoo.data.images import ImageSource, each_image, is_many, read_image
from poster_zoo.devices import check_device
from poster_zoo.errors import OptionError
from poster_zoo.faces.align import cut_out, similarity
from poster_zoo.faces.found import Faces
from poster_zoo.models._registry import create_model
from poster_zoo.models.centerface import MULTIPLE, CenterFace, decode
from poster_zoo.optimize import optimize as optimized
from poster_zoo.weights.entry import FIVE_POINTS

__all__ = ["Detector", "FaceDetector", "detect_faces", "faces_of"]

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
Places: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"

Detector: TypeAlias = Callable[[Image.Image], Any]
"""Whatever takes an upright RGB image and gives `Faces`, or boxes (N, 4 or 5) and points (N, 5, 2) in its pixels."""

_SHORTEST, _MOST_ENLARGED = 128, 4
_LONGEST = 640  # pixels of a picture that is looked at once
_LARGEST = 400  # pixels of a face that a finer look is trusted with
_MOST_PIXELS = 32_000_000  # of the finest look
_STRIP_PIXELS = 1_500_000  # of what is computed at once where the grids are finest
_BATCH_PIXELS = 2_500_000
_ROLLED = 20  # degrees
_AGAIN = 256  # height and width of the second look, of which an aligned crop would take half
_UPRIGHT = (np.array(FIVE_POINTS) / 2 + 0.25) * _AGAIN
_SURE_AGAIN = 0.3  # that there is a face, the first look said
_ROWS = 64  # of an image that are stretched at once, so that they stay near the processor
_OVERLAP = 0.3  # above which two boxes are of the same face, as the release says


def detect_faces(
    images: ImageSource | Iterable[ImageSource], *, threshold: float = 0.5, detector: Detector | None = None
) -> Faces | list[Faces]:
    """Find the faces of one image or of many.

    Args:
        images: One image, whatever `read_image` takes; or many: a folder, an array or tensor of four dimensions, or
            any iterable of images and folders.
        threshold: The score, in 0…1, that a face must exceed.
        detector: What to find them with; None for `FaceDetector`, which is loaded once.

    Returns:
        The faces of one image, surest first; for many images a list of those.

    Raises:
        ImageError: An image cannot be read.
        OptionError: `threshold` is not within 0…1, or the detector gives something else than faces.
    """
    _check_threshold(threshold)
    if detector is None:
        return _default_detector()(images, threshold=threshold)
    if not is_many(images):
        return _surer(faces_of(detector, read_image(cast("ImageSource", images))), threshold)
    return [_surer(faces_of(detector, read_image(image)), threshold) for image in each_image(images)]


def faces_of(detector: Detector, image: Image.Image) -> Faces:
    """Return what any detector finds in an upright RGB image, checked.

    Raises:
        OptionError: It gave something else than faces.
    """
    found = detector(image)
    if isinstance(found, Faces):
        return found
    try:
        boxes, points = found
    except (TypeError, ValueError):
        raise OptionError(
            f"A detector gave {type(found).__name__}; it must give Faces, or boxes and points as two arrays."
        ) from None
    return Faces.of(boxes, points)


@lru_cache(maxsize=1)
def _default_detector() -> FaceDetector:
    return FaceDetector()


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise OptionError(f"threshold is {threshold}; it must be within 0…1.")


def _surer(faces: Faces, threshold: float) -> Faces:
    return faces[: int((faces.scores > threshold).sum())]


class FaceDetector:
    """Finds faces with CenterFace: `FaceDetector()(image)` gives `Faces`.

    Args:
        model: A detector's name, whose weights are loaded, or the detector, which is put into eval mode.
        threshold: The score, in 0…1, that a face must exceed.
        device: Where to compute; by default where a given model is, and for a name a CUDA GPU if there is one.
        max_side: The most pixels along a picture's longer side; a longer one is averaged down first, which takes less
            time and loses the smallest faces. None for all that there are.
        second_look: Whether to look again, turned upright, at heads that are rolled by more than 20°, for their points.
        batch_size: The most images of one size that are computed at once.
        optimize: Answer by the model's faster form, as `poster_zoo.optimize` makes it. By default a model that is given
            by its name does; a given model is used as it is. With True, what answers is a copy of it.
        compile: Also compile it; the first image of each size then takes minutes, the following ones less than before.

    Raises:
        OptionError: The model is no detector, the device cannot be used, or a number is out of its range.
    """

    def __init__(
        self,
        model: str | nn.Module = "centerface",
        *,
        threshold: float = 0.5,
        device: str | torch.device | None = None,
        max_side: int | None = None,
        second_look: bool = True,
        batch_size: int = 8,
        optimize: bool | None = None,
        compile: bool = False,
    ) -> None:
        for name, number in (("batch_size", batch_size), ("max_side", max_side)):
            if number is not None and number < 1:
                raise OptionError(f"{name} is {number}; it must be 1 or more.")
        _check_threshold(threshold)
        if device is not None:
            check_device(device)
        by_name = isinstance(model, str)
        if isinstance(model, str):
            model = create_model(model, pretrained=True)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if not isinstance(model, CenterFace):
            raise OptionError(f"{type(model).__name__} finds no faces; take `centerface`, or a callable that does.")
        if compile or (by_name if optimize is None else optimize):
            model = optimized(model, compile=compile, inplace=by_name)
        self.model = model.eval().to(device)
        self.threshold = threshold
        self.max_side = max_side
        self.second_look = second_look
        self.batch_size = batch_size

    def __call__(
        self, images: ImageSource | Iterable[ImageSource], *, threshold: float | None = None
    ) -> Faces | list[Faces]:
        """Find the faces of one image or of many, as `detect_faces` does.

        Args:
            images: One image or many.
            threshold: Another one than the detector's own.

        Raises:
            ImageError: An image cannot be read.
        """
        threshold = self.threshold if threshold is None else threshold
        _check_threshold(threshold)
        if not is_many(images):
            return self.find([read_image(cast("ImageSource", images))], threshold)[0]
        return [faces for batch in self._batches(images) for faces in self.find(batch, threshold)]

    def _batches(self, images: Any) -> Iterator[list[Image.Image]]:
        batch: list[Image.Image] = []
        for image in each_image(images):
            batch.append(read_image(image))
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def find(self, images: Sequence[Image.Image], threshold: float | None = None) -> list[Faces]:
        """Return the faces of each upright RGB image; the images are not copied first, as they are in a call."""
        threshold = self.threshold if threshold is None else threshold
        found = self._first_look(images, threshold)
        if not self.second_look:
            return found
        return [self._looked_again(image, faces) for image, faces in zip(images, found, strict=True)]

    def _first_look(self, images: Sequence[Image.Image], threshold: float) -> list[Faces]:
        looks = [_Look(i, size) for i, image in enumerate(images) for size in _sizes(*image.size, self.max_side)]
        by_size = defaultdict(list)
        for look in looks:
            by_size[look.size].append(look)
        found: dict[_Look, Found] = {}
        for (width, height), same in by_size.items():
            step = max(1, min(self.batch_size, _BATCH_PIXELS // (width * height)))
            for start in range(0, len(same), step):
                batch = same[start : start + step]
                pictures = [images[look.image] for look in batch]
                found |= zip(batch, self._look(pictures, (width, height), threshold), strict=True)
        return [
            _merged([(look.size, found[look]) for look in looks if look.image == i], image.size)
            for i, image in enumerate(images)
        ]

    def _look(self, images: Sequence[Image.Image], size: tuple[int, int], threshold: float) -> list[Found]:
        """Return what is seen of each image at one size: boxes, scores and points in pixels of that size."""
        like = next(chain(self.model.parameters(), self.model.buffers()))
        with torch.inference_mode():
            x = torch.cat([_input(image, size, like) for image in images])
            return [_suppressed(*one) for one in decode(_maps(self.model, x), threshold)]

    def _looked_again(self, image: Image.Image, faces: Faces) -> Faces:
        """Return `faces` with better points where a head is rolled."""
        if not len(faces):
            return faces
        transforms = similarity(faces.points, _UPRIGHT)
        rolls = np.degrees(np.arctan2(transforms[:, 1, 0], transforms[:, 0, 0]))
        points = faces.points.copy()
        rolled = np.flatnonzero(abs(rolls) > _ROLLED)
        for start in range(0, len(rolled), self.batch_size):
            some = rolled[start : start + self.batch_size]
            crops = [cut_out(image, transforms[i], (_AGAIN, _AGAIN)) for i in some]
            for i, (_, _, again) in zip(some, self._look(crops, (_AGAIN, _AGAIN), _SURE_AGAIN), strict=True):
                seen = again.cpu().numpy()
                off = np.abs(seen.mean(1) - _UPRIGHT.mean(0)).max(1)
                if len(off) and off.min() < _AGAIN / 8:  # what is further from the middle is another face
                    turn, shift = transforms[i, :, :2], transforms[i, :, 2]
                    points[i] = (seen[off.argmin()] - shift) @ np.linalg.inv(turn).T
        return Faces(faces.boxes, faces.scores, points)


class _Look(NamedTuple):
    """One image of a batch, by its place, and at which width and height it is looked at."""

    image: int
    size: tuple[int, int]


Found: TypeAlias = tuple[Tensor, Tensor, Tensor]
"""Boxes (N, 4), scores (N,) and points (N, 5, 2)."""


def _sizes(width: int, height: int, max_side: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield at which widths and heights a picture is looked at, the finest first."""
    scale = min(max(1.0, _SHORTEST / min(width, height)), _MOST_ENLARGED)
    while width * height * scale**2 > _MOST_PIXELS:
        scale /= 2
    if max_side is not None:
        scale = min(scale, max_side / max(width, height))
    while True:
        yield _rounded_up(width * scale), _rounded_up(height * scale)
        if max(width, height) * scale <= _LONGEST or min(width, height) * scale <= _LARGEST:
            return
        scale /= 2


def _rounded_up(side: float) -> int:
    return max(1, math.ceil(side / MULTIPLE)) * MULTIPLE


def _input(image: Image.Image, size: tuple[int, int], like: Tensor) -> Tensor:
    """Return (1, 3, H, W) in 0…255: stretched as the release's code does, or else averaged down."""
    width, height = size
    if width < image.width or height < image.height:
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2)
    pixels = np.array(image) if image.size == size else _stretched(np.asarray(image), size)
    return torch.from_numpy(pixels).to(like.device).permute(2, 0, 1)[None].to(like.dtype)


def _stretched(pixels: Bytes, size: tuple[int, int]) -> Bytes:
    """Enlarge an image (H, W, C) linearly, rounding as OpenCV does.

    OpenCV weighs in 2048ths, drops four bits of the sum along the rows and sixteen of each product along the columns.
    Against exact arithmetic one pixel in eight is off by one, which a score feels in its third digit.
    """
    width, height = size
    channels = pixels.shape[2]
    (left, right), (of_left, of_right) = _taps(pixels.shape[1], width)
    (above, below), (of_above, of_below) = _taps(pixels.shape[0], height)
    left, right = ((taps[:, None] * channels + np.arange(channels)).ravel() for taps in (left, right))
    of_left, of_right = (weights.repeat(channels) for weights in (of_left, of_right))
    of_above, of_below = of_above[:, None], of_below[:, None]
    rows, stretched = pixels.reshape(len(pixels), -1), np.empty((height, width * channels), np.uint8)
    for start in range(0, height, _ROWS):
        some = slice(start, start + _ROWS)
        top = above[some][0]
        part = rows[top : below[some][-1] + 1].astype(np.int32)
        wide = (part[:, left] * of_left + part[:, right] * of_right) >> 4
        upper, lower = wide[above[some] - top] * of_above[some], wide[below[some] - top] * of_below[some]
        stretched[some] = ((upper >> 16) + (lower >> 16) + 2) >> 2
    return stretched.reshape(height, width, channels)


def _taps(length: int, new_length: int) -> tuple[tuple[Places, Places], tuple[Places, Places]]:
    """Return for each of `new_length` pixels the two between which it lies, and their weights in 2048ths."""
    places = ((np.arange(new_length) + 0.5) * (length / new_length) - 0.5).astype(np.float32)
    first = np.floor(places)
    of_second = np.rint((places - first) * 2048).astype(np.int32)
    before = first.astype(np.intp)
    return (before.clip(0), (before + 1).clip(max=length - 1)), (2048 - of_second, of_second)


def _maps(model: CenterFace, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the model's maps; of a large picture the trunk's first half in strips, whose memory is what counts."""
    height, width = x.shape[2:]
    rows = _STRIP_PIXELS // width // MULTIPLE * MULTIPLE
    if len(x) * height * width <= 2 * _STRIP_PIXELS:
        return model(x)
    fine: list[Tensor] = []
    coarse: list[Tensor] = []
    for top in range(0, height, rows := max(rows, MULTIPLE)):
        # What a cell of the stride-8 map sees reaches 29 pixels beyond it.
        above, below = min(top, 32), min(max(height - top - rows, 0), 32)
        strip = x[:, :, top - above : top + rows + below]
        for kept, stride, part in zip((fine, coarse), (4, 8), model.forward_maps(strip, last=1), strict=True):
            kept.append(part[:, :, above // stride : part.shape[2] - below // stride])
    maps = [torch.cat(fine, 2), torch.cat(coarse, 2)]
    for stage in model.stages[2:]:
        maps.append(stage(maps[-1]))
    return model.forward_head(model.neck(maps[::-1]))


def _suppressed(boxes: Tensor, scores: Tensor, points: Tensor) -> Found:
    kept = nms(boxes, scores, _OVERLAP)
    return boxes[kept], scores[kept], points[kept]


def _merged(looks: Sequence[tuple[tuple[int, int], Found]], size: tuple[int, int]) -> Faces:
    """Return the faces that were seen, finest look first, in pixels of an image of `size`."""
    boxes, scores, points = (torch.empty(0, *shape) for shape in ((4,), (), (5, 2)))
    for i, (seen_at, (seen, sure, five)) in enumerate(looks):
        sides = (seen[:, 2:] - seen[:, :2]).amax(1)
        kept = torch.ones_like(sides, dtype=torch.bool)
        if i < len(looks) - 1:
            kept &= sides <= _LARGEST
        if i > 0:  # some of those that the finer look was trusted with may have been a little too large for it
            kept &= sides > _LARGEST * 0.375
        scale = torch.tensor(size) / torch.tensor(seen_at)
        seen, sure, five = seen[kept].cpu() * scale.repeat(2), sure[kept].cpu(), five[kept].cpu() * scale
        if i > 0:
            new = (box_iou(seen, boxes) <= _OVERLAP).all(1)
            seen, sure, five = seen[new], sure[new], five[new]
        boxes, scores, points = torch.cat([boxes, seen]), torch.cat([scores, sure]), torch.cat([points, five])
    return Faces.of(boxes.numpy(), points.numpy(), scores.numpy())
