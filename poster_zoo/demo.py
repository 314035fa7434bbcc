"""A page to try the models on: photograph, video or camera in, boxes, bars, table and JSON out.

Needs the extra `demo` (Gradio). The page and what is uploaded to it stay on the machine that serves it: Gradio's
counting of users is switched off, no public link is made, and the browser is told to load nothing from elsewhere.
What was uploaded and drawn lies in a folder of its own until it is ten minutes old or the page is closed, by Ctrl-C or
as systems end what runs on them (SIGTERM).
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

import numpy as np
from PIL import Image

from poster_zoo.data.images import read_image
from poster_zoo.draw import draw_faces
from poster_zoo.errors import ImageError, LabelError, MissingExtraError, OptionError, PosterZooError, counted
from poster_zoo.models._registry import list_models
from poster_zoo.predict import Prediction, Predictor

__all__ = ["build_page", "serve"]

# One file is answered at a time, and none is when the page closes: Python must not end under a model that computes.
_WORKING = threading.Lock()
_CLOSING = threading.Event()
_KEPT = 600  # seconds for which files stay
_LONGEST = 1600  # pixels of the picture that comes back
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; frame-src 'none'; object-src 'none'"
)
_NOTE = (
    "A labelled expression is not a felt emotion. Photographs and videos are answered on the machine that serves this "
    "page, are sent nowhere else, and are deleted after ten minutes."
)
_BUTTONS = ["download", "fullscreen"]  # and none to share, which sends the picture to a website
_VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".wmv", ".asf", ".flv", ".ogv", ".ogg"),
    *(".mpg", ".mpeg", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mjpeg", ".mjpg", ".h264", ".264"),
)
_HEADER = ["face", "label", "score", "detection", "left", "upper", "right", "lower"]
_VIDEO_HEADER = ["face", "from (s)", "to (s)", "frames", "expressions"]


def build_page(models: Sequence[str] | None = None, *, seconds: float = 60, device: str | None = None) -> Any:
    """Return the page as Gradio's `Blocks`, with its queue, to be launched by `serve` or by a Space.

    Args:
        models: Names to choose from, the first of them chosen; by default those whose weights are on this machine.
        seconds: How much of a video is answered.
        device: Where to compute; by default a GPU where there is one.

    Raises:
        MissingExtraError: Gradio is not installed.
        OptionError: There is no model, one knows no expressions, or the device cannot be used.
        UnknownModelError: There is no model of such a name.
        WeightsNotFoundError: A model has no weights on this machine, nor on the Hub.
    """
    gr = _gradio()
    names = list(models or _models_at_hand())
    if not names:
        raise OptionError("No model has its weights on this machine; name one.")
    predictor = lru_cache(maxsize=2)(lambda name: _predictor(name, device))
    # What is wrong with one of them is said now, and not to whoever chooses it; the first is built last, and stays.
    for name in reversed(names):
        predictor(name)

    def answer(file: str | None, name: str) -> Any:
        with _WORKING:
            # The newest file is also remembered, for another model to answer.
            return *_answer(gr, file, lambda: predictor(name), seconds), file

    with gr.Blocks(title="poster-zoo", analytics_enabled=False, delete_cache=(60, _KEPT)) as page:
        gr.Markdown("# The expression on each face\n" + _NOTE)
        with gr.Row():
            with gr.Column(scale=1):
                model = gr.Dropdown(names, value=names[0], label="Model")
                with gr.Tabs():
                    with gr.Tab("File"):
                        file = gr.File(label="Photograph or video", type="filepath", elem_id="file")
                    with gr.Tab("Camera"):
                        camera = gr.Image(label="Camera", sources=["webcam"], type="filepath", elem_id="camera")
                    with gr.Tab("Camera film"):
                        recorder = gr.Video(
                            label="Camera film", sources=["webcam"], include_audio=False, elem_id="recorder"
                        )
                        recorder.preprocess = _as_recorded
                status = gr.Textbox(label="Answer", lines=2, interactive=False, elem_id="status")
                bars = gr.Label(label="Surest face", num_top_classes=8, elem_id="bars")
            with gr.Column(scale=2):
                picture = gr.Image(label="Faces", interactive=False, format="png", buttons=_BUTTONS, elem_id="picture")
                film = gr.Video(label="Faces", interactive=False, visible=False, buttons=["download"], elem_id="film")
                table = gr.Dataframe(headers=_HEADER, label="All faces", interactive=False, elem_id="table")
                download = gr.DownloadButton("Download the answers as JSON", visible=False, elem_id="json")
        newest = gr.State(None)
        outputs = [status, bars, picture, film, table, download, newest]
        for source in (file, camera, recorder):
            source.change(answer, [source, model], outputs, api_name=False)
        model.change(answer, [newest, model], outputs, api_name=False)
    page.queue(max_size=16, default_concurrency_limit=1)
    return page


def _as_recorded(payload: Any) -> str | None:
    """Return the file of a film that the camera took; Gradio's own step needs an ffmpeg to mirror it and mute it."""
    return None if payload is None else str(payload.path)


