"""`poster-zoo video`: the expression of every face in a video or before a camera."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.errors import WrongUse
from poster_zoo.cli.inputs import check_picture
from poster_zoo.cli.models import load_model, load_predictor
from poster_zoo.cli.options import (
    Seconds,
    checkpoint_option,
    device_option,
    examples,
    json_option,
    model_option,
    plot_option,
)
from poster_zoo.cli.output import note, print_json, print_table
from poster_zoo.errors import counted

if TYPE_CHECKING:
    from poster_zoo.video import FrameAnswer, Timeline

_SECONDS = Seconds(min=0)


@click.command(
    "video",
    epilog=examples(
        "poster-zoo video talk.mp4 --out annotated.mp4 --csv timeline.csv --plot timeline.png",
        "poster-zoo video talk.mp4 --seconds 60 --json",
    ),
)
@click.argument("source", metavar="FILE_OR_CAMERA", type=click.Path())
@model_option
@checkpoint_option
@device_option
@click.option(
    "--out", type=click.Path(), metavar="FILE", help="Write the video with boxes, labels and bars: .mp4, .mkv or .mov."
)
@click.option(
    "--csv",
    "table",
    type=click.Path(),
    metavar="FILE",
    help="Write a row for each face of each frame: time, face, box, label, probabilities.",
)
@plot_option
@json_option("Print one JSON object a frame: frame, time, faces.")
@click.option("--seconds", type=_SECONDS, metavar="S", help="Stop after so many seconds of the video.")
@click.option(
    "--smoothing",
    type=_SECONDS,
    default=0.5,
    show_default=True,
    metavar="S",
    help="Time constant of the probabilities' exponential smoothing; 0 for none.",
)
@click.option(
    "--keep",
    type=_SECONDS,
    default=1.5,
    show_default=True,
    metavar="S",
    help="How long a face may be gone and still keep its number.",
)
@click.option(
    "--looks",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Most looks a second; in frames between two looks, faces are on the straight line between. 0 looks at each "
    "frame.  [default: 15 at a file, each frame of a camera]",
)
@click.pass_context
def command(
    ctx: click.Context,
    source: str,
    model: str,
    checkpoint: str | None,
    device: str | None,
    out: str | None,
    table: str | None,
    plot: str | None,
    as_json: bool,
    seconds: float | None,
    smoothing: float,
    keep: float,
    looks: float | None,
) -> None:
    """Name the expression of every face in a video, over time.

    FILE_OR_CAMERA is a video file; or "camera", "camera:NAME" or a device such as /dev/video0. Each face has one number
    throughout. Ends with a table of the faces: from when to when they are seen, and their expressions.

    A file that is damaged or breaks off is answered as far as it can be read, which is said, and the exit status is 1.
    A camera goes on until --seconds are over or Ctrl-C is pressed; what was asked for is then written as usual. The
    annotated video has no sound.

    Needs poster-zoo[video].
    """
    from poster_zoo.files import check_place
    from poster_zoo.video import Camera, Timeline, VideoPredictor, check_video_output, open_video

    picture = check_picture(plot, [source])
    if out is not None:
        check_video_output(out)
    if table is not None:
        check_place("table", Path(table))
    _check_apart(source, {"--out": out, "--csv": table, "--plot": plot})

    with open_video(source) as video:
        predictor = load_predictor(load_model(ctx, model, checkpoint), device, 32, None, progress=False)
        answers = VideoPredictor(predictor, smoothing=smoothing, keep=keep, looks=looks)(video)
        timeline = Timeline(predictor.labels)
        frames, began = 0, time.perf_counter()
        with _writers(out, table, video.rate, predictor.labels) as writers:
            try:
                for answer in _with_progress(_until(answers, seconds), video, seconds):
                    timeline.add(answer)
                    for write in writers:
                        write(answer)
                    if as_json:
                        print_json(answer.to_dict())
                    frames += 1
            except KeyboardInterrupt:
                if not isinstance(video, Camera):
                    raise
                note("")  # below ^C, which is how a camera is meant to be stopped
        rate = frames / max(time.perf_counter() - began, 1e-9)
        trouble = video.trouble
        skipped = video.skipped if isinstance(video, Camera) else 0

    between = counted(skipped, "that came in between was", "that came in between were")
    left_out = f", {between} left out" if skipped else ""
    note(f"{counted(frames, 'frame')}, {counted(timeline.total, 'face')}, {rate:.1f} frames a second{left_out}.")
    if not as_json:
        _print_faces(timeline)
    if out is not None:
        note(f"Wrote {out}" if frames else f"{out} was not written, as there was no frame.")
    if table is not None:
        note(f"Wrote {table}")
    if picture is not None:
        _draw(timeline, picture, source)
        note(f"Wrote {picture}")
    if trouble is not None:
        note(trouble)
        ctx.exit(1)


def _check_apart(source: str, written: dict[str, str | None]) -> None:
    """Refuse files to write, by their options, of which one is the video or another's."""
    options: dict[str, str] = {}
    for option, path in written.items():
        if path is None:
            continue
        place = os.path.normcase(os.path.realpath(path))
        if place == os.path.normcase(os.path.realpath(source)):
            raise WrongUse(f"{path!r} would overwrite the video that is read; give it another name.")
        if place in options:
            raise WrongUse(f"{path!r} is the file of {options[place]} and of {option}; give one of them another name.")
        options[place] = option


@contextlib.contextmanager
def _writers(out: str | None, table: str | None, rate: float | None, labels: Iterable[str]) -> Iterator[list[Any]]:
    """Give what each answer is to be handed to."""
    from poster_zoo.video import VideoWriter, annotate, csv_writer

    with contextlib.ExitStack() as stack:
        writers: list[Any] = []
        if out is not None:
            film = stack.enter_context(VideoWriter(out, rate))
            writers.append(lambda answer: film.write(annotate(answer), answer.time))
        if table is not None:
            writers.append(stack.enter_context(csv_writer(table, tuple(labels))))
        yield writers


def _until(answers: Iterable[FrameAnswer], seconds: float | None) -> Iterator[FrameAnswer]:
    return iter(answers) if seconds is None else itertools.takewhile(lambda answer: answer.time < seconds, answers)


def _with_progress(answers: Iterable[FrameAnswer], video: Any, seconds: float | None) -> Iterator[FrameAnswer]:
    """Draw a bar with frames a second where stderr is a terminal."""
    if not (sys.stderr and sys.stderr.isatty()):
        yield from answers
        return
    from tqdm import tqdm

    total = video.frames
    if seconds is not None:
        total = round(min(total or sys.maxsize, seconds * video.rate)) if video.rate else None
    yield from tqdm(answers, total=total, unit=" frames", file=sys.stderr)


def _print_faces(timeline: Timeline) -> None:
    if not timeline.faces:
        note("No face was seen.")
        return
    rows = [("face", "from", "to", "frames", "expressions")]
    for name, line in timeline.lines():
        rows.append((name, f"{line.first:.2f} s", f"{line.last:.2f} s", str(line.frames), line.shares()))
    print_table(rows, right=[0, 1, 2, 3])


def _draw(timeline: Timeline, picture: Path, source: str) -> None:
    from poster_zoo import plots

    faces = {number: timeline.means(number) for number in timeline.longest(plots.TIMELINE_LIMIT)}
    name = os.path.basename(source)
    plots.timeline(faces, timeline.labels, timeline.width, out=picture, total=timeline.total, title=name)
