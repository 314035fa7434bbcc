"""Label files: RAF-DB's list and CSV, and which label belongs to which image."""

from __future__ import annotations

from pathlib import Path

import pytest

from poster_zoo.data.label_files import pair_labels, read_labels
from poster_zoo.errors import LabelError
from poster_zoo.labels import AFFECTNET7, CAERS, FERPLUS, RAFDB


def write(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_rafdb_numbers_are_one_based_and_in_rafdb_order_whatever_the_models_order(tmp_path: Path) -> None:
    lines = "".join(f"train_{i:05d}.jpg {i}\n" for i in range(1, 8))
    path = write(tmp_path, lines, "list_patition_label.txt")
    # From the data set's own readme: 1 Surprise, 2 Fear, 3 Disgust, 4 Happiness, 5 Sadness, 6 Anger, 7 Neutral.
    names = ["Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral"]
    for labels in (RAFDB, AFFECTNET7, FERPLUS):
        assert list(read_labels(path, labels).values()) == names
    assert read_labels(path, RAFDB)["train_00002.jpg"] == "Fear"


def test_labels_come_back_in_the_models_spelling(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jpg 4\nb.jpg 5\n")
    assert read_labels(path, CAERS) == {"a.jpg": "Happy", "b.jpg": "Sad"}


@pytest.mark.parametrize("bad", ["train_00003.jpg 0", "train_00003.jpg 8", "train_00003.jpg", "train_00003.jpg five"])
def test_a_bad_line_in_rafdb_list_is_named_by_its_number(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path, f"train_00001.jpg 5\n\n{bad}\n", "list.txt")
    with pytest.raises(LabelError, match=r"list\.txt', line 3: .*1 to 7"):
        read_labels(path, RAFDB)


@pytest.mark.parametrize(
    "text",
    [
        "path,label\na.jpg,happy\nb.jpg,SADNESS\n",
        "id,Emotion,Image\n1,Happiness,a.jpg\n2,sad,b.jpg\n",
        "a.jpg,joy\nb.jpg,Sad\n",
        "a.jpg;happiness\r\nb.jpg;sadness\r\n",
        "filename\texpression\na.jpg\thappy\n\nb.jpg\tsad\n",
        '"path","label"\n"a.jpg"," Happy "\n"b.jpg","sad"\n',
        "\ufeffname,label\na.jpg,3\nb.jpg,4\n",
        "a.jpg,3\nb.jpg,4\n",
    ],
)
def test_csv_is_read_with_and_without_header_by_name_and_by_zero_based_number(tmp_path: Path, text: str) -> None:
    assert read_labels(write(tmp_path, text), RAFDB) == {"a.jpg": "Happiness", "b.jpg": "Sadness"}


def test_a_name_that_looks_like_a_number_is_a_name(tmp_path: Path) -> None:
    assert read_labels(write(tmp_path, "a.jpg,2\n"), ("2", "1")) == {"a.jpg": "2"}


def test_an_unknown_label_shows_both_lists_and_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "file,label\na.jpg,happy\nb.jpg,bored\n")
    with pytest.raises(LabelError, match=r"line 3: 'bored'.*in the file: bored, happy\. .*: Surprise, Fear.*Neutral"):
        read_labels(path, RAFDB)


@pytest.mark.parametrize("number", ["7", "-1", "1.0"])
def test_a_number_outside_the_models_labels_is_refused(tmp_path: Path, number: str) -> None:
    with pytest.raises(LabelError, match="numbers, 0 to 6"):
        read_labels(write(tmp_path, f"a.jpg,{number}\n"), RAFDB)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no labels"),
        ("\n \n", "holds no labels"),
        ("path,label\n", "holds no labels"),
        ("a.jpg,happy,0.9\n", "line 1: neither two columns"),
        ("x,y,z\na,b,c\n", "line 1: neither two columns"),
        ("path,label\na.jpg\n", "line 2: a file and a label were expected"),
        ("path,label\n,happy\n", "line 2: the name of the file is missing"),
        ('path,label\n"a\nb.jpg",happy\nc.jpg\n', "line 4: a file and a label were expected"),
        ('path,label\n"a.jpg,happy\n', "line 2: this is no CSV"),
        ("a.jpg,happy\nb.jpg,sad\na.jpg,sad\n", "line 3: 'a.jpg' is Sadness here and Happiness in line 1"),
    ],
)
def test_each_fault_of_a_csv_is_one_sentence_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        read_labels(write(tmp_path, text), RAFDB)


