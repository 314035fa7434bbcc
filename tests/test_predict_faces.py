"""Any photograph: an answer about each face in it. Most tests have a detector that knows where the patches are."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from test_cli import lines, run
from test_predict import COLOURS, EXPECTED, ColourModel, LandmarkModel, many, one

from poster_zoo import plots
from poster_zoo.cli.answers import CropWriter
from poster_zoo.data.datasets import open_dataset
from poster_zoo.draw import annotate, draw_faces
from poster_zoo.errors import ImageError, OptionError
from poster_zoo.faces import Face
from poster_zoo.predict import Prediction, Predictor
from poster_zoo.weights.entry import FIVE_POINTS

GREY = (127, 127, 127)
Patch = tuple[str, int, int, int]  # colour, left, upper, side


def canvas(*patches: Patch, size: tuple[int, int] = (200, 120)) -> Image.Image:
    picture = Image.new("RGB", size, GREY)
    for colour, left, upper, side in patches:
        picture.paste(COLOURS[colour], (left, upper, left + side, upper + side))
    return picture


def points(left: float, upper: float, side: float) -> Any:
    """Return where the five points are in a square that is an aligned crop already."""
    return np.array(FIVE_POINTS) * side + (left, upper)


def detector(*patches: Patch) -> Callable[[Image.Image], Any]:
    """Return a detector that finds these patches in whatever picture, the first one surest."""
    boxes = [(left, upper, left + side, upper + side, 1 - i / 100) for i, (_, left, upper, side) in enumerate(patches)]
    five = [points(*patch[1:]) for patch in patches]
    return lambda image: (np.array(boxes).reshape(-1, 5), np.array(five).reshape(-1, 5, 2))


PATCHES: tuple[Patch, ...] = (("red", 10, 20, 40), ("green", 80, 20, 60), ("blue", 150, 70, 30))


def predictor(*patches: Patch, **options: Any) -> Predictor:
    return Predictor(ColourModel(), faces=detector(*patches), progress=False, **options)


def test_each_face_has_its_own_answer_surest_first() -> None:
    found = many(predictor(*PATCHES)(canvas(*PATCHES)))
    assert [answer.label for answer in found] == [EXPECTED[colour] for colour, *_ in PATCHES]
    for answer, (_, left, upper, side) in zip(found, PATCHES, strict=True):
        assert answer.face is not None
        assert answer.face.box == (left, upper, left + side, upper + side)
        np.testing.assert_allclose(answer.face.points, points(left, upper, side), atol=1e-4)
    assert [answer.face.score for answer in found if answer.face] == pytest.approx([1, 0.99, 0.98])
    # The whole picture is grey for the most part, and no class stands out in grey.
    whole = one(Predictor(ColourModel())(canvas(*PATCHES)))
    assert max(whole.probabilities.values()) < 0.45 < min(answer.score or 0 for answer in found)


def test_without_a_face_the_whole_image_is_answered_and_that_is_said() -> None:
    red = Image.new("RGB", (30, 20), COLOURS["red"])
    [answer] = many(predictor()(red))
    assert (answer.label, answer.face, answer.sought) == ("Reddish", None, True)
    assert answer.to_dict()["face"] is None
    plain = one(Predictor(ColourModel())(red))
    assert plain.probabilities == answer.probabilities
    assert not plain.sought
    assert plain.to_dict()["face"] is None  # the same keys, whatever was asked for


def test_a_face_is_told_in_pixels_of_the_upright_image(tmp_path: Path) -> None:
    upright = canvas(*PATCHES)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn it by 90° to the right to see it upright
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    found = many(predictor(*PATCHES)(tmp_path / "turned.png"))
    assert [answer.label for answer in found] == [EXPECTED[colour] for colour, *_ in PATCHES]
    told = found[2].to_dict()["face"]
    assert told["box"] == [150, 70, 180, 100]
    assert told["score"] == pytest.approx(0.98)
    np.testing.assert_allclose(told["points"], points(150, 70, 30), atol=0.011)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_hundreds_of_faces_are_answered_in_batches_and_come_image_by_image(batch_size: int, tmp_path: Path) -> None:
    names = [list(COLOURS)[i % 3] for i in range(300)]
    patches = [(colour, i % 20 * 10, i // 20 * 10, 10) for i, colour in enumerate(names)]
    crowd = canvas(*patches, size=(200, 150))
    (tmp_path / "broken.png").write_bytes(b"broken")
    model = ColourModel()
    one_for_all = Predictor(model, faces=detector(*patches), batch_size=batch_size, progress=False)
    images = list(one_for_all.stream_images([crowd, str(tmp_path / "broken.png"), crowd]))
    assert [len(answers) for answers in images] == [300, 1, 300]
    assert [answer.label for answer in images[2]] == [EXPECTED[colour] for colour in names]
    assert "damaged" in str(images[1][0].error)
    assert max(size for size, _ in model.batches) == batch_size
    assert [answer.source for answer in one_for_all.stream([crowd, crowd])] == ["image 0"] * 300 + ["image 1"] * 300


def test_a_face_over_the_border_is_answered_by_what_is_there() -> None:
    over: Patch = ("green", -20, 90, 50)
    [answer] = many(predictor(over)(canvas(over)))
    assert answer.label == "Greenish"


def test_the_crops_are_what_the_model_sees() -> None:
    asked = predictor(*PATCHES)
    image = canvas(*PATCHES)
    found = many(asked(image))
    crops = asked.crops(image, [answer.face for answer in found if answer.face])
    for crop, (colour, *_) in zip(crops, PATCHES, strict=True):
        assert crop.size == (16, 16)
        assert np.abs(np.asarray(crop.crop((2, 2, 14, 14)), int) - COLOURS[colour]).max() <= 1


def test_a_photograph_that_cannot_be_read_raises_as_one_and_is_told_among_many(tmp_path: Path) -> None:
    asked = predictor(*PATCHES)
    with pytest.raises(ImageError, match=r"gone\.png' does not exist"):
        asked(tmp_path / "gone.png")
    [answer] = asked.stream([tmp_path / "gone.png"])
    assert "does not exist" in str(answer.error)


def test_the_stream_reads_few_photographs_ahead() -> None:
    given = 0

    def photographs() -> Iterator[Image.Image]:
        nonlocal given
        for _ in range(100):
            given += 1
            yield canvas(*PATCHES)

    stream = predictor(*PATCHES).stream(photographs())
    next(stream)
    assert given <= 17
    stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("faces", ["none at all", "AUTO", None, 3])
def test_what_is_no_way_of_finding_faces_is_told(faces: Any) -> None:
    with pytest.raises(OptionError, match="'auto', 'none' or a detector"):
        Predictor(ColourModel(), faces=faces)


def test_a_detector_that_gives_something_else_is_told() -> None:
    with pytest.raises(OptionError, match="it must give Faces, or boxes and points"):
        Predictor(ColourModel(), faces=lambda image: 3)(canvas())


def test_who_counts_on_one_answer_an_image_is_told() -> None:
    with pytest.raises(OptionError, match="faces='none'"):
        predictor().stream_named([("a", canvas())])


def test_in_a_photograph_faces_are_found_and_the_smile_is_seen(root: Path) -> None:
    astronaut = pytest.importorskip("skimage.data").astronaut()
    [answer] = many(Predictor(faces="auto")(astronaut))
    assert answer.label == "Happiness"
    assert answer.face is not None
    np.testing.assert_allclose(answer.face.box, (182, 58, 270, 178), atol=2)
    # The same face on both sides of a canvas, once as it is and once rolled.
    face = Image.open(root / "examples" / "face.png").convert("RGB")
    both = Image.new("RGB", (500, 250), GREY)
    both.paste(face, (60, 80))
    both.paste(face.rotate(35, fillcolor=GREY), (320, 70))
    answers = many(Predictor(faces="auto")(both))
    assert sorted(answer.face.box[0] > 250 for answer in answers if answer.face) == [False, True]
    assert {answer.label for answer in answers} == {"Happiness"}


def test_landmarks_of_a_face_are_told_in_pixels_of_the_photograph() -> None:
    asked, image = Predictor(LandmarkModel()), canvas()
    square = Face((40, 30, 90, 80), 1.0, tuple(map(tuple, points(40, 30, 50))))
    # The model puts point i at a hundredth of i across its crop, half way down.
    expected = np.stack([40 + np.arange(68) / 100 * 50, np.full(68, 55)], 1)
    np.testing.assert_allclose(asked.landmarks(image, square), expected, atol=1e-3)
    # The same face, lying on its left side: what was to the right is above, in a square that stands as before.
    middle = np.array([65, 55])
    quarter = np.array([[0, -1], [1, 0]])
    rolled = Face(square.box, 1.0, tuple(map(tuple, (points(40, 30, 50) - middle) @ quarter + middle)))
    np.testing.assert_allclose(asked.landmarks(image, rolled), (expected - middle) @ quarter + middle, atol=1e-3)


# ---------------------------------------------------------------------------------------------------- the drawing


def answered(box: tuple[float, float, float, float], label: str = "Fear", score: float = 0.75) -> Prediction:
    face = Face(box, 0.9, tuple((0.0, 0.0) for _ in range(5)))
    probabilities = {label: score, "Neutral": 1 - score - 0.05, "Anger": 0.05, "Disgust": 0.0}
    return Prediction("a.png", label, score, probabilities, face=face, sought=True)


def changed(before: Image.Image, after: Image.Image) -> Any:
    """Return which pixels differ."""
    return (np.asarray(before) != np.asarray(after)).any(2)


def test_the_face_itself_is_left_as_it_is_and_its_name_stands_beside_it() -> None:
    plain = Image.new("RGB", (640, 480), "white")
    drawn = draw_faces(plain, [answered((300, 200, 400, 320))])
    assert drawn.size == plain.size
    touched = changed(plain, drawn)
    assert not touched[204:316, 304:396].any()  # inside the box
    assert touched[200, 310:390].all()  # its upper edge
    assert touched[184:196, 302:330].mean() > 0.7  # the name above it, white letters on dark
    assert touched[210:240, 410:470].mean() > 0.7  # the bars on its right
    assert np.asarray(plain).min() == 255  # what was given is not drawn on


def test_bars_are_as_long_as_the_classes_are_likely() -> None:
    plain = Image.new("RGB", (640, 480), "white")
    box = (300.0, 200.0, 400.0, 320.0)

    def blue(score: float, bars: int) -> int:
        """Return how many pixels on the right of the face have the colour of a bar."""
        drawn = np.asarray(draw_faces(plain, [answered(box, score=score)], bars=bars))
        return int((drawn[:, 410:] == (86, 180, 233)).all(2).sum())

    assert blue(0.8, bars=0) == 0
    assert 0 < blue(0.45, bars=1) == pytest.approx(blue(0.9, bars=1) / 2, rel=0.15)
    assert blue(0.45, bars=2) > blue(0.45, bars=1)


@pytest.mark.parametrize(
    "box", [(0, 0, 90, 110), (-30, 380, 60, 500), (560, 0, 660, 100), (590, 400, 640, 480), (5, 5, 635, 475)]
)
def test_a_face_at_the_border_has_its_name_inside_the_picture(box: tuple[float, float, float, float]) -> None:
    plain = Image.new("RGB", (640, 480), "white")
    drawing = annotate(plain, [answered(box)])
    assert drawing.image.size == plain.size
    assert drawing.unnamed == 0
    assert (np.asarray(drawing.image) < 100).all(2).sum() > 200  # the dark ground of a name


def test_bars_without_room_stand_in_a_margin_beside_the_picture() -> None:
    plain = Image.new("RGB", (300, 300), "white")
    close = answered((2, 20, 298, 298))
    assert annotate(plain, [close]).image.size == (300, 300)
    wide = annotate(plain, [close], margin=True).image
    assert wide.height == 300
    assert wide.width > 380
    assert changed(Image.new("RGB", wide.size, "white"), wide)[:, 330:].any()


def test_of_hundreds_of_faces_every_box_is_drawn_and_the_names_without_room_are_counted() -> None:
    plain = Image.new("RGB", (600, 600), "white")
    boxes = [(x * 30 + 4.0, y * 30 + 4.0, x * 30 + 26.0, y * 30 + 26.0) for x in range(20) for y in range(20)]
    drawing = annotate(plain, [answered(box) for box in boxes], margin=True)
    touched = changed(plain, drawing.image)
    assert drawing.image.size == plain.size
    assert 300 < drawing.unnamed <= 400
    for left, upper, right, _ in boxes:
        assert touched[int(upper), int(left) : int(right)].all()
    # Names never stand on other faces: inside each box all is as it was.
    assert sum(touched[int(b[1]) + 3 : int(b[3]) - 3, int(b[0]) + 3 : int(b[2]) - 3].any() for b in boxes) == 0


@pytest.mark.parametrize("name", ["", "x" * 300, "表情 ümläut \n \udcff"])
def test_any_name_can_be_drawn(name: str) -> None:
    drawn = draw_faces(Image.new("RGB", (640, 480)), [answered((300, 200, 400, 320))], names=[name])
    assert drawn.size == (640, 480)


@pytest.mark.parametrize("box", [(60, 50, 30, 20), (30, 30, 30, 30), (-900, -900, -800, -800), (0, 0, 1e6, 1e6)])
def test_any_box_can_be_drawn(box: tuple[float, float, float, float]) -> None:
    assert draw_faces(Image.new("RGB", (64, 48)), [answered(box)]).size == (64, 48)


def test_boxes_of_a_picture_that_is_drawn_smaller_shrink_with_it() -> None:
    plain = Image.new("RGB", (320, 240), "white")
    halved = annotate(plain, [answered((300, 200, 400, 320))], scale=0.5).image
    assert changed(plain, halved)[100, 155:195].all()


def texts(svg: Path) -> list[str]:
    """Return what is written in a picture: beside the glyphs, matplotlib states each text in a comment."""
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


def test_the_plot_says_what_was_found_in_each_photograph(tmp_path: Path) -> None:
    out = tmp_path / "out.svg"
    image = Image.new("RGB", (64, 48), "white")
    whole = Prediction("dir/none.png", "Fear", 0.5, {"Fear": 0.5, "Anger": 0.5}, sought=True)
    broken = Prediction("zero.jpg", None, None, {}, "It is empty.")
    answers = [[answered((10, 10, 30, 30))], [answered((0, 0, 20, 20)), answered((40, 20, 60, 40))], [whole], [broken]]
    plots.photographs([image, image, image, "zero.jpg"], answers, out=out, total=70)
    written = texts(out)
    assert "The first 4 of 70 images" in written
    assert {"1 face", "2 faces", "no face found; the whole image was answered", "no answer"} <= set(written)
    assert {"none.png", "zero.jpg", "It is empty."} <= set(written)
    assert out.read_text().count("<image") == 3


def test_a_photograph_that_is_gone_by_the_time_it_is_drawn_is_an_empty_tile(tmp_path: Path) -> None:
    out = tmp_path / "out.svg"
    plots.photographs([tmp_path / "gone.png"], [[answered((0, 0, 9, 9))]], out=out)
    assert "does not exist;" in " ".join(texts(out))


def test_one_photograph_is_drawn_large_and_many_are_a_sheet(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    image = Image.new("RGB", (50, 40), "red")
    plots.photographs([image], [[answered((10, 10, 30, 30))]], out=out)
    assert Image.open(out).width > 900
    plots.photographs([image] * 30, [[answered((10, 10, 30, 30))]] * 30, out=out, total=30)
    sheet = Image.open(out)
    assert sheet.width > 3000
    assert (np.asarray(sheet.convert("RGB")) == (255, 0, 0)).all(2).mean() > 0.3


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def photos(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `photos`: two faces in one picture, one in another folder's of that name, and none."""
    monkeypatch.chdir(tmp_path)
    face = Image.open(root / "examples" / "face.png").convert("RGB")
    for name, places in (("a/1.png", [(40, 60), (200, 30)]), ("b/1.png", [(20, 20)]), ("b/2.png", [])):
        picture = Image.new("RGB", (360, 200), GREY)
        for place in places:
            picture.paste(face, place)
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
    return tmp_path


