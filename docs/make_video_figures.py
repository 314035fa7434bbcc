"""Make a film of two faces that cross, and draw the figures of the page on video from it.

python docs/make_video_figures.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps

from poster_zoo import plots
from poster_zoo.video import Frame, Timeline, VideoPredictor, annotate

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "pages" / "figures"
_FRAMES = 100
_SHOWN = 30


def film() -> Iterator[Frame]:
    """Yield four seconds in which two faces pass each other, one of them ever more out of focus."""
    face = Image.open(ROOT / "examples" / "face.png").convert("RGB").resize((120, 120))
    other = ImageOps.mirror(face).resize((104, 104))
    for i in range(_FRAMES):
        t = i / (_FRAMES - 1)
        image = Image.new("RGB", (640, 300), (90, 110, 100))
        image.paste(other.filter(ImageFilter.GaussianBlur(6 * t)), (round(500 - 460 * t), 60))
        image.paste(face, (round(40 + 460 * t), 50))
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