@contextlib.contextmanager
def serve(
    page: Any, *, host: str = "127.0.0.1", port: int | None = None, max_upload: int = 50, quiet: bool = True
) -> Iterator[str]:
    """Serve a page while the `with` block lasts; gives its address.

    Args:
        page: What `build_page` returned.
        host: The address to listen on; 0.0.0.0 lets everyone in who reaches this machine.
        port: By default the first free one from 7860 on.
        max_upload: Megabytes of a file that is taken.
        quiet: Whether Gradio keeps its own words to itself.

    Raises:
        OptionError: The port is taken, or the host is none of this machine's.
    """
    gr = _gradio()
    middleware = importlib.import_module("starlette.middleware").Middleware
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none that are fetched
    with _ended_in_order(), tempfile.TemporaryDirectory(prefix="poster_zoo_demo_") as folder:
        before = os.environ.get("GRADIO_TEMP_DIR")
        os.environ["GRADIO_TEMP_DIR"] = folder
        page.GRADIO_CACHE = folder
        for block in page.blocks.values():
            block.GRADIO_CACHE = folder
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=quiet,
                prevent_thread_lock=True,
                max_file_size=f"{max_upload}mb",
                ssr_mode=False,
                enable_monitoring=False,
                show_error=True,
                footer_links=[],
                theme=gr.themes.Default(**fonts),
                app_kwargs={"middleware": [middleware(_OnlyFromHere)]},
            )
        except OSError as error:
            where = f"{host}:{port}" if port else host
            raise OptionError(
                f"The page cannot be served at {where}: {error}; take another --port or --host."
            ) from error
        try:
            yield address
        finally:
            _CLOSING.set()
            page.close(verbose=False)
            with _WORKING:
                _CLOSING.clear()
            if before is None:
                os.environ.pop("GRADIO_TEMP_DIR", None)
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let SIGTERM, which ends a process on the spot, unwind it first, so that folders are removed."""
    ours = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, _: object) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not break off the removal
    raise SystemExit(128 + number)  # as shells count


class _OnlyFromHere:
    """ASGI middleware that tells browsers to load nothing from elsewhere."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Add the header to every answer."""

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"content-security-policy", _POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)


def _gradio() -> Any:
    # Read as Gradio is imported, and again as it launches.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise MissingExtraError(
            'The page needs Gradio, which is not installed: pip install "poster-zoo[demo]".'
        ) from error


def _models_at_hand() -> list[str]:
    """Return the bundled classifiers; others are named by whoever starts the page."""
    from poster_zoo.models._builder import ENTRIES

    return [name for name in list_models(pretrained=True) if (entry := ENTRIES.get(name)) and entry.label_names]


def _predictor(name: str, device: str | None) -> Predictor:
    predictor: Predictor | None = None
    with contextlib.suppress(LabelError):
        predictor = Predictor(name, device=device, faces="auto", progress=False)
    if predictor is None or not predictor.labels:
        raise OptionError(f"The model {name!r} names no expressions; `poster-zoo list` shows which have classes.")
    return predictor


def _answer(gr: Any, file: str | None, predictor_of_choice: Callable[[], Predictor], seconds: float) -> tuple[Any, ...]:
    """Return what the page shows about a file: status, bars, picture, film, table, JSON."""
    if file is None:
        return _shown(gr, "")
    try:
        predictor = predictor_of_choice()
        try:
            return _answer_photograph(gr, file, predictor)
        except ImageError:
            if Path(file).suffix.lower() not in _VIDEOS:
                raise
        return _answer_video(gr, file, predictor, seconds)
    except PosterZooError as error:
        return _shown(gr, _by_its_name(str(error), file))