def test_the_same_line_twice_is_no_contradiction(tmp_path: Path) -> None:
    assert read_labels(write(tmp_path, "a.jpg,happy\na.jpg,joy\n"), RAFDB) == {"a.jpg": "Happiness"}


def test_a_missing_label_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"absent\.csv' cannot be read: No such file"):
        read_labels(tmp_path / "absent.csv", RAFDB)
    with pytest.raises(LabelError, match="cannot be read: Is a directory"):
        read_labels(tmp_path, RAFDB)


def test_file_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xff\xfe.jpg,happy\n")
    assert read_labels(path, RAFDB) == {"\udcff\udcfe.jpg": "Happiness"}


def test_aligned_images_are_found_by_the_name_in_the_list_and_the_other_way_round() -> None:
    labels = {"train_00001.jpg": "Fear", "train_00002_aligned.jpg": "Anger"}
    pairing = pair_labels(["Image/aligned/train_00001_aligned.jpg", "Image/original/train_00002.jpg"], labels)
    assert pairing.labels == ("Fear", "Anger")


def test_images_without_a_label_and_labels_without_an_image_are_told() -> None:
    pairing = pair_labels(["a.jpg", "b.jpg"], {"b.jpg": "Fear", "c.jpg": "Anger"})
    assert pairing.labels == (None, "Fear")
    assert pairing.without_label == ("a.jpg",)
    assert pairing.without_file == ("c.jpg",)


def test_equal_names_are_told_apart_by_their_folders() -> None:
    labels = {"/elsewhere/x/1.jpg": "Fear", "/elsewhere/y/1.jpg": "Anger"}
    assert pair_labels(["here/y/1.jpg", "here/x/1.jpg"], labels).labels == ("Anger", "Fear")


def test_a_label_goes_to_the_image_in_its_folder_alone() -> None:
    pairing = pair_labels(["x/1.jpg", "y/1.jpg"], {"x/1.jpg": "Fear"})
    assert pairing.labels == ("Fear", None)
    assert pairing.without_label == ("y/1.jpg",)


def test_a_label_that_could_be_for_two_images_is_refused() -> None:
    with pytest.raises(LabelError, match=r"'1\.jpg' could be for 'x/1\.jpg' or for 'y/1\.jpg'"):
        pair_labels(["x/1.jpg", "y/1.jpg"], {"1.jpg": "Fear"})


def test_an_image_that_could_have_two_labels_is_refused() -> None:
    with pytest.raises(LabelError, match=r"'1\.jpg' could be that of 'x/1\.jpg' \(Fear\) or of 'y/1\.jpg' \(Anger\)"):
        pair_labels(["1.jpg"], {"x/1.jpg": "Fear", "y/1.jpg": "Anger"})


def test_an_image_given_twice_has_its_label_twice() -> None:
    assert pair_labels(["a.jpg", "a.jpg"], {"a.jpg": "Fear"}).labels == ("Fear", "Fear")


def test_the_faces_collection_reads_as_its_readme_counts(shared: Path) -> None:
    labels = read_labels(shared / "data/faces/EmoLabel/list_patition_label.txt", RAFDB)
    test = [label for file, label in labels.items() if file.startswith("test_")]
    # Counts of the test split by class, from the collection's own readme, in RAF-DB's order.
    assert [test.count(name) for name in RAFDB] == [77, 3, 42, 1028, 68, 38, 1187]
