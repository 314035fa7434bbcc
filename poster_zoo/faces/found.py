"""What a detector finds: boxes, scores and five points a face, in pixels of the upright image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, overload

import numpy as np

from poster_zoo.errors import OptionError

__all__ = ["Face", "Faces"]

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


@dataclass(frozen=True)
class Face:
    """One face.

    Attributes:
        box: Its left, upper, right and lower edge in pixels; 0 is the image's left or upper edge.
        score: How sure the detector is, in 0…1.
        points: x and y of the eyes, the nose and the corners of the mouth, in the image from left to right where the
            head is upright.
    """

    box: tuple[float, float, float, float]
    score: float
    points: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return `box`, `points` (hundredths of a pixel) and `score`, ready for JSON."""
        return {
            "box": [round(value, 2) for value in self.box],
            "points": [[round(x, 2), round(y, 2)] for x, y in self.points],
            "score": self.score,
        }


@dataclass(frozen=True, eq=False)
class Faces(Sequence[Face]):
    """The faces of one image, surest first: a sequence of `Face`, kept as arrays.

    Attributes:
        boxes: (N, 4) left, upper, right and lower edges in pixels.
        scores: (N,) in 0…1.
        points: (N, 5, 2) x and y in pixels.
    """

    boxes: Floats
    scores: Floats
    points: Floats

    @classmethod
    def of(cls, boxes: Any, points: Any, scores: Any = None) -> Faces:
        """Check and sort what a detector found.

        Args:
            boxes: (N, 4), or (N, 5) with the score behind each box.
            points: (N, 5, 2) or (N, 10).
            scores: (N,); without them, and without a fifth column, each face has the score 1.

        Raises:
            OptionError: The arrays do not belong together, or hold what is no number.
        """
        boxes, points = np.asarray(boxes, np.float32), np.asarray(points, np.float32)
        if not boxes.size:
            boxes, points = np.empty((0, 4), np.float32), np.empty((0, 5, 2), np.float32)
        if points.ndim == 2 and points.shape[1] == 10:
            points = points.reshape(-1, 5, 2)
        if scores is None:
            scores = boxes[:, 4] if boxes.ndim == 2 and boxes.shape[1] == 5 else np.ones(len(boxes))
        scores = np.asarray(scores, np.float32).reshape(-1)[: None if boxes.size else 0]
        boxes = boxes[..., :4]
        if boxes.shape != (len(scores), 4) or points.shape != (len(scores), 5, 2):
            raise OptionError(
                f"A detector gave boxes {boxes.shape}, points {points.shape} and {len(scores)} scores; for N faces "
                f"they are (N, 4), (N, 5, 2) and N."
            )
        if not all(np.isfinite(part).all() for part in (boxes, points, scores)):
            raise OptionError("A detector gave boxes, points or scores that are no numbers.")
        order = np.argsort(-scores, kind="stable")
        return cls(boxes[order], scores[order], points[order])

    def __len__(self) -> int:
        return len(self.scores)

    @overload
    def __getitem__(self, index: int) -> Face: ...
    @overload
    def __getitem__(self, index: slice) -> Faces: ...
    def __getitem__(self, index: int | slice) -> Face | Faces:
        if isinstance(index, slice):
            return Faces(self.boxes[index], self.scores[index], self.points[index])
        left, upper, right, lower = self.boxes[index].tolist()
        points = tuple((float(x), float(y)) for x, y in self.points[index])
        return Face((left, upper, right, lower), float(self.scores[index]), points)
