"""Pictures: what is in them, and that they are written whole or not at all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from poster_zoo import plots
from poster_zoo.errors import MissingExtraError, OutputError
from poster_zoo.evaluate import evaluate
from poster_zoo.labels import FERPLUS, RAFDB
from poster_zoo.predict import Prediction


def answer(label: str, source: str = "face.png", error: str | None = None) -> Prediction:
    return Prediction(source, None, None, {}, error) if error else Prediction(source, label, 0.5, {label: 0.5})


def texts(svg: Path) -> list[str]:
    """Return what is written in a picture: beside the glyphs, matplotlib states each text in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


@pytest.fixture
def red() -> Image.Image:
    return Image.new("RGB", (40, 40), (255, 0, 0))


def test_the_sheet_shows_each_face_with_its_answer_and_its_file(tmp_path: Path, red: Image.Image) -> None:
    out = tmp_path / "sheet.svg"
    plots.contact_sheet([red, red], [answer("Fear", "a.png"), answer("Anger", "dir/b.png")], out=out)
    assert set(texts(out)) == {"2 images", "Fear 0.50", "Anger 0.50", "a.png", "b.png"}


def test_wrong_answers_are_marked_by_sign_and_dashes_not_by_colour_alone(tmp_path: Path, red: Image.Image) -> None:
    predictions = [answer("Happiness"), answer("Fear"), answer("Anger")]
    right, wrong = tmp_path / "right.svg", tmp_path / "wrong.svg"
    plots.contact_sheet([red] * 3, predictions, ["happy", None, "Anger"], out=right)
    plots.contact_sheet([red] * 3, predictions, ["happy", None, "Sadness"], out=wrong)
    assert "✗ true: Sadness" in texts(wrong)
    assert texts(wrong).count("✓ true: happy") == 1
    assert "stroke-dasharray" in wrong.read_text()
    assert "stroke-dasharray" not in right.read_text()
    assert not any(text.startswith("✗ true") for text in texts(right))


def test_a_broken_image_is_an_empty_tile_with_its_reason(tmp_path: Path, red: Image.Image) -> None:
    out = tmp_path / "sheet.svg"
    gone = str(tmp_path / "gone.png")  # it was there when it was answered
    predictions = [answer("", "zero.jpg", "It is empty."), answer("Fear", gone)]
    plots.contact_sheet([red, gone], predictions, ["Fear", "Fear"], out=out)
    assert texts(out).count("no answer") == 2
    assert "It is empty." in texts(out)
    assert "does not exist;" in " ".join(texts(out))
    assert "<image" not in out.read_text()


def test_the_faces_themselves_are_in_the_picture(tmp_path: Path, red: Image.Image) -> None:
    out = tmp_path / "sheet.png"
    plots.contact_sheet([red], [answer("Fear")], out=out)
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert (pixels == (255, 0, 0)).all(axis=2).mean() > 0.2


def test_of_thousands_a_sheet_shows_the_first_and_says_so(tmp_path: Path) -> None:
    out = tmp_path / "sheet.svg"
    predictions = [answer("", f"{i}.png", "Broken.") for i in range(plots.SHEET_LIMIT + 1)]
    plots.contact_sheet([None] * len(predictions), predictions, out=out, total=12345)
    assert f"The first {plots.SHEET_LIMIT} of 12,345 images" in texts(out)
    assert texts(out).count("no answer") == plots.SHEET_LIMIT


def test_any_file_name_can_be_drawn(tmp_path: Path, red: Image.Image) -> None:
    names = ["$\\frac$.png", "a\nb.png", "\udcff.png", "表情.png", "x" * 300 + ".png"]
    out = tmp_path / "sheet.svg"
    plots.contact_sheet([red] * len(names), [answer("Fear", name) for name in names], out=out)
    written = texts(out)
    assert "$\\frac$.png" in written
    assert "a\\nb.png" in written
    assert "\\udcff.png" in written
    assert all(len(text) <= 40 for text in written)


@pytest.mark.parametrize(("labels", "absent"), [(RAFDB, "Disgust"), (FERPLUS, "Contempt")])
def test_an_absent_class_is_hatched_and_not_zero(tmp_path: Path, labels: tuple[str, ...], absent: str) -> None:
    out = tmp_path / "matrix.svg"
    true = [label for label in labels if label != absent] * 2
    plots.confusion_matrix(evaluate(true, true, labels), out=out)
    written = texts(out)
    present = len(labels) - 1
    assert written.count("no images") == 1
    assert f"{absent} (0)" in written
    assert "<pattern" in out.read_text()
    # Rates have two digits behind the point (the colour bar's have one): a row of them for each class that is there.
    assert sum(bool(re.fullmatch(r"[01]\.\d\d", text)) for text in written) == present * len(labels)
    assert written.count("1.00") == present
    assert f"over the {present} of {len(labels)} classes that have images" in " ".join(written)


