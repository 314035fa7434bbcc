"""Datasets: what is read from each collection's layout, by name, and how splits are joined, mapped and parted."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import Fault, StandInHub
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from poster_zoo.data.datasets import (
    COLLECTIONS,
    NO_LABEL,
    RAFDB,
    FaceDataset,
    FERPlus,
    available_splits,
    join,
    open_dataset,
    open_training,
    split_off,
)
from poster_zoo.data.datasets.files import Files
from poster_zoo.errors import (
    DatasetError,
    FaultyDataError,
    ImageError,
    LabelError,
    MissingExtraError,
    MissingImageError,
    OptionError,
)
from poster_zoo.labels import AFFECTNET7, AFFECTNET8, CAERS, FERPLUS
from poster_zoo.labels import RAFDB as RAFDB_LABELS


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below a folder, texts as they are."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def pack(path: Path, files: Mapping[str, str | bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def rafdb(root: Path, listed: Sequence[tuple[str, object]], persons: Mapping[str, str] | None = None) -> Path:
    """Write a collection in RAF-DB's layout, each image another one."""
    files: dict[str, str | bytes] = {
        "EmoLabel/list_patition_label.txt": "".join(f"{name} {label}\n" for name, label in listed)
    }
    for i, (name, _) in enumerate(listed):
        files[f"Image/aligned/{Path(name).stem}_aligned.jpg"] = png(i)  # content, not the suffix, tells the format
    if persons is not None:
        files["persons.csv"] = "name,person\n" + "".join(f"{name},{person}\n" for name, person in persons.items())
    return write(root, files)


def folders(root: Path, images: Iterable[str]) -> Path:
    return write(root, {name: png(i) for i, name in enumerate(images)})


def names(dataset: FaceDataset) -> list[str]:
    """Return the label of each image by name."""
    return [dataset.label_names[label] for label in dataset.labels]


def loose(root: Path, labels: Sequence[str], label_names: Sequence[str] = FERPLUS, **more: Any) -> FaceDataset:
    """Return a dataset of images that are written to `root`."""
    files = [f"{i}.png" for i in range(len(labels))]
    write(root, {file: png(i) for i, file in enumerate(files)})
    numbers = [label_names.index(label) for label in labels]
    return FaceDataset(Files(root, files), numbers, label_names, **({"name": "mine", "split": "train"} | more))


# --- one split


def test_an_item_is_the_upright_rgb_image_and_its_label(tmp_path: Path) -> None:
    image = picture(0, (4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    image.save(tmp_path / "0.png", exif=exif)
    dataset = FaceDataset(Files(tmp_path, ["0.png"]), [3], FERPLUS, name="mine", split="train")
    read, label = dataset[0]
    assert (read.mode, label, len(dataset)) == ("RGB", 3, 1)
    assert np.array_equal(np.asarray(read), np.rot90(np.asarray(image), -1))
    assert dataset.source(0) == str(tmp_path / "0.png")
    assert dataset.read(0) == (tmp_path / "0.png").read_bytes()


def test_a_transform_and_soft_targets_are_given_to_a_copy(tmp_path: Path) -> None:
    votes = torch.tensor([[0.25, 0.75]])
    dataset = loose(tmp_path, ["Fear"], ["Anger", "Fear"], distributions=votes)
    soft = dataset.with_transform(lambda image: image.size, soft_targets=True)
    assert soft[0][0] == (8, 8)
    assert torch.equal(soft[0][1], votes[0])
    assert dataset.with_transform(lambda image: image.size)[0] == ((8, 8), 1)
    assert isinstance(dataset[0][0], Image.Image)


def test_soft_targets_without_votes_are_labels(tmp_path: Path) -> None:
    assert loose(tmp_path, ["Fear"]).with_transform(None, soft_targets=True)[0][1] == FERPLUS.index("Fear")


def test_an_image_that_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"cut.png": png(0)[:60]})
    dataset = FaceDataset(Files(tmp_path, ["gone.png", "cut.png"]), [0, 0], FERPLUS, name="mine", split="train")
    with pytest.raises(MissingImageError, match=r"gone\.png' does not exist"):
        dataset.image(0)
    with pytest.raises(ImageError, match=r"cut\.png' is damaged"):
        dataset.image(1)


def test_an_index_past_the_end_ends_a_loop(tmp_path: Path) -> None:
    dataset = loose(tmp_path, ["Fear", "Anger"])
    assert [label for _, label in dataset] == [FERPLUS.index("Fear"), FERPLUS.index("Anger")]


def test_a_subset_of_a_subset_keeps_images_labels_votes_and_persons_together(tmp_path: Path) -> None:
    votes = torch.eye(8)
    dataset = loose(tmp_path, FERPLUS, distributions=votes, persons=[f"p{i}" for i in range(8)])
    part = dataset.subset([7, 2, 5]).subset([2, 0])
    assert [part.source(i) for i in range(2)] == [dataset.source(5), dataset.source(7)]
    assert part.labels == [5, 7]
    assert part.persons == ["p5", "p7"]
    assert part.distributions is not None
    assert torch.equal(part.distributions, votes[[5, 7]])
    assert len(dataset) == 8


