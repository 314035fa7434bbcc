"""A video → each face in it, and its expression over time.

>>> from poster_zoo.video import VideoPredictor  # needs the extra `video`
>>> predict = VideoPredictor("poster_tiny")  # doctest: +SKIP
>>> for frame in predict("talk.mp4"):  # doctest: +SKIP
...     for face in frame.faces:
...         print(f"{frame.time:.2f} s: face {face.number}, {face.label} {face.score:.2f}")
"""

from __future__ import annotations

import csv
import math
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
from PIL import Image
from torch import nn

from poster_zoo.draw import draw_faces
from poster_zoo.errors import OptionError, WeightsError
from poster_zoo.faces import Detector, Face
from poster_zoo.faces.track import FaceTracker, TrackedFace
from poster_zoo.faces.video import Camera, Frame, Video, VideoWriter, check_video_output
from poster_zoo.files import whole_file
from poster_zoo.predict import Prediction, Predictor

__all__ = [
    "Camera",
    "FaceAnswer",
    "FaceLine",
    "Frame",
    "FrameAnswer",
    "Timeline",
    "Video",
    "VideoPredictor",
    "VideoWriter",
    "annotate",
    "check_video_output",
    "csv_writer",
    "open_video",
]

Row: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_FIRST_CAMERA = {"linux": "/dev/video0", "darwin": "0"}
_POINTS = 1000  # of a timeline, at most
_LINES = 200  # faces of which a timeline keeps each one's own; it has twice as many before it puts others together
_NEW = 2.0  # seconds for which a face is not put together with others
_TOGETHER = 4  # looks at a file that are answered together, with the frames between them
_LOOKS = 15.0  # a second, at a file's frames
_EARLY = 1e-3  # seconds by which a look may come too soon, as times are rounded


@dataclass(frozen=True)
class FaceAnswer:
    """One face in one frame.

    Attributes:
        number: Whose face it is, from 1; the same in every frame.
        face: Its box, points and the detector's score.
        label: Name of the likeliest class of `probabilities`.
        score: Its probability, in 0…1.
        probabilities: Of every class, smoothed over time; they add up to 1.
        momentary: The same of this frame alone.
    """

    number: int
    face: Face
    label: str
    score: float
    probabilities: dict[str, float]
    momentary: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return `number`, `label`, `score`, `probabilities`, `momentary` and `face`, ready for JSON."""
        return {
            "number": self.number,
            "label": self.label,
            "score": self.score,
            "probabilities": dict(self.probabilities),
            "momentary": dict(self.momentary),
            "face": self.face.to_dict(),
        }


@dataclass(frozen=True)
class FrameAnswer:
    """One frame of a video.

    Attributes:
        frame: The picture, its place and its time.
        faces: What was seen, longest known first.
        looked: Whether this frame was looked at; otherwise its faces are those of the looks before and after it, where
            a straight line between the two has them.
    """

    frame: Frame
    faces: tuple[FaceAnswer, ...]
    looked: bool = True

    @property
    def index(self) -> int:
        """The frame's place, from 0."""
        return self.frame.index

    @property
    def time(self) -> float:
        """Seconds since the first frame."""
        return self.frame.time

    def to_dict(self) -> dict[str, Any]:
        """Return `frame`, `time`, `looked` and `faces`, ready for JSON."""
        faces = [face.to_dict() for face in self.faces]
        return {"frame": self.index, "time": round(self.time, 6), "looked": self.looked, "faces": faces}


class Source(Protocol):
    """A video or a camera: frames, and what is known of them."""

    name: str
    trouble: str | None
    rate: float | None
    frames: int | None
    duration: float | None

    def __iter__(self) -> Iterator[Frame]: ...
    def __enter__(self) -> Any: ...
    def __exit__(self, *_: Any) -> None: ...


