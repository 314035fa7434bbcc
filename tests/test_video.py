"""Video: times, rotation, damage, faces that keep their numbers, smoothing, what is written."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import math
import os
import re
import signal
import struct
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_cli import run
from torchvision.ops import box_iou

from poster_zoo.cli import main
from poster_zoo.errors import MissingExtraError, OptionError, OutputError, VideoError
from poster_zoo.faces import FaceDetector
from poster_zoo.predict import Predictor

av = pytest.importorskip("av", reason="PyAV is of the extra `video`")
pytest.importorskip("trackers", reason="trackers is of the extra `video`")

from poster_zoo.faces import video as video_files  # noqa: E402
from poster_zoo.faces.track import FaceTracker  # noqa: E402
from poster_zoo.video import (  # noqa: E402
    Camera,
    FaceAnswer,
    Frame,
    FrameAnswer,
    Smoother,
    Timeline,
    Video,
    VideoPredictor,
    VideoWriter,
    annotate,
)

SIZE = (320, 240)
GREY = (90, 110, 100)
FACE = 80  # pixels of the pasted pictures


@pytest.fixture(scope="module")
def face(root: Path) -> Image.Image:
    return Image.open(root / "examples" / "face.png").convert("RGB").resize((FACE, FACE))


def scene(*pasted: tuple[Image.Image, float, float]) -> Image.Image:
    """Return a frame with pictures at places, the last in front."""
    image = Image.new("RGB", SIZE, GREY)
    for picture, x, y in pasted:
        image.paste(picture, (round(x), round(y)))
    return image


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector(max_side=320)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(progress=False)


@pytest.fixture(scope="module")
def film(face: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of one face that moves, 25 a second."""
    path = tmp_path_factory.mktemp("film") / "talk.mp4"
    with VideoWriter(path, 25) as writer:
        for i in range(12):
            writer.write(scene((face, 60 + 3 * i, 70)), i / 25)
    return path


def encode(
    path: Path, images: list[Image.Image], times: list[int], codec: str = "libx264", prepare: Any = None, **options: Any
) -> None:
    """Write a video with PyAV itself, its times in milliseconds."""
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = images[0].size
        stream.pix_fmt = {"libx264": "yuv420p", "mpeg2video": "yuv420p", "png": "rgb24", "mjpeg": "yuvj420p"}[codec]
        if codec != "mpeg2video":
            stream.codec_context.time_base = Fraction(1, 1000)
        if prepare:
            prepare(stream)
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def blank(shade: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    return Image.new("RGB", size, (shade, shade, shade))


def read_all(path: Path) -> tuple[list[Frame], str | None]:
    with Video(path) as video:
        return list(video), video.trouble


# --- reading


@pytest.mark.parametrize("name", ["varied.mkv", "varied.mp4"])
def test_times_of_a_variable_frame_rate_are_those_of_the_file(name: str, tmp_path: Path) -> None:
    times = [500, 540, 700, 705, 1900, 1933]
    encode(tmp_path / name, [blank(40 * i) for i in range(6)], times)
    frames, trouble = read_all(tmp_path / name)
    assert trouble is None
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx([(time - 500) / 1000 for time in times], abs=1e-3)
    assert [np.asarray(frame.image).mean() for frame in frames] == pytest.approx([40 * i for i in range(6)], abs=4)


def test_joined_recordings_go_on_in_time(tmp_path: Path) -> None:
    for name in "ab":
        encode(tmp_path / name, [blank(40 * i) for i in range(5)], [40 * i for i in range(5)], format="mpegts")
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    frames, _ = read_all(joined)
    steps = np.diff([frame.time for frame in frames])
    assert len(frames) == 10
    assert steps == pytest.approx([0.04] * 9, abs=0.002)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([1.0, 1.0, 1.04, 1.08], [0, 0.001, 0.04, 0.08]),  # one comes twice
        ([1.0, 1.04, 1.02, 1.08, 1.12], [0, 0.04, 0.041, 0.08, 0.12]),  # two are out of order
        ([1.0, None, 1.04, 1.08], [0, 0.04, 0.041, 0.08]),  # one that has none comes late
        ([None, None, 1.0, 1.04], [0, 0.04, 0.08, 0.12]),
        ([1.0, 1.04, 0.0, 0.04], [0, 0.04, 0.08, 0.12]),  # they begin anew
        ([1.0, 1.04, 0.0, 0.0, 0.04], [0, 0.04, 0.08, 0.081, 0.12]),
        ([None] * 4, [0, 0.04, 0.08, 0.12]),
    ],
)
def test_a_time_that_is_missing_or_repeated_makes_no_later_frame_late(
    told: list[float | None], expected: list[float]
) -> None:
    clock = video_files._Clock(25)
    pictures: list[Any] = [SimpleNamespace(time=time) for time in told]
    times = [clock.time(picture) for picture in pictures]
    assert times == pytest.approx(expected, abs=0.003)
    assert np.diff(times).min() > 0


