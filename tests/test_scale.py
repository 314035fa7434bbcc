"""Any number of images, in parts: nothing is lost or doubled, whatever happens in between."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from test_cli import ENVIRONMENT, lines, run
from test_predict import COLOURS, EXPECTED, LABELS, ColourModel, LandmarkModel, many, png
from test_prepare import counted, photograph
from test_prepare import detector as squares
from torch import Tensor

import poster_zoo
from poster_zoo.data.images import list_images
from poster_zoo.digest import weights_digest
from poster_zoo.errors import ClusterError, DatasetError, LabelError, MissingExtraError, OptionError, OutputError
from poster_zoo.faces import FaceDetector
from poster_zoo.predict import Predictor, join_processes
from poster_zoo.scale import BatchPredictor, Outcome, predict_into
from poster_zoo.scale.answers import Answerer
from poster_zoo.scale.inputs import ParquetRows, names_in_folder
from poster_zoo.scale.plan import _part_size, detector_digest, write_whole
from poster_zoo.scale.ray_data import _MOST_ATTEMPTS, _PartPredictor


class StoppedModel(ColourModel):
    """Is interrupted, as by Ctrl-C, at one of its batches, and counts those before."""

    def __init__(self, stop: int = -1) -> None:
        super().__init__()
        self.stop = stop

    def forward(self, x: Tensor) -> Tensor:
        if len(self.batches) == self.stop:
            raise KeyboardInterrupt
        return super().forward(x)


def predictor(model: ColourModel | None = None, batch_size: int = 4) -> Predictor:
    return Predictor(model or ColourModel(), batch_size=batch_size, num_workers=1, progress=False)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, whose folder `photos` holds 22 images in two folders, the fifth of them broken."""
    monkeypatch.chdir(tmp_path)
    for i in range(22):
        file = tmp_path / "photos" / ("b" if i >= 10 else "a") / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(list(COLOURS)[i % 3]) if i != 4 else b"broken")
    return tmp_path


SOURCES = [f"photos/{'b' if i >= 10 else 'a'}/{i:02d}.png" for i in range(22)]


def expected(source: str) -> dict[str, Any]:
    """Return what `ColourModel` answers, worked out by hand."""
    colour = list(COLOURS)[int(Path(source).stem) % 3]
    logits = np.array(COLOURS[colour]) / 255 * 4
    probabilities = np.exp(logits) / np.exp(logits).sum()
    return {"label": EXPECTED[colour], "score": probabilities.max(), "probabilities": probabilities}


def check(rows: list[dict[str, Any]], sources: list[str] = SOURCES) -> None:
    """See that rows are the answers about these images, one each, in order."""
    assert [row["source"] for row in rows] == sources
    for row in rows:
        if Path(row["source"]).stem == "04":
            assert repr(row["source"]) in row["error"]
            assert row.get("label") is None
            assert row.get("probabilities") is None
        else:
            right = expected(row["source"])
            assert row.get("error") is None
            assert row["label"] == right["label"]
            assert row["score"] == pytest.approx(right["score"], abs=1e-6)
            assert list(row["probabilities"]) == list(LABELS)
            assert list(row["probabilities"].values()) == pytest.approx(right["probabilities"], abs=1e-6)


def json_rows(folder: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(Path(folder).glob("*.jsonl")) for line in file.open()]