def test_labels_and_votes_are_mapped_by_name(tmp_path: Path) -> None:
    votes = torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.4, 0.0]])
    dataset = loose(tmp_path, ["happy", "SAD"], ["SAD", "fearful", "happy"], distributions=votes)
    mapped = dataset.with_labels(FERPLUS)
    assert names(mapped) == ["Happiness", "Sadness"]
    assert mapped.distributions is not None
    for row, expected in zip(mapped.distributions, votes, strict=True):
        by_name = dict(zip(FERPLUS, row.tolist(), strict=True))
        assert [by_name["Sadness"], by_name["Fear"], by_name["Happiness"]] == pytest.approx(expected.tolist())
        assert sum(by_name.values()) == pytest.approx(1)


def test_a_class_that_the_model_lacks_is_an_error_with_both_lists(tmp_path: Path) -> None:
    dataset = loose(tmp_path, ["Fear"], AFFECTNET8)
    with pytest.raises(LabelError) as error:
        dataset.with_labels(RAFDB_LABELS)
    assert "Contempt of mine" in str(error.value)
    assert ", ".join(AFFECTNET8) in str(error.value)
    assert ", ".join(RAFDB_LABELS) in str(error.value)


# --- several


def test_joined_datasets_keep_every_image_with_its_label(tmp_path: Path) -> None:
    one = loose(tmp_path / "a", ["Fear", "Anger"], persons=["1", "2"], name="a")
    two = loose(tmp_path / "b", ["Disgust"], persons=["1"], name="b")
    both = join([one, two, one.subset([1])])
    assert [Path(both.source(i)).parent.name for i in range(4)] == ["a", "a", "b", "a"]
    assert names(both) == ["Fear", "Anger", "Disgust", "Anger"]
    assert both.read(2) == two.read(0)
    assert both.persons is not None
    assert len(set(both.persons)) == 3  # person 1 of the one collection is not person 1 of the other


def test_where_some_have_votes_the_labels_of_the_others_are_sure(tmp_path: Path) -> None:
    voted = loose(tmp_path / "a", ["Fear"], distributions=torch.full((1, 8), 1 / 8))
    both = join([voted, loose(tmp_path / "b", ["Disgust"])])
    assert both.distributions is not None
    assert torch.equal(both.distributions[0], torch.full((8,), 1 / 8))
    assert torch.equal(both.distributions[1], torch.eye(8)[FERPLUS.index("Disgust")])


def test_datasets_of_different_labels_are_not_joined(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="with_labels"):
        join([loose(tmp_path / "a", ["Fear"]), loose(tmp_path / "b", ["Fear"], AFFECTNET8)])


def test_a_label_out_of_range_is_kept_through_joining_and_told_when_it_is_asked_for(tmp_path: Path) -> None:
    place = rafdb(tmp_path, [("train_1.jpg", 1), ("train_2.jpg", 9)])
    dataset = RAFDB(place)
    both = join([dataset.subset([0]), dataset]).with_labels(FERPLUS)
    assert both.labels[2] == NO_LABEL
    assert both.written_label(2) == "9"
    with pytest.raises(LabelError, match=r"'9' of .*train_2_aligned\.jpg"):
        both[2]


def test_datasets_go_to_other_processes(tmp_path: Path) -> None:
    pack(tmp_path / "FER2013Test.zip", ferplus_part("FER2013Test", [[9, 0, 0, 0, 0, 0, 0, 0, 0, 0]] * 5))
    dataset = join([FERPlus(tmp_path, "test"), FERPlus(tmp_path, "test")])
    dataset[0]  # opens the archive in this process
    loader = DataLoader(dataset.with_transform(np.asarray), batch_size=1, num_workers=2)
    loaded = [image[0].numpy() for image, _ in loader]
    assert len(loaded) == 10
    for i, image in enumerate(loaded):
        assert np.array_equal(image, np.asarray(picture(i % 5)))
    assert pickle.loads(pickle.dumps(dataset)).source(9) == dataset.source(9)  # noqa: S301 – our own bytes


# --- RAF-DB


def test_rafdb_counts_from_one_and_names_the_aligned_files(tmp_path: Path) -> None:
    place = rafdb(tmp_path, [*((f"train_{i}.jpg", i) for i in range(1, 8)), ("test_1.jpg", 5)])
    dataset = open_dataset(f"rafdb:{place}", "train")
    assert names(dataset) == list(RAFDB_LABELS)
    assert dataset.source(0) == str(place / "Image/aligned/train_1_aligned.jpg")
    assert dataset.persons is None
    test = open_dataset(f"rafdb:{place}", "test")
    assert names(test) == ["Sadness"]
    assert np.array_equal(np.asarray(test[0][0]), np.asarray(picture(7)))
    assert available_splits(f"rafdb:{place}") == ("train", "test")


