"""Video: frames a second, by step, and memory over a long film.

    python benchmarks/video.py --json video.json

The film is made for the occasion: 640 × 480, 25 frames a second, one face that moves, nods and comes nearer, over a
still picture of noise. Each step is timed over the whole film, reading included, in one process.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from poster_zoo import bench
from poster_zoo.faces.track import FaceTracker
from poster_zoo.video import Frame, Timeline, Video, VideoPredictor, VideoWriter, annotate, csv_writer

_SIZE = (640, 480)


def pictures(count: int, photograph: Image.Image) -> Iterator[Frame]:
    """Yield frames with one face of 90 to 150 pixels."""
    noise = np.random.default_rng(0).integers(60, 180, (*_SIZE[::-1], 3), np.uint8)
    for i in range(count):
        image = Image.fromarray(noise)
        side = round(150 + 30 * math.sin(i / 40))
        face = photograph.resize((side, side)).rotate(8 * math.sin(i / 15), fillcolor=(120, 120, 120))
        image.paste(face, (round(240 + 150 * math.sin(i / 50)), round(150 + 60 * math.cos(i / 35))))
        yield Frame(i, i / 25, image)


def resident() -> float:
    """Return the memory that this process holds now, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@click.command()
@click.argument("photograph", type=click.Path(exists=True), default="examples/face.png")
@click.option("--model", default="poster_tiny", show_default=True)
@click.option("--frames", default=300, show_default=True)
@click.option("--long", "long_frames", default=3000, show_default=True, help="Of the film whose memory is watched.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(photograph: str, model: str, frames: int, long_frames: int, threads: int, json_file: str | None) -> None:
    """Time reading, following and answering a film, and watch the memory of a longer one."""
    torch.set_num_threads(threads)
    face = Image.open(photograph).convert("RGB")
    content: dict[str, Any] = {"machine": bench.describe_machine(torch.device("cpu"))}
    predict = VideoPredictor(model)
    with tempfile.TemporaryDirectory() as folder:
        film, out, table = (Path(folder, name) for name in ("film.mp4", "out.mp4", "rows.csv"))
        write(film, frames, face)
        list(zip(range(30), predict(film), strict=False))  # what is slow the first time

        def read() -> int:
            with Video(film) as video:
                return sum(1 for _ in video)

        def follow() -> int:
            track = FaceTracker(predict.detector)
            with Video(film) as video:
                return sum(len(track(frame.image, frame.time)) for frame in video)

        def answer() -> int:
            return sum(len(each.faces) for each in predict(film))

        def everything() -> int:
            timeline, seen = Timeline(predict.labels), 0
            with VideoWriter(out, 25) as writer, csv_writer(table, predict.labels) as row:
                for each in predict(film):
                    writer.write(annotate(each), each.time)
                    row(each)
                    timeline.add(each)
                    seen += len(each.faces)
            return seen

        steps: dict[str, Callable[[], int]] = {
            "read": read,
            "read and follow in every frame": follow,
            "read, look, follow and answer": answer,
            "and draw, write film and table": everything,
        }
        content["frames a second"] = {}
        for name, step in steps.items():
            began = time.perf_counter()
            seen = step()
            rate = frames / (time.perf_counter() - began)
            content["frames a second"][name] = rate
            click.echo(f"{name:32} {rate:6.1f} frames a second ({seen} of {frames})")

        write(film, long_frames, face)
        content["memory in MiB"] = {}
        timeline = Timeline(predict.labels)
        with VideoWriter(out, 25) as writer, csv_writer(table, predict.labels) as row:
            for each in predict(film):
                writer.write(annotate(each), each.time)
                row(each)
                timeline.add(each)
                if (each.index + 1) % max(1, long_frames // 6) == 0:
                    content["memory in MiB"][each.index + 1] = resident()
                    click.echo(f"after {each.index + 1:6} frames {resident():7.0f} MiB")
    if json_file:
        Path(json_file).write_text(json.dumps(content, indent=2) + "\n")


def write(film: Path, count: int, face: Image.Image) -> None:
    """Write a film of so many frames."""
    with VideoWriter(film, 25) as writer:
        for frame in pictures(count, face):
            writer.write(frame.image, frame.time)


if __name__ == "__main__":
    main()
