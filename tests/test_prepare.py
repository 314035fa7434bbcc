"""Labelled photographs become crops to train on: each with its label, none twice, and what is skipped is named."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import ENVIRONMENT, run
from test_predict import COLOURS, Terminal

import poster_zoo
from poster_zoo.data.datasets import open_dataset
from poster_zoo.errors import DatasetError, OptionError, OutputError, WeightsNotFoundError
from poster_zoo.faces import Prepared, prepare_faces
from poster_zoo.faces.prepare import _holds
from poster_zoo.weights.entry import FIVE_POINTS

GREY = (127, 127, 127)


def detector(image: Image.Image) -> Any:
    """Find squares that are not grey, each a face whose crop is the square: whole blocks of ten pixels."""
    pixels = np.asarray(image)[5::10, 5::10].astype(int)
    there = np.abs(pixels - 127).max(2) > 20
    boxes = []
    while there.any():
        row, column = np.argwhere(there)[0]
        side = 1
        while column + side < there.shape[1] and there[row, column + side]:
            side += 1
        there[row : row + side, column : column + side] = False
        boxes.append([column * 10, row * 10, (column + side) * 10, (row + side) * 10])
    five = [np.array(FIVE_POINTS) * (box[2] - box[0]) + box[:2] for box in boxes]
    return np.array(boxes).reshape(-1, 4), np.array(five).reshape(-1, 5, 2)


def photograph(path: Path | str, *patches: tuple[str, int, int, int]) -> None:
    """Write a grey picture with coloured squares: colour, left, upper edge, side."""
    picture = Image.new("RGB", (200, 120), GREY)
    for colour, left, upper, side in patches:
        picture.paste(COLOURS[colour], (left, upper, left + side, upper + side))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


ONE, NONE = (("red", 10, 20, 40),), ()
TWO_NEAR = (("green", 10, 10, 50), ("blue", 100, 10, 40))  # 1600 of 2500 pixels
FRONT = (("green", 10, 10, 70), ("blue", 100, 10, 40))  # 1600 of 4900


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with class folders `photos`."""
    monkeypatch.chdir(tmp_path)
    for name, patches in {"joy/1.png": ONE, "joy/2.jpg": FRONT, "joy/3.png": TWO_NEAR, "fear/1.png": NONE}.items():
        photograph(tmp_path / "photos" / name, *patches)
    photograph(tmp_path / "photos" / "fear" / "deeper" / "1.png", *ONE)
    (tmp_path / "photos" / "fear" / "broken.png").write_bytes(b"broken")
    return tmp_path


def prepare(place: str = "photos", folder: str = "out", **options: Any) -> Prepared:
    return prepare_faces(place, folder, **{"detector": detector, "progress": False} | options)