def open_video(source: str | os.PathLike[str]) -> Video | Camera:
    """Open a video file; or a camera, which is "camera", "camera:NAME" or a device such as /dev/video0.

    Raises:
        VideoError: It cannot be read.
        OptionError: "camera" needs a name on this system.
        MissingExtraError: PyAV is not installed.
    """
    name = os.fspath(source)
    if name == "camera":
        if sys.platform not in _FIRST_CAMERA:
            raise OptionError(f"{sys.platform} has no first camera; name it, as camera:video=NAME.")
        return Camera(_FIRST_CAMERA[sys.platform])
    if name.startswith("camera:"):
        return Camera(name.removeprefix("camera:"))
    return Camera(name) if name.startswith("/dev/video") else Video(name)


class VideoPredictor:
    """Names the expression of every face in every frame: an iterator over what a video or a camera shows.

    Each call begins anew, with face 1. Memory does not grow with the length of the video.

    Args:
        model: Name of a model, a model, or a `Predictor` for aligned crops.
        detector: What finds the faces; by default `FaceDetector`.
        smoothing: Time constant in seconds of the exponential smoothing of probabilities: of what a
            frame says, the share 1 - exp(-Δt / τ) is taken, the rest of what stood before. A change of face has so
            arrived to 63 % after τ and to 95 % after 3 τ, whatever the frame rate. 0 for none.
        whole_every: Seconds from one look at a whole frame to the next, as in `FaceTracker`.
        keep: Seconds for which a face may be gone and still be known where it comes back.
        looks: Most looks a second: in frames between two of them, a face that both have seen stands where a straight
            line has it, and so do its probabilities. 0 for a look at each frame. By default 15 at a video file; a
            camera and other sources are looked at frame by frame, as they come.
        batch: Looks that are answered together, which is faster; by default 4 at a video file, and 1 at a camera and
            other sources.

    Raises:
        OptionError: A number is out of its range, or the predictor looks for faces itself.
        LabelError: The model has no classes.
        MissingExtraError: `trackers` or PyAV is not installed.
    """

    def __init__(
        self,
        model: str | nn.Module | Predictor = "poster_tiny",
        *,
        detector: Detector | None = None,
        smoothing: float = 0.5,
        whole_every: float = 0.2,
        keep: float = 1.5,
        looks: float | None = None,
        batch: int | None = None,
    ) -> None:
        if looks is not None and not 0 <= looks < math.inf:
            raise OptionError(f"looks is {looks}; it must be a number a second, or 0 for a look at each frame.")
        if batch is not None and batch < 1:
            raise OptionError(f"batch is {batch}; it must be 1 or more.")
        if not 0 <= smoothing < math.inf:
            raise OptionError(f"smoothing is {smoothing}; it must be a number of seconds, 0 or more.")
        predictor = model if isinstance(model, Predictor) else Predictor(model, progress=False)
        if predictor.detector is not None:
            raise OptionError("This predictor looks for faces itself; make it with faces='none' to use it on video.")
        self.predictor = predictor
        self.labels = predictor.labels
        self.smoothing = smoothing
        self.keep = keep
        self.looks = looks
        self.batch = batch
        self._whole_every = whole_every
        # What is wrong with the numbers or missing is said now; the detector is built once.
        self.detector = FaceTracker(detector, whole_every=whole_every, keep=keep).detector

    def __call__(self, source: str | os.PathLike[str] | Iterable[Frame]) -> Iterator[FrameAnswer]:
        """Answer for each frame, a few of them together where the source is a file.

        Args:
            source: A file, or a camera, as `open_video` takes them, which is closed in the end; or frames, as a
                `Video`, a `Camera` or a generator of one's own gives them.

        Yields:
            One answer a frame, in order.

        Raises:
            VideoError: The source cannot be read.
            WeightsError: The model's answer is not a number.
        """
        if isinstance(source, (str, os.PathLike)):
            with open_video(source) as opened:
                yield from self._answers(opened)
        else:
            yield from self._answers(source)

    def _answers(self, frames: Iterable[Frame]) -> Iterator[FrameAnswer]:
        is_file = isinstance(frames, Video)
        looks = self.looks if self.looks is not None else _LOOKS if is_file else 0
        batch = self.batch or (_TOGETHER if is_file else 1)
        smooth = Smoother(self.smoothing, self.keep)
        waiting: list[_Seen] = []
        before: _Look | None = None
        for seen in self._look(frames, 1 / looks if looks else 0):
            waiting.append(seen)
            if sum(faces is not None for _, faces in waiting) == batch:
                before = yield from self._answer(waiting, before, smooth)
                waiting = []
        yield from self._answer(waiting, before, smooth)

    def _look(self, frames: Iterable[Frame], pause: float) -> Iterator[_Seen]:
        """Yield each frame, and the faces in it where it is looked at: every `pause` seconds, and in the last one."""
        track = FaceTracker(self.detector, whole_every=self._whole_every, keep=self.keep)
        last, held = -math.inf, None
        for frame in frames:
            if held is not None:
                yield held, None
            held = frame
            if frame.time - last >= pause - _EARLY:
                last, held = frame.time, None
                yield frame, track(frame.image, frame.time)
        if held is not None:
            yield held, track(held.image, held.time)

    def _answer(
        self, seen: Sequence[_Seen], before: _Look | None, smooth: Smoother
    ) -> Generator[FrameAnswer, None, _Look | None]:
        """Answer for frames together, in order, the last of which was looked at.

        Args:
            seen: The frames.
            before: The look before them.
            smooth: What smooths the answers.

        Returns:
            The last look.
        """
        crops = [crop for frame, faces in seen if faces for crop in self._crops(frame.image, faces)]
        predictions = iter(cast("list[Prediction]", self.predictor(crops)) if crops else [])
        between: list[Frame] = []
        for frame, faces in seen:
            if faces is None:
                between.append(frame)
                continue
            look = _Look.at(frame.time, faces, predictions)
            if before is not None:
                for other in between:
                    yield self._named(other, before.towards(look, other.time), smooth, looked=False)
            yield self._named(frame, look, smooth, looked=True)
            before, between = look, []
        return before

    def _named(self, frame: Frame, look: _Look, smooth: Smoother, *, looked: bool) -> FrameAnswer:
        """Return a frame's answer, smoothed."""
        answers = []
        for number, (face, momentary) in sorted(look.faces.items()):
            row = smooth(number, frame.time, momentary)
            best = int(row.argmax())
            smoothed, now = (dict(zip(self.labels, values.tolist(), strict=True)) for values in (row, momentary))
            answers.append(FaceAnswer(number, face, self.labels[best], float(row[best]), smoothed, now))
        return FrameAnswer(frame, tuple(answers), looked)

    def _crops(self, image: Image.Image, faces: Iterable[TrackedFace]) -> list[Image.Image]:
        return self.predictor.crops(image, [face for _, face in faces])