def test_rafdb_as_it_is_packed_is_the_same(tmp_path: Path) -> None:
    place = rafdb(tmp_path, [("train_1.jpg", 1), ("train_2.jpg", 2)])
    before = RAFDB(place)
    images = {f"aligned/{path.name}": path.read_bytes() for path in (place / "Image/aligned").iterdir()}
    for path in (place / "Image/aligned").iterdir():
        path.unlink()
    (place / "Image/aligned").rmdir()
    pack(place / "Image/aligned.zip", {name: data for name, data in images.items() if "_2" not in name})
    packed = RAFDB(place)
    assert packed.read(0) == images["aligned/train_1_aligned.jpg"]
    assert packed.labels == before.labels
    with pytest.raises(MissingImageError, match=r"aligned\.zip/train_2_aligned\.jpg' does not exist"):
        packed.read(1)


def test_rafdb_in_class_folders_has_the_lists_order(tmp_path: Path) -> None:
    place = folders(tmp_path, ["train/1/a.jpg", "train/7/b.jpg", "valid/4/c.jpg"])
    assert names(open_dataset(f"rafdb:{place}", "train")) == ["Surprise", "Neutral"]
    assert names(open_dataset(f"rafdb:{place}", "test")) == ["Happiness"]


def test_persons_are_found_beside_the_list(tmp_path: Path) -> None:
    place = rafdb(tmp_path, [("train_1.jpg", 1), ("train_2.jpg", 2)], persons={"train_2.jpg": "x"})
    persons = RAFDB(place).persons
    assert persons is not None
    assert persons[1] == "x"
    assert persons[0] != "x"


