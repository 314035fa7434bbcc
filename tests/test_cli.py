"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import csv
import inspect
import io
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from sklearn import metrics

import poster_zoo
from poster_zoo.cli import main
from poster_zoo.data import create_transform
from poster_zoo.errors import counted
from poster_zoo.labels import FERPLUS

COMMAND = [sys.executable, "-m", "poster_zoo"]
# The package is found from any folder, whether or not it is installed.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(poster_zoo.__file__).parents[1])}


def runner() -> CliRunner:
    """Return a runner that keeps stdout and stderr apart, which click did not do by itself before 8.2."""
    if "mix_stderr" in inspect.signature(CliRunner).parameters:
        return CliRunner(mix_stderr=False)  # type: ignore[call-arg]
    return CliRunner()


def run(*arguments: str) -> Result:
    """Run a command in this process; nothing but an exit may leave it."""
    result = runner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    return result


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, in which `photos` holds three images in RAF-DB's naming."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in (1, 2, 3):
        pixels = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"test_000{i}_aligned.png")
    return folder


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make building a model a failure: what is wrong has to be said before."""

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the model was built first")

    monkeypatch.setattr("poster_zoo.predict.Predictor.__init__", refuse)


@pytest.fixture
def bundled() -> None:
    if "poster_tiny" not in poster_zoo.list_models(pretrained=True):
        pytest.skip("this checkout carries no weights of poster_tiny")


# --- help


def commands() -> list[str]:
    return sorted(main.commands)


def test_the_commands_import_nothing_heavy_until_they_run() -> None:
    # A bare package stands in for ours, whose own import registers the models with timm and needs torch for that.
    code = (
        "import sys, types\n"
        "package = types.ModuleType('poster_zoo')\n"
        f"package.__path__ = [{str(Path(poster_zoo.__file__).parent)!r}]\n"
        "sys.modules['poster_zoo'] = package\n"
        "from poster_zoo.cli import main\n"
        "main(['predict', '--help'], standalone_mode=False)\n"
        "print(*sys.modules)\n"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "click" in loaded
    assert not {"torch", "timm", "numpy", "PIL", "matplotlib", "huggingface_hub"} & set(loaded)


def examples(name: str) -> list[str]:
    """Return the commands that stand under "Examples:" in a command's help."""
    _, _, end = run(name, "--help").stdout.partition("Examples:\n")
    return [line.strip() for line in end.splitlines() if line.strip()]


@pytest.mark.parametrize("name", commands())
def test_the_help_of_each_command_ends_with_two_commands_to_paste(name: str) -> None:
    assert len(examples(name)) == 2
    assert all(line.startswith(f"poster-zoo {name}") for line in examples(name))


# Stand-ins for the authors' files that the help names, in their layouts.
RELEASES = {"rafdb_best.pth": "poster_rafdb_large", "mobilefacenet_model_best.pth.tar": "mobilefacenet"}


