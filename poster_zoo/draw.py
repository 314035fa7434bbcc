"""Answers written on photographs: the box of each face, the name of its expression, and the likeliest ones as bars.

Needs nothing but Pillow and is quick enough for the frames of a video. Names are never written over another face or
another name: where there is no room for a face's bars they are left out, and then its name; the box always stays.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from poster_zoo.errors import printable
from poster_zoo.predict import Prediction

__all__ = ["Drawing", "annotate", "draw_faces"]

Rect: TypeAlias = tuple[float, float, float, float]
"""Left, upper, right and lower edge."""

_LINE, _BAR, _DARK = (86, 180, 233), (86, 180, 233), (0, 0, 0, 165)  # Okabe and Ito's sky blue
_SMALLEST_TEXT = 11  # pixels, of the text that is asked for
_TEXTS_A_SIDE = 60  # lines of text that would fill a square picture
_SMALLEST_TAG = 9
_SMALL = 0.75  # of the text's size, where the usual finds no room
_MOST_IN_MARGIN = 4
_LONGEST = 40  # characters of a name
_SHORTEST_BAR = 5  # widths of a letter


class Drawing(NamedTuple):
    """A picture, and how many of its faces have no name written beside them, for want of room."""

    image: Image.Image
    unnamed: int


def draw_faces(
    image: Image.Image,
    predictions: Sequence[Prediction],
    *,
    names: Sequence[str] | None = None,
    bars: int = 3,
    text: int | None = None,
) -> Image.Image:
    """Draw the answers about the faces of an upright image; what comes back is a new image of the same size.

    Args:
        image: RGB.
        predictions: The answers about it; those that say why there is none are left out.
        names: What to write beside each face; by default the label and its score.
        bars: How many of the likeliest classes have a bar; 0 for none.
        text: The size of letters in pixels; by default a sixtieth of the longer side, and 11 at least.
    """
    return annotate(image, predictions, names=names, bars=bars, text=text).image


def annotate(
    image: Image.Image,
    predictions: Sequence[Prediction],
    *,
    names: Sequence[str] | None = None,
    bars: int = 3,
    text: int | None = None,
    scale: float = 1.0,
    margin: bool = False,
) -> Drawing:
    """Draw the answers about the faces of an upright image, as `draw_faces` does.

    Args:
        image: RGB.
        predictions: The answers about it.
        names: What to write beside each face.
        bars: How many of the likeliest classes have a bar.
        text: The size of letters in pixels.
        scale: Pixels of `image` to one of the image in which the faces were found.
        margin: Whether the picture may grow to the right where bars have no room beside their face; it does if the
            margin then has room for them all.
    """
    names = [_name(prediction) for prediction in predictions] if names is None else names
    shown = [
        _Shown(prediction, printable(name)[:_LONGEST], _box(prediction, image.size, scale))
        for prediction, name in zip(predictions, names, strict=True)
        if prediction.error is None
    ]
    text = text or max(_SMALLEST_TEXT, round(max(image.size) / _TEXTS_A_SIDE))
    page = _Page(image.size, [one.box for one in shown if one.prediction.face is not None])
    tags = [page.place(_tag_places(one, text, image.size)) for one in shown]
    panels = [_panel(one.prediction, bars, text) for one in shown]
    places = [page.place(_panel_places(one, panel, tag)) for one, panel, tag in zip(shown, panels, tags, strict=True)]
    canvas = image.copy()
    if margin:
        canvas = _with_margin(canvas, shown, panels, places, text)
    drawn = ImageDraw.Draw(canvas, "RGBA")
    for one, panel, place in zip(shown, panels, places, strict=True):
        if one.prediction.face is not None:
            _draw_box(drawn, one.box, text)
        if place is not None and panel.rows:
            _draw_panel(drawn, panel, place.rect, text)
            if place.rect[0] >= image.width and one.prediction.face is not None:
                _draw_leader(drawn, one.box, place.rect, text)
    for one, tag in zip(shown, tags, strict=True):
        if tag is not None:
            _draw_tag(drawn, one.name, tag)
    return Drawing(canvas, tags.count(None))


class _Shown(NamedTuple):
    """An answer, what is written beside its face, and the face's box in the picture."""

    prediction: Prediction
    name: str
    box: Rect


