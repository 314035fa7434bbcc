"""Detectors of the package uniface: RetinaFace, SCRFD, YOLO-Face and others, whose weights it downloads itself."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from PIL import Image

from poster_zoo.errors import MissingExtraError, OptionError, nearest
from poster_zoo.faces.found import Faces

__all__ = ["UnifaceDetector"]


class UnifaceDetector:
    """Finds faces with a detector of uniface, wherever this package takes a detector.

    Args:
        detector: A name of `uniface.detection`, such as "RetinaFace", or a detector that was made there.
        options: For a name, what its constructor takes.

    Raises:
        MissingExtraError: A name was given, and uniface is not installed.
        OptionError: There is no such detector, or it gives other points than eyes, nose and corners of the mouth.
    """

    def __init__(self, detector: Any = "RetinaFace", **options: Any) -> None:
        if isinstance(detector, str):
            detector = _made(detector, options)
        if not getattr(detector, "supports_alignment", False):
            raise OptionError(
                f"{type(detector).__name__} does not give the five points by which faces are aligned; "
                f"take another one, such as RetinaFace."
            )
        self.detector = detector

    def __call__(self, image: Image.Image) -> Faces:
        """Return the faces in an upright RGB image."""
        bgr = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        found = self.detector.detect(bgr)
        return Faces.of(
            [face.bbox for face in found], [face.landmarks for face in found], [f.confidence for f in found]
        )


def _made(name: str, options: dict[str, Any]) -> Any:
    try:
        detection = importlib.import_module("uniface.detection")
    except ImportError as error:
        raise MissingExtraError(
            f'The detector {name!r} needs uniface, which is not installed: pip install "poster-zoo[faces]".'
        ) from error
    known = [each for each in detection.__all__ if each != "BaseDetector"]
    if name not in known:
        raise OptionError(f"uniface has no detector {name!r}.{nearest(name, known)} It has {', '.join(known)}.")
    return getattr(detection, name)(**options)