_Seen: TypeAlias = "tuple[Frame, list[TrackedFace] | None]"  # a frame, and its faces where it was looked at


@dataclass(frozen=True)
class _Look:
    """What was seen at a time: faces and their probabilities, by number."""

    time: float
    faces: dict[int, tuple[Face, Row]]

    @classmethod
    def at(cls, time: float, faces: Iterable[TrackedFace], predictions: Iterator[Prediction]) -> _Look:
        """Take the next predictions for these faces.

        Raises:
            WeightsError: One of them is no number.
        """
        seen = {}
        for number, face in faces:
            prediction = next(predictions)
            if prediction.error is not None:
                raise WeightsError(prediction.error)
            seen[number] = face, np.array(list(prediction.probabilities.values()))
        return cls(time, seen)

    def towards(self, other: _Look, time: float) -> _Look:
        """Return what stands between this look and a later one: the faces of both."""
        share = (time - self.time) / (other.time - self.time)
        faces = {}
        for number in self.faces.keys() & other.faces.keys():
            (face, row), (later, later_row) = self.faces[number], other.faces[number]
            faces[number] = _between(face, later, share), row + share * (later_row - row)
        return _Look(time, faces)


def _between(first: Face, second: Face, share: float) -> Face:
    box, points = (
        one + share * (other - one)
        for one, other in (
            (np.array(first.box), np.array(second.box)),
            (np.array(first.points), np.array(second.points)),
        )
    )
    score = first.score + share * (second.score - first.score)
    return Face(tuple(box.tolist()), score, tuple((x, y) for x, y in points.tolist()))


