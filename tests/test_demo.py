"""The page, in a real browser without a screen: what is uploaded comes back answered, and nothing leaves the machine.

Gradio wants an older pillow than the newest, so these tests have an environment of their own: `make test-demo`.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from PIL import Image

import poster_zoo
from poster_zoo import demo
from poster_zoo.errors import MissingExtraError, OptionError, PosterZooError, UnknownModelError, WeightsNotFoundError
from poster_zoo.predict import Predictor

WAIT = 60  # seconds, on a busy machine; nothing waits longer than it needs to
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(poster_zoo.__file__).parents[1])}


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"poster-zoo\[demo\]\""):
        demo.build_page()


@pytest.mark.parametrize(
    ("models", "device", "error", "words"),
    [
        (["postr_tiny"], None, UnknownModelError, "'postr_tiny'.*'poster_tiny'"),
        (["poster_tiny", "postr_tiny"], None, UnknownModelError, "'postr_tiny'"),
        (["centerface"], None, OptionError, "centerface finds faces"),
        (["poster_rafdb"], None, WeightsNotFoundError, "poster_rafdb"),
        (["poster_tiny"], "abacus", OptionError, "'abacus'"),
    ],
)
def test_what_cannot_answer_is_refused_before_the_page_is_served(
    models: list[str], device: str | None, error: type[PosterZooError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", SimpleNamespace())  # there is no page before the models are there
    with pytest.raises(error, match=words):
        demo.build_page(models, device=device)


# What the page shows, asked for without a page: Gradio's part is to name the properties that change.
PROPERTIES = SimpleNamespace(update=lambda **properties: properties)


def status(file: Path, predictor: Callable[[], Predictor], seconds: float = 60) -> str:
    """Return the sentence that the page shows about a file."""
    return demo._answer(PROPERTIES, str(file), predictor, seconds)[0]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(faces="auto", progress=False)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """Four seconds of a film without faces."""
    pytest.importorskip("av", reason="PyAV is of the extra `video`")
    pytest.importorskip("trackers", reason="trackers is of the extra `video`")
    from poster_zoo.video import VideoWriter

    path = tmp_path / "talk.mkv"
    noise = Image.effect_noise((64, 48), 80).convert("RGB")
    with VideoWriter(path, 5) as writer:
        for i in range(20):
            writer.write(noise.rotate(7 * i), i / 5)
    return path


def test_how_much_of_a_video_is_answered_is_said(talk: Path, predictor: Predictor) -> None:
    assert status(talk, lambda: predictor, seconds=0.35) == "0 faces in the first 0.35 s of 4 s."
    assert status(talk, lambda: predictor) == "0 faces."


def test_a_video_that_breaks_off_is_called_by_its_name_alone(talk: Path, predictor: Predictor) -> None:
    whole = talk.read_bytes()
    talk.write_bytes(whole[: len(whole) // 2])
    said = status(talk, lambda: predictor)
    assert said.startswith("0 faces. 'talk.mkv' breaks off after")
    assert str(talk.parent) not in said


@pytest.mark.parametrize("ending", [".mp4", ".wmv", ".3gp", ".ogv", ".mts", ".MOV"])
def test_a_file_named_as_a_video_is_opened_as_one(ending: str, tmp_path: Path, predictor: Predictor) -> None:
    pytest.importorskip("av", reason="PyAV is of the extra `video`")
    pytest.importorskip("trackers", reason="trackers is of the extra `video`")
    file = tmp_path / f"talk{ending}"
    file.write_bytes(b"no film at all")
    assert status(file, lambda: predictor).startswith(f"'talk{ending}' is damaged or no video in a format")


def test_a_model_that_cannot_be_had_any_more_is_a_sentence(tmp_path: Path) -> None:
    def gone() -> Predictor:
        raise WeightsNotFoundError("The weights are gone.")

    assert status(tmp_path / "face.png", gone) == "The weights are gone."


def test_another_model_answers_what_came_last(tmp_path: Path) -> None:
    """Be it of the tab of files or of those of the camera."""
    pytest.importorskip("gradio", reason="Gradio is of the extra `demo`")
    page = demo.build_page()
    events = {page.blocks[each.targets[0][0]].label: each for each in page.fns.values() if each.targets}
    assert {"Model", "Camera", "Camera film", "Photograph or video"} <= set(events)
    newest = events["Model"].inputs[0]
    for label in ("Camera", "Camera film", "Photograph or video"):
        file = str(tmp_path / f"{label}.png")
        answer = dict(zip(events[label].outputs, events[label].fn(file, "poster_tiny"), strict=True))
        assert answer[newest] == file


def test_a_film_of_the_camera_is_answered_as_it_was_recorded_without_an_ffmpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gradio", reason="Gradio is of the extra `demo`")
    from gradio.data_classes import FileData

    monkeypatch.setenv("PATH", str(tmp_path))
    page = demo.build_page()
    (recorder,) = (block for block in page.blocks.values() if block.elem_id == "recorder")
    assert recorder.sources == ["webcam"]
    assert not recorder.include_audio  # nobody is asked for the microphone
    assert recorder.preprocess(FileData(path="sample.webm")) == "sample.webm"
    assert recorder.preprocess(None) is None


def start(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """Start the command; return it and the address that it printed."""
    pytest.importorskip("gradio", reason="Gradio is of the extra `demo`")
    process = subprocess.Popen(
        [sys.executable, "-m", "poster_zoo", "demo", *arguments],
        env=ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    if not address:
        raise AssertionError(process.communicate()[1])
    return process, address


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT)


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The address of the page, served by the command on a free port, for files of up to one megabyte."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process, address = start("--port", str(port), "--max-upload", "1")
    assert address.rstrip("/") == f"http://127.0.0.1:{port}"
    yield address
    stop(process)
    assert process.returncode == 0


@pytest.fixture(scope="module")
def downloads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def browser(downloads: Path, photograph: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium without a screen, which notes what it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver are not on this machine (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,1000"):
        options.add_argument(argument)
    # The browser's own errands stay at home too.
    for argument in ("--disable-background-networking", "--disable-component-update", "--no-first-run"):
        options.add_argument(argument)
    # Its camera is a film of the photograph, and nobody has to allow it.
    film = tmp_path_factory.mktemp("camera") / "camera.y4m"
    write_y4m(film, Image.open(photograph))
    for argument in ("device-for-media-stream", "ui-for-media-stream", f"file-for-fake-video-capture={film}"):
        options.add_argument(f"--use-{'' if 'capture' in argument else 'fake-'}{argument}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driven = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driven
    driven.quit()


def write_y4m(file: Path, image: Image.Image) -> None:
    """Write ten raw frames of one picture, as Chromium reads them in place of a camera."""
    width, height = image.size
    luma, *chroma = image.convert("YCbCr").split()
    frame = luma.tobytes() + b"".join(part.resize((width // 2, height // 2)).tobytes() for part in chroma)
    header = f"YUV4MPEG2 W{width} H{height} F10:1 Ip A1:1 C420jpeg\n".encode()
    file.write_bytes(header + (b"FRAME\n" + frame) * 10)


def wait_for(ask: Callable[[], Any]) -> Any:
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(None, WAIT, ignored_exceptions=[WebDriverException])
    return waiting.until(lambda _: ask())


class Page:
    """What a user sees and does."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser = browser
        browser.get(address)
        wait_for(lambda: self.find("#file input[type=file]"))

    def find(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def upload(self, file: Path) -> None:
        self.find("#file input[type=file]").send_keys(str(file))

    def open_tab(self, name: str) -> None:
        tabs = self.browser.find_elements("css selector", "button[role=tab]")
        next(tab for tab in tabs if tab.text == name).click()

    def press(self, selector: str) -> None:
        """Press a button as soon as it is there, even where another one lies over its middle."""
        self.browser.execute_script("arguments[0].click()", wait_for(lambda: self.find(selector)))

    def save_screenshot(self, file: Path) -> None:
        """Save all of the page, however long it is."""
        size = self.browser.get_window_size()
        height = self.browser.execute_script(
            "return document.documentElement.scrollHeight + window.outerHeight - window.innerHeight"
        )
        self.browser.set_window_size(size["width"], height)
        self.browser.save_screenshot(str(file))
        self.browser.set_window_size(size["width"], size["height"])

    def status(self) -> str:
        return self.find("#status textarea").get_attribute("value")

    def answer(self) -> str:
        return wait_for(self.status)

    def row(self, cell: str) -> list[str]:
        """Return the cells of the table, when one of them is as given."""

        def cells() -> list[str] | None:
            seen = self.find("#table").text.splitlines()
            return seen if cell in seen else None

        return wait_for(cells)


@pytest.fixture
def opened(browser: Any, page: str) -> Page:
    return Page(browser, page)


@pytest.fixture(scope="module")
def photograph(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One face, left in a larger picture."""
    face = Image.open(root / "examples" / "face.png").convert("RGB").resize((200, 200))
    picture = Image.new("RGB", (640, 400), (90, 110, 100))
    picture.paste(face, (60, 90))
    path = tmp_path_factory.mktemp("photographs") / "holiday.png"
    picture.save(path)
    return path


def test_a_photograph_is_answered_on_the_page(opened: Page, photograph: Path, downloads: Path, tmp_path: Path) -> None:
    (expected,) = Predictor(faces="auto", progress=False)(photograph)
    opened.upload(photograph)
    answer = opened.answer()
    assert answer == f"1 face; the surest: {expected.label} {expected.score:.2f}"
    assert expected.label in wait_for(lambda: opened.find("#bars").text)
    row = opened.row(expected.label)
    assert expected.face is not None
    assert f"{round(expected.face.box[0], 1):g}" in row
    # Nothing offers to send the picture to a website.
    assert not opened.browser.find_elements("css selector", "button[title*=hare], button[aria-label*=hare]")
    # The picture that came back has the photograph's size, and a box on it.
    address = wait_for(lambda: opened.find("#picture img").get_attribute("src"))
    with urllib.request.urlopen(address) as response:  # noqa: S310  # of this machine
        (tmp_path / "drawn").write_bytes(response.read())
    drawn = Image.open(tmp_path / "drawn")
    assert drawn.size == (640, 400)
    assert drawn.convert("RGB").tobytes() != Image.open(photograph).convert("RGB").tobytes()
    # The download holds what `predict --json` prints.
    opened.find("#json").click()
    downloaded = downloads / "holiday.json"
    wait_for(downloaded.is_file)
    line = json.loads(downloaded.read_text())
    assert line == expected.to_dict() | {"source": "holiday.png"}
    if folder := os.environ.get("POSTER_ZOO_SCREENSHOTS"):
        opened.save_screenshot(Path(folder) / "demo.png")


def test_the_camera_is_answered_on_the_page(opened: Page) -> None:
    opened.open_tab("Camera")
    opened.press("#camera [title='grant webcam access'] button")
    opened.press("#camera .capture-button")
    assert opened.answer().startswith("1 face; the surest: Happiness ")
    assert wait_for(lambda: opened.find("#picture img").get_attribute("src"))


def test_a_film_of_the_camera_is_answered_on_the_page(opened: Page) -> None:
    pytest.importorskip("av", reason="PyAV is of the extra `video`")
    pytest.importorskip("trackers", reason="trackers is of the extra `video`")
    opened.open_tab("Camera film")
    opened.press("#recorder [title='grant webcam access'] button")
    opened.press("#recorder .capture-button[aria-label='start recording']")
    wait_for(lambda: opened.find("#recorder .button-wrap").text == "Stop")
    opened.browser.execute_async_script("setTimeout(arguments[0], 1000)")  # so long is the film
    opened.press("#recorder .capture-button")
    assert opened.answer().startswith("1 face.")
    assert wait_for(lambda: opened.find("#film video").get_attribute("src")).endswith(".mp4")


def test_a_video_is_answered_on_the_page(opened: Page, photograph: Path, tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is of the extra `video`")
    pytest.importorskip("trackers", reason="trackers is of the extra `video`")
    from poster_zoo.video import VideoWriter

    image = Image.open(photograph).convert("RGB").resize((320, 200))
    with VideoWriter(tmp_path / "talk.mp4", 10) as writer:
        for i in range(8):
            writer.write(image, i / 10)
    opened.upload(tmp_path / "talk.mp4")
    assert opened.answer().startswith("1 face.")
    assert "1" in opened.row("Happiness 100%")
    assert wait_for(lambda: opened.find("#film video").get_attribute("src")).endswith(".mp4")
    # The browser plays it.
    assert wait_for(lambda: opened.browser.execute_script("return document.querySelector('#film video').videoWidth"))


@pytest.mark.parametrize("name", ["notes.png", "talk.mp4", "<img src=x onerror=alert(1)>.jpg"])
def test_a_bad_file_is_one_sentence(name: str, opened: Page, tmp_path: Path) -> None:
    if name.endswith(".mp4"):
        pytest.importorskip("av", reason="PyAV is of the extra `video`")
        pytest.importorskip("trackers", reason="trackers is of the extra `video`")
    (tmp_path / name).write_bytes(b"no picture at all")
    opened.upload(tmp_path / name)
    answer = opened.answer()
    assert "is damaged or no " in answer
    assert str(tmp_path) not in answer
    assert "/" not in answer.split(" is damaged")[0]  # nor where the server keeps it
    assert "Traceback" not in answer
    assert opened.browser.execute_script("return document.querySelectorAll('img[onerror]').length") == 0


def test_a_large_file_is_refused(opened: Page, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(bytes(2_000_000))
    opened.upload(tmp_path / "large.png")
    assert wait_for(lambda: re.search("exceed the maximum", opened.find("body").text))
    assert opened.status() == ""


def test_the_page_asks_nobody_else(browser: Any, page: str) -> None:
    Page(browser, page)
    asked = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.add(message["params"]["request"]["url"])
    outside = [url for url in asked if not url.startswith((page, "data:", "blob:", "chrome", "devtools:", "about:"))]
    assert any(url.startswith(page) for url in asked)
    assert outside == []


def test_only_this_machine_gets_in(page: str) -> None:
    with urllib.request.urlopen(page) as response:  # noqa: S310
        assert "default-src 'self'" in response.headers["content-security-policy"]
    port = int(page.rstrip("/").rpartition(":")[2])
    addresses = {str(each[4][0]) for each in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)}
    outer = sorted(address for address in addresses if not address.startswith("127."))
    if not outer:
        pytest.skip("this machine has no address but its own")
    with socket.socket() as knocking:
        knocking.settimeout(3)
        assert knocking.connect_ex((outer[0], port)) != 0


def test_a_port_that_is_taken_is_a_sentence() -> None:
    pytest.importorskip("gradio", reason="Gradio is of the extra `demo`")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run(
            [sys.executable, "-m", "poster_zoo", "demo", "--port", str(taken.getsockname()[1])],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=WAIT, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "cannot be served at" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes otherwise")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_that_was_uploaded_stays_when_the_page_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    process, _ = start(TMPDIR=str(tmp_path))
    (folder,) = tmp_path.glob("poster_zoo_demo_*")
    (folder / "holiday.png").write_bytes(b"a photograph")
    process.send_signal(number)
    process.communicate(timeout=WAIT)
    assert process.returncode == (0 if number == signal.SIGINT else 128 + number)
    assert not folder.exists()


def test_the_space_is_the_same_page(root: Path) -> None:
    space = root / "examples" / "space"
    _, front, _ = (space / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    values = dict(line.split(": ", 1) for line in front.splitlines())
    assert values["sdk"] == "gradio"
    assert (space / values["app_file"]).is_file()


def test_a_space_installs_what_the_package_beside_its_page_needs(root: Path) -> None:
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    needed = "\n".join((setup["options"]["install_requires"], extras["demo"], extras["video"])).split("\n")
    lines = (root / "examples" / "space" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == [line for line in needed if line]


def test_what_the_space_calls_is_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its page is run with the names that it imports, and with their arguments; only the waiting is left out."""
    build_page, serve = create_autospec(demo.build_page), create_autospec(demo.serve)
    monkeypatch.setattr(demo, "build_page", build_page)
    monkeypatch.setattr(demo, "serve", serve)
    monkeypatch.setattr(threading.Event, "wait", lambda _: True)
    runpy.run_path(str(root / "examples" / "space" / "app.py"), run_name="__main__")
    build_page.assert_called_once_with(seconds=20)
    assert serve.call_args.args == (build_page.return_value,)
    assert serve.call_args.kwargs["host"] == "0.0.0.0"  # noqa: S104  # as Spaces ask
    assert serve.call_args.kwargs["port"] == 7860
