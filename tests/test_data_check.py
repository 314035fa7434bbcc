"""The check before the first step: what it finds, what it leaves out, and what `poster-zoo data` prints of it."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from poster_zoo.cli import data
from poster_zoo.cli.errors import CommandGroup
from poster_zoo.data.check import NAMED, check_dataset, without_bad
from poster_zoo.data.datasets import FaceDataset, available_splits, join, open_dataset, split_off
from poster_zoo.errors import FaultyDataError


def encoded(seed: int, kind: str = "PNG", **options: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """RAF-DB's layout: 20 training and 5 test images, all good, each another one."""
    root = tmp_path / "faces"
    listed = [(f"train_{i:02}", i) for i in range(20)] + [(f"test_{i:02}", 100 + i) for i in range(5)]
    (root / "Image" / "aligned").mkdir(parents=True)
    (root / "EmoLabel").mkdir()
    for name, seed in listed:
        image_file(root, name).write_bytes(encoded(seed))
    write_list(root, [(name, seed % 7 + 1) for name, seed in listed])
    return root


def image_file(root: Path, name: str) -> Path:
    return root / "Image" / "aligned" / f"{name}_aligned.png"


def write_list(root: Path, rows: Sequence[tuple[str, object]]) -> None:
    lines = "".join(f"{name}.png {label}\n" for name, label in rows)
    (root / "EmoLabel" / "list_patition_label.txt").write_text(lines)


def opened(root: Path) -> list[FaceDataset]:
    return [open_dataset(f"rafdb:{root}", split) for split in available_splits(f"rafdb:{root}")]


def sources(dataset: FaceDataset) -> set[str]:
    return {Path(dataset.source(i)).name.partition("_aligned")[0] for i in range(len(dataset))}


def test_a_good_collection_is_counted_and_passes(place: Path) -> None:
    train, test = opened(place)
    report = check_dataset([train, test])
    assert report.ok
    assert report.faults() == report.warnings() == []
    report.require()
    assert [part.images for part in report.splits] == [20, 5]
    expected = np.bincount([i % 7 for i in range(20)], minlength=7)
    assert list(report.splits[0].counts.values()) == list(expected)
    assert list(report.splits[0].counts) == list(train.label_names)
    assert len(without_bad(train, report)) == 20


def test_missing_and_damaged_files_are_told_apart_and_left_out(place: Path) -> None:
    image_file(place, "train_03").unlink()
    image_file(place, "train_04").write_bytes(encoded(4)[:-40])  # begins well
    image_file(place, "train_05").write_bytes(b"")
    image_file(place, "test_01").write_bytes(b"<html>not found</html>")
    train, test = opened(place)
    report = check_dataset([train, test])
    assert not report.ok
    assert [Path(fault.source).name for fault in report.splits[0].missing] == ["train_03_aligned.png"]
    assert len(report.splits[0].unreadable) == 2
    assert len(report.splits[1].unreadable) == 1
    with pytest.raises(FaultyDataError, match=r"1 of 20 images missing:\n.*train_03(.|\n)*2 of 20(.|\n)*--skip-bad"):
        report.require()
    assert sources(train) - sources(without_bad(train, report)) == {"train_03", "train_04", "train_05"}
    assert sources(test) - sources(without_bad(test, report)) == {"test_01"}
    assert check_dataset([without_bad(train, report), without_bad(test, report)]).ok


def test_labels_out_of_range_are_shown_as_they_are_written(place: Path) -> None:
    write_list(place, [("train_00", 0), ("train_01", 8), ("train_02", "x"), ("train_03", 7)])
    (train,) = opened(place)
    report = check_dataset(train)
    faults = report.splits[0].out_of_range
    assert [fault.reason.partition("the label ")[2].split(",")[0] for fault in faults] == ["'0'", "'8'", "'x'"]
    assert sum(report.splits[0].counts.values()) == 1
    assert sources(without_bad(train, report)) == {"train_03"}


def test_the_first_ten_are_named_and_all_are_counted(place: Path) -> None:
    for i in range(13):
        image_file(place, f"train_{i:02}").unlink()
    report = check_dataset(opened(place))
    head, *named = report.faults()
    assert "13 of 20 images missing" in head
    assert [name in line for name, line in zip((f"train_{i:02}" for i in range(10)), named, strict=True)] == [True] * 10
    facts = report.to_dict()["splits"][0]["missing"]
    assert (facts["count"], len(facts["first"])) == (13, NAMED) == (13, 10)


@pytest.mark.parametrize(
    "copy",
    [
        pytest.param(encoded(2), id="the same bytes"),
        pytest.param(encoded(2, compress_level=0), id="packed again"),
        pytest.param(encoded(2, "BMP"), id="in another format without loss"),
    ],
)
def test_a_picture_in_two_splits_is_found_by_its_pixels(place: Path, copy: bytes) -> None:
    image_file(place, "test_03").write_bytes(copy)
    train, test = opened(place)
    report = check_dataset([train, test])
    assert report.ok  # published benchmarks have such pictures
    (copies,) = report.copies
    assert [(split, Path(source).name) for split, source in copies.places] == [
        ("train", "train_02_aligned.png"),
        ("test", "test_03_aligned.png"),
    ]
    assert "1 picture is in several splits (1 in train and test):" in report.warnings()[0]
    assert sources(train) - sources(without_bad(train, report)) == {"train_02"}
    assert len(without_bad(test, report)) == 5


