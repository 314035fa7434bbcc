"""`poster-zoo eval`: its numbers against scikit-learn's on what `predict` answers, its figures, its failures."""

from __future__ import annotations

import csv
import inspect
import json
import os
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from scipy import stats
from sklearn import metrics

import poster_zoo
from poster_zoo.cli import main
from poster_zoo.cli.models import load_predictor
from poster_zoo.labels import FERPLUS, RAFDB, canonical_label

IMAGES = 23  # no multiple of a batch


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


def evaluated(*arguments: str) -> dict[str, Any]:
    """Return the one object that `eval --json` prints."""
    result = run("eval", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    (line,) = result.stdout.splitlines()
    known: dict[str, Any] = json.loads(line)
    return known


def picture(seed: int) -> Image.Image:
    """Return a picture of a few large spots of colour."""
    spots = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((40, 50), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = tuple(folder / f"{i}.png" for i in range(IMAGES))
    for i, path in enumerate(paths):
        picture(i).save(path)
    return paths


def made_model(folder: Path, pictures: tuple[Path, ...], seed: int, labels: tuple[str, ...]) -> str:
    """Save a poster_tiny of random weights that answers differently about the pictures; return its name for --model."""
    torch.manual_seed(seed)
    net: Any = poster_zoo.create_model("poster_tiny", num_classes=len(labels)).eval()
    prepare = poster_zoo.create_transform(net)
    with torch.no_grad():
        net.head.weight.mul_(20)
        logits = net(torch.stack([prepare(poster_zoo.read_image(path)) for path in pictures]))
        net.head.bias.sub_(logits.mean(0))  # no class is the answer to everything
    poster_zoo.save_pretrained(net, folder, label_names=labels)
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, pictures: tuple[Path, ...]) -> str:
    return made_model(tmp_path_factory.mktemp("model"), pictures, 0, FERPLUS)


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory, pictures: tuple[Path, ...]) -> str:
    """A second model, which knows RAF-DB's seven classes alone."""
    return made_model(tmp_path_factory.mktemp("rival"), pictures, 1, RAFDB)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rafdb(here: Path, pictures: tuple[Path, ...]) -> list[str]:
    """RAF-DB's layout in the current folder, without images of Anger; the label of each picture."""
    (here / "RAF-DB" / "EmoLabel").mkdir(parents=True)
    (here / "RAF-DB" / "Image" / "aligned").mkdir(parents=True)
    numbers = [1 + i % 7 if i % 7 != 5 else 4 for i in range(IMAGES)]
    lines = [f"test_{i:04}.jpg {number}" for i, number in enumerate(numbers)]
    (here / "RAF-DB" / "EmoLabel" / "list_patition_label.txt").write_text("train_0001.jpg 3\n" + "\n".join(lines))
    for i, path in enumerate(pictures):  # the bytes decide what a file is, not its name
        (here / "RAF-DB" / "Image" / "aligned" / f"test_{i:04}_aligned.jpg").write_bytes(path.read_bytes())
    (here / "RAF-DB" / "Image" / "aligned" / "train_0001_aligned.jpg").write_bytes(pictures[0].read_bytes())
    return [RAFDB[number - 1] for number in numbers]


@lru_cache
def predicted(model: str, pictures: tuple[Path, ...]) -> list[str]:
    """Return what `predict` answers about each picture."""
    lines = run("predict", *map(str, pictures), "--model", model, "--json").stdout.splitlines()
    return [json.loads(line)["label"] for line in lines]


def table(picture: str) -> list[dict[str, str]]:
    """Return the rows of the table beside a picture."""
    with open(Path(picture).with_suffix(".csv"), newline="") as file:
        return list(csv.DictReader(file))