class _Place(NamedTuple):
    """Where something is written, and in which size of text."""

    rect: Rect
    text: int


class _Panel(NamedTuple):
    """Bars: label and probability of each, and the widths of the label's column and of all."""

    rows: list[tuple[str, float]]
    label_width: float
    width: float
    height: float


def _name(prediction: Prediction) -> str:
    answer = f"{prediction.label} {prediction.score or 0:.2f}"
    return f"no face found: {answer}" if prediction.sought and prediction.face is None else answer


def _box(prediction: Prediction, size: tuple[int, int], scale: float) -> Rect:
    if prediction.face is None:
        return 0, 0, size[0], size[1]
    left, upper, right, lower = (edge * scale for edge in prediction.face.box)
    return min(left, right), min(upper, lower), max(left, right), max(upper, lower)  # detectors of others may err


class _Page:
    """Where something is written already, and where faces are that nothing may cover."""

    def __init__(self, size: tuple[int, int], boxes: Sequence[Rect]) -> None:
        self.size = size
        self.taken = np.array(boxes, dtype=float).reshape(-1, 4)

    def place(self, candidates: Iterator[tuple[_Place, Rect | None]]) -> _Place | None:
        """Take the first place that is free, and return it.

        Args:
            candidates: Places, each with the box of the face that it may cover, if any.
        """
        for place, own in candidates:
            left, upper, right, lower = place.rect
            if left < 0 or upper < 0 or right > self.size[0] or lower > self.size[1]:
                continue
            taken = self.taken if own is None else self.taken[(self.taken != own).any(1)]
            apart = (taken[:, 0] >= right) | (taken[:, 2] <= left) | (taken[:, 1] >= lower) | (taken[:, 3] <= upper)
            if apart.all():
                self.taken = np.vstack([self.taken, place.rect])
                return place
        return None


def _tag_places(one: _Shown, text: int, size: tuple[int, int]) -> Iterator[tuple[_Place, Rect | None]]:
    """Yield where a name may stand: above the face, below it, on the upper edge of its box; then the same, smaller."""
    left, upper, right, lower = one.box
    for small in (text, max(round(text * _SMALL), _SMALLEST_TAG)):
        width, height = _font(small).getlength(one.name) + small * 0.6, small * 1.35
        starts = [left, right - width, max(0.0, min(left, size[0] - width))]
        if one.prediction.face is None:
            yield _Place((0, lower - height, width, lower), small), one.box
            continue
        for top, own in ((upper - height, None), (lower, None), (upper, one.box), (lower - height, one.box)):
            for start in starts if own is None else starts[:1]:
                if own is None or width <= right - left:
                    yield _Place((start, top, start + width, top + height), small), own


def _panel(prediction: Prediction, bars: int, text: int) -> _Panel:
    likeliest = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[:bars]
    rows = [(printable(label)[:_LONGEST], probability) for label, probability in likeliest]
    font = _font(text)
    label_width = max((font.getlength(label) for label, _ in rows), default=0.0)
    width = label_width + font.getlength("0.00") + (_SHORTEST_BAR + 2) * text * 0.6
    return _Panel(rows, label_width, width, (1.25 * len(rows) + 0.4) * text)


def _panel_places(one: _Shown, panel: _Panel, tag: _Place | None) -> Iterator[tuple[_Place, Rect | None]]:
    """Yield where bars may stand: beside the face, at its upper or lower edge, below and above; beyond its name."""
    if not panel.rows:
        return
    left, upper, right, lower = one.box
    width, height = panel.width, panel.height
    if one.prediction.face is None:
        return
    above, below = upper, lower
    if tag is not None:
        above, below = min(above, tag.rect[1]), max(below, tag.rect[3])
    for x, y in (
        (right, upper), (left - width, upper), (right, lower - height), (left - width, lower - height),
        (left, below), (left, above - height), (right - width, below), (right - width, above - height),
    ):  # fmt: skip
        yield _Place((x, y, x + width, y + height), 0), None