class Smoother:
    """Smooths each face's probabilities exponentially over time, right for any frame rate.

    What a filter of first order does that is fed each frame's answer for the time since the frame before.

    Args:
        time_constant: In seconds; 0 for none.
        keep: Seconds after which a face that is not seen is forgotten.
    """

    def __init__(self, time_constant: float, keep: float) -> None:
        self.time_constant = time_constant
        self.keep = keep
        self._faces: dict[int, tuple[float, Row]] = {}

    def __call__(self, number: int, time: float, probabilities: Row) -> Row:
        """Return the smoothed probabilities of a face, whose next ones are given."""
        self._faces = {n: known for n, known in self._faces.items() if time - known[0] <= self.keep + 1}
        if number in self._faces and self.time_constant > 0:
            before, smoothed = self._faces[number]
            weight = -math.expm1(-(time - before) / self.time_constant)
            probabilities = smoothed + weight * (probabilities - smoothed)
        self._faces[number] = (time, probabilities)
        return probabilities


@dataclass
class FaceLine:
    """What is kept of one face.

    Attributes:
        first: Second in which it is first seen.
        last: And last.
        frames: In how many frames it is seen.
        labels: In how many of them each class is the likeliest.
        sums: For each interval of the timeline in which it is seen the sum of its probabilities, and how many.
    """

    first: float
    last: float
    frames: int = 0
    labels: dict[str, int] = field(default_factory=dict)
    sums: dict[int, tuple[Row, int]] = field(default_factory=dict)

    def shares(self) -> str:
        """Return each class's share of the frames in words, the largest first."""
        ranked = sorted(self.labels.items(), key=lambda item: -item[1])
        return ", ".join(f"{label} {count / self.frames:.0%}" for label, count in ranked)


