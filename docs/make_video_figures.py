"""Make a film of two faces that cross and change, and draw the figures of the page on video from it.

    python docs/make_video_figures.py

Two portraits in the public domain dissolve into each other and back: Eileen Collins's, who smiles, which scikit-image
carries, and Grace Hopper's, who hardly does, which matplotlib carries.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path

from matplotlib import cbook
from PIL import Image

from poster_zoo import Faces, align_faces, detect_faces, plots
from poster_zoo.video import Frame, Timeline, VideoPredictor, annotate
from poster_zoo.weights.entry import FIVE_POINTS

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "pages" / "figures"
_FRAMES = 150
_SHOWN = 20
_ABOUT = tuple((0.5 + 0.75 * (x - 0.5), 0.5 + 0.75 * (y - 0.5)) for x, y in FIVE_POINTS)  # with more around the face


def portraits() -> tuple[Image.Image, Image.Image]:
    """Return both faces, aligned with each other."""
    smiling = Image.fromarray(importlib.import_module("skimage.data").astronaut())
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as serious:
        return portrait(smiling), portrait(serious.convert("RGB"))


def portrait(image: Image.Image) -> Image.Image:
    """Return the one face of a photograph."""
    faces = detect_faces(image)
    assert isinstance(faces, Faces)  # noqa: S101  # it is one image
    return align_faces(image, faces, size=130, alignment=_ABOUT)[0]


def film() -> Iterator[Frame]:
    """Yield six seconds in which two faces pass each other and change twice."""
    smiling, serious = portraits()
    for i in range(_FRAMES):
        t = i / (_FRAMES - 1)
        change = (1 - math.cos(2 * math.pi * t)) / 2
        image = Image.new("RGB", (640, 300), (90, 110, 100))
        image.paste(Image.blend(serious, smiling, change).resize((112, 112)), (round(490 - 460 * t), 80))
        image.paste(Image.blend(smiling, serious, change), (round(40 + 460 * t), 65))
        yield Frame(i, i / 25, image)


def main() -> None:
    """Draw a frame and the timeline."""
    predict = VideoPredictor("poster_tiny")
    timeline = Timeline(predict.labels)
    for answer in predict(film()):
        timeline.add(answer)
        if answer.index == _SHOWN:
            annotate(answer).save(FIGURES / "video_frame.png", optimize=True)
    faces = {number: timeline.means(number) for number in timeline.faces}
    out = FIGURES / "video_timeline.png"
    plots.timeline(faces, timeline.labels, timeline.width, out=out, title="Two faces that cross")


if __name__ == "__main__":
    main()