def test_the_matrix_writes_rate_and_count_in_each_cell(tmp_path: Path) -> None:
    out = tmp_path / "matrix.svg"
    plots.confusion_matrix(evaluate(["a"] * 8 + ["b"], ["a"] * 6 + ["b"] * 3, ["a", "b"]), out=out)
    written = texts(out)
    for text in ("0.75", "6", "0.25", "2", "1.00", "1", "0.00", "0", "a (8)", "b (1)"):
        assert text in written
    assert "no images" not in written


def test_landmarks_lie_where_they_are_in_the_image(tmp_path: Path) -> None:
    out = tmp_path / "points.png"
    points = np.stack([np.linspace(10, 90, 68), np.linspace(20, 40, 68)], axis=1)
    plots.landmarks(Image.new("RGB", (100, 50)), points, out=out)
    picture = Image.open(out).convert("RGB")
    scale = picture.width / 100
    assert picture.height == pytest.approx(50 * scale, abs=1)
    for x, y in points[[0, 17, 40, 67]]:
        assert picture.getpixel((round(x * scale), round(y * scale))) == (255, 255, 255)
    assert picture.getpixel((round(50 * scale), round(10 * scale))) == (0, 0, 0)


def test_points_are_joined_in_the_groups_of_300w(tmp_path: Path) -> None:
    # Counts by part in the 300-W scheme: jaw 17, two brows of 5, bridge 4, nostrils 5, two eyes of 6, lips 12 and 8.
    sizes = [end - first for _, first, end, _ in plots.LANDMARK_GROUPS]
    assert sizes == [17, 5, 5, 4, 5, 6, 6, 12, 8]
    assert [first for _, first, _, _ in plots.LANDMARK_GROUPS] == np.cumsum([0, *sizes[:-1]]).tolist()
    # All points of a part in one place: a line between parts would be the only thing to cross the middle.
    points = np.zeros((68, 2))
    for i, (_, first, end, _) in enumerate(plots.LANDMARK_GROUPS):
        points[first:end] = (10, 50) if i % 2 else (90, 50)
    plots.landmarks(Image.new("RGB", (100, 100)), points, out=tmp_path / "groups.png")
    pixels = np.asarray(Image.open(tmp_path / "groups.png").convert("RGB"))
    middle = pixels[:, int(pixels.shape[1] * 0.3) : int(pixels.shape[1] * 0.7)]
    assert not middle.any()


def test_points_outside_and_odd_sizes_can_be_drawn(tmp_path: Path) -> None:
    for size in ((1, 1), (1000, 1), (3, 2000)):
        out = tmp_path / f"{size[0]}.png"
        plots.landmarks(Image.new("RGB", size), np.full((68, 2), -50.0), out=out)
        assert max(Image.open(out).size) <= 1000


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".PNG", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_the_format_is_that_of_the_suffix(tmp_path: Path, suffix: str, start: bytes) -> None:
    out = tmp_path / f"picture{suffix}"
    plots.confusion_matrix(evaluate(["a"], ["a"], ["a", "b"]), out=out)
    assert out.read_bytes().startswith(start)
    assert os.listdir(tmp_path) == [out.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("picture.gif", r"end its name in \.png, \.svg, \.pdf"),
        ("picture", r"end its name in"),
        ("absent/picture.png", "has no folder to go to; make '.*absent' first"),
        ("folder.png", "which is a folder; add a file name"),
        ("a.txt/picture.png", "has no folder to go to"),
    ],
)
def test_a_bad_place_is_refused_before_any_work(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "a.txt").touch()
    for draw in (
        lambda out: plots.check_output(out),
        # Were the place not looked at first, what is to be drawn would fail in another way.
        lambda out: plots.contact_sheet([], [answer("Fear")], out=out),
        lambda out: plots.confusion_matrix(None, out=out),  # type: ignore[arg-type]
        lambda out: plots.landmarks("absent.png", [], out=out),
    ):
        with pytest.raises(OutputError, match=message):
            draw(tmp_path / name)


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r'pip install "poster-zoo\[plot\]"'):
        plots.landmarks("absent.png", [], out=tmp_path / "a.png")


def test_a_failure_while_writing_leaves_the_old_picture_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "matrix.png"
    out.write_bytes(b"old")

    def half(self: Figure, place: Path, **options: object) -> None:
        Path(place).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", half)
    with pytest.raises(OSError, match="No space left"):
        plots.confusion_matrix(evaluate(["a"], ["a"], ["a"]), out=out)
    assert out.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["matrix.png"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "real.png")
    plots.confusion_matrix(evaluate(["a"], ["a"], ["a"]), out=link)
    assert link.is_symlink()
    assert (tmp_path / "real.png").read_bytes().startswith(b"\x89PNG")


def test_drawing_changes_no_settings_and_needs_no_pyplot(tmp_path: Path) -> None:
    def settings() -> dict[str, object]:
        # Asking for the backend would choose one.
        return {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}

    before = settings()
    plots.confusion_matrix(evaluate(["a"], ["a"], ["a"]), out=tmp_path / "a.png")
    assert settings() == before
    code = (
        "import sys\nfrom poster_zoo import plots\nfrom poster_zoo.evaluate import evaluate\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"plots.confusion_matrix(evaluate(['a'], ['a'], ['a']), out={str(tmp_path / 'b.png')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