def parquet_rows(folder: str | Path) -> list[dict[str, Any]]:
    """Return the answers as a reader finds them that was told the folder and nothing else."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow, of poster-zoo[ray], is not installed")
    rows: list[dict[str, Any]] = parquet.read_table(folder).to_pylist()
    return rows


def into(folder: str, model: ColourModel | None = None, **options: Any) -> Outcome:
    return predict_into(predictor(model), ["photos"], folder, **({"file_format": "jsonl"} | options))


@pytest.fixture
def arrow() -> Any:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow, of poster-zoo[ray], is not installed")
    pytest.importorskip("pyarrow.parquet")
    return arrow


# --- what is written


@pytest.mark.usefixtures("photos")
def test_parquet_holds_an_answer_an_image_and_the_folder_is_one_table() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow, of poster-zoo[ray], is not installed")
    outcome = into("out", file_format=None)
    check(parquet_rows("out"))
    assert (outcome.images, outcome.before, outcome.failures) == (22, 0, 1)
    assert "'photos/a/04.png' is damaged" in outcome.first_failure


@pytest.mark.usefixtures("photos")
def test_json_lines_hold_what_is_printed_otherwise() -> None:
    into("out")
    check(json_rows("out"))
    assert json_rows("out") == [prediction.to_dict() for prediction in predictor().stream(SOURCES)]


def test_the_types_of_a_part_do_not_depend_on_its_answers(photos: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow, of poster-zoo[ray], is not installed")
    for i in range(10):
        (photos / "photos" / "a" / f"{i:02d}.png").write_bytes(b"broken")
    into("out", file_format="parquet")
    schemas = [parquet.read_schema(file) for file in sorted(Path("out").glob("*.parquet"))]
    assert len(schemas) > 2
    assert all(schema.equals(schemas[0]) for schema in schemas)
    assert not any(str(field.type) == "null" for field in schemas[0])


def test_any_file_name_comes_through(photos: Path) -> None:
    names = ["a\nb.png", '表情, quoted ".png', os.fsdecode(b"\xff\xfe.png")]
    for name in names:
        (photos / name).write_bytes(png("red"))
    predict_into(predictor(), names, "lines", file_format="jsonl")
    assert [row["source"] for row in json_rows("lines")] == names
    pytest.importorskip("pyarrow", reason="pyarrow, of poster-zoo[ray], is not installed")
    predict_into(predictor(), names, "table", file_format="parquet")
    assert [row["source"] for row in parquet_rows("table")] == [*names[:2], "\\udcff\\udcfe.png"]
    assert all(row["label"] == "Reddish" for row in parquet_rows("table"))


def test_without_pyarrow_answers_are_json_lines_and_parquet_says_what_to_install(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setattr("poster_zoo.scale.plan.installed", lambda name: False)
    into("out", file_format=None)
    check(json_rows("out"))
    for ask in (lambda: into("table", file_format="parquet"), BatchPredictor):
        with pytest.raises(MissingExtraError, match=r'pip install pyarrow, or "poster-zoo\[ray\]"'):
            ask()
    assert not Path("table").exists()


@pytest.mark.parametrize(
    ("images", "batch_size", "size"),
    [(1, 32, 32), (200, 32, 32), (10_000, 32, 160), (10_000, 100, 200), (1_000_000, 32, 1024), (10**8, 32, 10_016)],
)
def test_parts_are_whole_batches_few_enough_to_list_and_many_enough_to_share(
    images: int, batch_size: int, size: int
) -> None:
    assert _part_size(images, batch_size) == size
    assert -(-images // size) <= 10_000


# --- going on


@pytest.mark.parametrize("stop", range(6))
def test_what_was_interrupted_goes_on_where_it_stopped(photos: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        into("out", StoppedModel(stop))
    done = {file.name: file.stat().st_mtime_ns for file in Path("out").glob("part-*")}
    assert len(done) == stop
    model = StoppedModel()
    outcome = into("out", model)
    assert len(model.batches) == 6 - stop  # 22 images in parts of a batch of four
    assert outcome.before == 4 * stop
    assert {name: (Path("out") / name).stat().st_mtime_ns for name in done} == done
    check(json_rows("out"))


@pytest.mark.usefixtures("photos")
def test_what_is_done_is_not_done_again() -> None:
    first = into("out")
    model = StoppedModel(0)
    again = into("out", model)
    assert again == Outcome(first.folder, 22, 22, 1, first.first_failure)


def test_it_goes_on_from_anywhere_with_the_images_of_the_beginning(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        into("out", StoppedModel(2))
    (photos / "photos" / "a" / "00b.png").write_bytes(png("red"))
    (photos / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    predict_into(predictor(), ["../photos"], "../out")
    check(json_rows("../out"))


def test_a_part_that_was_deleted_is_answered_again(photos: Path) -> None:
    assert into("out").failures == 1
    (photos / "photos" / "a" / "04.png").write_bytes(png("red"))
    Path("out/part-000001.jsonl").unlink()
    model = StoppedModel()
    outcome = into("out", model)
    assert len(model.batches) == 1
    assert (outcome.failures, outcome.first_failure) == (0, "")
    assert [row["source"] for row in json_rows("out")] == SOURCES


@pytest.mark.usefixtures("photos")
def test_half_a_file_is_never_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        into("begun")
        patch.setattr("os.fsync", full)
        for folder in ("begun", "new"):
            for file in Path("begun").glob("part-*"):
                file.unlink()
            with pytest.raises(OSError, match="No space left"):
                into(folder)
            assert not list(Path().glob(f"{folder}/part-*"))
            assert not list(Path().rglob("*.new"))
    assert not Path("new").exists()
    for folder in ("begun", "new"):
        into(folder)
        check(json_rows(folder))


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    place = tmp_path / "a"
    place.write_bytes(b"before")

    def fail(file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_whole(place, fail, tmp_path)
    assert place.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.usefixtures("photos")
def test_what_a_killed_process_left_half_written_goes_in_the_end() -> None:
    with pytest.raises(KeyboardInterrupt):
        into("out", StoppedModel(2))
    half = Path("out/.poster_zoo/0123.new")
    half.write_bytes(b"half")
    into("out")
    assert not half.exists()


@pytest.mark.usefixtures("photos")
def test_what_another_call_is_writing_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there, write = Path("out/.poster_zoo/abc.new"), Answerer.answer

    def answer(self: Answerer, number: int) -> None:
        write(self, number)
        there.touch()

    monkeypatch.setattr(Answerer, "answer", answer)
    into("out")
    assert there.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="a folder cannot be locked there")
@pytest.mark.usefixtures("photos")
def test_a_second_call_while_the_first_looks_for_images_is_refused_and_spoils_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names, seconds = names_in_folder, []

    def slow(folder: str) -> Iterator[str]:
        monkeypatch.setattr("poster_zoo.scale.plan.names_in_folder", names)
        for inputs in (["photos/b"], ["photos", "photos/nowhere"]):
            with pytest.raises(
                OutputError, match=r"^Another call is looking for images .*; wait until it answers"
            ) as told:
                predict_into(predictor(), inputs, "out")
            seconds.append(told)
        yield from names(folder)

    monkeypatch.setattr("poster_zoo.scale.plan.names_in_folder", slow)
    into("out")
    assert len(seconds) == 2
    check(json_rows("out"))


@pytest.mark.usefixtures("photos")
def test_another_request_does_not_go_on_in_the_same_folder() -> None:
    with pytest.raises(KeyboardInterrupt):
        into("out", StoppedModel(2))
    trained = ColourModel()
    trained.weight.data += 1
    asked: list[tuple[ColourModel, list[str], Any, str]] = [
        (ColourModel(), ["photos/a"], None, "images"),
        (trained, ["photos"], None, "weights"),
        (ColourModel(label_names=("a", "b", "c")), ["photos"], None, "labels"),
        (ColourModel(), ["photos"], "parquet", "format"),
        (trained, ["photos/b"], "jsonl", "images and weights"),
    ]
    for model, inputs, file_format, other in asked:
        with pytest.raises(OutputError, match=f"'.*out' holds the answers of a run with other {other}; .* to go on"):
            predict_into(predictor(model), inputs, "out", file_format=file_format)
    assert into("out").before == 8


@pytest.mark.usefixtures("photos")
def test_the_same_weights_go_on_in_whatever_form_they_answer(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    def answerer(**options: Any) -> Predictor:
        return Predictor(faces=FaceDetector(optimize=options.get("optimize")), progress=False, **options)

    monkeypatch.setattr("poster_zoo.scale.work.Answerer.answer", stopped)
    net = poster_zoo.create_model(model)
    asked: list[dict[str, Any]] = [{"optimize": False}, {}, {"model": net}, {"model": net, "optimize": True}]
    for options in asked:
        with pytest.raises(KeyboardInterrupt):  # where it begins to answer, and not before
            predict_into(answerer(**{"model": model} | options), ["photos"], "out")
    net.head.weight.data += 1e-3
    for options in ({"model": net}, {"model": net, "optimize": True}, {"model": model, "dtype": torch.bfloat16}):
        with pytest.raises(OutputError, match="a run with other weights"):
            predict_into(answerer(**options), ["photos"], "out")


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_digest_is_of_the_numbers_that_answer(dtype: torch.dtype | None) -> None:
    net = poster_zoo.create_model("poster_tiny").eval()
    before = weights_digest(net, dtype)
    assert before == weights_digest(copy.deepcopy(net).to(memory_format=torch.channels_last), dtype)
    assert before == weights_digest(copy.deepcopy(net).to(dtype=dtype))
    assert before != weights_digest(copy.deepcopy(net).half())


@pytest.mark.usefixtures("photos")
def test_a_folder_with_other_files_and_a_file_are_refused() -> None:
    Path("full").mkdir()
    Path("full/part-000000.jsonl").touch()
    with pytest.raises(OutputError, match=r"'.*full' holds other files; give the answers a folder of their own"):
        into("full")
    with pytest.raises(OutputError, match=r"'.*04.png' is a file; give a folder"):
        into("photos/a/04.png")


# --- photographs: a row for each face

PATCHES = (("red", 10, 20, 40), ("green", 80, 20, 60), ("blue", 150, 70, 30))
CROWDS = [f"crowds/{i:02d}.png" for i in range(14)]  # with 0, 1, 2, 3, 0 … faces; the one at 5 is broken


@pytest.fixture
def crowds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, whose folder `crowds` holds photographs."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(CROWDS):
        photograph(tmp_path / name, *PATCHES[: i % 4])
    (tmp_path / CROWDS[5]).write_bytes(b"broken")
    return tmp_path


def seeing(detector: Any = squares, batch_size: int = 4) -> Predictor:
    return Predictor(ColourModel(), faces=detector, batch_size=batch_size, num_workers=1, progress=False)


def check_crowds(rows: list[dict[str, Any]]) -> None:
    """See that rows are the answers about the faces of `CROWDS`, by where the patches are."""
    expected = [
        (name, patch) for i, name in enumerate(CROWDS) for patch in (PATCHES[: i % 4] if i != 5 else ()) or (None,)
    ]
    assert [row["source"] for row in rows] == [name for name, _ in expected]
    for row, (name, patch) in zip(rows, expected, strict=True):
        assert (row.get("error") is not None) == (name == CROWDS[5])
        if patch is None:
            assert row.get("face") is None
            continue
        colour, left, upper, side = patch
        assert row["label"] == EXPECTED[colour]
        assert row["face"]["box"] == [left, upper, left + side, upper + side]
        assert row["face"]["score"] == 1
        assert np.shape(row["face"]["points"]) == (5, 2)
        assert (np.array(row["face"]["points"]) > (left, upper)).all()
        assert (np.array(row["face"]["points"]) < (left + side, upper + side)).all()


FACES = sum(i % 4 for i in range(14) if i != 5)
WITHOUT = sum(i % 4 == 0 for i in range(14))


@pytest.mark.usefixtures("crowds")
def test_photographs_have_a_row_for_each_face_or_one_for_the_whole() -> None:
    outcome = predict_into(seeing(), ["crowds"], "out", file_format="jsonl")
    check_crowds(json_rows("out"))
    assert json_rows("out") == [prediction.to_dict() for prediction in seeing().stream(CROWDS)]
    assert (outcome.images, outcome.failures, outcome.faces, outcome.without_face) == (14, 1, FACES, WITHOUT)


@pytest.mark.usefixtures("crowds")
def test_parquet_has_the_same_columns_with_faces_and_without(arrow: Any) -> None:
    predict_into(seeing(), ["crowds"], "out")
    check_crowds(parquet_rows("out"))
    outcome = predict_into(predictor(), ["crowds"], "whole")
    assert [row["source"] for row in parquet_rows("whole")] == CROWDS
    assert all(row["face"] is None for row in parquet_rows("whole"))
    assert (outcome.faces, outcome.without_face) == (0, 0)
    files = [file for folder in ("out", "whole") for file in sorted(Path(folder).glob("*.parquet"))]
    schemas = [arrow.parquet.read_schema(file) for file in files]
    assert schemas[0].names == ["source", "label", "score", "probabilities", "face", "error"]
    assert all(schema.equals(schemas[0]) for schema in schemas)


@pytest.mark.usefixtures("crowds")
@pytest.mark.parametrize("stop", [0, 6, 12])
def test_photographs_that_were_interrupted_go_on_and_are_each_looked_at_once(stop: int) -> None:
    stopping, _ = counted(stop)
    with pytest.raises(KeyboardInterrupt):
        predict_into(seeing(stopping), ["crowds"], "out", file_format="jsonl")
    done = len(list(Path("out").glob("part-*")))
    assert done == [0, 6, 12].index(stop) + (stop == 12)  # parts of four, of which the second holds the broken one
    going_on, seen = counted()
    outcome = predict_into(seeing(going_on), ["crowds"], "out", file_format="jsonl")
    assert outcome == Outcome(outcome.folder, 14, 4 * done, 1, outcome.first_failure, FACES, WITHOUT)
    assert len(seen) == 14 - 4 * done - (done < 2)
    check_crowds(json_rows("out"))


@pytest.mark.usefixtures("crowds")
def test_parts_of_photographs_are_whole_batches_of_those_that_are_in_memory_at_once() -> None:
    predict_into(seeing(batch_size=32), ["crowds"], "out", file_format="jsonl")
    files = sorted(Path("out").glob("*.jsonl"))
    sources = [{json.loads(line)["source"] for line in file.read_text().splitlines()} for file in files]
    assert [len(some) for some in sources] == [8, 6]


@pytest.mark.usefixtures("crowds")
def test_another_way_of_finding_faces_does_not_go_on_in_the_same_folder() -> None:
    predict_into(seeing(), ["crowds"], "out", file_format="jsonl")
    for other in (predictor(), seeing(lambda image: squares(image))):
        with pytest.raises(OutputError, match=r"a run with other face detection; .* to go on"):
            predict_into(other, ["crowds"], "out")
    digests = [
        detector_digest(FaceDetector(**options))
        for options in ({}, {"threshold": 0.6}, {"max_side": 640}, {"second_look": False})
    ]
    assert len(set(digests)) == 4
    assert detector_digest(FaceDetector(batch_size=3)) == digests[0]


def test_what_finds_faces_is_the_same_in_another_process(root: Path) -> None:
    asked = Predictor(ColourModel(), faces="auto", progress=False)
    there: Predictor = pickle.loads(pickle.dumps(asked))  # noqa: S301 - our own
    assert detector_digest(there.detector) == detector_digest(asked.detector)
    face = root / "examples" / "face.png"
    [here] = many(asked(face))
    assert here.face is not None
    assert [answer.face for answer in many(there(face))] == [here.face]


# --- what is asked about


def tree(folder: Path) -> None:
    images = ("b/2.png", "b/10.jpg", "a/c/1.PNG", "z.webp", "b.png/1.gif")
    for name in (*images, "a/.hidden.png", ".hidden/1.png", "a/x.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "0_link").symlink_to(folder / "b")
    (folder / "outside").symlink_to(folder.parent / "other")
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "1.bmp").touch()
    (folder / "9.png").symlink_to(folder / "z.webp")


def test_a_folder_is_walked_as_everywhere_else_each_file_once(tmp_path: Path) -> None:
    tree(tmp_path / "photos")
    names = list(names_in_folder(str(tmp_path / "photos")))
    assert sorted(names) == sorted(map(str, list_images(tmp_path / "photos")))
    assert len(names) == 7


def test_no_more_names_are_held_than_one_folder_has(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").touch()
    names = names_in_folder(str(tmp_path))
    assert next(names).endswith("a/1.png")
    (tmp_path / "b" / "2.png").touch()  # to be seen, as nobody has looked there yet
    assert [Path(name).name for name in names] == ["1.png", "2.png"]


@pytest.mark.usefixtures("photos")
def test_an_image_that_is_given_in_two_ways_is_answered_once() -> None:
    given: list[Any] = [
        "photos/a/03.png",
        "photos/b",
        "./photos/b/12.png",
        Path("photos/a/03.png"),
        "gone.png",
        "photos/b/",
    ]
    predict_into(predictor(), given, "out", file_format="jsonl")
    rows = json_rows("out")
    assert [row["source"] for row in rows] == ["photos/a/03.png", *SOURCES[10:], "gone.png"]
    assert rows[-1]["error"] == "'gone.png' does not exist; check the path."


@pytest.mark.usefixtures("photos")
def test_nothing_to_answer_is_said_and_leaves_nothing() -> None:
    Path("empty").mkdir()
    for given, words in (
        (["gone", "lost.png"], "There is no 'gone' and no 'lost.png'"),
        ([], "There is no input"),
        (["photos", "empty"], "There are no images in the folder 'empty'"),
    ):
        with pytest.raises(OptionError, match=words):
            predict_into(predictor(), given, "out", file_format="jsonl")
        assert not Path("out").exists()
    with pytest.raises(LabelError, match="no classes"):
        predict_into(Predictor(LandmarkModel()), ["photos"], "out")
    with pytest.raises(OptionError, match="actors is 0"):
        into("out", engine="ray", actors=0)


def test_parquet_gives_paths_or_the_images_themselves(photos: Path, arrow: Any) -> None:
    content = [Path(source).read_bytes() for source in SOURCES]
    structures = [{"bytes": data, "path": source} for data, source in zip(content, SOURCES, strict=True)]
    some = [None if i % 2 else data for i, data in enumerate(content)]
    tables = {
        "paths": {"id": range(22), "path": SOURCES},
        "file": {"file": arrow.array(SOURCES).dictionary_encode()},
        "both": {"path": SOURCES, "bytes": content},
        "hub": {"image": structures},
        "some": {"path": SOURCES, "bytes": some},
        "image": {"image": SOURCES},
    }
    for name, columns in tables.items():
        arrow.parquet.write_table(arrow.table(columns), f"{name}.parquet", row_group_size=7)
        predict_into(predictor(), [f"{name}.parquet"], name)
        check(parquet_rows(name))
    arrow.parquet.write_table(arrow.table({"bytes": content}), "bytes.parquet")
    predict_into(predictor(), ["bytes.parquet"], "bytes")
    rows = parquet_rows("bytes")
    assert [row["source"] for row in rows] == [f"bytes.parquet#{i}" for i in range(22)]
    assert [row["label"] for row in rows] == [None if i == 4 else LABELS[i % 3] for i in range(22)]


def test_parquet_files_folders_of_them_and_images_go_together(photos: Path, arrow: Any) -> None:
    Path("tables").mkdir()
    for i in range(3):
        arrow.parquet.write_table(arrow.table({"path": SOURCES[10 + 3 * i : 13 + 3 * i]}), f"tables/{i}.parquet")
    arrow.parquet.write_table(arrow.table({"path": SOURCES[19:]}), "last.parquet")
    predict_into(predictor(), ["photos/a", "tables", "last.parquet", "./last.parquet"], "out")
    check(parquet_rows("out"))


def test_a_row_without_anything_is_an_answer_with_an_error(photos: Path, arrow: Any) -> None:
    arrow.parquet.write_table(arrow.table({"path": [SOURCES[0], None]}), "holes.parquet")
    outcome = predict_into(predictor(), ["holes.parquet"], "out")
    assert outcome.failures == 1
    assert "'holes.parquet#1' is empty" in outcome.first_failure


def test_a_parquet_file_of_no_use_says_why(photos: Path, arrow: Any) -> None:
    arrow.parquet.write_table(arrow.table({"id": [1], "picture": ["a.png"]}), "other.parquet")
    Path("damaged.parquet").write_bytes(b"PAR1 no")
    for name, words in (
        ("other", "has the columns id, picture, none of which holds images; call one `path`"),
        ("damaged", "'damaged.parquet' is damaged or no Parquet file"),
        ("gone", "'gone.parquet' does not exist"),
    ):
        with pytest.raises(OptionError, match=words):
            predict_into(predictor(), ["photos", f"{name}.parquet"], "out")
        assert not Path("out").exists()


@pytest.mark.parametrize("offset", [4, 400])  # the header of a page, and its compressed numbers
def test_a_parquet_file_that_is_damaged_within_says_so(photos: Path, arrow: Any, offset: int) -> None:
    arrow.parquet.write_table(arrow.table({"path": [f"photos/{i}.png" for i in range(5000)]}), "faces.parquet")
    content = bytearray(Path("faces.parquet").read_bytes())
    content[offset : offset + 64] = b"\xff" * 64
    Path("faces.parquet").write_bytes(content)
    with pytest.raises(
        OptionError, match=r"^'faces\.parquet' is damaged or no Parquet file \([^\n]+\); fetch it again"
    ):
        predict_into(predictor(), ["faces.parquet"], "out")


def test_a_disk_that_cannot_be_read_is_no_damaged_file(tmp_path: Path, arrow: Any) -> None:
    arrow.parquet.write_table(arrow.table({"path": ["a.png"]}), tmp_path / "a.parquet")
    rows = ParquetRows(str(tmp_path / "a.parquet"), "a.parquet")
    rows.file = SimpleNamespace(
        iter_batches=lambda *_, **__: iter_that_raises(OSError(errno.EIO, "Input/output error"))
    )
    with pytest.raises(OSError, match="Input/output error"):
        list(rows.read(0, 1))


def iter_that_raises(error: Exception) -> Iterator[Any]:
    raise error
    yield


def test_a_parquet_file_that_has_become_shorter_is_noticed(photos: Path, arrow: Any) -> None:
    arrow.parquet.write_table(arrow.table({"path": SOURCES}), "faces.parquet")
    with pytest.raises(KeyboardInterrupt):
        predict_into(predictor(StoppedModel(2)), ["faces.parquet"], "out")
    arrow.parquet.write_table(arrow.table({"path": SOURCES[:18]}), "faces.parquet")
    with pytest.raises(OutputError, match=r"'faces\.parquet' has fewer rows than when the work began"):
        predict_into(predictor(), ["faces.parquet"], "out")


@pytest.mark.parametrize("row_group_size", [1, 7, 100, 1000])
def test_parquet_rows_are_read_in_any_order(tmp_path: Path, arrow: Any, row_group_size: int) -> None:
    names = [f"{i}.png" for i in range(300)]
    arrow.parquet.write_table(arrow.table({"path": names}), tmp_path / "a.parquet", row_group_size=row_group_size)
    rows = ParquetRows(str(tmp_path / "a.parquet"), "a.parquet")
    assert rows.count == 300
    for start, count in ((0, 10), (10, 10), (40, 65), (106, 100), (20, 10), (299, 1), (0, 300), (299, 1), (298, 2)):
        assert [name for name, _ in rows.read(start, count)] == names[start : start + count]


def test_a_parquet_file_of_one_row_group_is_not_held_in_memory(tmp_path: Path, arrow: Any) -> None:
    content = [np.random.default_rng(i).bytes(4000) for i in range(10_000)]
    arrow.parquet.write_table(arrow.table({"bytes": content}), tmp_path / "a.parquet", compression="none")
    before, pool = arrow.default_memory_pool(), arrow.system_memory_pool()
    assert pool.max_memory() < 1e6  # nothing else has used it
    arrow.set_memory_pool(pool)
    try:
        rows = ParquetRows(str(tmp_path / "a.parquet"), "a.parquet")
        for start in range(0, 10_000, 1000):
            for i, (_, data) in enumerate(rows.read(start, 1000)):
                assert data == content[start + i]
        assert 0 < pool.max_memory() < 40e6 / 2  # a page of Arrow's writer has 1024 rows, here 4 MB
    finally:
        arrow.set_memory_pool(before)


# --- batches of Ray Data


@pytest.mark.parametrize(
    ("kind", "column"),  # pyarrow has no type of its own for arrays
    [*itertools.product(["numpy", "pandas"], ["path", "bytes", "image"]), ("arrow", "path"), ("arrow", "bytes")],
)
def test_a_batch_in_any_form_is_answered_row_by_row(photos: Path, arrow: Any, kind: str, column: str) -> None:
    pixels = [np.full((8, 6, 3), COLOURS[list(COLOURS)[i % 3]], np.uint8) for i in range(22)]
    contents: dict[str, list[Any]] = {
        "path": SOURCES,
        "bytes": [Path(source).read_bytes() for source in SOURCES],
        "image": pixels,
    }
    batch: Any = {"name": SOURCES, "id": list(range(22)), column: contents[column]}
    if kind == "numpy":
        batch = {name: np.array(values) if name != column else _objects(values) for name, values in batch.items()}
    elif kind == "arrow":
        batch = arrow.table(batch)
    else:
        batch = pytest.importorskip("pandas", reason="pandas is not installed").DataFrame(batch)
    answers = BatchPredictor(ColourModel())(batch)
    kept = ["name", "id", "path"] if column == "path" else ["name", "id"]
    assert answers.column_names == [*kept, "label", "score", "probabilities", "face", "error"]
    assert answers["id"].to_pylist() == list(range(22))
    broken = column != "image"
    for i, row in enumerate(answers.to_pylist()):
        if i == 4 and broken:
            assert (row["label"], row["score"], row["probabilities"]) == (None, None, None)
            assert "photos/a/04.png" in row["error"]
        else:
            assert row["error"] is None
            assert row["label"] == expected(SOURCES[i])["label"]
            assert list(row["probabilities"].values()) == pytest.approx(expected(SOURCES[i])["probabilities"], abs=1e-6)


def _objects(values: list[Any]) -> Any:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def test_columns_of_the_data_are_neither_lost_nor_overwritten(photos: Path, arrow: Any) -> None:
    batch = {"path": np.array(SOURCES[:2]), "label": np.array(["x", "y"]), "points": np.zeros((2, 5, 2))}
    with pytest.raises(OptionError, match="a column 'label' already; give BatchPredictor a `prefix`"):
        BatchPredictor(ColourModel())(batch)
    answers = BatchPredictor(ColourModel(), prefix="predicted_")(batch).to_pylist()
    assert [row["label"] for row in answers] == ["x", "y"]
    assert [row["predicted_label"] for row in answers] == ["Reddish", "Greenish"]
    assert answers[0]["points"] == [[0, 0]] * 5


@pytest.mark.usefixtures("crowds")
def test_a_row_of_a_photograph_becomes_one_for_each_face(arrow: Any) -> None:
    batch = {"path": np.array(CROWDS), "id": np.arange(14), "vector": np.arange(28).reshape(14, 2)}
    rows = BatchPredictor(ColourModel(), faces=squares)(batch).to_pylist()
    check_crowds([row | {"source": row["path"]} for row in rows])
    assert [row["id"] for row in rows] == [int(Path(row["path"]).stem) for row in rows]
    assert all(row["vector"] == [2 * row["id"], 2 * row["id"] + 1] for row in rows)


def test_batches_of_a_broken_image_or_of_nothing_have_the_types_of_others(arrow: Any) -> None:
    ask = BatchPredictor(ColourModel())
    schemas = [ask({"bytes": _objects(values)}).schema for values in ([png("red")], [b"broken"], [])]
    assert schemas[0] == schemas[1] == schemas[2]


def test_a_batch_without_images_and_a_model_without_classes_are_refused(arrow: Any) -> None:
    with pytest.raises(OptionError, match="has the columns id, none of which holds images"):
        BatchPredictor(ColourModel())({"id": np.arange(3)})
    with pytest.raises(LabelError, match="no classes"):
        BatchPredictor(LandmarkModel())


def test_a_part_that_ends_its_process_every_time_is_given_up(photos: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        into("out", StoppedModel(0))
    attempts = Path("out/.poster_zoo/attempts")
    attempts.mkdir()
    (attempts / "000002").write_bytes(b"." * _MOST_ATTEMPTS)
    actor = _PartPredictor("out", predictor(), "cpu")
    answered = actor({"part": np.array([1, 2])})
    assert answered["part"] == [1, 2]
    assert answered["error"][0] == ""
    assert "Part 2 ended its process 5 times" in answered["error"][1]
    assert sorted(file.name for file in Path("out").glob("part-*")) == ["part-000001.jsonl"]
    into("out")  # who mended it and asks again has a fresh start
    check(json_rows("out"))


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_nobody_listens_is_told_at_once(scheme: str) -> None:
    pytest.importorskip("ray.data", reason="ray[data], of poster-zoo[ray], is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and not listening
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"No Ray cluster at '{address}': .*refused; `ray start --head`"):
            into("out", engine="ray", address=address)


def test_an_actor_says_in_one_sentence_what_went_wrong_and_skips_what_is_done(photos: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        into("out", StoppedModel(1))
    assert _PartPredictor("out", predictor(StoppedModel(0)), "cpu")({"part": [0]})["error"] == [""]
    (error,) = _PartPredictor("elsewhere", predictor(), "cpu")({"part": [0]})["error"]
    assert "does not see what was begun in 'elsewhere'" in error


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("Unexpected end of stream."), "Unexpected end of stream."),
        (OSError(errno.ENOSPC, "No space left on device", "out/a"), "No space left on device: 'out/a'."),
        (DatasetError("There is no folder."), "There is no folder."),  # which is an OSError too
    ],
)
def test_an_actor_says_what_an_error_of_the_disk_says(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        into("out", StoppedModel(0))

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("poster_zoo.scale.ray_data.Answerer.answer", fail)
    assert _PartPredictor("out", predictor(), "cpu")({"part": [0]})["error"] == [words]


# --- several processes


def test_one_process_alone_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert join_processes() is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join_processes("cpu") is None


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_several_processes_without_accelerate_say_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(name, "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r'pip install "poster-zoo\[train\]"'):
        join_processes()


@pytest.fixture
def faces(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, whose folder `faces` holds 130 images: noise, one with three faces, and a broken one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faces").mkdir()
    random = np.random.default_rng(0)
    for i in range(130):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "faces" / f"{i:03d}.png")
    (tmp_path / "faces" / "123.png").write_bytes(b"broken")
    face = Image.open(root / "examples" / "face.png").convert("RGB")
    crowd = Image.new("RGB", (330, 120), "grey")
    for left in (10, 120, 230):
        crowd.paste(face, (left, 10))
    crowd.save(tmp_path / "faces" / "070.png")
    return tmp_path


def together(*arguments: str, processes: int = 2, **options: Any) -> subprocess.Popen[str]:
    """Start `poster-zoo` in several processes on this machine's CPU, as `accelerate launch` does with GPUs."""
    pytest.importorskip("accelerate", reason="accelerate, of poster-zoo[train], is not installed")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [*launch, "-m", "poster_zoo", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_several_processes_print_what_one_prints(faces: Path, model: str) -> None:
    given = ["predict", "faces", "--json", "-m", model, "--batch-size", "8", "--device", "cpu"]
    process = together(*given)
    stdout, stderr = process.communicate()
    assert process.returncode == 1, stderr  # for the broken image
    assert stderr.count("1 of 130 images failed; the first: 'faces/123.png' is damaged") == 1
    alone = lines(run(*given))
    both = [json.loads(line) for line in stdout.splitlines()]
    assert len(alone) == 132
    assert [row["source"] for row in both] == [row["source"] for row in alone]
    same(both, alone)
    same_crowd(both, alone)


def same(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """See that answers are equal, up to what another number of threads changes in the last digits."""
    for row, other in zip(rows, others, strict=True):
        assert row["source"] == other["source"]
        assert row.get("error") == other.get("error")
        assert row.get("label") == other.get("label")
        if row.get("probabilities"):
            probabilities = list(other["probabilities"].values())
            assert list(row["probabilities"].values()) == pytest.approx(probabilities, abs=1e-5)


def same_crowd(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """See that the three faces of the crowd were found, and in the same places."""
    lefts = [[row["face"]["box"][0] for row in some if row.get("face")] for some in (rows, others)]
    assert sorted(lefts[0]) == pytest.approx([17, 127, 237], abs=5)
    assert lefts[0] == pytest.approx(lefts[1], abs=0.05)


def parts(folder: str) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in Path(folder).glob("part-*")}


def test_killed_processes_are_gone_on_with_by_another_number_of_them(faces: Path, model: str) -> None:
    given = ["predict", "faces", "--json", "-m", model, "--batch-size", "8", "--device", "cpu"]
    process = together(*given, "--out", "out", start_new_session=True)
    try:
        while len(done := parts("out")) < 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done = parts("out")
    assert all(Path("out", name).read_bytes().endswith(b"\n") for name in done)
    result = run(*given, "--out", "out")
    assert result.exit_code == 1
    assert result.stdout == ""
    images = len({json.loads(line)["source"] for name in done for line in Path("out", name).read_text().splitlines()})
    assert f"out holds the answers about 130 images, {images} of them by an earlier run." in result.stderr
    assert "1 of 130 images failed; the first: 'faces/123.png' is damaged" in result.stderr
    assert {name: time for name, time in parts("out").items() if name in done} == done
    assert len(parts("out")) == -(-130 // 8)
    alone = lines(run(*given))
    same(json_rows("out"), alone)
    same_crowd(json_rows("out"), alone)


# --- the command line


@pytest.mark.usefixtures("photos")
def test_the_command_writes_a_folder_and_prints_nothing(model: str) -> None:
    Path("photos/a/04.png").write_bytes(png("red"))
    given = ["predict", "photos", "-m", model, "--faces", "none", "--out", "out"]
    result = run(*given, "--json")
    assert result.exit_code == 0
    assert (result.stdout, result.stderr) == ("", "out holds the answers about 22 images.\n")
    assert [row["source"] for row in json_rows("out")] == SOURCES
    again = run(*given)
    assert again.exit_code == 0
    assert again.stderr == "out holds the answers about 22 images, 22 of them by an earlier run.\n"


@pytest.mark.usefixtures("photos")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photos", "--out", "out", "--csv"], "for answers that are printed; leave out --out"),
        (["photos", "--out", "out", "--plot", "a.png"], "for answers that are printed"),
        (["photos", "--out", "out", "--save-crops", "crops"], "for answers that are printed"),
        (["photos", "--engine", "ray"], "name it by --out DIR"),
        (["photos", "--address", "auto"], "are for --engine ray"),
        (["photos", "--out", "out", "--actors", "2"], "are for --engine ray"),
        (["faces.parquet"], "'faces.parquet' is answered into a folder; name it by --out DIR"),
        (["gone", "--out", "out"], "There is no 'gone'"),
        (["photos", "--out", "photos"], "'photos' holds other files"),
    ],
)
def test_wrong_use_is_one_sentence_before_any_work(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was built first")

    monkeypatch.setattr("poster_zoo.predict.Predictor.__init__", refuse)
    result: Result = run("predict", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert not Path("out").exists()