def rows(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def crops(folder: str = "out") -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.png"))


def colour_of(path: Path | str) -> str:
    middle = np.asarray(Image.open(path))[50:60, 50:60].mean((0, 1))
    return min(COLOURS, key=lambda colour: float(np.abs(middle - COLOURS[colour]).sum()))


def test_each_photograph_becomes_a_crop_of_its_class_or_is_named_with_the_reason(photos: Path) -> None:
    prepared = prepare()
    assert crops() == ["fear/1.png", "joy/1.png", "joy/2.png"]
    assert [Image.open(Path("out", crop)).size for crop in crops()] == [(112, 112)] * 3
    assert [colour_of(Path("out", crop)) for crop in crops()] == ["red", "red", "green"]
    skipped = {row["source"]: row["reason"] for row in rows("out/skipped.csv")}
    assert set(skipped) == {"fear/1.png", "fear/broken.png", "joy/3.png"}
    assert skipped["fear/1.png"] == "no face was found"
    assert skipped["joy/3.png"] == "2 faces, of which 2 are about as large as each other"
    assert "'photos/fear/broken.png' is damaged" in skipped["fear/broken.png"]
    assert prepared.to_dict() == {
        "folder": "out",
        "photographs": 6,
        "crops": 3,
        "before": 0,
        "labels": {"fear": {"photographs": 3, "crops": 1}, "joy": {"photographs": 3, "crops": 2}},
        "skipped": {"cannot be read": 1, "no face was found": 1, "several faces": 1},
    }


def test_what_comes_out_is_a_collection_by_its_folders_and_by_its_table(photos: Path) -> None:
    prepare()
    for spec in ("folder:out", "csv:out/faces.csv"):
        dataset = open_dataset(spec, "train")
        found = sorted(
            (Path(dataset.source(i)).name, dataset.label_names[dataset.labels[i]]) for i in range(len(dataset))
        )
        assert found == [("1.png", "fear"), ("1.png", "joy"), ("2.png", "joy")]
        assert dataset.image(0).size == (112, 112)
    told = {row["file"]: row for row in rows("out/faces.csv")}
    assert told["fear/1.png"]["source"] == "fear/deeper/1.png"
    box = [float(told["joy/2.png"][edge]) for edge in ("left", "upper", "right", "lower")]
    assert box == [10, 10, 80, 80]
    assert told["joy/2.png"]["faces"] == "2"


@pytest.mark.parametrize(
    ("several", "expected"),
    [
        ("front", ["joy/1.png", "joy/2.png"]),
        ("largest", ["joy/1.png", "joy/2.png", "joy/3.png"]),
        ("skip", ["joy/1.png"]),
    ],
)
def test_of_several_faces_the_labelled_one_is_chosen_by_the_rule(
    photos: Path, several: Any, expected: list[str]
) -> None:
    prepare(several=several)
    assert [crop for crop in crops() if crop.startswith("joy")] == expected
    assert all(colour_of(f"out/{crop}") == "green" for crop in expected[1:])


def test_splits_stay_apart(photos: Path) -> None:
    for split, name in (("train", "a.png"), ("val", "a.png"), ("test", "b.png")):
        photograph(f"parted/{split}/sad/{name}", *ONE)
    prepare("parted")
    assert crops() == ["test/sad/b.png", "train/sad/a.png", "valid/sad/a.png"]
    assert {row["split"] for row in rows("out/faces.csv")} == {"train", "valid", "test"}
    for spec in ("folder:out", "csv:out/faces.csv"):
        assert [len(open_dataset(spec, split)) for split in ("train", "valid", "test")] == [1, 1, 1]


def test_a_table_of_photographs_is_taken_too(photos: Path) -> None:
    Path("list.csv").write_text(
        "file,label,split\nphotos/joy/1.png,happy,train\nphotos/gone.png,happy,train\nphotos/joy/2.jpg,sad,test\n"
    )
    for place in ("list.csv", "csv:list.csv"):
        prepare(place)  # the second time there is nothing left to do
        assert crops() == ["test/sad/2.png", "train/happy/1.png"]
        [missing] = rows("out/skipped.csv")
        assert "photos/gone.png' does not exist" in missing["reason"]


def test_images_of_one_name_do_not_overwrite_each_other(photos: Path) -> None:
    for name, colour in (("a/x.png", "red"), ("b/x.png", "green"), ("b/X.jpg", "blue")):
        photograph(f"same/joy/{name}", (colour, 10, 20, 40))
    prepare("same")
    assert len(crops()) == 3
    assert {colour_of(Path("out", crop)) for crop in crops()} == {"red", "green", "blue"}
    assert len({crop.casefold() for crop in crops()}) == 3


def counted(stop: int = -1) -> tuple[Callable[[Image.Image], Any], list[int]]:
    """Return a detector that is interrupted, as by Ctrl-C, at one of its images, and how many it saw."""
    seen: list[int] = []

    def find(image: Image.Image) -> Any:
        if len(seen) == stop:
            raise KeyboardInterrupt
        seen.append(1)
        return detector(image)

    return find, seen


def many_photographs(count: int) -> None:
    for i in range(count):
        photograph(f"many/joy/{i:03d}.png", *ONE)


def test_what_was_stopped_goes_on_and_ends_as_if_it_never_had_been(photos: Path) -> None:
    many_photographs(30)
    prepare("many", "whole")
    stopping, _ = counted(stop=20)
    with pytest.raises(KeyboardInterrupt):
        prepare("many", detector=stopping)
    done = crops()
    assert 0 < len(done) < 30
    times = {crop: Path("out", crop).stat().st_mtime_ns for crop in done}
    # Killed in the middle of a line, and of a crop.
    with open("out/prepare.jsonl", "a") as journal:
        journal.write('{"source": "many/joy/0')
    Path("out/joy/.abc.tmp").write_bytes(b"half")
    going_on, seen = counted()
    prepared = prepare("many", detector=going_on)
    assert prepared.before == len(done)
    assert len(seen) == 30 - len(done)
    assert {crop: Path("out", crop).stat().st_mtime_ns for crop in done} == times
    assert crops() == crops("whole")
    assert Path("out/faces.csv").read_text() == Path("whole/faces.csv").read_text()
    assert not list(Path("out").rglob(".*.tmp"))


def test_a_later_call_does_what_was_added_deleted_or_labelled_anew(photos: Path) -> None:
    prepare()
    Path("out/joy/1.png").unlink()
    photograph("photos/joy/9.png", *ONE)
    photograph("photos/fear/broken.png", *ONE)  # fetched again, and whole now
    shutil.move("photos/joy/2.jpg", "photos/fear/2.jpg")
    going_on, seen = counted()
    prepare(detector=going_on)
    assert len(seen) == 4
    expected = ["fear/1.png", "fear/2.png", "fear/broken.png", "joy/1.png", "joy/9.png"]
    assert crops() == sorted(row["file"] for row in rows("out/faces.csv")) == expected


def test_the_place_may_be_spelt_otherwise(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare()
    going_on, seen = counted()
    prepare("./photos/", detector=going_on)
    monkeypatch.chdir("photos")
    assert prepare(str(photos / "photos"), "../out", detector=going_on).before == 5  # all but what cannot be read
    assert not seen


def test_other_options_need_another_folder(photos: Path) -> None:
    prepare()
    with pytest.raises(OutputError, match="was begun with size 112, not 64"):
        prepare(size=64)
    with pytest.raises(OutputError, match="was begun with several 'front', not 'skip'"):
        prepare(several="skip")
    Path("list.csv").write_text("photos/joy/1.png,joy\n")
    with pytest.raises(OutputError, match="holds other files"):
        prepare("list.csv", "photos")


def test_a_second_call_at_once_is_refused_and_spoils_nothing(photos: Path) -> None:
    refused = []

    def find(image: Image.Image) -> Any:
        with pytest.raises(OutputError, match="Another call of prepare is writing into 'out'") as error:
            prepare()
        refused.append(error)
        return detector(image)

    prepared = prepare(detector=find)
    assert len(refused) == 5
    assert sum(prepared.crops.values()) == 3
    assert len(Path("out/prepare.jsonl").read_text().splitlines()) == 1 + 6
    assert prepare().before == 5  # all but what cannot be read, and nobody holds the folder any more


def rafdb(*lines: str) -> str:
    """Write photographs as RAF-DB lies on disk, with a list of these lines; return the spec."""
    for line in lines:
        photograph(f"rafdb/Image/aligned/{Path(line.split()[0]).stem}_aligned.jpg", *ONE)
    Path("rafdb/EmoLabel").mkdir()
    Path("rafdb/EmoLabel/list_patition_label.txt").write_text("".join(f"{line}\n" for line in lines))
    return "rafdb:rafdb"


def test_a_label_that_stands_for_no_class_makes_none(photos: Path) -> None:
    spec = rafdb("train_1.jpg 4", "train_2.jpg 9", "train_3.jpg 5")
    seeing, seen = counted()
    prepared = prepare(spec, detector=seeing)
    assert crops() == ["train/Happiness/train_1_aligned.png", "train/Sadness/train_3_aligned.png"]
    [skipped] = rows("out/skipped.csv")
    assert Path(skipped["source"]).name == "train_2_aligned.jpg"
    assert (skipped["label"], skipped["reason"]) == ("9", "the label '9' stands for no class")
    assert prepared.skipped == {"the label stands for no class": 1}
    assert len(seen) == 2
    assert prepare(spec, detector=seeing).before == 3
    # Mended, the photograph is done.
    Path("rafdb/EmoLabel/list_patition_label.txt").write_text("train_1.jpg 4\ntrain_2.jpg 6\ntrain_3.jpg 5\n")
    assert prepare(spec, detector=seeing).before == 2
    assert len(seen) == 3
    assert "train/Anger/train_2_aligned.png" in crops()
    assert rows("out/skipped.csv") == []


@pytest.mark.parametrize(("terminal", "drawn"), [(True, True), (False, False)])
def test_progress_is_drawn_on_a_terminal_and_goes_on_from_what_is_done(
    photos: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, drawn: bool
) -> None:
    def bar(**options: Any) -> list[str]:
        stderr = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr("poster_zoo.progress._DELAY", 0)
        prepare(progress=None, **options)
        return re.findall(r"(\d+)/6 ", stderr.getvalue())

    first, again = bar(), bar()
    assert bool(first) == bool(again) == drawn
    if drawn:
        assert (first[0], first[-1]) == ("0", "6")
        assert (again[0], again[-1]) == ("5", "6")  # what cannot be read is tried again


@pytest.mark.parametrize("folder", ["photos", "photos/aligned", "./photos/joy"])
def test_crops_never_go_among_the_photographs(photos: Path, folder: str) -> None:
    before = sorted(Path("photos").rglob("*"))
    with pytest.raises(OutputError, match="choose a folder beside it"):
        prepare(folder=folder)
    assert sorted(Path("photos").rglob("*")) == before


def test_photographs_of_another_drive_than_the_crops_are_taken(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drive_c, drive_d = PureWindowsPath("C:\\photos"), PureWindowsPath("D:\\photos")
    assert _holds(drive_c, drive_c)
    assert _holds(drive_c, PureWindowsPath("c:\\Photos\\crops"))
    assert not _holds(drive_c, drive_d / "crops")
    assert not _holds(drive_c, PureWindowsPath("C:\\photos2"))

    def relative(path: str, start: str) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    monkeypatch.setattr(os.path, "relpath", relative)
    assert prepare().crops == {"fear": 1, "joy": 2}
    assert {row["source"] for row in rows("out/faces.csv")} == {
        str(photos / "photos" / name) for name in ("fear/deeper/1.png", "joy/1.png", "joy/2.jpg")
    }


@pytest.mark.parametrize("error", [ConnectionError("no net"), WeightsNotFoundError("There are no weights.")])
def test_what_a_detector_cannot_do_is_not_said_of_the_folder(photos: Path, error: Exception) -> None:
    def failing(image: Image.Image) -> Any:
        raise error

    with pytest.raises(type(error), match=str(error)):
        prepare(detector=failing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poster_zoo.faces.prepare.whole_file", full)
        with pytest.raises(OutputError, match=r"into 'out': No space left on device; choose"):
            prepare()


def full(path: Path) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_holds_no_labelled_photographs_is_told(photos: Path) -> None:
    Path("flat").mkdir()
    photograph("flat/1.png", *ONE)
    with pytest.raises(DatasetError, match="a folder a class"):
        prepare("flat")
    with pytest.raises(DatasetError, match="'gone' does not exist"):
        prepare("gone")
    with pytest.raises(OptionError, match="'front', 'largest', 'skip'"):
        prepare(several="all")
    with pytest.raises(OptionError, match="8 pixels or more"):
        prepare(size=0)
    assert not Path("out").exists()


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture
def faces(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with class folders `photos` of photographs with a real face, and one without."""
    monkeypatch.chdir(tmp_path)
    face = Image.open(root / "examples" / "face.png").convert("RGB")
    for i in range(4):
        picture = Image.new("RGB", (300, 220), GREY)
        picture.paste(face.rotate(i * 15, fillcolor=GREY), (20 + 40 * i, 60))
        Path("photos/happy").mkdir(parents=True, exist_ok=True)
        picture.save(f"photos/happy/{i}.png")
    Path("photos/sad").mkdir()
    Image.new("RGB", (300, 220), GREY).save("photos/sad/none.png")
    return tmp_path


def test_the_command_prints_a_table_and_says_what_it_skipped(faces: Path) -> None:
    result = run("prepare", "photos", "out")
    assert result.exit_code == 0, result.stderr
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["class", "photographs", "crops"],
        ["happy", "4", "4"],
        ["sad", "1", "0"],
    ]
    assert result.stderr == (
        "out holds the crops of 4 of 5 photographs.\nSkipped: no face was found (1); out/skipped.csv has the names.\n"
    )
    again = run("prepare", "photos", "out", "--json")
    assert json.loads(again.stdout)["before"] == 5
    assert "4 of 5 photographs, 5 of them by an earlier run." in again.stderr
    # The head that is rolled by 45° is as upright as the others.
    for i in range(4):
        crop = Image.open(f"out/happy/{i}.png")
        found = poster_zoo.detect_faces(crop)
        assert isinstance(found, poster_zoo.Faces)
        left, right = found.points[0, :2]
        assert abs(np.degrees(np.arctan2(right[1] - left[1], right[0] - left[0]))) < 7


def test_nothing_found_is_a_failure(faces: Path) -> None:
    shutil.rmtree("photos/happy")
    assert run("prepare", "photos", "out").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone", "out"], "'gone' does not exist"),
        (["photos", "photos/out"], "choose a folder beside it"),
        (["photos", "out", "--several", "all"], "'all' is not one of"),
        (["photos", "out", "--size", "1"], "--size"),
        (["photos", "out", "--device", "abacus"], "'abacus'"),
        (["photos"], "Missing argument 'OUT'"),
    ],
)
def test_wrong_use_is_one_sentence(faces: Path, arguments: list[str], message: str) -> None:
    result = run("prepare", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_killed_it_goes_on(faces: Path) -> None:
    for i in range(60):
        shutil.copy("photos/happy/0.png", f"photos/happy/copy_{i}.png")
    command = [sys.executable, "-m", "poster_zoo", "prepare", "photos", "out"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while not list(Path("out/happy").glob("*.png")):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    result = run("prepare", "photos", "out", "--json")
    assert result.exit_code == 0
    told = json.loads(result.stdout)
    assert told["before"] > 0
    assert (told["photographs"], told["crops"]) == (65, 64)
    assert len(list(Path("out/happy").glob("*.png"))) == 64
