"""Pictures: what is in them, and that they are written whole or not at all."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from poster_zoo import plots
from poster_zoo.data.datasets import FaceDataset
from poster_zoo.data.datasets.files import Files
from poster_zoo.errors import MissingExtraError, OptionError, OutputError
from poster_zoo.evaluate import Answers, compare, evaluate
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


def table(picture: Path) -> list[dict[str, str]]:
    """Return the rows of the table beside a picture."""
    with picture.with_suffix(".csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_of_a_matrix_holds_each_cell_and_no_rate_of_an_absent_class(tmp_path: Path) -> None:
    out = tmp_path / "matrix.png"
    plots.confusion_matrix(evaluate(["a", "a", "b"], ["a", "b", "b"], ["a", "b", "c"]), out=out, table=True)
    cells = {(row["true"], row["answer"]): (row["images"], row["rate"]) for row in table(out)}
    assert len(cells) == 9
    assert cells["a", "a"] == cells["a", "b"] == ("1", "0.5")
    assert cells["b", "b"] == ("1", "1.0")
    assert cells["c", "a"] == ("0", "")


def answers_of(
    folder: Path, true: list[int], predicted: list[int], scores: list[float], labels: tuple[str, ...] = RAFDB
) -> Answers:
    """Return answers about images that are as red as their place in the folder is far."""
    names = [f"{i}.png" for i in range(len(true))]
    for i, name in enumerate(names):
        Image.new("RGB", (20, 20), (255 - i, 0, 0)).save(folder / name)
    dataset = FaceDataset(Files(folder, names), true, labels, name="reds", split="test")
    return Answers(
        dataset=dataset,
        labels=labels,
        only_data=(),
        places=np.arange(len(true)),
        true=np.array(true),
        predicted=np.array(predicted),
        scores=np.array(scores),
        bad={},
        images_per_second=1.0,
    )


def test_the_sheet_of_mistakes_shows_the_surest_first_and_the_table_all(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, [0, 1, 2, 3], [0, 2, 3, 4], [0.99, 0.5, 0.9, 0.7])
    out = tmp_path / "mistakes.svg"
    plots.mistakes(answers, out=out)
    written = texts(out)
    assert "All mistakes in 4 images (3), most confident first" in written
    shown = [text for text in written if re.fullmatch(r"\w+ 0\.\d\d", text)]
    assert shown == ["Happiness 0.90", "Sadness 0.70", "Disgust 0.50"]
    assert "✗ true: Disgust" in written
    rows = table(out)
    assert [row["source"] for row in rows] == [answers.dataset.source(place) for place in (2, 3, 1)]
    assert [(row["true"], row["answer"], row["score"]) for row in rows] == [
        ("Disgust", "Happiness", "0.9"),
        ("Happiness", "Sadness", "0.7"),
        ("Fear", "Disgust", "0.5"),
    ]


def test_of_many_mistakes_the_sheet_shows_some_and_says_so(tmp_path: Path) -> None:
    n = plots.MISTAKES_LIMIT + 2
    out = tmp_path / "mistakes.svg"
    plots.mistakes(answers_of(tmp_path, [0] * n, [1] * n, np.linspace(1, 0.5, n).tolist()), out=out)
    assert f"The {plots.MISTAKES_LIMIT} most confident of {n} mistakes in {n} images" in texts(out)
    assert len(table(out)) == n


def test_without_mistakes_the_sheet_says_so(tmp_path: Path) -> None:
    out = tmp_path / "mistakes.svg"
    plots.mistakes(answers_of(tmp_path, [0, 1], [0, 1], [0.9, 0.8]), out=out)
    assert texts(out) == ["No mistake in 2 images"]
    assert table(out) == []
    assert out.with_suffix(".csv").read_text() == "source,true,answer,score\n"


def test_a_file_name_of_any_bytes_goes_into_the_table_as_it_is(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, [0], [1], [0.9])
    name = os.fsdecode(b"\xff\xfe.png")
    os.rename(tmp_path / "0.png", tmp_path / name)
    renamed = FaceDataset(Files(tmp_path, [name]), [0], RAFDB, name="reds", split="test")
    out = tmp_path / "mistakes.png"
    plots.mistakes(Answers(**{**vars(answers), "dataset": renamed}), out=out)
    assert b"\xff\xfe.png" in out.with_suffix(".csv").read_bytes()


def test_two_matrices_stand_side_by_side_with_the_test_below(tmp_path: Path) -> None:
    first = answers_of(tmp_path, [0, 0, 1, 1], [0, 0, 1, 1], [0.9] * 4)
    second = answers_of(tmp_path, [0, 0, 1, 1], [0, 1, 1, 0], [0.9] * 4)
    out = tmp_path / "both.svg"
    both = compare(first, Answers(**{**vars(second), "dataset": first.dataset}))
    plots.comparison(both, ("poster", "a $baseline$"), out=out)
    written = texts(out)
    assert written.count("no images") == 2 * 5
    assert "poster" in written
    assert "a $baseline$" in written
    # Two images on which one alone is right: the exact test's p-value is 2 · (1/2)².
    expected = "right by the left one alone: 2, by the right one alone: 0; McNemar's exact test: p = 0.5"
    assert expected in written
    rows = table(out)
    assert len(rows) == 2 * 49
    cells = {(row["model"], row["true"], row["answer"]): row["images"] for row in rows}
    assert cells["poster", "Surprise", "Surprise"] == "2"
    assert cells["a $baseline$", "Surprise", "Fear"] == "1"


def test_calibration_is_drawn_by_score_and_by_class(tmp_path: Path) -> None:
    out = tmp_path / "calibration.svg"
    evaluation = evaluate(["Fear", "Fear", "Anger"], ["Fear", "Anger", "Anger"], RAFDB, scores=[0.9, 0.9, 0.5])
    plots.calibration(evaluation, out=out)
    written = texts(out)
    assert written.count("never the answer") == 5
    assert "Anger (2)" in written
    assert "Neutral (0)" in written
    assert f"expected calibration error {(2 * 0.4 + 0.5) / 3:.3f}" in written
    rows = {row["part"]: row for row in table(out)}
    assert len(rows) == 15 + 7
    assert rows["Anger"] == {"part": "Anger", "answers": "2", "mean_score": "0.7", "accuracy": "0.5"}
    assert rows["Neutral"] == {"part": "Neutral", "answers": "0", "mean_score": "", "accuracy": ""}
    assert rows["score 0.8667 to 0.9333"]["answers"] == "2"


def test_calibration_needs_the_scores(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no calibration"):
        plots.calibration(evaluate(["Fear"], ["Fear"], RAFDB), out=tmp_path / "calibration.svg")


EPOCHS: list[dict[str, Any]] = [
    {"epoch": 1, "train_loss": 1.5, "valid_loss": 1.6, "train_accuracy": 0.4, "valid_accuracy": 0.35, "lr": 0.1},
    {"epoch": 2, "train_loss": 1.0, "valid_loss": 1.2, "train_accuracy": 0.6, "valid_accuracy": 0.55},
    {"epoch": 3, "train_loss": 0.8, "valid_loss": 1.3, "train_accuracy": 0.7, "valid_accuracy": None},
]


def test_curves_of_accuracy_and_loss_are_told_apart_without_colours(tmp_path: Path) -> None:
    out = tmp_path / "curves.svg"
    plots.curves(EPOCHS, out=out)
    written = texts(out)
    for text in ("train accuracy", "valid accuracy", "train loss", "valid loss", "accuracy", "loss"):
        assert text in written
    assert "best valid accuracy 0.5500, epoch 2" in written
    assert "lr" not in written
    assert "stroke-dasharray" in out.read_text()


def test_the_table_of_curves_holds_all_that_the_rows_do(tmp_path: Path) -> None:
    out = tmp_path / "curves.png"
    plots.curves(EPOCHS, out=out)
    first, _, third = table(out)
    assert list(first) == ["epoch", "train_loss", "valid_loss", "train_accuracy", "valid_accuracy", "lr"]
    assert first == {key: str(value) for key, value in EPOCHS[0].items()}
    assert (third["train_accuracy"], third["valid_accuracy"], third["lr"]) == ("0.7", "", "")


@pytest.mark.parametrize("rows", [EPOCHS[:1], [{"epoch": 1, "train_loss": 2.0, "valid_accuracy": None}]])
def test_one_epoch_and_one_curve_can_be_drawn(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    plots.curves(rows, out=tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size > (0, 0)


@pytest.mark.parametrize("rows", [[], [{"epoch": 1, "lr": 0.1}], [{"epoch": 1, "valid_accuracy": None}]])
def test_without_a_loss_or_an_accuracy_there_are_no_curves(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    with pytest.raises(OptionError, match="no epochs to draw"):
        plots.curves(rows, out=tmp_path / "curves.png")
    assert os.listdir(tmp_path) == []


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
        lambda out: plots.comparison(None, ("a", "b"), out=out),  # type: ignore[arg-type]
        lambda out: plots.mistakes(None, out=out),  # type: ignore[arg-type]
        lambda out: plots.calibration(None, out=out),  # type: ignore[arg-type]
        lambda out: plots.curves([], out=out),
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