def test_json_has_a_line_a_face_and_null_where_there_is_none(photos: Path, model: str) -> None:
    result = run("predict", "photos", "--json", "-m", model)
    assert result.exit_code == 0
    answers = lines(result)
    assert [answer["source"] for answer in answers] == ["photos/a/1.png"] * 2 + ["photos/b/1.png", "photos/b/2.png"]
    assert list(answers[0]) == ["source", "label", "score", "probabilities", "face"]
    assert answers[3]["face"] is None
    lefts = sorted(answer["face"]["box"][0] for answer in answers[:2])
    assert lefts == pytest.approx([47, 207], abs=5)  # the face itself begins at 7 in its picture
    assert np.shape(answers[0]["face"]["points"]) == (5, 2)
    assert 0.5 < answers[0]["face"]["score"] <= 1
    assert result.stderr == "No face was found in 1 of 3 images; the whole image was answered there.\n"


def test_none_takes_each_image_as_it_is(photos: Path, model: str) -> None:
    result = run("predict", "photos", "--faces", "none", "--json", "-m", model)
    answers = lines(result)
    assert [list(answer) for answer in answers] == [["source", "label", "score", "probabilities", "face"]] * 3
    assert [answer["face"] for answer in answers] == [None] * 3
    expected = [one(answer) for answer in many(Predictor(model)(photos / "photos"))]
    for answer, other in zip(answers, expected, strict=True):
        assert answer["probabilities"] == pytest.approx(other.probabilities, abs=1e-5)
    assert result.stderr == ""