def _by_its_name(words: str, file: str) -> str:
    """Call a file by the name that the user knows, without the folder that it was put into."""
    return words.replace(repr(file), repr(os.path.basename(file)))


def _shown(
    gr: Any,
    status: str,
    *,
    bars: dict[str, float] | None = None,
    picture: Image.Image | None = None,
    film: str | None = None,
    table: Any = None,
    answers: str | None = None,
) -> tuple[Any, ...]:
    return (
        status,
        bars,
        gr.update(value=picture, visible=film is None),
        gr.update(value=film, visible=film is not None),
        table,
        gr.update(value=answers, visible=answers is not None),
    )


def _answer_photograph(gr: Any, file: str, predictor: Predictor) -> tuple[Any, ...]:
    photograph = read_image(file)
    predictions = cast("list[Prediction]", predictor(photograph))
    faces = [prediction for prediction in predictions if prediction.face is not None]
    if faces:
        status = f"{counted(len(faces), 'face')}; the surest: {_words(faces[0])}"
    else:
        status = f"No face was found; the whole picture: {_words(predictions[0])}"
    name = os.path.basename(file)
    answers = [prediction.to_dict() | {"source": name} for prediction in predictions]
    drawn = draw_faces(photograph, predictions)
    drawn.thumbnail((_LONGEST, _LONGEST))
    return _shown(
        gr,
        status,
        bars=predictions[0].probabilities,
        picture=drawn,
        table={"headers": _HEADER, "data": [_row(i, each) for i, each in enumerate(predictions, start=1)]},
        answers=_written(name, lambda out: out.writelines(json.dumps(answer) + "\n" for answer in answers)),
    )


def _words(prediction: Prediction) -> str:
    return f"{prediction.label} {prediction.score:.2f}"


def _row(number: int, prediction: Prediction) -> list[Any]:
    face = prediction.face
    seen = ["", "", "", "", ""] if face is None else [round(face.score, 3), *(round(edge, 1) for edge in face.box)]
    return [number if face else "whole picture", prediction.label, round(prediction.score or 0, 4), *seen]


def _answer_video(gr: Any, file: str, predictor: Predictor, seconds: float) -> tuple[Any, ...]:
    from poster_zoo.video import Timeline, Video, VideoPredictor, VideoWriter, annotate

    crops = copy.copy(predictor)  # the same model for faces that are cut out by others
    detector, crops.detector = predictor.detector, None
    timeline = Timeline(predictor.labels)
    name = os.path.basename(file)
    film = os.path.join(_folder(), "faces.mp4")

    def write(out: TextIO) -> None:
        with Video(file) as video, VideoWriter(film, video.rate) as writer:
            for answer in VideoPredictor(crops, detector=detector)(video):
                if answer.time >= seconds:
                    of = f" of {video.duration:.0f} s" if video.duration and video.duration > seconds else ""
                    part.append(f" in the first {seconds:g} s{of}")
                    break
                if _CLOSING.is_set():
                    break
                timeline.add(answer)
                writer.write(annotate(answer), answer.time)
                out.write(json.dumps(answer.to_dict()) + "\n")
            if video.trouble:
                trouble.append(_by_its_name(video.trouble, file))

    part: list[str] = []
    trouble: list[str] = []
    answers = _written(name, write)
    faces = f"{counted(timeline.total, 'face')}{''.join(part)}."
    status = " ".join([faces, *trouble])
    if not os.path.exists(film):
        return _shown(gr, status)
    mean: dict[str, float] | None = None
    if timeline.faces:
        (longest,) = timeline.longest(1)
        mean = dict(zip(timeline.labels, np.nanmean(timeline.means(longest), 0).tolist(), strict=True))
        status = f"{status} The mean of face {longest}, which is seen longest, stands below."
    rows = [
        [number, round(line.first, 2), round(line.last, 2), line.frames, line.shares()]
        for number, line in timeline.lines()
    ]
    return _shown(gr, status, bars=mean, film=film, table={"headers": _VIDEO_HEADER, "data": rows}, answers=answers)


def _folder() -> str:
    return tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))


def _written(name: str, write: Callable[[TextIO], object]) -> str:
    """Write JSON lines about the file of this name, and return where."""
    place = os.path.join(_folder(), f"{Path(name).stem}.json")
    with open(place, "w", encoding="utf-8") as out:
        write(out)
    return place
