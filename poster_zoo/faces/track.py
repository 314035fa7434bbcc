"""Faces over time: which face of a frame is which of the frames before.

`FaceTracker` looks at the whole frame five times a second, which finds whoever comes in, and in the frames between
only where the known faces were, which takes a fraction of the time and gives boxes and points of every frame. Where
one of them is not found there, the whole frame is looked at. What is found gets its numbers from OC-SORT (Cao et al.,
"Observation-Centric SORT: Rethinking SORT for Robust Multi-Object Tracking", 2023) of the package `trackers`, with
boxes that are enlarged for the comparison, as a face that is half hidden is found beside where it is. Of the trackers
there, ByteTrack as it is gave the hidden one of two faces that cross a new number in three of four such films.

OC-SORT knows places and speeds, and nothing of what a face looks like. So a face that is hidden or gone for a while
keeps its number where it comes back near the place where it was last seen, or that its speed would have taken it to;
elsewhere it gets a new one, and so does a face after a cut, unless another was near its place before. Two faces that
pass each other keep theirs as long as each goes on its way; two that meet, hide each other and turn back are taken for
two that passed.
"""

from __future__ import annotations

import copy
import importlib
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.ops import nms

from poster_zoo.errors import MissingExtraError, OptionError
from poster_zoo.faces.detect import Detector, FaceDetector, faces_of
from poster_zoo.faces.found import Face, Faces

__all__ = ["FaceTracker", "TrackedFace"]

_SURE = 0.5  # a detector must be of a face
_AROUND = 2.0  # sides of a face's box, in which it is looked for in the next frame
_NEAR_SIDE = 128  # pixels of such a look: the face has some 64
_MOST_AROUND = 0.6  # of the frame's pixels; the whole frame costs no more then
_NOMINAL = 30.0  # frames a second, in which the tracker counts its time
_LEAST_OVERLAP, _ENLARGED = 0.1, 0.5  # of a face with the place where it is expected, each grown by half on each side
_SAME = 0.4  # overlap of two boxes of the same face


class TrackedFace(NamedTuple):
    """One face of a frame.

    Attributes:
        number: Whose it is, counted from 1 and never used again.
        face: Where it is.
    """

    number: int
    face: Face


class FaceTracker:
    """Follows faces from frame to frame: `FaceTracker()(image, time)` gives the faces of the next frame.

    A face gets its number when it is seen in a second frame, so that a false alarm of one frame gets none; the first
    frame of a video thus has no faces. Frames may be left out: what counts is their time.

    Args:
        detector: What finds the faces; by default `FaceDetector`. It is called on windows of a frame too; faces
            below a score of 0.5 get no number.
        whole_every: Seconds from one look at a whole frame to the next; 0 for every frame.
        keep: Seconds for which a face may be gone and still be known where it comes back.

    Raises:
        MissingExtraError: `trackers` is not installed.
        OptionError: A number is negative.
    """

    def __init__(self, detector: Detector | None = None, *, whole_every: float = 0.2, keep: float = 1.5) -> None:
        for name, number in (("whole_every", whole_every), ("keep", keep)):
            if not 0 <= number < math.inf:
                raise OptionError(f"{name} is {number}; it must be a number of seconds, 0 or more.")
        try:
            trackers = importlib.import_module("trackers")
            self._detections = importlib.import_module("supervision").Detections
        except ImportError as error:
            raise MissingExtraError(
                'Following faces needs trackers, which is not installed: pip install "poster-zoo[video]".'
            ) from error
        self._whole = FaceDetector() if detector is None else detector
        self._near = self.detector = self._whole
        if isinstance(self._whole, FaceDetector):
            self._near = copy.copy(self._whole)  # the same model and options
            self._near.max_side = _NEAR_SIDE
        self.whole_every = whole_every
        self._tracker = trackers.OCSORTTracker(
            lost_track_buffer=round(keep * _NOMINAL),
            frame_rate=_NOMINAL,
            high_conf_det_threshold=_SURE,
            minimum_consecutive_frames=1,
            minimum_iou_threshold=_LEAST_OVERLAP,
            iou=trackers.BIoU(buffer_ratio=_ENLARGED),
        )
        self._next_whole = -math.inf
        self._known = np.empty((0, 4), np.float32)  # boxes of the last frame

    def __call__(self, image: Image.Image, time: float) -> list[TrackedFace]:
        """Return the faces of the next frame, an upright RGB image, at its time in seconds; longest known first.

        Raises:
            OptionError: The detector gives something else than faces.
        """
        found = self._find(image, time)
        self._known = found.boxes
        detections = self._detections(
            xyxy=found.boxes.astype(np.float64), confidence=found.scores, data={"place": np.arange(len(found))}
        )
        tracked = self._tracker.update(detections, timestamp=time)
        if not len(tracked):
            return []
        places = zip(tracked.tracker_id, tracked.data["place"], strict=True)
        return [TrackedFace(int(number) + 1, found[int(place)]) for number, place in sorted(places) if number >= 0]

    def _find(self, image: Image.Image, time: float) -> Faces:
        if time < self._next_whole and len(self._known):
            windows = [_around(box, image.size) for box in self._known]
            pixels = sum((right - left) * (lower - upper) for left, upper, right, lower in windows)
            if pixels <= _MOST_AROUND * image.width * image.height:
                near = self._find_near(image, windows)
                if len(near) >= len(self._known):
                    return near
        self._next_whole = time + self.whole_every
        return faces_of(self._whole, image)

    def _find_near(self, image: Image.Image, windows: list[tuple[int, int, int, int]]) -> Faces:
        crops = [image.crop(window) for window in windows]
        if isinstance(self._near, FaceDetector):
            found = self._near.find(crops)
        else:
            found = [faces_of(self._near, crop) for crop in crops]
        shifts = [np.array(window[:2], np.float32) for window in windows]
        boxes = np.concatenate([faces.boxes + np.tile(by, 2) for faces, by in zip(found, shifts, strict=True)])
        points = np.concatenate([faces.points + by for faces, by in zip(found, shifts, strict=True)])
        scores = np.concatenate([faces.scores for faces in found])
        # Neighbours stand in each other's windows, and a window's edge may cut one in two.
        whole = np.concatenate(
            [_is_whole(faces.boxes, w, image.size) for faces, w in zip(found, windows, strict=True)]
        ).astype(bool)
        boxes, points, scores = boxes[whole], points[whole], scores[whole]
        kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), _SAME).numpy()
        return Faces.of(boxes[kept], points[kept], scores[kept])


def _around(box: np.ndarray[Any, Any], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the window around a face, within an image of `size`."""
    middle = (box[:2] + box[2:]) / 2
    reach = max(box[2] - box[0], box[3] - box[1]) * _AROUND / 2
    left, upper = (max(0, math.floor(value - reach)) for value in middle)
    right, lower = (min(side, math.ceil(value + reach)) for value, side in zip(middle, size, strict=True))
    return min(left, size[0] - 1), min(upper, size[1] - 1), max(right, left + 1), max(lower, upper + 1)


def _is_whole(boxes: np.ndarray[Any, Any], window: tuple[int, int, int, int], size: tuple[int, int]) -> Any:
    """Return for boxes in a window whether they keep clear of those of its edges that are not the image's."""
    left, upper, right, lower = window
    width, height = right - left, lower - upper
    return (
        ((boxes[:, 0] > 1) | (left == 0))
        & ((boxes[:, 1] > 1) | (upper == 0))
        & ((boxes[:, 2] < width - 1) | (right == size[0]))
        & ((boxes[:, 3] < height - 1) | (lower == size[1]))
    )