def test_table_and_csv_say_where_the_faces_are(photos: Path, model: str) -> None:
    answers = lines(run("predict", "photos", "--json", "-m", model))
    header, *rows = run("predict", "photos", "-m", model).stdout.splitlines()
    assert header.split() == ["image", "face", "label", "score", "next"]
    for row, answer in zip(rows[:3], answers, strict=False):
        left, upper, right, lower = answer["face"]["box"]
        assert f" {left:.0f} {upper:.0f} {right - left:.0f}×{lower - upper:.0f} " in row
    assert " none: whole image " in rows[3]
    table = list(csv.DictReader(io.StringIO(run("predict", "photos", "--csv", "-m", model).stdout)))
    for cells, answer in zip(table[:3], answers, strict=False):
        box = [float(cells[edge]) for edge in ("left", "upper", "right", "lower")]
        assert box == answer["face"]["box"]
        assert float(cells["face_score"]) == answer["face"]["score"]
    assert table[3]["left"] == table[3]["face_score"] == ""


def test_saved_crops_are_class_folders_as_train_reads_them(photos: Path, model: str) -> None:
    answers = lines(result := run("predict", "photos", "--save-crops", "crops", "--json", "-m", model))
    assert result.exit_code == 0
    assert "Wrote 3 crops into crops" in result.stderr
    dataset = open_dataset("folder:crops", "train")
    assert len(dataset) == 3
    asked = Predictor(model)
    labels = {Path(dataset.source(i)).name: dataset.label_names[dataset.labels[i]] for i in range(3)}
    expected = {"1_1.png": answers[0], "1_2.png": answers[1], "1-2_1.png": answers[2]}
    assert labels == {name: answer["label"] for name, answer in expected.items()}
    for name, answer in expected.items():
        crop = Image.open(Path("crops", answer["label"], name))
        assert crop.size == (112, 112)
        assert one(asked(crop)).probabilities == pytest.approx(answer["probabilities"], abs=1e-5)