def _with_margin(
    image: Image.Image, shown: Sequence[_Shown], panels: Sequence[_Panel], places: list[_Place | None], text: int
) -> Image.Image:
    """Return the image with a white margin, and put into `places` where the bars that had no room are in it.

    Lines to many faces would hide the photograph, so the margin is for a few, and for those whose line crosses no
    other face.
    """
    wanting = [i for i, place in enumerate(places) if place is None and panels[i].rows]
    gap = text * 0.5
    height = max((panels[i].height for i in wanting), default=0.0) + gap
    if len(wanting) > min(_MOST_IN_MARGIN, max(1, (image.height + gap) // height)):
        return image
    faces = [one.box for one in shown if one.prediction.face is not None]
    x, y, right = image.width + 2.0 * text, 0.0, 0.0
    for number, i in enumerate(sorted(wanting, key=lambda i: shown[i].box[1])):
        lowest = image.height - (len(wanting) - number) * height + gap
        y = max(y, min(shown[i].box[1], lowest))
        rect = x, y, x + panels[i].width, y + panels[i].height
        if not _crosses(_leader(shown[i].box, rect), [face for face in faces if face != shown[i].box]):
            places[i] = _Place(rect, text)
            y += height
            right = max(right, rect[2])
    if not right:
        return image
    canvas = Image.new("RGB", (round(right + gap), max(image.height, round(y))), "white")
    canvas.paste(image)
    return canvas


def _leader(box: Rect, rect: Rect) -> tuple[float, float, float, float]:
    """Return the line, x and y of both ends, from the right edge of a face to its bars in the margin."""
    return box[2], (box[1] + box[3]) / 2, rect[0], (rect[1] + rect[3]) / 2


def _crosses(line: tuple[float, float, float, float], boxes: Sequence[Rect]) -> bool:
    along = np.linspace(0, 1, 400)[:, None]
    x, y = line[0] + along * (line[2] - line[0]), line[1] + along * (line[3] - line[1])
    left, upper, right, lower = np.array(boxes, dtype=float).reshape(-1, 4).T
    return bool(((x >= left) & (x <= right) & (y >= upper) & (y <= lower)).any())


# ------------------------------------------------------------------------------------------------------- drawing


@lru_cache(maxsize=32)
def _font(size: int) -> Any:
    """Return matplotlib's font, which knows most scripts' letters, or else Pillow's own."""
    package = importlib.util.find_spec("matplotlib")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _draw_box(drawn: ImageDraw.ImageDraw, box: Rect, text: int) -> None:
    line = max(1, round(text / 8))
    left, upper, right, lower = (round(edge) for edge in box)
    drawn.rectangle((left - line, upper - line, right + line, lower + line), outline=(0, 0, 0, 160), width=3 * line)
    drawn.rectangle((left, upper, right, lower), outline=_LINE, width=line)


def _draw_tag(drawn: ImageDraw.ImageDraw, name: str, place: _Place) -> None:
    left, upper, right, lower = place.rect
    drawn.rectangle((left, upper, right - 1, lower - 1), fill=_DARK)
    middle = (upper + lower) / 2
    drawn.text((left + place.text * 0.3, middle), name, font=_font(place.text), fill="white", anchor="lm")


def _draw_panel(drawn: ImageDraw.ImageDraw, panel: _Panel, rect: Rect, text: int) -> None:
    left, upper, right, lower = rect
    drawn.rectangle((left, upper, right - 1, lower - 1), fill=_DARK)
    number = _font(text).getlength("0.00")
    first, last = left + panel.label_width + text * 0.6, right - number - text * 0.6
    for i, (label, probability) in enumerate(panel.rows):
        middle = upper + (1.25 * i + 0.2 + 0.625) * text
        drawn.text((left + text * 0.3, middle), label, font=_font(text), fill="white", anchor="lm")
        drawn.rectangle((first, middle - text * 0.35, last, middle + text * 0.35), fill=(255, 255, 255, 50))
        if (length := probability * (last - first)) >= 1:
            drawn.rectangle((first, middle - text * 0.35, first + length, middle + text * 0.35), fill=_BAR)
        drawn.text((right - text * 0.3, middle), f"{probability:.2f}", font=_font(text), fill="white", anchor="rm")


def _draw_leader(drawn: ImageDraw.ImageDraw, box: Rect, rect: Rect, text: int) -> None:
    """Join bars in the margin with the right edge of their face."""
    ends = _leader(box, rect)
    line = max(1, round(text / 8))
    drawn.line(ends, fill=(0, 0, 0, 160), width=3 * line)
    drawn.line(ends, fill=_LINE, width=line)
