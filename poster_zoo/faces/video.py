"""Video in and out, by PyAV, which carries its own ffmpeg: frames upright, in RGB, each at its own time.

What is decided here:

- A frame's time is the one that the file or camera gives it, counted from the first frame, so that variable frame rates
  come out right. A frame that has none is a usual step later than its predecessor, and one whose time does not come
  after its predecessor's stands just behind it. Times that jump back, as where recordings were joined, go on.
- Stored rotation is applied, and pixels that are not square are made so along the rows.
- A damaged packet is passed over. A file that breaks off gives all that can be read; `trouble` then says what is amiss.
  How long the file says that it is is compared with the end of what was read: of the pictures where it tells that of
  them, or else of everything in it, as sound may go on for longer.
- Frames of another size than the first are written in the first one's.
- Only containers of video are opened, no playlists, and a file cannot name another one: what strangers upload reads
  nothing else. Addresses of the network are refused.
- A camera gives its newest frame: those that came while the caller was busy are left out.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image, ImageOps

from poster_zoo.errors import MissingExtraError, OptionError, OutputError, VideoError
from poster_zoo.files import check_place, whole_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame

__all__ = ["CONTAINERS", "Camera", "Frame", "Video", "VideoWriter", "check_video_output"]

CONTAINERS = ("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif", "mjpeg", "h264")
"""What ffmpeg calls the formats that are opened."""

_FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}  # that are written

_CAMERAS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_CLOCK = 90_000  # ticks a second of the times that are written, as in MPEG streams
_USUAL_RATE = 25.0  # where nothing tells
_MUCH_SHORTER = 1.0  # seconds that a file may end before it says, which depends on rounding
_JUST_BEHIND = 0.001  # seconds: less than any usual step, so that the frames that follow are not late
_ANEW = (0.1, 1.0)  # seconds that times jump back, at least and at most, where they begin anew
_NOT_YET = 0.01  # seconds until a camera that had no frame is asked again


@dataclass(frozen=True)
class Frame:
    """One picture of a video.

    Attributes:
        index: Its place, counted from 0; of a camera's, those that were left out are not counted.
        time: Seconds since the first frame.
        image: Upright, RGB.
    """

    index: int
    time: float
    image: Image.Image


class Video:
    """The frames of a video file, one after the other: `for frame in Video("talk.mp4")`.

    Args:
        file: A file's path.

    Raises:
        VideoError: It is not there, is no video or has no pictures.
        MissingExtraError: PyAV is not installed.

    Attributes:
        trouble: After the last frame one sentence where the file is damaged or cut short, else None.
        rate: Frames a second on average, as the file says, or None.
        frames: About how many frames there are, or None.
        duration: Seconds, as the file says, or None.
    """

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.name = os.fspath(file)
        if _URL.match(self.name):
            raise VideoError(f"{self.name!r} is a URL; download it first and give the file's path.")
        if os.path.isdir(file):
            raise VideoError(f"{self.name!r} is a folder; give one video file.")
        # The list names demuxers; matroska's, for one, is called by both of its names.
        self._container = _opened(self.name, options={"format_whitelist": ",".join(CONTAINERS)})
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self._ratio = stream.sample_aspect_ratio
        self.rate = float(stream.average_rate) if stream.average_rate else None
        self.duration = _duration(self._container)
        counted = round(self.duration * self.rate) if self.duration and self.rate else None
        self.frames: int | None = stream.frames or counted
        self.trouble: str | None = None

    def __iter__(self) -> Iterator[Frame]:
        read = _Read()
        clock = _Clock(self.rate)
        seen = False
        for index, picture in enumerate(_decoded(self._container, read)):
            seen = True
            yield Frame(index, clock.time(picture), _upright(picture, self._ratio))
        self._say_trouble(clock if seen else None, read)

    def _say_trouble(self, clock: _Clock | None, read: _Read) -> None:
        if clock is None:
            self.trouble = f"{self.name!r} holds no frame that can be read."
            return
        end = self._end(clock, read)
        if self.duration and end < self.duration - max(_MUCH_SHORTER, 2 * clock.step):
            self.trouble = f"{self.name!r} breaks off after {end:.1f} of {self.duration:.1f} seconds."
        elif read.damaged:
            self.trouble = f"{self.name!r} is damaged: {read.damaged} of its packets could not be read."

    def _end(self, clock: _Clock, read: _Read) -> float:
        """Return the second at which what was read ends, counted as `duration` is."""
        container, stream = self._container, self._container.streams.video[0]
        until = read.until.get(stream.index)
        # The last picture may stand for long.
        stands = 0.0 if until is None or clock.told is None else until - clock.told
        pictures = clock.last + max(clock.step, stands)
        if stream.duration or not read.until:
            return pictures
        # Matroska counts its duration from zero, the others from where they begin.
        begin = 0 if "matroska" in container.format.name else (container.start_time or 0) / 1_000_000
        return max(pictures, max(read.until.values()) - begin)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Camera:
    """The frames of a camera as they come, without end: `for frame in Camera()`.

    A thread reads the camera, and an iteration takes the newest frame.

    Args:
        device: Its name: on Linux /dev/video0 and the like, on macOS a number, on Windows "video=NAME".
        container: What ffmpeg calls the kind of device; by default this system's: v4l2, avfoundation or dshow.
        options: For ffmpeg, such as {"video_size": "640x480", "framerate": "30"}, which are the default; what the
            camera does not have, it refuses.

    Raises:
        VideoError: The camera cannot be opened.
        MissingExtraError: PyAV is not installed.
        OptionError: No kind of device is known for this system.

    Attributes:
        trouble: One sentence where the camera broke off, else None.
        skipped: How many frames were left out so far.
    """

    rate = frames = duration = None

    def __init__(
        self, device: str = "/dev/video0", *, container: str | None = None, options: dict[str, str] | None = None
    ) -> None:
        kind = container or _CAMERAS.get(sys.platform)
        if kind is None:
            raise OptionError(f"No kind of camera is known for {sys.platform}; give `container`, as ffmpeg calls it.")
        self.name = device
        wanted = {"video_size": "640x480", "framerate": "30"} if options is None else options
        self._container = _opened(device, container=kind, options=wanted)
        self._ratio = self._container.streams.video[0].sample_aspect_ratio
        self.trouble: str | None = None
        self.skipped = 0
        self._newest: VideoFrame | None = None
        self._ended = self._closing = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="poster_zoo_camera", daemon=True)
        self._thread.start()

    def _not_yet(self) -> bool:
        """Wait a little for the next frame; return whether it is still wanted."""
        time.sleep(_NOT_YET)
        return not self._closing

    def _read(self) -> None:
        try:
            for picture in _decoded(self._container, _Read(), self._not_yet):
                with self._news:
                    if self._closing:
                        break
                    self.skipped += self._newest is not None
                    self._newest = picture
                    self._news.notify()
        finally:
            with self._news:
                self._ended = True
                self._news.notify()

    def __iter__(self) -> Iterator[Frame]:
        clock = _Clock(None)
        index = 0
        while True:
            with self._news:
                # A wait without an end would not let Ctrl-C through on every system.
                while self._newest is None and not self._ended:
                    self._news.wait(0.1)
                picture, self._newest = self._newest, None
            if picture is None:
                if not self._closing:
                    self.trouble = f"The camera {self.name!r} gave no more frames."
                return
            yield Frame(index, clock.time(picture), _upright(picture, self._ratio))
            index += 1

    def close(self) -> None:
        """Let go of the camera."""
        with self._news:
            self._closing = True
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._container.close()

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class VideoWriter:
    """Writes frames with their times into a video: H.264 where this PyAV has an encoder, MPEG-4 otherwise.

    The file is written beside its place and renamed at the end of the `with` block; where that ends in an exception, or
    without any frame, there is none. An odd width or height loses its last column or row, as the encoders want even
    ones. A frame of another size than the first is scaled into the first one's, with black beside it or above where its
    shape is another. Sound is not written.

    Args:
        out: The file: .mp4, .mkv or .mov.
        rate: Frames a second on average, as a hint to players; times are kept whatever it is.

    Raises:
        OutputError: The file cannot be written there.
    """

    def __init__(self, out: str | os.PathLike[str], rate: float | None = None) -> None:
        self.out = check_video_output(out)
        self._rate = Fraction(rate or _USUAL_RATE).limit_denominator(1001)
        self._whole = contextlib.ExitStack()
        self._container: Any = None
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        self._beside = self._whole.enter_context(whole_file(self.out))
        return self

    def write(self, image: Image.Image, time: float) -> None:
        """Add a picture that is shown from `time` on, in seconds.

        Raises:
            MissingExtraError: PyAV is not installed.
        """
        av = _av()
        even = (image.width // 2 * 2, image.height // 2 * 2)
        if self._container is None:
            self._open(*even)
        size = (self._stream.width, self._stream.height)
        if even != size:
            image = ImageOps.pad(image, size)
        pixels = np.asarray(image.crop((0, 0, *size)) if image.size != size else image)
        picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        self._last = max(round(time * _CLOCK), self._last + 1)
        picture.pts, picture.time_base = self._last, Fraction(1, _CLOCK)
        self._container.mux(self._stream.encode(picture))

    def _open(self, width: int, height: int) -> None:
        av = _av()
        codec = next((name for name in ("libx264", "libopenh264") if name in av.codecs_available), "mpeg4")
        # MPEG-4 counts at most 65535 ticks a second.
        self._container = av.open(str(self._beside), "w", format=_FORMATS[self.out.suffix.lower()])
        self._stream = self._container.add_stream(codec, rate=self._rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 60_000 if codec == "mpeg4" else _CLOCK)
        if codec == "libx264":
            self._stream.options = {"preset": "veryfast", "crf": "21"}
        else:
            self._stream.bit_rate = width * height * 8

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._container is not None:
                if kind is None:
                    self._container.mux(self._stream.encode(None))
                    self._container.close()
                else:
                    with contextlib.suppress(Exception):  # what made us give up may come again
                        self._container.close()
        except BaseException as late:
            self._whole.__exit__(type(late), late, late.__traceback__)
            raise
        self._whole.__exit__(kind, error, trace)


def check_video_output(out: str | os.PathLike[str]) -> Path:
    """Return where a video can be written, or say why not, before anything long begins.

    Raises:
        OutputError: Another ending, a folder that is not there or may not be written to.
    """
    path = Path(out)
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(f"A video cannot be written as {str(path)!r}; end its name in {', '.join(_FORMATS)}.")
    check_place("video", path)
    return path


class _Clock:
    """Turns what frames say of their time into seconds since the first that never go back.

    Attributes:
        step: From one frame to the next, usually.
        told: What the last frame that said something said; None before.
        last: The last frame's time, in seconds since the first.
    """

    def __init__(self, rate: float | None) -> None:
        self.step = 1 / (rate or _USUAL_RATE)
        self.told: float | None = None
        self.last = -self.step
        self._first = 0.0  # what the first frame says, or would say
        self._anew = min(max(3 * self.step, _ANEW[0]), _ANEW[1])

    def time(self, picture: VideoFrame) -> float:
        told: float | None = picture.time  # typed as a number, and None all the same where there is none
        usual = max(self.last + self.step, 0.0)
        if told is None:
            self.last = usual
            return usual
        if self.told is None or told < self.told - self._anew:
            self._first = told - usual
        self.told = told
        time = told - self._first
        self.last = time if time > self.last else self.last + _JUST_BEHIND
        return self.last


def _av() -> Any:
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise MissingExtraError('Video needs PyAV, which is not installed: pip install "poster-zoo[video]".') from error
    return av


def _opened(name: str, container: str | None = None, options: dict[str, str] | None = None) -> InputContainer:
    av = _av()
    what = f"The camera {name!r}" if container else repr(name)
    try:
        opened: InputContainer = av.open(name, format=container, options=options or {})
    except av.FFmpegError as error:
        if isinstance(error, FileNotFoundError):
            advice = "plug it in or name another" if container else "check the path"
            raise VideoError(f"{what} does not exist; {advice}.") from error
        if container:
            raise VideoError(f"{what} cannot be used: {error.strerror}; is another program using it?") from error
        if isinstance(error, PermissionError):
            raise VideoError(f"{what} cannot be opened: {error.strerror}; check its permissions.") from error
        raise VideoError(
            f"{what} is damaged or no video in a format that is read here ({', '.join(CONTAINERS)}); "
            f"convert it to MP4, or fetch it again."
        ) from error
    except ValueError as error:
        if container is None:
            raise
        raise VideoError(
            f"{what} cannot be used: the ffmpeg of this PyAV cannot read {container!r}; install a PyAV that can."
        ) from error
    if not opened.streams.video:
        opened.close()
        raise VideoError(f"{what} holds no pictures; give a video, not a recording of sound.")
    return opened


def _duration(container: InputContainer) -> float | None:
    """Return seconds: of the pictures where the file tells them, or else of the whole."""
    stream = container.streams.video[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / 1_000_000 if container.duration else None


@dataclass
class _Read:
    """What is noticed while a file is read.

    Attributes:
        damaged: Packets that could not be read.
        until: The second at which what was read of each stream ends, by the stream's place, in the file's own time.
    """

    damaged: int = 0
    until: dict[int, float] = field(default_factory=dict)

    def note(self, packet: Packet[Any]) -> None:
        begin = packet.dts if packet.pts is None else packet.pts
        if begin is not None and packet.time_base:
            place = packet.stream.index
            end = float((begin + (packet.duration or 0)) * packet.time_base)
            self.until[place] = max(end, self.until.get(place, end))


def _decoded(container: InputContainer, read: _Read, not_yet: Callable[[], bool] | None = None) -> Iterator[VideoFrame]:
    """Yield the pictures, passing over damaged packets.

    Args:
        container: What to read.
        read: Is told what is noticed.
        not_yet: Waits where a camera has no frame yet, and says whether to ask again.
    """
    av = _av()
    pictures = container.streams.video[0].index
    packets = container.demux()
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            # AVFoundation does not wait for a frame.
            if isinstance(error, BlockingIOError) and not_yet is not None and not_yet():
                packets = container.demux()  # an iterator that raised is spent
                continue
            read.damaged += 1  # what comes after is out of reach
            return
        if packet is None:
            return
        read.note(packet)
        if packet.stream.index != pictures:
            continue
        try:
            decoded = cast("list[VideoFrame]", packet.decode())
        except av.FFmpegError:
            read.damaged += 1
            continue
        yield from decoded


def _upright(picture: VideoFrame, ratio: Fraction | None) -> Image.Image:
    """Return an upright RGB image of square pixels, of a picture whose pixels are `ratio` times as wide as high."""
    width = round(picture.width * ratio) if ratio else picture.width
    pixels = picture.to_ndarray(format="rgb24", width=width, height=picture.height)
    turns = round(picture.rotation / 90) % 4
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels)