def test_a_photograph_that_is_gone_before_its_crops_are_cut_costs_no_other_answer(
    photos: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = CropWriter.write

    def late(self: CropWriter, source: str, *answers: Any) -> None:
        if source == "photos/a/1.png":
            Path(source).unlink()
        write(self, source, *answers)

    monkeypatch.setattr(CropWriter, "write", late)
    result = run("predict", "photos", "--save-crops", "crops", "--json", "-m", model)
    assert result.exit_code == 1
    assert len(lines(result)) == 4
    assert [path.name for path in Path("crops").rglob("*.png")] == ["1_1.png"]
    assert "Wrote 1 crop into crops\n" in result.stderr
    assert "1 of 3 images has no crops; the first: 'photos/a/1.png' does not exist" in result.stderr


def test_half_a_crop_is_never_in_place(photos: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, file: Path, *options: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("predict", "photos/b", "--save-crops", "crops", "-m", model)
    assert result.exit_code == 2
    assert "No space left on device; choose a folder you can write" in result.stderr
    assert not [path for path in Path("crops").rglob("*") if path.is_file()]


def test_a_folder_of_answers_holds_what_is_printed(photos: Path, model: str) -> None:
    given = ["predict", "photos", "--json", "-m", model]
    result = run(*given, "--out", "out")
    assert result.exit_code == 0
    assert result.stdout == ""
    none = "No face was found in 1 of 3 images; the whole image was answered there.\n"
    assert result.stderr == f"out holds the answers about 3 images.\n{none}"
    told = [json.loads(line) for part in sorted(Path("out").glob("*.jsonl")) for line in part.open()]
    printed = lines(run(*given))
    assert [answer["source"] for answer in told] == [answer["source"] for answer in printed]
    for answer, other in zip(told, printed, strict=True):
        assert answer["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        if other["face"] is None:
            assert answer["face"] is None
        else:
            np.testing.assert_allclose(answer["face"]["points"], other["face"]["points"], atol=0.05)
    again = run(*given, "--out", "out")
    assert again.stderr == f"out holds the answers about 3 images, 3 of them by an earlier run.\n{none}"
    whole = run(*given, "--out", "out", "--faces", "none")
    assert whole.exit_code == 2
    assert "holds the answers of a run with other face detection" in whole.stderr


def test_crops_never_go_into_a_folder_that_holds_something(photos: Path, model: str) -> None:
    assert run("predict", "photos/b", "--save-crops", "crops", "-m", model).exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("crops").rglob("*")}
    again = run("predict", "photos/a", "--save-crops", "crops", "-m", model)
    assert again.exit_code == 2
    assert "'crops' is not empty; name another one" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in Path("crops").rglob("*")} == before


def test_the_plot_is_drawn_on_the_photographs(photos: Path, model: str) -> None:
    result = run("predict", "photos", "--plot", "out.svg", "-m", model)
    assert result.exit_code == 0
    assert {"3 images", "2 faces", "1 face", "no face found; the whole image was answered"} <= set(
        texts(Path("out.svg"))
    )


def test_landmarks_of_a_photograph_are_those_of_its_surest_face(photos: Path, model: str) -> None:
    told = json.loads(run("landmarks", "photos/b/1.png", "--json", "--plot", "points.png", "-m", model).stdout)
    expected = Predictor(model).landmarks(
        "photos/b/1.png", many(Predictor(model, faces="auto")("photos/b/1.png"))[0].face
    )
    np.testing.assert_allclose(told["landmarks"], expected, atol=1e-2)
    assert Path("points.png").exists()
    nothing = run("landmarks", "photos/b/2.png", "--json", "-m", model)
    assert nothing.stderr == "No face was found; the whole image is taken.\n"
    assert json.loads(nothing.stdout)["face"] is None
    two = run("landmarks", "photos/a/1.png", "--json", "-m", model)
    assert two.stderr == "Of 2 faces the surest is taken.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--faces", "auto", "--labels", "labels.csv"], "--labels takes images of one face each"),
        (["--out", "out", "--save-crops", "crops"], "are for answers that are printed; leave out --out"),
        (["--faces", "all"], "'all' is not one of 'auto', 'none'"),
        (["--faces", "none", "--save-crops", "crops"], "--save-crops cuts out faces that are found"),
        (["--labels", "labels.csv", "--save-crops", "crops"], "--save-crops cuts out faces that are found"),
        (["--save-crops", "photos"], "'photos' is not empty"),
    ],
)
def test_wrong_use_is_one_sentence(
    photos: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was built first")

    monkeypatch.setattr("poster_zoo.predict.Predictor.__init__", refuse)
    Path("labels.csv").write_text("1.png,happy\n")
    result = run("predict", "photos", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out").exists()
    assert not Path("crops").exists()