class Timeline:
    """Every face's expressions over time, in memory that does not grow with the length.

    Time is cut into intervals, of which the probabilities' means are kept; when there are more than a thousand,
    neighbours become one. When there are more than 400 faces, the 200 that are seen in the most frames stay, and
    those of the last two seconds; the others become one line, and a face of theirs that comes back is added to it.

    Args:
        labels: The model's classes.

    Attributes:
        faces: What is kept of each face, by its number.
        others: What is kept of the others together, without intervals; `frames` counts each of them. None where
            there are none.
        total: How many faces were seen.
        width: Seconds of an interval.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.faces: dict[int, FaceLine] = {}
        self.others: FaceLine | None = None
        self.total = 0
        self.width = 1 / 64
        self._before: FrameAnswer | None = None
        self._last = 0
        self._highest_other = -1  # numbers grow: a lower one that is not kept was seen before

    def add(self, answer: FrameAnswer) -> None:
        """Add one frame, which stands until the next, for a second at most."""
        while answer.time >= self.width * _POINTS:
            self.width *= 2
            self._last //= 2
            for line in self.faces.values():
                line.sums = _halved(line.sums)
        place = int(answer.time / self.width)
        if self._before is not None:
            stands = range(int(self._before.time / self.width) + 1, place)
            self._count(self._before, stands[: math.ceil(1 / self.width)])
        for face in answer.faces:
            line = self._line(face.number, answer.time)
            line.last = answer.time
            line.frames += 1
            line.labels[face.label] = line.labels.get(face.label, 0) + 1
        self._count(answer, [place])
        self._before = answer
        self._last = place
        if len(self.faces) > 2 * _LINES:
            self._put_together(answer.time)

    def _line(self, number: int, time: float) -> FaceLine:
        if number not in self.faces:
            if self.others is not None and number <= self._highest_other:
                return self.others
            self.faces[number] = FaceLine(time, time)
            self.total += 1
        return self.faces[number]

    def _put_together(self, time: float) -> None:
        """Make one line of the faces that were seen least, and not just now."""
        short = [number for number in self._ranked()[_LINES:] if time - self.faces[number].last > _NEW]
        for number in short:
            line = self.faces.pop(number)
            others = self.others = self.others or FaceLine(line.first, line.last)
            others.first, others.last = min(others.first, line.first), max(others.last, line.last)
            others.frames += line.frames
            for label, count in line.labels.items():
                others.labels[label] = others.labels.get(label, 0) + count
            self._highest_other = max(self._highest_other, number)

    def _ranked(self) -> list[int]:
        return sorted(self.faces, key=lambda number: (-self.faces[number].frames, number))

    def _count(self, answer: FrameAnswer, places: Iterable[int]) -> None:
        for face in answer.faces:
            if (line := self.faces.get(face.number)) is None:
                continue
            row = np.array([face.probabilities[label] for label in self.labels])
            for place in places:
                total, count = line.sums.get(place, (0.0, 0))
                line.sums[place] = (total + row, count + 1)

    def means(self, number: int) -> Row:
        """Return a face's mean probabilities: (intervals, classes), NaN where it is not seen."""
        rows = np.full((self._last + 1, len(self.labels)), np.nan)
        for place, (total, count) in self.faces[number].sums.items():
            rows[place] = total / count
        return rows

    def longest(self, most: int) -> list[int]:
        """Return the numbers of the faces that are seen in the most frames, in their order."""
        return sorted(self._ranked()[:most])

    def lines(self) -> list[tuple[str, FaceLine]]:
        """Return names and lines of a table: each face by its number, and in the end the others together."""
        lines = [(str(number), line) for number, line in sorted(self.faces.items())]
        if self.others is not None:
            lines.append((f"{self.total - len(self.faces)} others", self.others))
        return lines


def _halved(sums: dict[int, tuple[Row, int]]) -> dict[int, tuple[Row, int]]:
    halved: dict[int, tuple[Row, int]] = {}
    for place, (total, count) in sums.items():
        before, counted = halved.get(place // 2, (0.0, 0))
        halved[place // 2] = (total + before, count + counted)
    return halved


class RowWriter(Protocol):
    """Writes what is seen in a frame."""

    def __call__(self, answer: FrameAnswer, /) -> None:
        """Write one frame's faces."""


@contextmanager
def csv_writer(out: str | os.PathLike[str], labels: Sequence[str]) -> Iterator[RowWriter]:
    """Write a row for each face of each frame, as they come, into a file that takes its name when it is whole.

    The columns are `frame`, `time` in seconds, `looked`, 1 for a frame that was looked at and 0 for one between two
    looks, `face`, the box's `left`, `upper`, `right`, `lower` in pixels,
    `detection`, the detector's score, `label`, `score` and each class's smoothed probability.
    """
    with whole_file(out) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        box_columns = ["left", "upper", "right", "lower"]
        table.writerow(["frame", "time", "looked", "face", *box_columns, "detection", "label", "score", *labels])

        def write(answer: FrameAnswer) -> None:
            for face in answer.faces:
                box = [round(value, 2) for value in face.face.box]
                numbers = [round(face.probabilities[label], 6) for label in labels]
                frame = [answer.index, round(answer.time, 6), int(answer.looked)]
                seen = [face.number, *box, round(face.face.score, 4)]
                table.writerow([*frame, *seen, face.label, round(face.score, 6), *numbers])

        yield write


def annotate(answer: FrameAnswer) -> Image.Image:
    """Return a frame with a box, number, label and the likeliest expressions' bars drawn on each face."""
    predictions = [
        Prediction(f"face {face.number}", face.label, face.score, face.probabilities, face=face.face, sought=True)
        for face in answer.faces
    ]
    names = [f"{face.number}  {face.label} {face.score:.2f}" for face in answer.faces]
    return draw_faces(answer.frame.image, predictions, names=names)