def test_frames_of_several_sizes_are_read(tmp_path: Path) -> None:
    encode(tmp_path / "a", [blank(90)] * 5, [40 * i for i in range(5)], format="mpegts")
    encode(tmp_path / "b", [blank(90, (96, 48))] * 5, [40 * i for i in range(5)], format="mpegts")
    joined = tmp_path / "joined.ts"
    joined.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    frames, _ = read_all(joined)
    assert [frame.image.size for frame in frames] == [(64, 48)] * 5 + [(96, 48)] * 5


# The matrices of QuickTime's file format: of a phone held upright, which records lying, and of one upside down.
@pytest.mark.parametrize(
    ("matrix", "degrees"),
    [
        ([0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30], -90),
        ([-65536, 0, 0, 0, -65536, 0, 0, 0, 1 << 30], 180),
        ([0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30], 90),
    ],
)
def test_a_stored_rotation_is_applied(matrix: list[int], degrees: int, tmp_path: Path) -> None:
    picture = Image.new("RGB", (64, 48), "black")
    picture.paste("white", (0, 0, 32, 24))
    encode(tmp_path / "turned.mp4", [picture], [0], prepare=lambda stream: stream.set_display_matrix(matrix))
    (frame,), _ = read_all(tmp_path / "turned.mp4")
    expected = picture.rotate(degrees, expand=True)  # PIL counts against the clock
    assert frame.image.size == expected.size
    assert np.abs(np.asarray(frame.image, float) - np.asarray(expected)).mean() < 6


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    encode(tmp_path / "wide.mkv", [blank(9, (60, 48))], [0], prepare=prepare)
    (frame,), _ = read_all(tmp_path / "wide.mkv")
    assert frame.image.size == (80, 48)