def make_collections(face: Path) -> None:
    """Make, here, the collections that the help names.

    A small `RAF-DB` in its layout, class folders `faces`, and photographs in class folders and by a table, `photos`.
    """
    image = Image.open(face).convert("RGB").resize((100, 100))
    lines = []
    for i, (part, label) in enumerate(itertools.product(("train", "test"), range(1, 8))):
        lines.append(f"{part}_{i:05}.jpg {label}")
        aligned = Path("RAF-DB/Image/aligned", f"{part}_{i:05}_aligned.jpg")
        aligned.parent.mkdir(parents=True, exist_ok=True)
        image.rotate(3 * i).save(aligned)
    Path("RAF-DB/EmoLabel").mkdir()
    Path("RAF-DB/EmoLabel/list_patition_label.txt").write_text("\n".join(lines) + "\n")
    for i, (part, label, number) in enumerate(itertools.product(("train", "valid"), ("happy", "sad"), range(2))):
        file = Path("faces", part, label, f"{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        image.rotate(-3 * i - 1).save(file)
    photograph = Image.new("RGB", (300, 200), "grey")
    photograph.paste(image, (120, 60))
    Path("photos/happy").mkdir(parents=True)
    photograph.save("photos/happy/1.png")
    Path("photos.csv").write_text("file,label\nphotos/happy/1.png,happy\n")


def make_film(face: Path) -> None:
    """Make, here, the video that the help names: a second of one face."""
    for package in ("av", "trackers"):
        pytest.importorskip(package, reason=f"{package} is of the extra `video`")
    from poster_zoo.video import VideoWriter

    image = Image.open(face).convert("RGB").resize((240, 240))
    with VideoWriter("talk.mp4", 10) as writer:
        for i in range(10):
            writer.write(image, i / 10)


@pytest.mark.parametrize("name", commands())
@pytest.mark.usefixtures("bundled")
def test_the_commands_in_the_help_run(name: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").mkdir()
    shutil.copy(root / "examples" / "face.png", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    make_collections(root / "examples" / "face.png")
    if name == "demo":
        pytest.skip("it serves until it is stopped; tests/test_demo.py opens its page")
    if name == "video":
        make_film(root / "examples" / "face.png")
    for example in examples(name):
        arguments = shlex.split(example)[1:]
        for file in RELEASES.keys() & set(arguments):
            torch.save(checkpoints.checkpoint(RELEASES[file]), file)
        result = run(*arguments)
        assert result.exit_code == 0, result.stderr
        assert result.stdout
        if "--plot" in arguments:
            assert (tmp_path / arguments[arguments.index("--plot") + 1]).is_file()


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout.split()[-1] == poster_zoo.__version__


# --- list and info


def test_list_shows_every_model_once() -> None:
    result = run("list")
    header, *rows = result.stdout.splitlines()
    assert header.split() == ["model", "parameters", "input", "answers", "weights"]
    assert [row.split()[0] for row in rows] == poster_zoo.list_models()
    (row,) = (row for row in rows if row.startswith("poster_rafdb "))
    assert "224 × 224" in row
    assert "7 classes" in row
    assert "convert rafdb_best.pth" in row


def test_list_json_says_the_same() -> None:
    models = json.loads(run("list", "poster_tiny", "--json").stdout)
    assert [model["name"] for model in models] == poster_zoo.list_models("poster_tiny*")
    built = poster_zoo.create_model("poster_tiny")
    assert models[0]["parameters"] == sum(p.numel() for p in built.parameters())
    assert models[0]["classes"] == len(FERPLUS)
    assert models[0]["input"] == [3, 112, 112]


def test_list_takes_part_of_a_name_or_wildcards() -> None:
    def names(pattern: str) -> list[str]:
        return [model["name"] for model in json.loads(run("list", pattern, "--json").stdout)]

    assert names("caers") == ["poster_v2_caers"]
    assert names("poster_v2") == names("poster_v2*")
    assert names("poster_?2_c*") == ["poster_v2_caers"]


def test_list_without_a_match_says_so_and_exits_1() -> None:
    result = run("list", "nosuch", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == []
    assert "'nosuch'" in result.stderr


def test_info_tells_the_labels_in_order_and_where_weights_come_from() -> None:
    text = run("info", "poster_rafdb").stdout
    assert "0 Surprise, 1 Fear, 2 Disgust, 3 Happiness, 4 Sadness, 5 Anger, 6 Neutral" in text
    assert "0.9205 published" in text
    for topic in ("parameters", "cost", "input", "weights", "sha256", "licence", "origin", "paper", "metrics"):
        assert re.search(rf"^{topic} ", text, re.MULTILINE), topic


def test_info_json_is_the_whole_entry() -> None:
    known = json.loads(run("info", "poster_v2_caers", "--json").stdout)
    info = poster_zoo.model_info("poster_v2_caers")
    assert known["label_names"] == ["Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise"]
    assert known["preprocessing"]["mean"] == list(info.weights.preprocessing.mean)
    assert known["source"]["reason"] == info.source.reason
    assert set(vars(info.weights)) <= set(known)


@pytest.mark.parametrize("name", poster_zoo.list_models())
def test_info_knows_every_model(name: str) -> None:
    assert run("info", name).stdout.startswith(f"{name}: ")


# --- predict


def test_json_is_one_object_an_image_and_what_the_model_computes(photos: Path, model: str) -> None:
    result = run("predict", "photos", "--json", "-m", model)
    assert result.exit_code == 0
    answers = lines(result)
    assert [answer["source"] for answer in answers] == [f"photos/test_000{i}_aligned.png" for i in (1, 2, 3)]
    net = poster_zoo.create_model(model, pretrained=True).eval()
    transform = create_transform(net)
    for answer in answers:
        assert list(answer) == ["source", "label", "score", "probabilities", "face"]
        assert answer["face"] is None  # there is none in noise
        with torch.inference_mode():
            expected = net(transform(Image.open(answer["source"])).unsqueeze(0)).softmax(1)[0]
        assert list(answer["probabilities"]) == list(FERPLUS)
        assert list(answer["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-5)
        assert answer["label"] == FERPLUS[int(expected.argmax())]
        assert answer["score"] == answer["probabilities"][answer["label"]]


def test_the_table_has_a_line_an_image(photos: Path, model: str) -> None:
    table = run("predict", "photos", "-m", model).stdout.splitlines()
    answers = lines(run("predict", "photos", "--json", "-m", model))
    assert table[0].split() == ["image", "face", "label", "score", "next"]
    for row, answer in zip(table[1:], answers, strict=True):
        ranked = sorted(answer["probabilities"], key=answer["probabilities"].get, reverse=True)
        source, label, score, rest = row.replace("none: whole image", "").split(maxsplit=3)
        assert (source, label, score) == (answer["source"], answer["label"], f"{answer['score']:.2f}")
        assert re.findall("[A-Z][a-z]+", rest) == ranked[1:3]


def test_csv_has_a_header_and_a_column_for_each_label(photos: Path, model: str) -> None:
    (photos / "zero.png").touch()
    rows = list(csv.DictReader(io.StringIO(run("predict", "photos", "--csv", "-m", model).stdout)))
    answers = lines(run("predict", "photos", "--json", "-m", model))
    face = ["left", "upper", "right", "lower", "face_score"]
    assert list(rows[0]) == ["source", "label", "score", *face, *FERPLUS, "error"]
    for row, answer in zip(rows, answers, strict=True):
        assert row["source"] == answer["source"]
        assert row["error"] == answer.get("error", "")
        assert row["label"] == answer.get("label", "")
        for label, probability in answer.get("probabilities", {}).items():
            assert float(row[label]) == pytest.approx(probability, abs=1e-6)


def test_a_broken_image_is_told_in_its_place_and_the_rest_is_answered(photos: Path, model: str) -> None:
    (photos / "test_0002_aligned.png").write_bytes(b"no image")
    result = run("predict", "photos", "gone.png", "--json", "-m", model)
    assert result.exit_code == 1
    first, broken, third, gone = lines(result)
    assert set(broken) == set(gone) == {"source", "error"}
    assert "label" in first
    assert "label" in third
    assert "does not exist" in gone["error"]
    assert result.stderr.startswith("2 of 4 images failed; the first: ")
    table = run("predict", "photos", "-m", model)
    assert table.exit_code == 1
    assert broken["error"] in table.stdout.splitlines()[2]


@pytest.mark.parametrize("given", ["photos", "./photos", "photos/", "../{}/photos"])
def test_sources_are_paths_as_they_were_given(photos: Path, model: str, given: str) -> None:
    given = given.format(photos.parent.name)
    sources = [answer["source"] for answer in lines(run("predict", given, "--json", "-m", model))]
    assert sources == [f"{given.rstrip('/')}/test_000{i}_aligned.png" for i in (1, 2, 3)]


def test_an_image_given_twice_is_answered_once_and_that_is_said(photos: Path, model: str) -> None:
    result = run("predict", "photos/test_0003_aligned.png", "photos", "./photos", "--json", "-m", model)
    names = [Path(answer["source"]).name for answer in lines(result)]
    assert names == [f"test_000{i}_aligned.png" for i in (3, 1, 2)]
    assert "4 images were given more than once" in result.stderr


def test_any_file_name_comes_through(photos: Path, model: str) -> None:
    names = ["-dash.png", "a\nb.png", '表情, quoted ".png', os.fsdecode(b"\xff\xfe.png")]
    for name in names:
        shutil.copy(photos / "test_0001_aligned.png", name)
    given = ["predict", "-m", model]
    assert [answer["source"] for answer in lines(run(*given, "--json", "--", *names))] == names
    assert len(run(*given, "--", *names).stdout.splitlines()) == 1 + len(names)
    sources = [row["source"] for row in csv.DictReader(io.StringIO(run(*given, "--csv", "--", *names).stdout))]
    assert sources == [*names[:3], "\\udcff\\udcfe.png"]


@pytest.mark.usefixtures("photos", "no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "There are no images in the folder 'empty'"),
        (["photos", "texts"], "There are no images in the folder 'texts'"),
        (["gone.png", "lost"], "There is no 'gone.png' and no 'lost'"),
        (["photos", "--plot", "absent/a.png"], "has no folder to go to; make 'absent' first"),
        (["photos", "--plot", "empty"], "'empty', which is a folder"),
        (["photos", "--plot", "a.bmp"], "end its name in .png, .svg, .pdf"),
        (["photos", "--plot", "photos/test_0001_aligned.png"], "would overwrite an image"),
        (["photos", "--labels", "gone.csv"], "gone.csv"),
        (["photos", "--labels", "labels.csv", "--plot", "b.png"], "'b_confusion.png', which is a folder"),
        (["photos", "--json", "--csv"], "--json and --csv exclude each other"),
        (["photos", "--batch-size", "0"], "--batch-size"),
        ([], "Missing argument"),
    ],
)
def test_wrong_use_is_one_sentence_before_any_work_and_exit_2(arguments: list[str], message: str) -> None:
    Path("empty").mkdir()
    Path("b_confusion.png").mkdir()
    Path("texts").mkdir()
    Path("texts/a.txt").touch()
    Path("labels.csv").write_text("test_0001.png,happy\n")
    result = run("predict", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert len(re.findall("^Error: ", result.stderr, re.MULTILINE)) == 1


def test_an_unknown_model_is_answered_with_the_nearest(photos: Path) -> None:
    for arguments in (["predict", "photos", "-m", "poster_tinny"], ["info", "poster_tinny"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Did you mean 'poster_tiny'" in result.stderr
        assert result.stdout == ""


def test_a_device_that_is_not_there_is_wrong_use(photos: Path, model: str) -> None:
    result = run("predict", "photos", "-m", model, "--device", "abacus")
    assert result.exit_code == 2
    assert "'abacus'" in result.stderr


def test_a_model_without_names_for_its_outputs_is_wrong_use(photos: Path, tmp_path: Path) -> None:
    poster_zoo.save_pretrained(poster_zoo.create_model("poster_tiny", num_classes=3), tmp_path / "nameless")
    result = run("predict", "photos", "-m", "local-dir:nameless")
    assert result.exit_code == 2
    assert re.fullmatch("Error: The model 'local-dir:nameless' has no names of expressions.*\n", result.stderr)


@pytest.mark.usefixtures("bundled")
@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "photos"],
        ["landmarks", "photos/test_0001_aligned.png"],
        ["train", "--data", "folder:photos", "--out", "run"],
        ["eval", "--data", "folder:photos"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_detector_is_not_asked_for_expressions(photos: Path, arguments: list[str]) -> None:
    (photos / "Happy").mkdir()
    shutil.copy(photos / "test_0001_aligned.png", photos / "Happy")
    result = run(*arguments, "--model", "centerface")
    assert result.exit_code == 2
    assert re.search(r"Error: centerface finds faces in pictures of any size; .* as poster_tiny\.\n$", result.stderr)


def test_without_a_model_the_embedded_one_answers_about_a_real_face(root: Path) -> None:
    (answer,) = lines(run("predict", str(root / "examples" / "face.png"), "--json"))
    assert answer["label"] == "Happiness"


# --- predict with labels


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1200, "1,200 images")],
)
def test_what_is_counted_is_named_as_its_number_wants(number: int, words: str) -> None:
    assert counted(number, "image") == words
    verb = "is" if number == 1 else "are"
    assert counted(number, "class is", "classes are") == f"{number:,} class{'' if number == 1 else 'es'} {verb}"


def test_one_image_is_no_images(photos: Path, model: str) -> None:
    labels = photos.parent / "labels.csv"
    labels.write_text("image,label\ntest_0001_aligned.png,Happiness\ngone.png,Fear\n")
    image = str(photos / "test_0001_aligned.png")
    given = ["predict", "-m", model, "--faces", "none"]
    told = run(*given, image, image, "--labels", str(labels), "--json").stderr
    assert "1 image was given more than once" in told
    assert "1 labelled image: accuracy" in told
    assert "1 label has no image here" in told
    out = str(photos.parent / "out")
    assert run(*given, image, "--out", out).stderr.startswith(f"{out} holds the answers about 1 image.\n")
    assert run(*given, image, "--out", out).stderr.startswith(
        f"{out} holds the answers about 1 image, by an earlier run."
    )
    assert run(*given, "gone.png", image, "--json").stderr.startswith("1 of 2 images failed")
    (photos / "broken.png").write_bytes(b"no image")
    assert run(*given, str(photos / "broken.png"), "--json").stderr.startswith("1 of 1 image failed")


@pytest.fixture
def labelled(photos: Path) -> Path:
    """RAF-DB's list for the three images and one more: Happiness, Surprise, Fear, Sadness."""
    path = photos.parent / "list_patition_label.txt"
    path.write_text("test_0001.png 4\ntest_0002.png 1\ntest_0003.png 2\ntest_0004.png 5\n")
    return path


def test_labels_add_the_true_names_and_numbers_and_the_scores(photos: Path, labelled: Path, model: str) -> None:
    shutil.copy(photos / "test_0001_aligned.png", photos / "unlabelled.png")
    given = ["predict", "photos", "-m", model, "--labels", str(labelled)]
    answers = lines(result := run(*given, "--json"))
    assert result.exit_code == 0
    assert [answer["true_label"] for answer in answers] == ["Happiness", "Surprise", "Fear", None]
    true = [answer["true_label"] for answer in answers[:3]]
    predicted = [answer["label"] for answer in answers[:3]]
    accuracy = metrics.accuracy_score(true, predicted)
    recall = metrics.recall_score(true, predicted, labels=true, average="macro")
    expected = (
        f"3 labelled images: accuracy {accuracy:.4f}, mean class accuracy {recall:.4f} "
        "over the 3 of 8 classes that have images"
    )
    assert expected in result.stderr
    assert "1 of 4 images has no label, as 'photos/unlabelled.png'" in result.stderr
    assert "1 label has no image here, as that of 'test_0004.png'" in result.stderr

    table = run(*given)
    assert expected in table.stdout
    header, *rows = table.stdout.splitlines()[:5]
    assert header.split()[:7] == ["image", "true", "predicted", "true", "name", "predicted", "name"]
    for row, answer in zip(rows[:3], answers, strict=False):
        cells = row.split()
        numbers = [str(FERPLUS.index(answer["true_label"])), str(FERPLUS.index(answer["label"]))]
        assert cells[:5] == [answer["source"], *numbers, answer["true_label"], answer["label"]]
        assert ("wrong" in cells) == (answer["true_label"] != answer["label"])

    rows_of_csv = list(csv.DictReader(io.StringIO(run(*given, "--csv").stdout)))
    assert [row["true_number"] for row in rows_of_csv] == ["1", "2", "6", ""]
    assert [row["true_label"] for row in rows_of_csv] == ["Happiness", "Surprise", "Fear", ""]
    assert [row["label_number"] for row in rows_of_csv] == [str(FERPLUS.index(a["label"])) for a in answers]


def test_labels_and_plot_write_the_sheet_and_the_matrix_beside_it(photos: Path, labelled: Path, model: str) -> None:
    result = run("predict", "photos", "-m", model, "--labels", str(labelled), "--plot", "out.svg", "--json")
    assert result.exit_code == 0
    assert len(lines(result)) == 3
    assert "Wrote out.svg" in result.stderr
    assert "Wrote out_confusion.svg" in result.stderr
    assert "true: Happiness" in Path("out.svg").read_text()
    assert "no images" in Path("out_confusion.svg").read_text()
    with open("out_confusion.csv", newline="") as table:
        assert sum(int(row["images"]) for row in csv.DictReader(table)) == 3


def test_plot_without_labels_writes_the_sheet_alone(photos: Path, model: str) -> None:
    assert run("predict", "photos", "-m", model, "--plot", "out.png").exit_code == 0
    assert sorted(path.name for path in Path().glob("*.png")) == ["out.png"]


def test_a_label_the_model_does_not_know_shows_both_lists(photos: Path, model: str) -> None:
    Path("labels.csv").write_text("file,label\ntest_0001.png,happy\ntest_0002.png,bored\n")
    result = run("predict", "photos", "-m", model, "--labels", "labels.csv")
    assert result.exit_code == 1
    assert "line 3: 'bored'" in result.stderr
    assert ", ".join(FERPLUS) in result.stderr
    assert result.stdout == ""


def test_labels_that_name_none_of_the_images_are_refused_before_any_answer(photos: Path, model: str) -> None:
    Path("labels.csv").write_text("face_1.png,happy\n")
    result = run("predict", "photos", "-m", model, "--labels", "labels.csv")
    assert result.exit_code == 1
    assert "names none of the images" in result.stderr
    assert result.stdout == ""


def test_labelled_images_that_are_all_broken_give_no_accuracy(photos: Path, labelled: Path, model: str) -> None:
    for image in photos.iterdir():
        image.write_bytes(b"")
    result = run("predict", "photos", "-m", model, "--labels", str(labelled), "--plot", "out.png")
    assert result.exit_code == 1
    assert "there is no accuracy" in result.stderr
    assert Path("out.png").exists()
    assert not Path("out_confusion.png").exists()


# --- landmarks


def test_landmarks_are_what_the_models_own_stream_computes(photos: Path, model: str) -> None:
    image = "photos/test_0001_aligned.png"
    found = json.loads(run("landmarks", image, "--json", "-m", model).stdout)
    net: Any = poster_zoo.create_model(model, pretrained=True).eval()
    with torch.inference_mode():
        points = net.forward_landmarks(create_transform(net)(Image.open(image)).unsqueeze(0))
    # The images are 50 pixels wide and 40 high.
    expected = points.reshape(68, 2).double().numpy() * (50, 40)
    assert found["source"] == image
    assert found["model"] == model
    assert np.allclose(found["landmarks"], expected, atol=1e-3)
    header, *rows = run("landmarks", image, "-m", model).stdout.splitlines()
    assert header.split() == ["point", "x", "y", "part"]
    assert [row.split()[0] for row in rows] == [str(i) for i in range(68)]
    assert [float(value) for value in rows[40].split()[1:3]] == pytest.approx(expected[40], abs=0.06)


def test_landmarks_are_drawn(photos: Path, model: str) -> None:
    result = run("landmarks", "photos/test_0001_aligned.png", "-m", model, "--plot", "points.png", "--json")
    assert result.exit_code == 0
    assert len(lines(result)) == 1
    assert "Wrote points.png" in result.stderr
    assert Image.open("points.png").size == (900, 720)


@pytest.mark.usefixtures("photos", "no_model")
def test_landmarks_of_an_image_that_cannot_be_read_is_a_failure_before_the_model_is_built() -> None:
    Path("zero.png").touch()
    for image, message in (("zero.png", "is empty"), ("gone.png", "does not exist")):
        result = run("landmarks", image)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert re.fullmatch(f"Error: .*{message}.*\n", result.stderr)
    assert run("landmarks", "zero.png", "--plot", "absent/a.png").exit_code == 2


# --- failures


def failing(error: BaseException) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("key"), 1, r"This is a bug in poster-zoo, not your mistake \(KeyError: 'key'\).*Please send"),
        (RuntimeError("odd"), 1, r"This is a bug in poster-zoo.*RuntimeError: odd"),
        (MemoryError(), 1, "The memory is full; try a smaller --batch-size"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 1, "The memory is full"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "The memory is full"),
        (
            RuntimeError("[/src/gloo/gloo/pair.cc:5] Read error [127.0.0.1]:7: Connection reset by peer. This is."),
            1,
            r"Another process of this work has ended .*\(Read error \[127.0.0.1\]:7: Connection reset by peer\)",
        ),
        (
            torch.distributed.DistBackendError("NCCL error in: x.cpp:3,\nLast error:\nsocket"),
            1,
            r"Another process of this work .*\(NCCL error in: x.cpp:3, Last error: socket\)",
        ),
        (OSError(28, "No space left on device", "out.png"), 1, r"No space left on device: 'out\.png'; make room"),
        (PermissionError(13, "Permission denied", "secret"), 1, "Permission denied: 'secret'"),
        (poster_zoo.PosterZooError("Something that we know of."), 1, r"Something that we know of\."),
    ],
)
def test_every_failure_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, message: str
) -> None:
    monkeypatch.setattr(poster_zoo, "list_models", failing(error))
    result = run("list")
    assert result.exit_code == code
    assert re.fullmatch(f"Error: {message}.*\n", result.stderr)
    assert result.stdout == ""


def test_the_traceback_is_for_those_who_ask_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poster_zoo, "list_models", failing(KeyError("key")))
    monkeypatch.setenv("POSTER_ZOO_DEBUG", "1")
    result = runner().invoke(main, ["list"])
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "a bug in poster-zoo" in result.stderr