def test_json_says_what_scikit_learn_says_of_the_answers_of_predict(
    rafdb: list[str], model: str, pictures: tuple[Path, ...]
) -> None:
    answers = predicted(model, pictures)
    assert len(set(answers)) > 3
    known = evaluated("--model", model, "--data", "rafdb:RAF-DB")
    assert known["images"] == IMAGES
    assert known["labels"] == list(FERPLUS)
    assert known["accuracy"] == pytest.approx(metrics.accuracy_score(rafdb, answers))
    present = sorted(set(rafdb))
    assert known["classes_with_images"] == len(present) == 6
    expected = metrics.recall_score(rafdb, answers, labels=present, average="macro", zero_division=0)
    assert known["mean_class_accuracy"] == pytest.approx(expected)
    expected = metrics.f1_score(rafdb, answers, labels=present, average="macro", zero_division=0)
    assert known["macro_f1"] == pytest.approx(expected)
    assert known["confusion_matrix"] == metrics.confusion_matrix(rafdb, answers, labels=list(FERPLUS)).tolist()
    for label, rates in zip(FERPLUS, known["confusion_rates"], strict=True):
        if label in present:
            assert sum(rates) == pytest.approx(1)
        else:
            assert rates == [None] * 8
    for label, scores in known["per_class"].items():
        assert scores["count"] == rafdb.count(label)
        assert (scores["recall"] is None) == (label not in present)
    for measure in ("accuracy", "mean_class_accuracy", "macro_f1"):
        low, high = known["intervals"][measure]
        assert 0 <= low <= known[measure] <= high <= 1
    assert 0 <= known["expected_calibration_error"] <= 1
    assert sum(group["answers"] for group in known["calibration"]["bins"]) == IMAGES
    assert known["images_per_second"] > 0
    assert (known["model"], known["data"], known["split"]) == (model, ["rafdb:RAF-DB"], "test")
    assert known["bad_images"] == {"count": 0, "first": []}


@pytest.mark.parametrize("batch_size", ["1", "10", "23", "100"])
def test_an_uneven_last_batch_is_neither_lost_nor_counted_twice(
    rafdb: list[str], model: str, pictures: tuple[Path, ...], batch_size: str
) -> None:
    known = evaluated("--model", model, "--data", "rafdb:RAF-DB", "--batch-size", batch_size)
    assert [sum(row) for row in known["confusion_matrix"]] == [rafdb.count(label) for label in FERPLUS]
    assert known["accuracy"] == pytest.approx(metrics.accuracy_score(rafdb, predicted(model, pictures)))


def test_the_table_prints_the_same_numbers(rafdb: list[str], model: str) -> None:
    given = ["--model", model, "--data", "rafdb:RAF-DB"]
    known, result = evaluated(*given), run("eval", *given)
    assert result.exit_code == 0
    rows = {line[:28].strip(): line[28:].split() for line in result.stdout.splitlines()[2:7]}
    assert rows["accuracy"][0] == f"{known['accuracy']:.4f}"
    assert rows["mean class accuracy"][0] == f"{known['mean_class_accuracy']:.4f}"
    assert rows["macro F1"][0] == f"{known['macro_f1']:.4f}"
    assert rows["expected calibration error"][0] == f"{known['expected_calibration_error']:.4f}"
    assert "over the 6 of 8 classes that have images" in result.stdout
    _, _, matrix = result.stdout.partition("A row is a true class, a column an answer:\n")
    header, *lines = matrix.splitlines()[:9]
    assert header.split() == list(FERPLUS)
    for line, label, counts in zip(lines, FERPLUS, known["confusion_matrix"], strict=True):
        assert line.split() == [label, *map(str, counts)]


def test_published_numbers_stand_beside_and_other_data_in_the_layout_is_told_apart(
    rafdb: list[str], model: str
) -> None:
    given = ["--model", model, "--data", "rafdb:RAF-DB"]
    known = evaluated(*given)
    poster = next(n for n in known["published"] if n["by"] == "POSTER" and n["metric"] == "accuracy")
    assert poster["published"] == 0.9205
    assert poster["measured"] == known["accuracy"]
    assert poster["difference"] == pytest.approx(known["accuracy"] - 0.9205)
    assert (poster["dataset"], poster["dataset_images"], poster["this_model"]) == ("RAF-DB test", 3068, False)
    result = run("eval", *given)
    assert "Published about RAF-DB test, 3,068 images, which these 23 are not:" in result.stdout
    assert f"{known['accuracy'] - 0.9205:+.4f}" in result.stdout
    assert "RAF-DB test has 3,068 images, and here are 23" in result.stderr


