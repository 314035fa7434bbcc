"""`poster-zoo train`: what it is told, what it recalls, what it begins with, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import torch
from safetensors.torch import load_file
from training_faces import CLASSES, OPTIONS, invoke, write_class_folders

import poster_zoo
from poster_zoo.cli.train import _said_once, command
from poster_zoo.errors import DatasetError, ImageError, LabelError, PosterZooError, TrainingError
from poster_zoo.models._builder import STREAMS
from poster_zoo.train import Recipe, find_recipe
from poster_zoo.train.prepare import build_model
from poster_zoo.weights.find import installed_folder


class Killed(BaseException):
    """Stands for SIGKILL within this process: nothing of ours catches it."""


@pytest.fixture(autouse=True)
def no_pictures() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poster_zoo.train.run.RunFolder.draw", lambda *_: None)
        yield


# --- what a POSTER begins with


@pytest.mark.parametrize("name", ["poster_tiny", "poster_tiny_baseline"])
def test_a_tiny_poster_begins_with_the_landmark_stream_of_poster_tiny(name: str) -> None:
    known: Any = poster_zoo.create_model("poster_tiny", pretrained=True)
    model, random = (build_model(name, Recipe(seed=3), pretrained_streams=streams) for streams in (None, False))
    ours = model.landmark_stream.state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in known.landmark_stream.state_dict().items())
    assert not any(weight.requires_grad for weight in model.landmark_stream.parameters())
    assert all(weight.requires_grad for weight in random.landmark_stream.parameters())
    assert torch.equal(model.image_stream.stem.conv.weight, random.image_stream.stem.conv.weight)
    assert torch.equal(model.head.weight, random.head.weight)


def test_a_poster_begins_with_ir50_and_mobilefacenet() -> None:
    for name in STREAMS:
        poster_zoo.save_pretrained(poster_zoo.create_model(name), installed_folder(name))
    model = build_model("poster_small", Recipe())
    for stream, name in (("image_stream", "ir50"), ("landmark_stream", "mobilefacenet")):
        theirs = load_file(installed_folder(name) / "model.safetensors")
        theirs = {key.removeprefix("trunk."): tensor for key, tensor in theirs.items()}
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in getattr(model, stream).state_dict().items())


def test_a_poster_whose_streams_have_no_weights_says_how_to_get_them(project: Path) -> None:
    result = invoke("--model", "poster_small", "--data", "folder:faces", "--out", "run")
    assert result.exit_code == 1
    assert "poster-zoo convert ir50.pth --model ir50 --install" in result.stderr
    assert "begins with those of ir50 and mobilefacenet. --no-pretrained-streams trains all of it" in result.stderr
    assert not (project / "run").exists()


def test_without_pretrained_streams_all_of_a_poster_learns_and_that_is_said(project: Path) -> None:
    asked = ["--model", "poster_tiny", "--data", "folder:faces", "--epochs", "1", "--batch-size", "9"]
    done = invoke(*asked, "--out", "run", "--no-pretrained-streams")
    assert done.exit_code == 0, done.stderr
    assert "the landmark stream learns with the rest" in done.stderr
    begun = build_model("poster_tiny", find_recipe("run/recipe.json"), pretrained_streams=False).state_dict()
    trained = load_file("run/last/model.safetensors")
    name = "landmark_stream.stem.0.conv.weight"
    assert not torch.equal(trained[name], begun[name])


# --- what is recalled


def test_the_command_resumes_without_saying_everything_again(project: Path) -> None:
    result = invoke(*OPTIONS, "--epochs", "1", "--out", "run")
    assert result.exit_code == 0, result.stderr
    assert "valid accuracy" in result.stdout
    assert "local-dir:run/best" in result.stdout
    assert "27 images to train on" in result.stderr
    again = invoke("--out", "run", "--resume", "--json")
    assert again.exit_code == 0, again.stderr
    facts = json.loads(again.stdout)
    assert (facts["epochs"], facts["best_epoch"], facts["out"]) == (1, 1, "run")
    assert facts["best"]["valid_accuracy"] == facts["last"]["valid_accuracy"]

    refused = invoke("--out", "run", "--resume", "--epochs", "2", "--model", "poster_tiny")
    assert refused.exit_code == 2
    assert "epochs: 1 in the run, 2 now" in refused.stderr
    assert 'model: "local-dir:model" in the run, "poster_tiny" now' in refused.stderr
    taken = invoke(*OPTIONS, "--out", "run")
    assert taken.exit_code == 2
    assert "already holds a run" in taken.stderr


@pytest.mark.parametrize("killed_between_renames", [False, True])
def test_resume_needs_nothing_of_what_the_run_began_with(project: Path, killed_between_renames: bool) -> None:
    asked = [*OPTIONS, "--epochs", "2", "--new-head"]
    straight = invoke(*asked, "--out", "straight")
    assert straight.exit_code == 0, straight.stderr
    stop_after_an_epoch(*asked, "--out", "run")
    (project / "model").rename(project / "elsewhere")
    if killed_between_renames:
        (project / "run" / "last").rename(project / "run" / ".last.new")
        (project / "run" / ".last.old").mkdir()
    done = invoke("--out", "run", "--resume")
    assert done.exit_code == 0, done.stderr
    for name in ("last/model.safetensors", "best/model.safetensors", "best/config.json"):
        assert (project / "run" / name).read_bytes() == (project / "straight" / name).read_bytes(), name


def test_a_resumed_poster_learns_what_it_learned_before(project: Path) -> None:
    asked = ["--model", "poster_tiny", "--data", "folder:faces", "--epochs", "2", "--batch-size", "9"]
    asked += ["--no-pretrained-streams", "--no-check"]
    assert invoke(*asked, "--out", "straight").exit_code == 0
    stop_after_an_epoch(*asked, "--out", "run")
    done = invoke("--out", "run", "--resume")
    assert done.exit_code == 0, done.stderr
    name = "last/model.safetensors"
    assert (project / "run" / name).read_bytes() == (project / "straight" / name).read_bytes()


def stop_after_an_epoch(*arguments: str) -> None:
    """Train, and be killed once the first epoch is through."""

    def kill(*_: Any) -> str:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poster_zoo.cli.train._epoch_line", kill)
        with pytest.raises(Killed):
            invoke(*arguments)


def test_resume_recalls_what_may_change_too_and_takes_it_where_it_is_typed(project: Path) -> None:
    assert invoke(*OPTIONS, "--epochs", "1", "--out", "run", "--no-check", "--device", "cpu").exit_code == 0
    again = invoke("--out", "run", "--resume", "--workers", "1")
    assert again.exit_code == 0, again.stderr
    assert "collection" not in again.stderr  # the table of the check
    options = json.loads((project / "run" / "run.json").read_text())["options"]
    assert options == {"device": "cpu", "check": False, "workers": 1, "save_every": 1}


def test_killed_while_the_images_are_read_the_short_resume_starts_afresh(project: Path) -> None:
    def kill(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poster_zoo.data.check.check_dataset", kill)
        with pytest.raises(Killed):
            invoke(*OPTIONS, "--epochs", "1", "--out", "run")
    done = invoke("--out", "run", "--resume", "--json")
    assert done.exit_code == 0, done.stderr
    straight = invoke(*OPTIONS, "--epochs", "1", "--out", "straight", "--json")
    for name in ("train_loss", "valid_loss"):
        assert json.loads(done.stdout)["last"][name] == json.loads(straight.stdout)["last"][name]


def test_killed_before_all_is_written_down_the_folder_is_free(project: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        real = json.dumps

        def kill_at_facts(value: Any, **options: Any) -> str:
            if options and isinstance(value, dict) and "data" in value:
                raise Killed
            return real(value, **options)

        patch.setattr("poster_zoo.train.run.json.dumps", kill_at_facts)
        with pytest.raises(Killed):
            invoke(*OPTIONS, "--epochs", "2", "--out", "run")
    assert (project / "run" / "recipe.json").is_file()
    assert not (project / "run" / "run.json").exists()
    assert "there is no run to go on with" in invoke("--out", "run", "--resume").stderr
    assert invoke(*OPTIONS, "--epochs", "1", "--out", "run").exit_code == 0


def test_a_launcher_that_starts_all_again_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke(*OPTIONS, "--epochs", "1", "--out", "run").exit_code == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert invoke(*OPTIONS, "--epochs", "1", "--out", "run").exit_code == 0


def test_a_job_that_torchrun_starts_again_without_counting_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [*OPTIONS, "--epochs", "1", "--out", "run"]
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "faces")
    assert invoke(*asked).exit_code == 0
    assert invoke(*asked).exit_code == 0  # a machine has left, say
    for other in ("more-faces", "none"):  # the last is torchrun's for a job without an id
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", other)
        refused = invoke(*asked)
        assert refused.exit_code == 2
        assert "already holds a run" in refused.stderr


def test_the_launchers_precision_is_the_recipes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert invoke(*OPTIONS, "--epochs", "1", "--out", "run").exit_code == 0
    assert json.loads((project / "run" / "recipe.json").read_text())["precision"] == "bf16"


# --- data and models


def test_a_class_that_the_model_lacks_is_told_with_both_lists_and_new_head_learns_it(project: Path) -> None:
    write_class_folders(project / "other", 30, ("Anger", "Contempt", "Sadness"))
    asked = ["--model", "local-dir:model", "--data", "folder:other", "--epochs", "1", "--batch-size", "8"]
    refused = invoke(*asked, "--out", "run")
    assert refused.exit_code == 1
    assert "Contempt, Sadness" in refused.stderr
    assert "Classes of the data: Anger, Contempt, Sadness" in refused.stderr
    assert f"Labels of the model: {', '.join(CLASSES)}" in refused.stderr
    assert not (project / "run").exists()
    assert invoke(*asked, "--out", "run", "--new-head").exit_code == 0
    model: Any = poster_zoo.create_model("local-dir:run/best")
    assert model.pretrained_cfg["label_names"] == ["Anger", "Contempt", "Sadness"]


def test_several_collections_are_joined_and_bad_files_told_or_skipped(project: Path) -> None:
    write_class_folders(project / "more", 12, ("Happy", "Angry", "neutral"))
    (project / "more" / "Happy" / "0.png").write_bytes(b"no picture")
    asked = [*OPTIONS, "--data", "folder:more", "--epochs", "1", "--out", "run"]
    refused = invoke(*asked)
    assert refused.exit_code == 1
    assert str(Path("more", "Happy", "0.png")) in refused.stderr
    assert "--skip-bad" in refused.stderr
    done = invoke(*asked, "--skip-bad")
    assert done.exit_code == 0, done.stderr
    facts = json.loads((project / "run" / "run.json").read_text())
    assert facts["data"] == ["folder:faces", "folder:more"]
    # The made-up faces of both are the same ones in another order of classes: each is kept where it is chosen by.
    assert facts["train_images"] + facts["valid_images"] <= 41


def test_no_image_left_to_choose_by_is_told_before_training(project: Path) -> None:
    write_class_folders(project / "parted" / "train", 12)
    (project / "parted" / "valid" / "Anger").mkdir(parents=True)
    (project / "parted" / "valid" / "Anger" / "a.png").write_bytes(b"no picture")
    asked = ["--model", "local-dir:model", "--data", "folder:parted", "--epochs", "1", "--batch-size", "4"]
    result = invoke(*asked, "--out", "run", "--skip-bad")
    assert result.exit_code == 1
    assert "has none to choose the best epoch by" in result.stderr
    assert not (project / "run" / "last").exists()


def test_the_epoch_is_chosen_on_test_where_that_is_asked_for(project: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(project / "faces", project / "parted" / split)
    asked = ["--model", "local-dir:model", "--data", "folder:parted", "--epochs", "1", "--batch-size", "8"]
    done = invoke(*asked, "--out", "run", "--select-on", "test")
    assert done.exit_code == 0, done.stderr
    words = "chosen on the test images, as the authors did: its numbers on them are too good"
    assert f"{words}: 30 images" in done.stderr
    assert "test accuracy" in done.stdout
    assert words in (project / "run" / "best" / "README.md").read_text()
    assert json.loads((project / "run" / "run.json").read_text())["test_images"] == 30


def test_a_damaged_config_is_told_in_a_sentence(project: Path) -> None:
    (project / "model" / "config.json").write_text("{")
    result = invoke(*OPTIONS, "--out", "run")
    assert result.exit_code == 1
    assert "config.json cannot be read as JSON" in result.stderr


def test_the_help_offers_no_device_that_is_refused() -> None:
    assert "cuda:1" not in invoke("--help").stdout


@pytest.mark.parametrize("error", [LabelError("a"), DatasetError("b"), TrainingError("c"), ImageError("d")])
def test_another_process_says_what_it_alone_meets(error: PosterZooError) -> None:
    ctx, accelerator = click.Context(command), SimpleNamespace(num_processes=2, is_main_process=False)
    with pytest.raises(type(error)), _said_once(ctx, accelerator):  # type: ignore[arg-type]
        raise error
    error.said = True
    with pytest.raises(click.exceptions.Exit), _said_once(ctx, accelerator):  # type: ignore[arg-type]
        raise error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "folder:faces"], "Missing option '--model'"),
        (["--model", "poster_tiny"], "Missing option '--data'"),
        (["--model", "poster_tiny", "--data", "folder:faces", "--set", "lr"], "write FIELD=VALUE"),
        (["--model", "poster_tiny", "--data", "folder:faces", "--recipe", "rafbd"], "Did you mean 'rafdb'"),
        (["--model", "poster_tinny", "--data", "folder:faces"], "Did you mean 'poster_tiny'"),
        (["--model", "poster_tiny", "--data", "folder:nowhere"], "'nowhere' does not exist"),
        (["--model", "poster_tiny", "--data", "folder:faces", "--select-on", "test"], "leave out --select-on test"),
        (["--model", "poster_tiny", "--data", "folder:faces", "--device", "tpu"], "'tpu'"),
        (["--model", "poster_tiny", "--data", "folder:faces", "--no-check", "--skip-bad"], "--no-check does not go"),
        (["--resume"], "Missing option '--model'. In 'run' there is no run to go on with"),
        (["--model", "local-dir:model", "--data", "folder:faces", "--pretrained-streams"], "has no streams"),
    ],
)
def test_wrong_use_is_told_in_a_sentence(project: Path, arguments: list[str], words: str) -> None:
    result = invoke(*arguments, "--out", "run")
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (project / "run").exists()