def test_persons_may_be_named_in_any_encoding(tmp_path: Path) -> None:
    place = rafdb(tmp_path, [("train_1.jpg", 1), ("train_2.jpg", 2), ("train_3.jpg", 2)], persons={})
    (place / "persons.csv").write_bytes(b"name,person\ntrain_1.jpg,Ren\xe9\ntrain_2.jpg,Ren\xe8\ntrain_3.jpg,Ren\xe9\n")
    persons = RAFDB(place).persons
    assert persons is not None
    assert persons[0] == persons[2] != persons[1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train_1.jpg", r"line 3: a name and a person were expected, found 'train_1\.jpg'"),
        ('"train_1.jpg,x', "line 3: this is no CSV"),
    ],
)
def test_a_line_of_the_persons_that_cannot_be_understood_is_told(tmp_path: Path, line: str, words: str) -> None:
    place = rafdb(tmp_path, [("train_1.jpg", 1)], persons={"train_2.jpg": "x"})
    with (place / "persons.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(LabelError, match=words):
        RAFDB(place)


def test_a_persons_file_without_its_columns_is_refused(tmp_path: Path) -> None:
    place = write(rafdb(tmp_path, [("train_1.jpg", 1)]), {"persons.csv": "file,id\ntrain_1.jpg,x\n"})
    with pytest.raises(LabelError, match="`name` and `person`"):
        RAFDB(place)


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_list_with_one_part_alone_is_read_as_it_is(tmp_path: Path, part: str) -> None:
    place = rafdb(tmp_path, [(f"{part}_{i}.jpg", i) for i in range(1, 8)])
    for split in ("train", "valid", "test"):
        dataset = open_dataset(f"rafdb:{place}", split)
        assert (len(dataset), dataset.split) == (7, part)


def test_a_list_that_parts_only_some_images_is_refused(tmp_path: Path) -> None:
    place = rafdb(tmp_path, [("train_1.jpg", 1), ("face.jpg", 2)])
    with pytest.raises(DatasetError, match=r"line 2: .*'face\.jpg' begins with no split"):
        RAFDB(place)


def test_a_split_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    place = rafdb(tmp_path, [("train_1.jpg", 1), ("test_1.jpg", 1)])
    with pytest.raises(OptionError, match="no split 'valid'; it has train, test"):
        open_dataset(f"rafdb:{place}", "valid")


def test_the_photographs_are_read_as_their_table_says(shared: Path) -> None:
    place = f"rafdb:{shared / 'data' / 'faces'}"
    train, test = open_dataset(place, "train"), open_dataset(place, "test")
    assert list(np.bincount(train.labels)) == [258, 16, 133, 3918, 163, 170, 4912]
    assert list(np.bincount(test.labels)) == [77, 3, 42, 1028, 68, 38, 1187]
    assert (len(set(train.persons or ())), len(set(test.persons or ()))) == (3901, 938)
    assert train[0][0].size == (100, 100)
    assert test.benchmark is not None
    assert len(test) != test.benchmark.images  # it lies as RAF-DB does and is not RAF-DB


# --- AffectNet


def affectnet(root: Path, train: str, valid: str, classes: int) -> Path:
    listed = {f"train_set/train_annotations_{classes}class.txt": train}
    return write(root, {**listed, f"valid_set/valid_annotations_{classes}class.txt": valid})


@pytest.mark.parametrize(("name", "label_names"), [("affectnet7", AFFECTNET7), ("affectnet8", AFFECTNET8)])
def test_affectnet_counts_from_zero_in_its_own_order(tmp_path: Path, name: str, label_names: Sequence[str]) -> None:
    lines = "".join(f"{i}/a {i}.jpg {i}\n" for i in range(len(label_names)))
    place = affectnet(tmp_path, lines, "x.jpg 3\n", len(label_names))
    train = open_dataset(f"{name}:{place}", "train")
    assert names(train) == list(label_names)
    assert train.source(2) == str(place / "train_set" / "images" / "2" / "a 2.jpg")
    for split in ("test", "valid"):  # what the field tests on is the release's validation part
        assert names(open_dataset(f"{name}:{place}", split)) == ["Surprise"]
    assert available_splits(f"{name}:{place}") == ("train", "test")


def test_contempt_is_out_of_range_for_seven_classes(tmp_path: Path) -> None:
    place = affectnet(tmp_path, "a.jpg 6\nb.jpg 7\n", "c.jpg 0\n", 7)
    dataset = open_dataset(f"affectnet7:{place}", "train")
    assert dataset.labels == [6, NO_LABEL]
    assert dataset.written_label(1) == "7"


# --- FERPlus


def ferplus_part(folder: str, votes: Sequence[Sequence[int]]) -> dict[str, str | bytes]:
    table = io.StringIO()
    csv.writer(table).writerows([f"fer{i}.png", "(0, 0, 48, 48)", *row] for i, row in enumerate(votes))
    return {f"{folder}/label.csv": table.getvalue(), **{f"{folder}/fer{i}.png": png(i) for i in range(len(votes))}}


# Neutral, happiness, surprise, sadness, anger, disgust, fear, contempt, unknown, not a face; what is left of it.
PROTOCOL = [
    ([6, 4, 0, 0, 0, 0, 0, 0, 0, 0], "Neutral", {"Neutral": 0.6, "Happiness": 0.4}),
    ([5, 5, 0, 0, 0, 0, 0, 0, 0, 0], None, {}),  # half is no majority
    ([5, 2, 1, 1, 1, 0, 0, 0, 0, 0], "Neutral", {"Neutral": 5 / 7, "Happiness": 2 / 7}),  # 5 of 7: ones are dropped
    ([1, 1, 1, 1, 1, 1, 1, 1, 1, 1], None, {}),
    ([0, 0, 0, 0, 0, 0, 0, 0, 6, 4], None, {}),  # unknown wins
    ([0, 0, 0, 0, 0, 0, 0, 4, 0, 6], None, {}),  # not a face wins
    ([0, 0, 0, 0, 0, 0, 0, 6, 2, 2], "Contempt", {"Contempt": 1.0}),  # 6 of 10, though the other four are no emotion
    ([0, 0, 0, 0, 0, 0, 4, 2, 2, 2], None, {}),  # 4 of 10, though two thirds of the emotions
    ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None, {}),
]


def test_ferplus_keeps_majorities_and_the_votes_beside_them(tmp_path: Path) -> None:
    dataset = FERPlus(write(tmp_path, ferplus_part("FER2013Train", [votes for votes, _, _ in PROTOCOL])))
    kept = [(i, label, spread) for i, (_, label, spread) in enumerate(PROTOCOL) if label]
    assert names(dataset) == [label for _, label, _ in kept]
    assert [Path(dataset.source(i)).name for i in range(len(dataset))] == [f"fer{i}.png" for i, _, _ in kept]
    assert dataset.distributions is not None
    for row, (_, _, spread) in zip(dataset.distributions.tolist(), kept, strict=True):
        assert row == pytest.approx([spread.get(name, 0) for name in FERPLUS])