def test_published_numbers_stand_beside_where_the_release_s_size_is_not_known(
    here: Path, pictures: tuple[Path, ...], rival: str
) -> None:
    (here / "CAER-S" / "test" / "Happy").mkdir(parents=True)
    (here / "CAER-S" / "test" / "Happy" / "0.png").write_bytes(pictures[0].read_bytes())
    result = run("eval", "--model", rival, "--data", "caers:CAER-S")
    assert result.exit_code == 0, result.stderr
    assert "Published about CAER-S test:" in result.stdout
    assert "images, and here are" not in result.stderr


def test_classes_are_matched_by_name_and_one_that_only_the_data_has_counts_as_wrong(
    here: Path, pictures: tuple[Path, ...], rival: str
) -> None:
    # In the alphabet's order, which is neither the model's nor any release's.
    truth = [("angry", "Contempt", "HAPPY")[i % 3] for i in range(9)]
    for i, label in enumerate(truth):
        (here / "faces" / label).mkdir(parents=True, exist_ok=True)
        (here / "faces" / label / f"{i}.png").write_bytes(pictures[i].read_bytes())
    known = evaluated("--model", rival, "--data", "folder:faces")
    assert known["labels"] == [*RAFDB, "Contempt"]
    same = [canonical_label(label) for label in predicted(rival, pictures)[:9]]
    right = [canonical_label(label) == answer for label, answer in zip(truth, same, strict=True)]
    assert known["accuracy"] == pytest.approx(np.mean(right))
    assert known["per_class"]["Contempt"] == {"recall": 0.0, "precision": None, "f1": 0.0, "count": 3}
    assert known["published"] == []
    assert (
        "no class Contempt; the 3 images of it count as wrong"
        in run("eval", "--model", rival, "--data", "folder:faces").stderr
    )