# --- as a process


@pytest.fixture
def many(photos: Path, model: str) -> Iterator[subprocess.Popen[str]]:
    """A run over many images, one at a time, that has just given its first answer."""
    for i in range(300):
        shutil.copy(photos / "test_0001_aligned.png", photos / f"copy_{i}.png")
    command = [*COMMAND, "predict", "photos", "-m", model, "--json", "--batch-size", "1"]
    # A session of its own, so that the signal meets it alone and as a terminal would send it.
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        assert first, process.stderr.read()
        assert json.loads(first)["label"] in FERPLUS
        yield process
        process.kill()


def test_answers_come_while_the_rest_is_worked_on_and_ctrl_c_ends_in_one_line(many: subprocess.Popen[str]) -> None:
    many.send_signal(signal.SIGINT)
    _, stderr = many.communicate()
    assert many.returncode == 130
    assert stderr == "Interrupted.\n"


def test_a_reader_that_has_had_enough_ends_it_quietly(many: subprocess.Popen[str]) -> None:
    assert many.stdout is not None
    many.stdout.close()
    many.wait()
    assert many.stderr is not None
    assert many.stderr.read() == ""
    assert many.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["info", "poster_tiny"]])
def test_a_full_disk_under_stdout_is_one_sentence(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
    assert result.returncode == 1
    assert result.stderr == "Error: No space left on device; make room and try again.\n"


def test_stdout_in_another_encoding_takes_every_name(photos: Path, model: str) -> None:
    shutil.copy(photos / "test_0001_aligned.png", "表情.png")
    environment = ENVIRONMENT | {"PYTHONIOENCODING": "latin-1"}
    command = [*COMMAND, "predict", "表情.png", "-m", model]
    result = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert b"\\u8868\\u60c5.png" in result.stdout