def test_pictures_that_only_resemble_each_other_are_not_copies(place: Path) -> None:
    image_file(place, "test_03").write_bytes(encoded(2, "JPEG", quality=95))
    pixels = np.asarray(Image.open(io.BytesIO(encoded(3))))
    reshaped = Image.fromarray(pixels.reshape(10, 8, 3))  # the same bytes of pixels in another shape
    reshaped.save(image_file(place, "test_04"))
    assert check_dataset(opened(place)).copies == ()


def test_copies_in_one_split_are_no_matter(place: Path) -> None:
    image_file(place, "train_03").write_bytes(encoded(2))
    assert check_dataset(opened(place)).copies == ()


def test_what_is_tested_stays_whatever_the_order(tmp_path: Path) -> None:
    for seed, (split, label) in enumerate((("test", "Fear"), ("train", "Fear"), ("valid", "Anger")), start=1):
        (tmp_path / split / label).mkdir(parents=True)
        (tmp_path / split / label / f"{split}.png").write_bytes(encoded(0))
        (tmp_path / split / label / f"{split} alone.png").write_bytes(encoded(seed))
    (tmp_path / "train" / "Fear" / "second.png").write_bytes(encoded(0))
    splits = [open_dataset(f"folder:{tmp_path}", split) for split in ("test", "valid", "train")]
    report = check_dataset(splits)
    assert [len(without_bad(part, report)) for part in splits] == [2, 1, 1]


def test_a_file_that_two_splits_list_stays_in_the_one_that_is_tested(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(0))
    (tmp_path / "faces.csv").write_text("path,label,split\na.png,Fear,train\na.png,Fear,test\n")
    splits = [open_dataset(f"csv:{tmp_path / 'faces.csv'}", split) for split in ("train", "test")]
    report = check_dataset(splits)
    assert [len(without_bad(part, report)) for part in splits] == [0, 1]


def test_parts_and_joins_of_what_was_checked_are_cleaned_too(place: Path) -> None:
    image_file(place, "train_02").unlink()
    image_file(place, "test_03").write_bytes(encoded(5))
    train, test = opened(place)
    report = check_dataset([train, test])
    rest, valid = split_off(train, share=0.5)
    left = [without_bad(part, report) for part in (rest, valid, join([train, train.subset([2, 3])]))]
    assert not {"train_02", "train_05"} & set().union(*map(sources, left))
    assert [len(left[0]) + len(left[1]), len(left[2])] == [18, 19]


def test_ferplus_has_the_copies_that_its_files_have(shared: Path) -> None:
    # Counted by hashing PIL's pixels in a script of its own: 22 pictures in valid and test, 12 in all three splits.
    place = f"ferplus:{shared / 'data' / 'ferplus'}"
    report = check_dataset([open_dataset(place, split) for split in ("valid", "test")])
    assert report.ok
    assert len(report.copies) == 34


# --- the command


def run(*arguments: str) -> Result:
    group = CommandGroup(commands={"data": data.command})
    separate = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    result = CliRunner(**separate).invoke(group, ["data", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_the_command_prints_the_counts_of_every_split(place: Path) -> None:
    result = run(f"rafdb:{place}")
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["class", "train", "test"] in rows
    assert ["images", "20", "5"] in rows
    assert "Every image can be read" in result.stdout


def test_the_command_names_what_is_wrong_and_exits_1_unless_it_is_skipped(place: Path) -> None:
    image_file(place, "train_03").unlink()
    image_file(place, "test_03").write_bytes(encoded(5))
    result = run(f"rafdb:{place}")
    assert result.exit_code == 1
    assert "rafdb train: 1 of 20 images missing:" in result.stdout
    assert "train_03_aligned.png' does not exist" in result.stdout
    assert "1 picture is in several splits" in result.stdout
    assert "--skip-bad" in result.stderr
    skipped = run(f"rafdb:{place}", "--skip-bad")
    assert skipped.exit_code == 0
    assert ["images", "left", "18", "5"] in [line.split() for line in skipped.stdout.splitlines()]


def test_the_commands_json_is_one_object(place: Path) -> None:
    image_file(place, "train_03").unlink()
    result = run("--data", f"rafdb:{place}", "--json", "--split", "train")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    (split,) = facts["splits"]
    assert facts["ok"] is False
    assert (split["data"], split["split"], split["images"], split["left"]) == (f"rafdb:{place}", "train", 20, 19)
    assert split["missing"]["count"] == 1
    assert split["missing"]["first"][0]["source"] == str(image_file(place, "train_03"))


def test_several_collections_are_compared_with_each_other(place: Path, tmp_path: Path) -> None:
    (tmp_path / "own" / "Fear").mkdir(parents=True)
    (tmp_path / "own" / "Fear" / "a.png").write_bytes(encoded(102))
    result = run(f"rafdb:{place}", "--data", f"folder:{tmp_path / 'own'}", "--json", "--skip-bad")
    facts = json.loads(result.stdout)
    assert [(split["split"], split["left"]) for split in facts["splits"]] == [("train", 20), ("test", 5), ("all", 0)]
    assert facts["in_several_splits"]["count"] == 1


def test_a_part_that_is_all_there_is_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "Bored").mkdir()
    (tmp_path / "Bored" / "a.png").write_bytes(encoded(0))
    assert run(f"folder:{tmp_path}").exit_code == 1
    result = run(f"folder:{tmp_path}", "--label", "bored", "--split", "train", "--split", "test", "--json")
    (split,) = json.loads(result.stdout)["splits"]
    assert (split["split"], split["counts"]) == ("all", {"Bored": 1})


@pytest.mark.parametrize("arguments", [(), ("rafdb",), ("rafbd:x",), ("rafdb:/nowhere",)])
def test_wrong_use_exits_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert not result.stdout