def test_a_folder_whose_name_is_no_label_is_refused_with_both_lists(
    here: Path, pictures: tuple[Path, ...], rival: str
) -> None:
    for label in ("bored", "happy"):
        (here / "faces" / label).mkdir(parents=True)
        (here / "faces" / label / "a.png").write_bytes(pictures[0].read_bytes())
    result = run("eval", "--model", rival, "--data", "folder:faces", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "bored, happy" in result.stderr
    assert all(label in result.stderr for label in RAFDB)


def test_several_collections_are_joined(rafdb: list[str], here: Path, pictures: tuple[Path, ...], model: str) -> None:
    Path("list.csv").write_text(f"file,label\n{pictures[0]},happy\n{pictures[1]},Contempt\n")
    known = evaluated("--model", model, "--data", "rafdb:RAF-DB", "--data", "csv:list.csv")
    assert known["images"] == IMAGES + 2
    assert known["per_class"]["Happiness"]["count"] == rafdb.count("Happiness") + 1
    assert known["per_class"]["Contempt"]["count"] == 1
    answers = [*predicted(model, pictures), *predicted(model, pictures)[:2]]
    assert known["accuracy"] == pytest.approx(metrics.accuracy_score([*rafdb, "Happiness", "Contempt"], answers))
    assert known["published"] == []


def test_a_split_is_read_where_it_is_asked_for(rafdb: list[str], model: str) -> None:
    known = evaluated("--model", model, "--data", "rafdb:RAF-DB", "--split", "train")
    assert (known["images"], known["split"], known["published"]) == (1, "train", [])
    result = run("eval", "--model", model, "--data", "rafdb:RAF-DB", "--split", "valid")
    assert result.exit_code == 2
    assert "valid" in result.stderr


def test_data_of_one_part_is_read_as_it_is_and_that_is_said(here: Path, pictures: tuple[Path, ...], model: str) -> None:
    Path("list.csv").write_text(f"file,label\n{pictures[0]},happy\n")
    result = run("eval", "--model", model, "--data", "csv:list.csv", "--json")
    assert json.loads(result.stdout)["images"] == 1
    assert "no part 'test'; its only part" in result.stderr


def test_each_joined_collection_of_another_part_is_named(
    rafdb: list[str], pictures: tuple[Path, ...], model: str
) -> None:
    Path("list.csv").write_text(f"file,label\n{pictures[0]},happy\n")
    joined = ["--data", "rafdb:RAF-DB", "--data", "csv:list.csv"]
    result = run("eval", "--model", model, *joined, "--json")
    known = json.loads(result.stdout)
    assert known["images"] == IMAGES + 1
    assert known["splits"] == ["test", "all"]
    assert result.stderr.count("no part 'test'; its only part, 'all', was read") == 1


def test_flip_answers_by_the_mean_over_both_views(rafdb: list[str], model: str, pictures: tuple[Path, ...]) -> None:
    net: Any = poster_zoo.create_model(model, pretrained=True).eval()
    prepare = poster_zoo.create_transform(net)
    batch = torch.stack([prepare(poster_zoo.read_image(path)) for path in pictures])
    with torch.inference_mode():
        mean = (net(batch).softmax(1) + net(batch.flip(-1)).softmax(1)) / 2
    answers = [FERPLUS[int(place)] for place in mean.argmax(1)]
    known = evaluated("--model", model, "--data", "rafdb:RAF-DB", "--flip")
    assert known["flip"] is True
    assert known["confusion_matrix"] == metrics.confusion_matrix(rafdb, answers, labels=list(FERPLUS)).tolist()
    sure = known["calibration"]["by_class"]
    total = sum(group["answers"] * group["mean_score"] for group in sure.values() if group["answers"])
    assert total / IMAGES == pytest.approx(float(mean.amax(1).mean()), abs=1e-5)


def test_a_checkpoint_goes_the_way_of_predict(rafdb: list[str], model: str) -> None:
    weights = str(Path(model.removeprefix("local-dir:")) / "model.safetensors")
    known = evaluated("--model", "poster_tiny", "--checkpoint", weights, "--data", "rafdb:RAF-DB")
    expected = evaluated("--model", model, "--data", "rafdb:RAF-DB")
    assert known["confusion_matrix"] == expected["confusion_matrix"]
    assert (known["model"], known["checkpoint"]) == ("poster_tiny", weights)


@pytest.mark.usefixtures("rafdb")
def test_the_example_with_an_authors_checkpoint_knows_whose_it_is() -> None:
    _, _, end = run("eval", "--help").stdout.partition("Examples:\n")
    plain, example = (shlex.split(line)[1:] for line in end.split("\n") if line.strip())
    assert plain[:1] == example[:1] == ["eval"]
    (listed := Path("RAF-DB/EmoLabel/list_patition_label.txt")).write_text(
        "".join(f"{line}\n" for line in listed.read_text().splitlines()[:3])
    )
    torch.save(checkpoints.checkpoint("poster_rafdb_large"), "rafdb_best.pth")
    result = run(*example)
    assert result.exit_code == 0, result.stderr
    known = json.loads(result.stdout)
    assert known["labels"] == list(RAFDB)
    assert known["model"] == "poster_rafdb"
    own = [number for number in known["published"] if number["this_model"]]
    assert [(number["metric"], number["published"]) for number in own] == [
        ("accuracy", 0.9205),
        ("mean class accuracy", 0.8603),
    ]


# --- two models


def test_two_models_are_put_side_by_side_on_the_same_images(
    rafdb: list[str], model: str, rival: str, pictures: tuple[Path, ...]
) -> None:
    given = ["--compare", model, rival, "--data", "rafdb:RAF-DB"]
    known = evaluated(*given)
    assert known["compare"] == [model, rival]
    a, b = (
        np.array([true == answer for true, answer in zip(rafdb, predicted(name, pictures), strict=True)])
        for name in (model, rival)
    )
    assert (known["both_right"], known["only_first_right"]) == (int((a & b).sum()), int((a & ~b).sum()))
    assert (known["only_second_right"], known["both_wrong"]) == (int((b & ~a).sum()), int((~a & ~b).sum()))
    alone = known["only_first_right"] + known["only_second_right"]
    assert alone
    assert known["p_value"] == pytest.approx(stats.binomtest(known["only_first_right"], alone).pvalue)
    assert known["accuracy_difference"] == pytest.approx(a.mean() - b.mean())
    for side, right in (("first", a), ("second", b)):
        assert known[side]["accuracy"] == pytest.approx(right.mean())
        assert known[side]["labels"] == list(FERPLUS)  # all of RAF-DB's are among them
        assert np.sum(known[side]["confusion_matrix"]) == IMAGES
    result = run("eval", *given)
    assert f"McNemar's exact test: p = {known['p_value']:.3g}" in result.stdout
    assert result.stdout.count("a row is a true class, a column an answer:") == 2


def test_compare_draws_both_matrices_in_one_figure(rafdb: list[str], model: str, rival: str) -> None:
    known = evaluated("--compare", model, rival, "--data", "rafdb:RAF-DB", "--plot", "out/figures")
    assert sorted(os.listdir("out/figures")) == ["comparison.csv", "comparison.png", "evaluation.json"]
    rows = table("out/figures/comparison.png")
    counts = {(row["model"], row["true"], row["answer"]): int(row["images"]) for row in rows}
    assert len(counts) == 2 * 8 * 8
    for name, side in ((model, "first"), (rival, "second")):
        for true, line in zip(FERPLUS, known[side]["confusion_matrix"], strict=True):
            assert [counts[name, true, answer] for answer in FERPLUS] == line


# --- figures


def test_every_figure_is_written_with_its_data(rafdb: list[str], model: str) -> None:
    result = run("eval", "--model", model, "--data", "rafdb:RAF-DB", "--json", "--plot", "figures")
    assert result.exit_code == 0
    known = json.loads(result.stdout)
    names = ("calibration", "confusion_matrix", "mistakes")
    assert sorted(os.listdir("figures")) == sorted(
        [*(f"{name}.png" for name in names), *(f"{name}.csv" for name in names), "evaluation.json"]
    )
    for name in names:
        assert Image.open(f"figures/{name}.png").format == "PNG"
    assert json.loads(Path("figures/evaluation.json").read_text()) == known
    tables = {name: table(f"figures/{name}.png") for name in names}
    assert sum(int(row["images"]) for row in tables["confusion_matrix"]) == IMAGES
    wrong = IMAGES - round(known["accuracy"] * IMAGES)
    assert len(tables["mistakes"]) == wrong
    assert all(row["true"] != row["answer"] for row in tables["mistakes"])
    assert all(Path(row["source"]).is_file() for row in tables["mistakes"])
    scores = [float(row["score"]) for row in tables["mistakes"]]
    assert scores == sorted(scores, reverse=True)
    assert "figures" in result.stderr


# --- failures


def test_broken_images_are_named_and_stop_it_unless_they_are_skipped(
    rafdb: list[str], model: str, pictures: tuple[Path, ...]
) -> None:
    folder = Path("RAF-DB/Image/aligned")
    (folder / "test_0003_aligned.jpg").write_bytes(b"no image")
    (folder / "test_0022_aligned.jpg").unlink()
    given = ["--model", model, "--data", "rafdb:RAF-DB"]
    result = run("eval", *given, "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "test_0003_aligned.jpg" in result.stderr
    assert "test_0022_aligned.jpg" in result.stderr
    assert "--skip-bad" in result.stderr

    result = run("eval", *given, "--json", "--skip-bad")
    assert result.exit_code == 0
    known = json.loads(result.stdout)
    good = [i for i in range(IMAGES) if i not in (3, 22)]
    answers = [predicted(model, pictures)[i] for i in good]
    assert known["images"] == IMAGES - 2
    assert known["accuracy"] == pytest.approx(metrics.accuracy_score([rafdb[i] for i in good], answers))
    assert known["bad_images"]["count"] == 2
    assert [Path(bad["source"]).name for bad in known["bad_images"]["first"]] == [
        "test_0003_aligned.jpg",
        "test_0022_aligned.jpg",
    ]
    assert "2 images were left out" in result.stderr


@pytest.mark.usefixtures("rafdb")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--data'"),
        (["--data", "RAF-DB"], "rafdb:PATH"),
        (["--data", "rafbd:RAF-DB"], "Did you mean 'rafdb'"),
        (["--data", "rafdb:nowhere"], "'nowhere' does not exist"),
        (["--data", "ferplus:RAF-DB"], "does not hold FERPlus"),
        (["--data", "rafdb:RAF-DB", "--plot", "file"], "file"),
        (["--data", "rafdb:RAF-DB", "--plot", "file/figures"], "'file/figures' for the figures cannot be made"),
        (["--data", "rafdb:RAF-DB", "--compare", "poster_tiny"], "--compare"),
        (["--data", "rafdb:RAF-DB", "--compare", "a", "b", "-m", "c"], "--compare names both models"),
        (["--data", "rafdb:RAF-DB", "--compare", "a", "b", "--checkpoint", "c"], "--compare names both models"),
        (["--data", "rafdb:RAF-DB", "-m", "poster_tinny"], "Did you mean 'poster_tiny'"),
        (["--data", "rafdb:RAF-DB", "-m", "mobilefacenet", "--checkpoint", "points.safetensors"], "no names of expr"),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_2(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    Path("file").touch()
    if "mobilefacenet" in arguments:
        poster_zoo.save_pretrained(poster_zoo.create_model("mobilefacenet"), "points")
        os.rename("points/model.safetensors", "points.safetensors")
    result = run("eval", *arguments)
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.count("Error: ") == 1


# --- several processes


def in_two_processes(*arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("accelerate")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(poster_zoo.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [*launch, "-m", "poster_zoo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.mark.usefixtures("rafdb", "one_thread")
def test_two_processes_give_the_numbers_of_one(model: str, rival: str) -> None:
    (Path("RAF-DB/Image/aligned") / "test_0005_aligned.jpg").write_bytes(b"no image")
    # Three batches of ten for two processes, the last one of three images.
    options = ["--data", "rafdb:RAF-DB", "--batch-size", "10", "--skip-bad", "--json"]
    given = ["eval", "--compare", model, rival, *options]
    two = in_two_processes(*given)
    assert two.returncode == 0, two.stderr
    (line,) = two.stdout.splitlines()  # printed once
    one = run(*given)
    known, expected = json.loads(line), json.loads(one.stdout)
    for facts in (known, expected):
        assert facts["bad_images"]["count"] == 1
        for side in (facts["first"], facts["second"]):
            assert np.sum(side["confusion_matrix"]) == IMAGES - 1
            del side["images_per_second"]
    assert same(known, expected)


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values agree, floats to the last digits, which the number of threads may move."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == pytest.approx(other, abs=1e-6) if isinstance(one, float) else bool(one == other)


@pytest.mark.usefixtures("rafdb")
def test_a_broken_image_in_the_share_of_another_process_stops_all(model: str) -> None:
    (Path("RAF-DB/Image/aligned") / "test_0015_aligned.jpg").write_bytes(b"no image")  # of the second batch
    two = in_two_processes("eval", "--model", model, "--data", "rafdb:RAF-DB", "--batch-size", "10", "--json")
    assert two.returncode != 0
    assert two.stdout == ""
    assert "test_0015_aligned.jpg" in two.stderr


# --- where a model computes


def test_the_model_of_a_checkpoint_goes_to_a_gpu_as_a_named_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    devices = []

    class Recorder:
        labels = FERPLUS

        def __init__(self, model: Any, *, device: str, batch_size: int, optimize: bool) -> None:
            devices.append(device)

    monkeypatch.setattr("poster_zoo.predict.Predictor", Recorder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for model, asked in ((torch.nn.Identity(), None), ("poster_tiny", None), ("poster_tiny", "cpu")):
        load_predictor(model, asked, 1, None)
    assert devices == ["cuda", "cuda", "cpu"]