@pytest.mark.parametrize(
    "layout", ["folder", "archive", "flat archive", "folder, list beside", "archive, labels apart"]
)
def test_ferplus_is_read_from_folders_archives_and_its_list(tmp_path: Path, layout: str) -> None:
    votes = [[0, 9, 0, 0, 0, 0, 0, 0, 0, 1], [5, 5, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 7, 0, 0, 0, 0, 3, 0]]
    part = ferplus_part("FER2013Valid", votes)
    table = part["FER2013Valid/label.csv"]
    if layout == "folder":
        write(tmp_path, part)
    elif layout == "archive":
        pack(tmp_path / "FER2013Valid.zip", part)
    elif layout == "flat archive":
        pack(tmp_path / "FER2013Valid.zip", {Path(name).name: content for name, content in part.items()})
    elif layout == "archive, labels apart":  # as the authors' repository has them, the images fetched beside
        write(tmp_path, {"FER2013Valid/label.csv": part.pop("FER2013Valid/label.csv")})
        pack(tmp_path / "FER2013Valid.zip", part)
    else:
        del part["FER2013Valid/label.csv"]
        rows = [line.split(',"(0, 0, 48, 48)",') for line in str(table).splitlines()]
        header = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
        lines = [f"PublicTest,{file},{ballot}\n" for file, ballot in rows]
        removed = "PublicTest,,0,0,0,0,0,0,0,0,0,10\n"
        others = "Training,fer9.png,9,0,0,0,0,0,0,0,0,0\n"
        write(tmp_path, part | {"fer2013new.csv": header + others + removed + "".join(lines)})
    dataset = open_dataset(f"ferplus:{tmp_path}", "valid")
    assert names(dataset) == ["Happiness", "Sadness"]
    assert np.array_equal(np.asarray(dataset[1][0]), np.asarray(picture(2)))
    assert available_splits(f"ferplus:{tmp_path}") == ("valid",)


def test_ferplus_without_votes_says_where_they_were_looked_for(tmp_path: Path) -> None:
    write(tmp_path, {"FER2013Test/fer0.png": png(0)})
    with pytest.raises(DatasetError, match=r"label\.csv.*fer2013new\.csv was looked for; there is FER2013Test/"):
        open_dataset(f"ferplus:{tmp_path}", "test")


def test_a_line_without_votes_is_named(tmp_path: Path) -> None:
    part = ferplus_part("FER2013Test", [[9] + [0] * 9])
    part["FER2013Test/label.csv"] = str(part["FER2013Test/label.csv"]) + 'fer1.png,"(0, 0, 48, 48)",9,x\n'
    with pytest.raises(LabelError, match=r"label\.csv', line 2: 10 numbers"):
        FERPlus(write(tmp_path, part), "test")


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    write(tmp_path, {"FER2013Test.zip": b"no archive"})
    with pytest.raises(DatasetError, match=r"FER2013Test\.zip' cannot be read as a zip archive"):
        FERPlus(tmp_path, "test")


def test_ferplus_has_the_counts_of_the_reference_protocol(shared: Path) -> None:
    expected = {
        "train": [8733, 7284, 3136, 3022, 2098, 116, 536, 120],
        "valid": [1180, 862, 411, 348, 289, 25, 60, 16],
        "test": [1083, 892, 394, 382, 269, 16, 86, 15],
    }
    place = f"ferplus:{shared / 'data' / 'ferplus'}"
    assert available_splits(place) == tuple(expected)
    for split, counts in expected.items():
        dataset = open_dataset(place, split)
        assert list(np.bincount(dataset.labels)) == counts
        assert dataset.distributions is not None
        assert dataset.distributions.sum(dim=1).allclose(torch.ones(len(dataset)))
        # More than half of the votes for all ten answers, hence the most of those for eight.
        assert dataset.distributions.argmax(dim=1).tolist() == dataset.labels
    assert dataset.benchmark is not None
    assert dataset.benchmark.images == len(dataset)
    assert dataset[0][0].size == (48, 48)


# --- class folders


def test_class_folders_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    place = folders(tmp_path, ["happy/a.png", "happy/deep/b.jpg", "Anger/c.png", "sad/10.png", "sad/9.png"])
    write(place, {"sad/notes.txt": "no image"})
    theirs = ImageFolder(str(place))
    ours = open_dataset(f"folder:{place}", "test")
    assert {(ours.source(i), ours.label_names[ours.labels[i]]) for i in range(len(ours))} == {
        (path, theirs.classes[target]) for path, target in theirs.samples
    }
    assert list(ours.label_names) == theirs.classes
    assert ours.split == "all"


def test_class_folders_below_folders_of_splits(tmp_path: Path) -> None:
    place = folders(tmp_path, ["Train/Happy/a.png", "Train/Fear/b.png", "val/happy/c.png", "test/Sad/d.png"])
    spec = f"folder:{place}"
    assert available_splits(spec) == ("train", "valid", "test")
    assert names(open_dataset(spec, "valid")) == ["Happy"]
    assert names(open_dataset(spec, "test")) == ["Sad"]
    assert {open_dataset(spec, split).label_names for split in ("train", "validation", "test")} == {
        ("Fear", "Happy", "Sad")
    }


def test_a_folder_that_is_no_known_expression_is_an_error_with_both_lists(tmp_path: Path) -> None:
    place = folders(tmp_path, ["Happy/a.png", "Bored/b.png"])
    with pytest.raises(LabelError) as error:
        open_dataset(f"folder:{place}", "train")
    assert "'Bored' is no known expression" in str(error.value)
    assert "Labels of the data: Bored, Happy" in str(error.value)
    assert all(label in str(error.value) for label in AFFECTNET8)
    assert names(open_dataset(f"folder:{place}", "train", labels=["bored"])) == ["Bored", "Happy"]


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    place = folders(tmp_path, ["Happy/a.png", "joy/b.png"])
    with pytest.raises(LabelError, match="'Happy' and 'joy' are one class"):
        open_dataset(f"folder:{place}", "train")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    place = folders(tmp_path, ["val/Happy/a.png", "valid/Happy/b.png"])
    with pytest.raises(DatasetError, match="both the split 'valid'"):
        open_dataset(f"folder:{place}", "train")