def test_a_file_that_breaks_off_gives_what_can_be_read_and_says_so(tmp_path: Path) -> None:
    whole = tmp_path / "whole.mkv"
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(100)]
    encode(whole, noise, [40 * i for i in range(100)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    frames, trouble = read_all(cut)
    assert 30 <= len(frames) <= 60
    assert trouble is not None
    assert "breaks off after" in trouble
    assert "of 4.0 seconds" in trouble


def test_a_last_picture_that_stands_for_long_is_no_damage(tmp_path: Path) -> None:
    file = tmp_path / "title.mov"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(10):
            frame = av.VideoFrame.from_image(blank(20 * i))
            frame.pts, frame.time_base = 40 * i, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = 5000 if i == 9 else 40
                container.mux(packet)
    with Video(file) as video:
        assert len(list(video)) == 10
        assert video.duration == pytest.approx(5.36)
        assert video.trouble is None


def encode_with_sound(path: Path, pictures: float, sound: float) -> None:
    """Write noise for so many seconds of pictures, and silence for so many of sound."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        shown = container.add_stream("libx264", rate=25)
        shown.width, shown.height, shown.pix_fmt = 64, 48, "yuv420p"
        heard = container.add_stream("aac", rate=44100)
        for i in range(round(25 * pictures)):
            picture = av.VideoFrame.from_ndarray(rng.integers(0, 256, (48, 64, 3), np.uint8), format="rgb24")
            picture.pts, picture.time_base = i, Fraction(1, 25)
            container.mux(shown.encode(picture))
        for i in range(round(44100 * sound / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 44100, 1024 * i, Fraction(1, 44100)
            container.mux(heard.encode(frame))
        container.mux(shown.encode(None))
        container.mux(heard.encode(None))


@pytest.mark.parametrize("name", ["talk.mkv", "talk.mp4"])
def test_sound_that_goes_on_after_the_pictures_is_no_damage(name: str, tmp_path: Path) -> None:
    encode_with_sound(tmp_path / name, pictures=1, sound=4)
    frames, trouble = read_all(tmp_path / name)
    assert len(frames) == 25
    assert trouble is None


def test_a_file_with_sound_that_breaks_off_says_so(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    encode_with_sound(whole, pictures=4, sound=4)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert read_all(whole)[1] is None
    trouble = read_all(cut)[1]
    assert trouble is not None
    assert "breaks off after" in trouble


def test_pictures_that_begin_late_are_no_damage(tmp_path: Path) -> None:
    encode(tmp_path / "late.mkv", [blank(9)] * 5, [5000 + 40 * i for i in range(5)])
    frames, trouble = read_all(tmp_path / "late.mkv")
    assert [frame.time for frame in frames] == pytest.approx([0.04 * i for i in range(5)], abs=1e-3)
    assert trouble is None


def test_a_damaged_packet_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "damaged.mov"
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(5)]
    encode(file, noise, [40 * i for i in range(5)], codec="png")
    content = bytearray(file.read_bytes())
    headers = [i for i in range(len(content)) if content[i : i + 4] == b"\x89PNG"]
    assert len(headers) == 5
    content[headers[2] : headers[2] + 64] = bytes(64)
    file.write_bytes(content)
    frames, trouble = read_all(file)
    assert [round(1000 * frame.time) for frame in frames] == [0, 40, 120, 160]
    assert trouble is not None
    assert "1 of its packets" in trouble


def test_what_is_no_video_is_refused_in_a_sentence(tmp_path: Path, film: Path, root: Path) -> None:
    (tmp_path / "notes.txt").write_text("no video\n" * 100)
    cut = film.read_bytes()
    (tmp_path / "no_index.mp4").write_bytes(cut[: len(cut) // 2])
    # A playlist names other files, and what a stranger uploads must not make us read those.
    (tmp_path / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n")
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{film}'\n")
    for name in ("notes.txt", "no_index.mp4", "list.m3u8", "list.ffconcat"):
        with pytest.raises(VideoError, match="damaged or no video in a format"):
            Video(tmp_path / name)
    with pytest.raises(VideoError, match="does not exist; check the path"):
        Video(tmp_path / "absent.mp4")
    with pytest.raises(VideoError, match="is a folder"):
        Video(tmp_path)
    with pytest.raises(VideoError, match="download it first"):
        Video("https://example.org/a.mp4")


def test_a_recording_of_sound_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match="holds no pictures"):
        Video(tmp_path / "sound.mkv")


def test_without_pyav_the_extra_is_named(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"poster-zoo\[video\]\""):
        Video(film)


# --- a camera, of which a pipe that is fed in real time is the stand-in


@pytest.fixture
def feed(tmp_path: Path, face: Image.Image) -> Iterator[Callable[[int, float], str]]:
    """A function that starts to feed a pipe with frames, and gives its name."""
    started: list[threading.Thread] = []

    def start(count: int, step: float) -> str:
        pipe = tmp_path / "camera"
        os.mkfifo(pipe)

        def work() -> None:
            with (
                contextlib.suppress(BrokenPipeError, av.FFmpegError),  # the camera was closed
                open(pipe, "wb", buffering=0) as out,
                av.open(out, "w", format="mpegts") as container,
            ):
                stream = container.add_stream("mpeg2video", rate=25)
                stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
                stream.gop_size, stream.bit_rate = 1, 4_000_000
                for i in range(count):
                    frame = av.VideoFrame.from_image(scene((face, 60 + i % 50, 70)))
                    frame.pts, frame.time_base = i, Fraction(1, 25)
                    container.mux(stream.encode(frame))
                    pause.wait(step)

        pause = threading.Event()
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        started.append(thread)
        return str(pipe)

    yield start
    for thread in started:
        thread.join(timeout=10)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_camera_gives_its_newest_frame_and_tells_of_those_left_out(feed: Callable[[int, float], str]) -> None:
    name = feed(60, 0.01)
    seen = []
    with Camera(name, container="mpegts", options={}) as camera:
        for frame in camera:
            seen.append(frame)
            threading.Event().wait(0.15)  # a caller that is slower than the camera
    assert camera.skipped > 0
    assert 2 <= len(seen) < 50
    assert [frame.index for frame in seen] == list(range(len(seen)))
    # The times are still the camera's: those of the frames left out lie in between.
    assert max(np.diff([frame.time for frame in seen])) > 0.06
    assert camera.trouble is not None
    assert "gave no more frames" in camera.trouble


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_ctrl_c_ends_a_camera_and_keeps_what_was_written(
    feed: Callable[[int, float], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_files, "_CAMERAS", dict.fromkeys(("linux", "darwin"), "mpegts"))
    name = feed(600, 0.04)
    rows = tmp_path / "rows.csv"
    film = tmp_path / "film.mp4"

    def interrupt() -> None:
        # When the table has begun, frames are being answered.
        for _ in range(600):
            if any(path.suffix == ".tmp" and path.stat().st_size > 2000 for path in tmp_path.glob(".*")):
                break
            threading.Event().wait(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = run("video", f"camera:{name}", "--out", str(film), "--csv", str(rows))
    thread.join()
    assert result.exit_code == 0, result.stderr
    assert len(rows.read_text().splitlines()) > 2
    assert len(read_all(film)[0]) > 2


class Impatient:
    """A camera's container as AVFoundation's: where it has no frame yet it says so, and does not wait."""

    def __init__(self, container: Any, ends: bool) -> None:
        self.container, self.streams, self.close = container, container.streams, container.close
        self.packets, self.ends = container.demux(video=0), ends

    def demux(self, *_: Any) -> Iterator[Any]:
        packet = next(self.packets, None)
        if packet is not None:
            yield packet
        if packet is not None or not self.ends:
            raise av.error.BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")


@pytest.mark.parametrize("ends", [True, False])
def test_a_camera_that_has_no_frame_yet_is_asked_again(ends: bool, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = video_files._opened
    monkeypatch.setattr(video_files, "_opened", lambda *names, **options: Impatient(opened(*names, **options), ends))
    seen = 0
    with Camera(str(film), container="mp4", options={}) as camera:
        for _ in camera:
            seen += 1
            if not ends and seen + camera.skipped == 12:
                break  # it is closed while it waits
    assert seen + camera.skipped == 12
    assert "poster_zoo_camera" not in [thread.name for thread in threading.enumerate()]


def test_a_pyav_without_the_cameras_of_a_system_is_a_sentence() -> None:
    with pytest.raises(VideoError, match=r"The camera 'c' cannot be used: .* cannot read 'abacus'"):
        Camera("c", container="abacus")


def test_a_camera_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"The camera .*video9' does not exist"):
        Camera(str(tmp_path / "video9"), container="v4l2" if "video4linux2,v4l2" in av.formats_available else "mpegts")


# --- writing


def test_written_frames_come_back_at_their_times(tmp_path: Path) -> None:
    times = [0, 0.04, 0.3, 0.301, 1.0]
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for i, time in enumerate(times):
            writer.write(blank(50 * i, (65, 49)), time)
    frames, trouble = read_all(tmp_path / "a.mp4")
    assert trouble is None
    assert frames[0].image.size == (64, 48)
    assert [frame.time for frame in frames] == pytest.approx(times, abs=1e-4)
    assert [np.asarray(frame.image).mean() for frame in frames] == pytest.approx([50 * i for i in range(5)], abs=4)


def test_frames_of_another_size_are_fitted_into_the_first_ones(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4") as writer:
        for i, size in enumerate([(64, 48), (48, 64), (128, 96), (65, 49)]):
            writer.write(blank(255, size), i / 25)
    frames, _ = read_all(tmp_path / "a.mp4")
    assert [frame.image.size for frame in frames] == [(64, 48)] * 4
    # 48 × 64 becomes 36 × 48, which leaves 14 columns on each side.
    shades = np.asarray(frames[1].image)[24].mean(1)
    assert shades[:11].max() < 60
    assert shades[17:47].min() > 200
    assert shades[53:].max() < 60
    for i in (0, 2, 3):
        assert np.asarray(frames[i].image).min() > 200


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    def break_off() -> None:
        with VideoWriter(tmp_path / "a.mp4") as writer:
            writer.write(blank(9), 0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    with VideoWriter(tmp_path / "empty.mp4"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_video_cannot_go_just_anywhere(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"end its name in \.mp4"):
        VideoWriter(tmp_path / "a.txt")
    with pytest.raises(OutputError, match="no folder to go to"):
        VideoWriter(tmp_path / "none" / "a.mp4")


# --- numbers of faces


def numbers(tracker: FaceTracker, images: list[Image.Image], step: int = 1) -> list[dict[int, tuple[float, ...]]]:
    """Return for each frame, 25 a second, or for every second one, the faces' boxes by their numbers."""
    looks = list(enumerate(images))[::step]
    return [{number: face.box for number, face in tracker(image, i / 25)} for i, image in looks]


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("in_front", ["left", "right"])
@pytest.mark.parametrize("frames", [40, 80])
def test_two_faces_that_cross_keep_their_numbers(
    in_front: str, frames: int, step: int, face: Image.Image, detector: FaceDetector
) -> None:
    other = ImageOps.mirror(face).resize((FACE - 8, FACE - 8))
    images = []
    for i in range(frames):
        t = i / (frames - 1)
        pair = [(face, 10 + 220 * t, 80.0), (other, 230 - 220 * t, 86.0)]
        images.append(scene(*(pair if in_front == "right" else pair[::-1])))
    seen = numbers(FaceTracker(detector), images, step)
    start, end = seen[2], seen[-1]
    assert set().union(*seen) == set(start) == set(end) == {1, 2}
    (left,) = (number for number, box in start.items() if box[0] < 160)
    assert end[left][0] > 160  # it goes on its way
    assert end[3 - left][0] < 160


def gone(face: Image.Image, seconds: float, back_at: float) -> list[Image.Image]:
    away = round(25 * seconds)
    return [scene((face, 60, 80))] * 6 + [scene()] * away + [scene((face, back_at, 80))] * 5


@pytest.mark.parametrize("step", [1, 2])
def test_a_face_that_is_gone_for_a_second_keeps_its_number_where_it_was(
    step: int, face: Image.Image, detector: FaceDetector
) -> None:
    seen = numbers(FaceTracker(detector), gone(face, 1, 60), step)
    assert set(seen[-1]) == {1}
    assert seen[16 // step] == {}
    # Elsewhere, or after longer, it is someone else: nothing here knows what a face looks like.
    assert set(numbers(FaceTracker(detector), gone(face, 1, 230), step)[-1]) == {2}
    assert set(numbers(FaceTracker(detector, keep=0.5), gone(face, 1, 60), step)[-1]) == {2}


def test_looking_around_known_faces_finds_what_a_whole_look_does(face: Image.Image, detector: FaceDetector) -> None:
    other = ImageOps.mirror(face)
    images = [scene((face, 10 + 4 * i, 20 + i), (other, 200 - 2 * i, 130 - i)) for i in range(15)]
    often = numbers(FaceTracker(detector, whole_every=0), images)
    rarely = numbers(FaceTracker(detector, whole_every=10), images)
    assert all(set(boxes) == {1, 2} for boxes in rarely[1:])
    for one, two in zip(often[1:], rarely[1:], strict=True):
        for number in (1, 2):
            overlap = box_iou(*(torch.tensor([boxes[number]]) for boxes in (one, two)))
            assert overlap.item() > 0.8


def test_between_whole_looks_only_windows_are_looked_at(face: Image.Image, detector: FaceDetector) -> None:
    sizes = []

    def counted(image: Image.Image) -> Any:
        sizes.append(image.size)
        return detector(image)

    numbers(FaceTracker(counted, whole_every=0.2), [scene((face, 100, 80))] * 11)
    assert sizes.count(SIZE) == 3  # at 0, 0.2 and 0.4 seconds
    assert all(width * height < 0.5 * SIZE[0] * SIZE[1] for width, height in sizes if (width, height) != SIZE)


def test_a_newcomer_is_found_by_the_next_whole_look(face: Image.Image, detector: FaceDetector) -> None:
    images = [scene((face, 10, 80))] * 6 + [scene((face, 10, 80), (face, 220, 80))] * 8
    seen = numbers(FaceTracker(detector, whole_every=0.2), images)
    assert set(seen[5]) == {1}
    assert set(seen[-1]) == {1, 2}


def test_a_detectors_options_hold_between_whole_looks_too(
    face: Image.Image, detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = []
    look = FaceDetector._look

    def counted(self: FaceDetector, images: list[Image.Image], *options: Any) -> Any:
        together.append(len(images))
        return look(self, images, *options)

    def looked_again(*_: Any) -> None:
        raise AssertionError("no second look was wanted")

    monkeypatch.setattr(FaceDetector, "_look", counted)
    monkeypatch.setattr(FaceDetector, "_looked_again", looked_again)
    own = FaceDetector(detector.model, max_side=320, second_look=False, batch_size=1)
    seen = numbers(FaceTracker(own, whole_every=10), [scene((face, 20, 80), (face, 220, 80))] * 4)
    assert set(seen[-1]) == {1, 2}
    assert together == [1, *[1, 1] * 3]  # the whole, then around both


# --- smoothing


@pytest.mark.parametrize("rate", [5, 25, 120])
def test_a_change_arrives_in_the_time_constant_whatever_the_frame_rate(rate: int) -> None:
    smooth = Smoother(0.5, keep=1.5)
    smooth(1, 0.0, np.array([1.0, 0.0]))
    for i in range(1, rate + 1):
        smoothed = smooth(1, i / rate, np.array([0.0, 1.0]))
    assert smoothed[1] == pytest.approx(1 - math.exp(-1 / 0.5), rel=1e-9)
    assert smoothed.sum() == pytest.approx(1)


def test_smoothing_knows_faces_apart_and_can_be_left_out() -> None:
    smooth = Smoother(10, keep=1.5)
    smooth(1, 0.0, np.array([1.0, 0.0]))
    assert smooth(2, 0.1, np.array([0.0, 1.0])).tolist() == [0, 1]
    assert smooth(1, 0.1, np.array([0.0, 1.0]))[0] > 0.9
    none = Smoother(0, keep=1.5)
    none(1, 0.0, np.array([1.0, 0.0]))
    assert none(1, 0.01, np.array([0.0, 1.0])).tolist() == [0, 1]


# --- answers


def test_a_film_of_a_face_is_answered_as_its_picture(
    film: Path, face: Image.Image, predictor: Predictor, detector: FaceDetector
) -> None:
    answers = list(VideoPredictor(predictor, detector=detector, smoothing=0)(film))
    assert [answer.index for answer in answers] == list(range(12))
    assert [answer.time for answer in answers] == pytest.approx([i / 25 for i in range(12)], abs=1e-4)
    assert answers[0].faces == ()  # a face has its number from its second frame on
    picture = scene((face, 75, 70))
    (crop,) = predictor.crops(picture, detector.find([picture])[0])
    alone = predictor(crop)
    (seen,) = answers[5].faces
    assert seen.number == 1
    assert seen.label == alone.label
    assert seen.score == pytest.approx(alone.score, abs=0.1)  # the film is compressed
    assert seen.face.box[0] + 15 == pytest.approx(answers[10].faces[0].face.box[0], abs=3)
    assert sum(seen.probabilities.values()) == pytest.approx(1)


def test_frames_answered_together_have_the_answers_of_each_alone(
    film: Path, predictor: Predictor, detector: FaceDetector
) -> None:
    # Four looks, and three that are left over.
    together = list(VideoPredictor(predictor, detector=detector)(film))
    alone = list(VideoPredictor(predictor, detector=detector, batch=1)(film))
    assert [answer.index for answer in together] == list(range(12))
    assert [len(answer.faces) for answer in together] == [0, 0, *[1] * 10]
    for one, other in zip(together[2:], alone[2:], strict=True):
        assert one.faces[0].face == other.faces[0].face
        assert one.faces[0].momentary == pytest.approx(other.faces[0].momentary, abs=1e-5)
        assert one.faces[0].probabilities == pytest.approx(other.faces[0].probabilities, abs=1e-5)


def test_between_two_looks_a_face_is_on_the_straight_line(
    film: Path, predictor: Predictor, detector: FaceDetector
) -> None:
    answers = list(VideoPredictor(predictor, detector=detector, smoothing=0)(film))
    # At 25 frames a second and 15 looks at most; and the last frame, after which there is none to draw a line to.
    assert [answer.index for answer in answers if answer.looked] == [0, 2, 4, 6, 8, 10, 11]
    for i in (3, 5, 7, 9):
        before, between, after = (answers[j].faces[0] for j in (i - 1, i, i + 1))
        assert between.number == before.number == after.number
        for part in ("box", "points", "score"):
            ends = np.array(getattr(before.face, part)), np.array(getattr(after.face, part))
            assert np.array(getattr(between.face, part)) == pytest.approx(sum(ends) / 2, abs=1e-4)
        expected = {label: (p + after.momentary[label]) / 2 for label, p in before.momentary.items()}
        assert between.momentary == pytest.approx(expected, abs=1e-6)
        assert between.label == max(expected, key=lambda label: expected[label])


def test_looks_a_second_can_be_set(film: Path, predictor: Predictor, detector: FaceDetector) -> None:
    assert all(answer.looked for answer in VideoPredictor(predictor, detector=detector, looks=0)(film))
    rarely = VideoPredictor(predictor, detector=detector, looks=5)(film)
    assert [answer.index for answer in rarely if answer.looked] == [0, 5, 10, 11]
    with pytest.raises(OptionError, match="looks is -1"):
        VideoPredictor(predictor, looks=-1)


@pytest.mark.parametrize(("rate", "step"), [(10, 1), (15, 1), (30, 2), (30000 / 1001, 2), (60, 4)])
def test_a_look_comes_at_the_first_frame_that_may_have_one(
    face: Image.Image, predictor: Predictor, detector: FaceDetector, rate: float, step: int
) -> None:
    frames = (Frame(i, round(i / rate, 6), scene((face, 60, 70))) for i in range(4 * step + 1))
    answers = VideoPredictor(predictor, detector=detector, looks=15)(frames)
    assert [answer.index for answer in answers if answer.looked] == list(range(0, 4 * step + 1, step))


def test_a_face_that_goes_between_two_looks_is_not_seen_between(
    face: Image.Image, predictor: Predictor, detector: FaceDetector
) -> None:
    shown = [scene((face, 60, 70))] * 5 + [scene()] * 4
    frames = [Frame(i, i / 30, image) for i, image in enumerate(shown)]
    answers = list(VideoPredictor(predictor, detector=detector, looks=15)(frames))
    assert [len(answer.faces) for answer in answers] == [0, 0, 1, 1, 1, 0, 0, 0, 0]


def test_a_frame_of_ones_own_is_answered_before_the_next_is_asked_for(
    face: Image.Image, predictor: Predictor, detector: FaceDetector
) -> None:
    asked = []

    def frames() -> Iterator[Frame]:
        for i in range(4):
            asked.append(i)
            yield Frame(i, i / 25, scene((face, 60, 70)))

    for answer in VideoPredictor(predictor, detector=detector)(frames()):
        assert asked[-1] == answer.index


def test_frames_of_ones_own_are_answered_too(face: Image.Image, predictor: Predictor, detector: FaceDetector) -> None:
    frames = (Frame(i, i / 10, scene((face, 60, 70))) for i in range(3))
    answers = list(VideoPredictor(predictor, detector=detector)(frames))
    assert [len(answer.faces) for answer in answers] == [0, 1, 1]
    drawn = annotate(answers[2])
    assert drawn.size == SIZE
    box = answers[2].faces[0].face.box
    changed = np.abs(np.asarray(drawn, int) - np.asarray(answers[2].frame.image)).sum(2) > 0
    assert changed[round(box[1]) : round(box[3]), round(box[0]) - 2 : round(box[0]) + 3].any(1).all()  # its left edge


def test_options_that_cannot_be_are_refused(predictor: Predictor) -> None:
    with pytest.raises(OptionError, match="smoothing is -1"):
        VideoPredictor(predictor, smoothing=-1)
    with pytest.raises(OptionError, match="keep is"):
        VideoPredictor(predictor, keep=math.nan)
    with pytest.raises(OptionError, match="batch is 0"):
        VideoPredictor(predictor, batch=0)
    with pytest.raises(OptionError, match="looks for faces itself"):
        VideoPredictor(Predictor(predictor.model, faces=lambda image: ([], [])))


def answer(time: float, **faces: float) -> FrameAnswer:
    """Return an answer of two classes, "a" and "b"; face n's probability of "a" is given as `fn`."""
    found = []
    for name, value in faces.items():
        both = {"a": value, "b": 1 - value}
        best = max(both, key=lambda label: both[label])
        found.append(FaceAnswer(int(name[1:]), _FACE, best, both[best], both, both))
    return FrameAnswer(Frame(0, time, Image.new("RGB", (1, 1))), tuple(found))


_FACE: Any = None


def test_a_timeline_of_a_day_keeps_a_thousand_intervals() -> None:
    timeline = Timeline(["a", "b"])
    day, step = 86400, 7
    for time in range(0, day, step):
        present = {"f1": time / day} | ({"f2": 1.0} if time < day / 2 else {})
        timeline.add(answer(time, **present))
    means = timeline.means(1)
    assert 500 <= len(means) <= 1000
    middles = (np.arange(len(means)) + 0.5) * timeline.width
    seen = np.isfinite(means[:, 0])
    assert seen.all()
    assert means[1:-1, 0] == pytest.approx(middles[1:-1] / day, abs=2 * step / day)
    assert means.sum(1) == pytest.approx(1)
    assert np.isfinite(timeline.means(2)[:, 0]).mean() == pytest.approx(0.5, abs=0.01)
    assert timeline.faces[2].labels == {"a": timeline.faces[2].frames}


def test_a_frame_stands_until_the_next_in_a_timeline() -> None:
    timeline = Timeline(["a", "b"])
    for i in range(10):
        timeline.add(answer(i / 5, f1=0.25))
    assert timeline.means(1)[:, 0] == pytest.approx(0.25)  # without gaps


def test_a_timeline_of_many_short_appearances_keeps_the_longest_ones() -> None:
    def appear(numbers: range) -> None:
        # Face 1 is there all the time, each of the others in two frames.
        for number in numbers:
            for i in range(2):
                timeline.add(answer(number / 10 + i / 20, f1=0.75, **{f"f{number}": 0.25}))

    timeline = Timeline(["a", "b"])
    appear(range(2, 2000))
    tracemalloc.start()
    appear(range(2000, 3000))
    before, _ = tracemalloc.get_traced_memory()
    appear(range(3000, 6000))
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Three thousand lines would be some megabytes.
    assert after - before < 500_000

    assert timeline.total == 5999
    assert 200 <= len(timeline.faces) <= 400
    assert timeline.faces[1].frames == 2 * 5998
    assert timeline.longest(1) == [1]
    assert timeline.means(1)[:, 0] == pytest.approx(0.75)
    names, lines = zip(*timeline.lines(), strict=True)
    assert names[-1] == f"{5999 - len(timeline.faces)} others"
    assert sum(line.frames for line in lines) == 2 * 2 * 5998
    assert timeline.others is not None
    assert timeline.others.labels == {"b": timeline.others.frames}
    assert 1 < timeline.others.first < 40

    # One of the others comes back: it is no newcomer.
    known = timeline.others.frames
    timeline.add(answer(601, f3000=0.25))
    assert timeline.total == 5999
    assert timeline.others.frames == known + 1
    assert timeline.others.last == 601


def test_the_picture_of_many_faces_is_of_the_longest_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plots = pytest.importorskip("poster_zoo.plots")
    pytest.importorskip("matplotlib", reason="matplotlib is of the extra `plot`")
    from poster_zoo.cli.video import _draw

    timeline = Timeline(["a", "b"])
    for i in range(30):
        timeline.add(answer(i / 5, **{f"f{number}": 0.5 for number in range(1, 31) if number > i}))
    asked = []
    means = Timeline.means
    monkeypatch.setattr(Timeline, "means", lambda self, number: asked.append(number) or means(self, number))
    _draw(timeline, tmp_path / "plot.svg", "crowd.mp4")
    longest = list(range(30 - plots.TIMELINE_LIMIT + 1, 31))
    assert asked == longest  # and no matrix is made of the others
    written = re.findall(r"<!-- (.*?) -->", (tmp_path / "plot.svg").read_text(encoding="utf-8"))
    assert "crowd.mp4: the 12 of 30 faces that are seen longest" in written
    assert [line for line in written if line.startswith("face ")] == [f"face {number}" for number in longest]


# --- the command


def test_the_command_writes_film_table_and_picture(film: Path, tmp_path: Path) -> None:
    out, table, plot = tmp_path / "out.mp4", tmp_path / "rows.csv", tmp_path / "plot.svg"
    result = run("video", str(film), "--out", str(out), "--csv", str(table), "--plot", str(plot))
    assert result.exit_code == 0, result.stderr
    header, first = (line.split() for line in result.stdout.splitlines())
    assert header[:2] == ["face", "from"]
    assert first[:6] == ["1", "0.08", "s", "0.44", "s", "10"]  # from the second look on
    assert "12 frames, 1 face, " in result.stderr
    assert len(read_all(out)[0]) == 12
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(2, 12))
    assert [row["looked"] for row in rows] == ["1", "0"] * 4 + ["1", "1"]
    labels = list(rows[0])[11:]
    assert all(sum(float(row[label]) for label in labels) == pytest.approx(1, abs=1e-5) for row in rows)
    assert all(row["label"] == max(labels, key=lambda label: float(row[label])) for row in rows)
    assert plot.stat().st_size > 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "plot.svg", "rows.csv"]


def test_the_command_prints_json_and_stops_in_time(film: Path) -> None:
    result = run("video", str(film), "--json", "--seconds", "0.2")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[-1]["faces"][0]["number"] == 1
    assert len(lines[-1]["faces"][0]["face"]["points"]) == 5


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="this system has no pseudo-terminals")
def test_on_a_terminal_a_bar_counts_the_frames(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # its size; it has none at first
    heard: list[bytes] = []

    def listen() -> None:
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while part := os.read(ours, 1024):
                heard.append(part)

    thread = threading.Thread(target=listen)
    thread.start()
    with open(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        main(["video", str(film), "--seconds", "0.3", "--json"], standalone_mode=False)
    thread.join()
    os.close(ours)
    written = b"".join(heard).decode()
    assert re.search(r"100%\|.*\| 8/8 \[.*frames", written)
    assert "8 frames, 1 face, " in written
    # Into a file there goes none.
    assert "%|" not in run("video", str(film), "--seconds", "0.1").stderr


@pytest.mark.parametrize("number", ["nan", "inf"])
@pytest.mark.parametrize("option", ["--seconds", "--smoothing", "--keep"])
def test_what_is_no_number_of_seconds_is_refused(option: str, number: str, film: Path) -> None:
    result = run("video", str(film), option, number)
    assert result.exit_code == 2
    assert f"{number} is no number of seconds" in result.stderr


def test_only_what_was_written_is_said_to_be(film: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out.mp4", tmp_path / "rows.csv"
    out.write_bytes(b"an older one")
    result = run("video", str(film), "--seconds", "0", "--out", str(out), "--csv", str(table))
    assert result.exit_code == 0
    assert f"Wrote {out}" not in result.stderr
    assert f"{out} was not written, as there was no frame" in result.stderr
    assert f"Wrote {table}" in result.stderr
    assert out.read_bytes() == b"an older one"


def test_a_film_whose_frames_change_in_size_is_answered_to_its_end(tmp_path: Path) -> None:
    encode(tmp_path / "a", [blank(90)] * 5, [40 * i for i in range(5)], format="mpegts")
    encode(tmp_path / "b", [blank(90, (96, 48))] * 5, [40 * i for i in range(5)], format="mpegts")
    joined, out = tmp_path / "joined.ts", tmp_path / "out.mp4"
    joined.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())
    result = run("video", str(joined), "--out", str(out), "--csv", str(tmp_path / "rows.csv"))
    assert result.exit_code == 0, result.stderr
    assert len(read_all(out)[0]) == 10
    assert (tmp_path / "rows.csv").is_file()


def test_a_file_that_breaks_off_is_answered_as_far_as_it_goes(film: Path, tmp_path: Path) -> None:
    frames, _ = read_all(film)
    whole = tmp_path / "whole.mkv"
    encode(whole, [frame.image for frame in frames] * 8, [40 * i for i in range(96)])
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    table = tmp_path / "rows.csv"
    result = run("video", str(cut), "--csv", str(table))
    assert result.exit_code == 1
    assert "breaks off after" in result.stderr
    assert len(table.read_text().splitlines()) > 1


@pytest.mark.usefixtures("film")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "talk.mp4"], "would overwrite the video"),
        (["--csv", "talk.mp4"], "would overwrite the video"),
        (["--out", "a.gif"], "end its name in .mp4"),
        (["--csv", "none/a.csv"], "no folder to go to"),
        (["--plot", "a.txt"], "end its name in .png"),
        (["--out", "a.mp4", "--csv", "./a.mp4"], "is the file of --out and of --csv"),
        (["--csv", "a.png", "--plot", "a.png"], "is the file of --csv and of --plot"),
    ],
)
def test_what_cannot_be_written_is_said_before_any_work(
    arguments: list[str], words: str, film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "talk.mp4").write_bytes(film.read_bytes())
    result = run("video", "talk.mp4", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert (tmp_path / "talk.mp4").read_bytes() == film.read_bytes()