def test_folders_without_images_are_refused(tmp_path: Path) -> None:
    place = write(tmp_path, {"Happy/notes.txt": "", "Sad/notes.txt": ""})
    with pytest.raises(DatasetError, match=r"no images in the folders .*Happy"):
        open_dataset(f"folder:{place}", "train")


def test_caers_has_its_own_names_whatever_is_there(tmp_path: Path) -> None:
    place = folders(tmp_path, ["train/Sad/a.png", "train/Anger/b.png", "test/Surprise/c.png"])
    train = open_dataset(f"caers:{place}", "train")
    assert train.label_names == CAERS
    assert names(train) == ["Anger", "Sad"]
    assert names(open_dataset(f"caers:{place}", "test")) == ["Surprise"]
    folders(place, ["train/Contempt/d.png"])
    with pytest.raises(DatasetError, match="does not hold CAER-S"):
        open_dataset(f"caers:{place}", "train")


# --- CSV


def test_a_csv_names_its_files_from_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = write(tmp_path / "elsewhere", {"x.png": png(7)}) / "x.png"
    table = f"label;split;path\nhappy;train;images/a.png\nSad;test;images/b.png\nHappiness;train;{elsewhere}\n"
    write(tmp_path, {"list/faces.csv": table, "list/images/a.png": png(1), "list/images/b.png": png(2)})
    monkeypatch.chdir(tmp_path)
    train = open_dataset("csv:list/faces.csv", "train")
    assert names(train.with_labels(FERPLUS)) == ["Happiness", "Happiness"]
    assert train.read(0) == png(1)
    assert train.read(1) == png(7)
    assert names(open_dataset("csv:list/faces.csv", "test")) == ["Sad"]
    assert available_splits("csv:list/faces.csv") == ("train", "test")


def test_a_csv_without_splits_is_read_as_it_is(tmp_path: Path) -> None:
    place = write(tmp_path, {"faces.csv": "a.png,Fear\nb.png,Anger\na.png,fearful\n"}) / "faces.csv"
    dataset = open_dataset(f"csv:{place}", "test")
    assert names(dataset) == ["Fear", "Anger"]
    assert dataset.split == "all"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("a.png,3\n", "'3' is no name, and a number means another class in each model"),
        ("a.png,Bored\n", "'Bored' is no known expression"),
        ("a.png,Fear\na.png,Anger\n", r"line 2: 'a\.png' is Anger here and Fear in line 1"),
        ("path,label,split\na.png,Fear,train\nb.png,Fear,\n", "line 3: the split is missing"),
        ("a.png\n", "line 1"),
        ("", "holds no labels"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused(tmp_path: Path, table: str, message: str) -> None:
    place = write(tmp_path, {"faces.csv": table}) / "faces.csv"
    with pytest.raises(LabelError, match=message):
        open_dataset(f"csv:{place}", "train")


# --- Hugging Face datasets


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The package, without its bars, and with a cache of its own."""
    package = pytest.importorskip("datasets", reason="the extra hf is not installed")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    package.disable_progress_bars()
    return package


def hub_table(datasets: Any, label: Sequence[object], feature: Any, **more: Sequence[object]) -> Any:
    images = [{"bytes": png(i), "path": None} for i in range(len(label))]
    table = datasets.Dataset.from_dict({"face": images, "mood": label, **more})
    return table.cast_column("face", datasets.Image()).cast_column("mood", feature)


@pytest.mark.parametrize("layout", ["saved", "saved splits", "parquet file", "parquet folder"])
def test_a_hub_datasets_local_copies(tmp_path: Path, datasets: Any, layout: str) -> None:
    table = hub_table(datasets, [1, 0, 2], datasets.ClassLabel(names=["sad", "happy", "fear"]))
    place = tmp_path / "copy"
    if layout == "saved":
        table.save_to_disk(place)
    elif layout == "saved splits":
        datasets.DatasetDict({"train": table, "validation": table}).save_to_disk(place)
    elif layout == "parquet file":
        table.to_parquet(place.with_suffix(".parquet"))
        place = place.with_suffix(".parquet")
    else:
        place.mkdir()
        for split in ("train", "validation"):
            table.to_parquet(place / f"{split}-00000-of-00001.parquet")
    dataset = open_dataset(f"hf:{place}", "valid")
    assert names(dataset) == ["happy", "sad", "fear"]
    assert dataset.read(2) == png(2)
    assert np.array_equal(np.asarray(dataset[2][0]), np.asarray(picture(2)))
    assert str(place) in dataset.source(2)
    splits = layout in ("saved splits", "parquet folder")
    assert dataset.split == "valid" if splits else dataset.split in ("train", "all")
    assert pickle.loads(pickle.dumps(dataset)).read(1) == png(1)  # noqa: S301 – our own bytes


def test_a_hub_datasets_labels_may_be_texts_and_its_columns_named(tmp_path: Path, datasets: Any) -> None:
    table = hub_table(
        datasets,
        ["Sad", None, "joy"],
        datasets.Value("string"),
        who=["a", "b", "a"],
    )
    table.save_to_disk(tmp_path / "copy")
    with pytest.raises(DatasetError, match=r"holds the label cannot be told; write .*\?label=COLUMN.*face, mood, who"):
        open_dataset(f"hf:{tmp_path / 'copy'}", "train")
    dataset = open_dataset(f"hf:{tmp_path / 'copy'}?label=mood&person=who", "train")
    assert dataset.label_names == ("Sad", "joy")
    assert dataset.labels == [0, NO_LABEL, 1]
    assert dataset.persons == ["a", "b", "a"]
    with pytest.raises(DatasetError, match=r"no column 'mod'\. Did you mean 'mood'"):
        open_dataset(f"hf:{tmp_path / 'copy'}?label=mod", "train")
    with pytest.raises(OptionError, match=r"no option 'lable'\. Did you mean 'label'"):
        open_dataset(f"hf:{tmp_path / 'copy'}?lable=mood", "train")


def test_a_hub_datasets_numbers_need_names(tmp_path: Path, datasets: Any) -> None:
    hub_table(datasets, [1, 0], datasets.Value("int64")).save_to_disk(tmp_path / "copy")
    with pytest.raises(DatasetError, match="have no names"):
        open_dataset(f"hf:{tmp_path / 'copy'}?label=mood", "train")


@pytest.mark.usefixtures("datasets")
def test_a_hub_dataset_that_is_nowhere_is_one_sentence() -> None:
    with pytest.raises(DatasetError, match="hf:nobody/nothing cannot be loaded"):
        open_dataset("hf:nobody/nothing", "train")


def check_from(hub: StandInHub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `poster-zoo data`, in a process of its own: the Hub's client reads its settings when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "poster_zoo", "data", "--json", *arguments],
        env=os.environ | hub.environment(home) | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_hub_dataset_is_read_by_its_id(tmp_path: Path, datasets: Any) -> None:
    kind = datasets.ClassLabel(names=["sad", "happy", "fear"])
    files = {"README.md": b"---\nlicense: mit\n---\n# Faces\n"}
    for split, labels in (("train", [1, 0, 2]), ("validation", [2])):
        parquet = io.BytesIO()
        hub_table(datasets, labels, kind).to_parquet(parquet)
        files[f"data/{split}-00000-of-00001.parquet"] = parquet.getvalue()
    with StandInHub() as hub:
        commit = hub.add("datasets/somebody/faces", files)
        hub.faults.append(Fault(method="GET", path="train-00000-of-00001.parquet", body=b"<html>no table</html>"))
        broken = check_from(hub, tmp_path / "first", "hf:somebody/faces")
        assert broken.returncode == 2
        assert re.fullmatch(r"Error: hf:somebody/faces cannot be loaded as a dataset .*\n", broken.stderr), (
            broken.stderr
        )
        hub.faults.clear()

        for place in ("hf:somebody/faces", f"hf:somebody/faces?revision={commit}&label=mood&image=face"):
            told = check_from(hub, tmp_path / "home", place)
            assert told.returncode == 0, told.stderr
            counts = {one["split"]: one["counts"] for one in json.loads(told.stdout)["splits"]}
            assert counts == {"train": {"happy": 1, "sad": 1, "fear": 1}, "valid": {"happy": 0, "sad": 0, "fear": 1}}
    # The server is gone: what was fetched stays.
    assert check_from(hub, tmp_path / "home", "hf:somebody/faces", HF_HUB_OFFLINE="1").returncode == 0


def test_without_the_extra_its_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "poster-zoo\[hf\]"'):
        open_dataset(f"hf:{tmp_path}", "train")


# --- by name


def test_a_name_is_found_in_any_case_and_a_path_may_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    rafdb(tmp_path / "faces", [("train_1.jpg", 1)])
    assert len(open_dataset("RAFDB:~/faces", "train")) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("rafbd:/data", r"no collection 'rafbd'\. Did you mean 'rafdb'\?.*csv:PATH"),
        ("rafdb:", "'rafdb:' names no place"),
        ("rafdb", r"'rafdb' does not say .*rafdb:PATH"),
        (r"C:\faces", r"does not say what lies there.*folder:PATH"),
        (r"folder:C:\faces", r"'C:\\\\faces' does not exist"),
        ("rafdb:nowhere", r"'nowhere' does not exist"),
        ("", "does not say"),
    ],
)
def test_a_wrong_spec_is_told_with_the_way_out(spec: str, message: str) -> None:
    for ask in (available_splits, lambda spec: open_dataset(spec, "train")):
        with pytest.raises(OptionError, match=message):
            ask(spec)


@pytest.mark.parametrize("name", [name for name in COLLECTIONS if name not in ("folder", "hf")])
def test_a_folder_of_something_else_says_what_was_looked_for_and_what_is_there(tmp_path: Path, name: str) -> None:
    place = write(tmp_path, {"readme.txt": "", "pictures/1.png": png(0)})
    with pytest.raises(DatasetError, match=r"was looked for; there is pictures/, readme\.txt"):
        open_dataset(f"{name}:{place}", "train")


# --- parting train


def people(root: Path, persons: int, images: int) -> FaceDataset:
    labels = [FERPLUS[i % 3] for i in range(persons * images)]
    return loose(root, labels, persons=[f"p{i // images}" for i in range(persons * images)])


def test_nobody_is_in_both_parts_and_every_class_is_in_each(tmp_path: Path) -> None:
    dataset = people(tmp_path, persons=60, images=3)
    train, valid = split_off(dataset, share=0.2)
    assert train.persons is not None
    assert valid.persons is not None
    assert not set(train.persons) & set(valid.persons)
    assert Counter(names(valid)) == {"Neutral": 12, "Happiness": 12, "Surprise": 12}  # a fifth of 60 each
    everything = [train.source(i) for i in range(len(train))] + [valid.source(i) for i in range(len(valid))]
    assert sorted(everything) == sorted(dataset.source(i) for i in range(len(dataset)))
    assert (train.split, valid.split) == ("train", "valid")


def test_without_persons_each_class_gives_its_share(tmp_path: Path) -> None:
    dataset = loose(tmp_path, ["Fear"] * 40 + ["Anger"] * 20 + ["Disgust"] * 4)
    _, valid = split_off(dataset, share=0.25)
    assert Counter(names(valid)) == {"Fear": 10, "Anger": 5, "Disgust": 1}


def test_few_images_give_one_of_each_class_that_has_two(tmp_path: Path) -> None:
    dataset = loose(tmp_path, ["Fear", "Anger", "Disgust", "Fear", "Anger"])
    train, valid = split_off(dataset)
    assert Counter(names(valid)) == {"Fear": 1, "Anger": 1}
    assert Counter(names(train)) == {"Fear": 1, "Anger": 1, "Disgust": 1}


def test_of_few_persons_with_many_images_the_smaller_is_taken(tmp_path: Path) -> None:
    dataset = loose(tmp_path, ["Fear"] * 30, persons=["big"] * 20 + ["small"] * 10)
    assert [set(part.persons or ()) for part in split_off(dataset)] == [{"big"}, {"small"}]


@pytest.mark.parametrize("persons", [None, ["one"] * 3])
def test_what_cannot_be_parted_is_told(tmp_path: Path, persons: list[str] | None) -> None:
    dataset = loose(tmp_path, ["Fear"] * (len(persons) if persons else 1), persons=persons)
    with pytest.raises(FaultyDataError, match=r"mine train has 1 (image|person), too few to part"):
        split_off(dataset)


def test_the_seed_decides_which_part_it_is(tmp_path: Path) -> None:
    dataset = loose(tmp_path, ["Fear"] * 40)
    parts = [[part.source(i) for i in range(len(part))] for _, part in (split_off(dataset, seed=s) for s in (0, 0, 1))]
    assert parts[0] == parts[1] != parts[2]


def test_the_photographs_are_parted_by_person_in_every_class(shared: Path) -> None:
    train, valid = open_training(f"rafdb:{shared / 'data' / 'faces'}")
    assert not set(train.persons or ()) & set(valid.persons or ())
    assert len(train) + len(valid) == 9570
    # A tenth of each class, as near as whole persons allow.
    assert np.abs(np.bincount(valid.labels) - np.array([258, 16, 133, 3918, 163, 170, 4912]) / 10).max() < 50


def test_a_released_validation_part_is_used_and_else_train_is_parted(tmp_path: Path) -> None:
    released = folders(tmp_path / "a", ["train/Fear/1.png", "valid/Fear/2.png", "test/Fear/3.png"])
    train, valid = open_training(f"folder:{released}")
    assert [Path(part.source(0)).name for part in (train, valid)] == ["1.png", "2.png"]
    parted = folders(tmp_path / "b", [f"train/Fear/{i}.png" for i in range(10)] + ["test/Fear/x.png"])
    train, valid = open_training(f"folder:{parted}", share=0.3)
    assert (len(train), len(valid)) == (7, 3)
    alone = folders(tmp_path / "c", [f"Fear/{i}.png" for i in range(10)])
    assert [len(part) for part in open_training(f"folder:{alone}", share=0.3)] == [7, 3]
