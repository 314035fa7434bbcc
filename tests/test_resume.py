"""A run that is killed, stopped, resumed or spread over processes comes to the same numbers."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from timm.layers import freeze_batch_norm_2d
from torch import Tensor
from training_faces import OPTIONS, QUICK, SMALL, faces, invoke, numbers, small_model, valid_faces

import poster_zoo
from poster_zoo.errors import ClusterError, LabelError, OptionError, PosterZooError, TrainingError
from poster_zoo.train import Recipe, make_accelerator, train
from poster_zoo.train.interrupt import Interrupt
from poster_zoo.train.processes import by_all, on_main

TESTS = Path(__file__).parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(Path(poster_zoo.__file__).parents[1]), str(TESTS)]),
    "OMP_NUM_THREADS": "1",
}
# All that a run has of state: random changes, dropout, an average of the weights, an optimizer with two moments.
RECIPE = Recipe(**QUICK.to_dict() | {"ema": 0.9, "drop_rate": 0.2, "optimizer": "adamw", "channels_last": True})


class Killed(BaseException):
    """Stands for SIGKILL within this process: nothing of ours catches it."""


@pytest.fixture(autouse=True, scope="module")
def no_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("poster_zoo.train.run.RunFolder.draw", lambda *_: None)
        yield


def run(out: Path, recipe: Recipe = RECIPE, **options: Any) -> Any:
    model = options.pop("model", None) or small_model(drop_rate=recipe.drop_rate)
    return train(model, recipe, faces(), valid_faces(), out, **{"model_args": SMALL, "save_every": 1} | options)


def tensors(out: Path) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": t
        for name in ("last", "best")
        for key, t in load_file(out / name / "model.safetensors").items()
    }


def assert_same(out: Path, other: Path) -> None:
    rows = [[json.loads(line) for line in (o / "metrics.jsonl").read_text().splitlines()] for o in (out, other)]
    assert numbers(rows[0]) == numbers(rows[1])
    ours, theirs = tensors(out), tensors(other)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("straight") / "run"
    run(out)
    return out


# --- killed within this process, at places that a signal would rarely meet


def kill_at_rename(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, left = os.rename, iter(range(number))

    def kill_at_last(*places: Any) -> None:
        if next(left, None) is None:
            raise Killed
        real(*places)

    monkeypatch.setattr("poster_zoo.train.run.os.rename", kill_at_last)


@pytest.mark.parametrize("number", range(1, 12, 2))
def test_killed_between_any_two_renames_a_run_comes_to_the_same(
    number: int, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of three steps an epoch, each is saved, and so is the best epoch: one rename the first time, two later.
    kill_at_rename(number, monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path / "run")
    monkeypatch.undo()
    run(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", straight)
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]


def test_killed_before_the_first_checkpoint_it_starts_afresh(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr("poster_zoo.train.run.RunFolder.save_last", kill)
    with pytest.raises(Killed):
        run(tmp_path / "run")
    monkeypatch.undo()
    run(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", straight)


def test_killed_while_a_checkpoint_is_written_the_one_before_is_used(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import poster_zoo.train.run as module

    real, calls = module.save_file, iter(range(4))

    def half(*arguments: Any) -> None:
        if next(calls, None) is None:
            Path(arguments[1]).write_bytes(b"half")
            monkeypatch.setattr(module.shutil, "rmtree", lambda *_, **__: None)  # SIGKILL leaves no time to tidy up
            raise Killed
        real(*arguments)

    monkeypatch.setattr(module, "save_file", half)
    with pytest.raises(Killed):
        run(tmp_path / "run")
    monkeypatch.undo()
    assert (tmp_path / "run" / ".last.new" / "trainer.safetensors").read_bytes() == b"half"
    run(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", straight)


def test_resuming_a_finished_run_changes_nothing(straight: Path) -> None:
    before = (straight / "metrics.jsonl").read_bytes(), (straight / "last" / "trainer.safetensors").read_bytes()
    done = run(straight, resume=True)
    assert [row["epoch"] for row in done.rows] == [1, 2]
    assert (
        (straight / "metrics.jsonl").read_bytes(),
        (straight / "last" / "trainer.safetensors").read_bytes(),
    ) == before


def test_the_scale_of_fp16_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(**RECIPE.to_dict() | {"precision": "fp16", "epochs": 1})
    run(tmp_path / "straight", recipe)
    kill_at_rename(4, monkeypatch)
    with pytest.raises(Killed):
        run(tmp_path / "run", recipe)
    monkeypatch.undo()
    run(tmp_path / "run", recipe, resume=True)
    assert_same(tmp_path / "run", tmp_path / "straight")
    scales = [
        dict(dict(json.loads((tmp_path / name / "last" / "trainer.json").read_text())["items"])["scaler"]["items"])
        for name in ("run", "straight")
    ]
    assert scales[0] == scales[1]
    assert scales[0]["scale"] <= 2.0**16


# --- whose run it is


def test_a_folder_that_holds_a_run_is_not_taken_for_another(straight: Path) -> None:
    with pytest.raises(OptionError, match=r"already holds a run; go on with it by --resume, or choose another --out"):
        run(straight)


def test_resuming_says_which_settings_differ(straight: Path) -> None:
    other = Recipe(**RECIPE.to_dict() | {"lr": 0.5, "epochs": 7})
    with pytest.raises(OptionError, match=r"epochs: 2 in the run, 7 now; lr: 0.001 in the run, 0.5 now"):
        run(straight, other, resume=True)
    with pytest.raises(OptionError, match=r"train_images: 24 in the run, 18 now; places: nothing in the run, 1 now"):
        train(small_model(), RECIPE, faces(18), valid_faces(), straight, resume=True, facts={"places": 1})


def test_a_checkpoint_that_cannot_be_read_says_what_to_do(tmp_path: Path) -> None:
    recipe = Recipe(**RECIPE.to_dict() | {"epochs": 1})
    run(tmp_path / "run", recipe)
    (tmp_path / "run" / "last" / "trainer.safetensors").write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match=r"cannot be read .*--model local-dir:"):
        run(tmp_path / "run", recipe, resume=True)


# --- the command


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start `poster-zoo train`, in a group of its own."""
    # A shell lets what it starts in the background ignore Ctrl-C; the test's own process may have been started so.
    return subprocess.Popen(
        [sys.executable, "-m", "poster_zoo.train", *arguments],
        env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not file.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.usefixtures("one_thread")
def test_sigkill_then_ctrl_c_then_resume_comes_to_the_same(project: Path) -> None:
    long = [*OPTIONS, "--epochs", "12"]
    victim = start(*long, "--out", "run")
    wait_for(project / "run" / "last" / "trainer.json", victim)
    time.sleep(0.2)  # anywhere
    victim.kill()
    victim.communicate()
    assert victim.returncode == -signal.SIGKILL

    stopped = start("--out", "run", "--resume")
    rows = project / "run" / "metrics.jsonl"
    epochs = len(rows.read_text().splitlines()) if rows.exists() else 0
    wait_for(project / "run" / "environment.json", stopped)
    while len(json.loads((project / "run" / "environment.json").read_text())) < 2:
        assert stopped.poll() is None, stopped.communicate()[1]
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    _, words = stopped.communicate()
    assert stopped.returncode == 130
    assert "--resume goes on from there" in words
    assert words.endswith("Interrupted.\n")
    assert "Traceback" not in words
    state = json.loads((project / "run" / "last" / "trainer.json").read_text())
    progress = dict(dict(state["items"])["progress"]["items"])
    assert epochs <= progress["epoch"] < 12

    assert invoke("--out", "run", "--resume").exit_code == 0
    assert invoke(*long, "--out", "straight").exit_code == 0
    assert_same(project / "run", project / "straight")


def test_a_signal_to_all_its_processes_finishes_the_step_and_saves(project: Path) -> None:
    running = start(*OPTIONS, "--epochs", "300", "--out", "run", "--workers", "1")
    wait_for(project / "run" / "last" / "trainer.json", running)
    os.killpg(running.pid, signal.SIGTERM)  # as torchrun, timeout and a scheduler send it
    _, words = running.communicate()
    assert running.returncode == 128 + signal.SIGTERM, words
    assert words.endswith("What was reached is in run; --resume goes on from there.\n")


def test_a_folder_in_which_another_process_trains_is_left_alone(
    straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = (
        "import fcntl, os, sys; handle = os.open(sys.argv[1], os.O_RDONLY); fcntl.flock(handle, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", lock, str(straight)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    monkeypatch.setattr("poster_zoo.train.run._LOCK_PATIENCE", 0.1)
    with pytest.raises(OptionError, match=r"Another process is training in the folder .*choose another --out"):
        run(straight, resume=True)
    other.kill()  # which leaves it no time to let go
    other.communicate()
    run(straight, resume=True)


def test_ctrl_c_between_the_last_step_of_an_epoch_and_its_measurement_saves(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = Interrupt.noted, count(1)

    def late(self: Interrupt, accelerator: Any) -> bool:
        told = real(self, accelerator)
        if next(calls) == 3:  # of three steps an epoch
            self.signal = signal.SIGINT
        return told

    monkeypatch.setattr(Interrupt, "noted", late)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", save_every=0)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1
    monkeypatch.undo()
    run(tmp_path / "run", resume=True)
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_programs_own_handler_is_called_once_all_is_saved(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    out, saved, steps = tmp_path / "run", [], count(1)

    def own(signal_number: int, frame: Any) -> None:
        state = json.loads((out / "last" / "trainer.json").read_text())
        saved.append((signal_number, dict(dict(state["items"])["progress"]["items"])["updates"]))

    def signalled(self: Any, *arguments: Any) -> Any:
        if next(steps) == 2:
            signal.raise_signal(number)
        return real(self, *arguments)

    from poster_zoo.train.step import Step

    real = Step.__call__
    monkeypatch.setattr(Step, "__call__", signalled)
    before = signal.signal(number, own)
    try:
        done = run(out, save_every=0)
        assert signal.getsignal(number) is own
    finally:
        signal.signal(number, before)
    assert saved == [(number, 2)]  # once
    assert done.rows == ()
    run(out, resume=True)
    assert_same(out, straight)


# --- several processes


ACCUMULATED = Recipe(**QUICK.to_dict() | {"clip": 1.0, "ema": 0.9})
FROZEN = Recipe(**QUICK.to_dict() | {"transform": "plain", "smoothed": 0.0})


def frozen_model() -> Any:
    """The small model, whose BatchNorms stay in eval mode."""
    model = small_model()
    config = model.pretrained_cfg
    model = freeze_batch_norm_2d(model)
    model.pretrained_cfg = config
    return model


def both_runs(folder: Path, accumulate: int) -> None:
    """Train twice: by halves of each batch, dropping at random; and by the whole of it, with BatchNorm in eval mode."""
    halves = Recipe(**ACCUMULATED.to_dict() | {"accumulate": accumulate})
    dropping = small_model(drop_rate=0.3, drop_path_rate=0.3)
    for name, model, recipe in (("halves", dropping, halves), ("whole", frozen_model(), FROZEN)):
        train(model, recipe, faces(29), valid_faces(), folder / name, model_args=SMALL)


def told_of_a_bug(folder: Path) -> None:
    """Let the first process fail by no error of ours, and write down what each process is told."""
    accelerator = make_accelerator("cpu")
    try:
        on_main(accelerator, lambda: 1 // 0)
    except (ArithmeticError, ClusterError) as error:
        (folder / f"told-{accelerator.process_index}").write_text(f"{type(error).__name__}: {error}")


def told_by_one(folder: Path) -> None:
    """Let processes fail each by its own error, by the same, and the second alone; write down what is told where."""
    accelerator = make_accelerator("cpu")
    rank = accelerator.process_index

    def fail(errors: Sequence[str]) -> None:
        if errors[rank]:
            raise LabelError(errors[rank])

    told = []
    for errors in (("no disk", "no room"), ("no model", "no model"), ("", "no data")):
        try:
            by_all(accelerator, partial(fail, errors))
        except PosterZooError as error:
            told.append("" if error.said else f"{type(error).__name__}: {error}")
    try:
        on_main(accelerator, lambda: fail(("no run", "")))
    except PosterZooError as error:
        told.append("" if error.said else f"{type(error).__name__}: {error}")
    assert by_all(accelerator, lambda: rank) == rank
    (folder / f"said-{rank}").write_text("\n".join(told))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def launch(*program: str) -> list[str]:
    """Return the command that starts a program as two processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    return [*torchrun, "--master-addr", "127.0.0.1", "--master-port", str(free_port()), *program]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    program = "import sys, pathlib, test_resume; folder = pathlib.Path(sys.argv[1]); "
    program += "test_resume.both_runs(folder, 1); test_resume.told_of_a_bug(folder); test_resume.told_by_one(folder)"
    script = folder / "program.py"
    script.write_text(program)
    done = subprocess.run(
        launch(str(script), str(folder)),
        env=ENVIRONMENT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows for name in ("train_loss", "valid_loss", "grad_norm")]


@pytest.mark.parametrize("name", ["halves", "whole"])
@pytest.mark.usefixtures("one_thread")
def test_two_processes_come_to_what_one_comes_to(name: str, two_processes: Path, tmp_path: Path) -> None:
    both_runs(tmp_path, 2)
    assert losses(two_processes / name) == pytest.approx(losses(tmp_path / name), rel=1e-5)
    ours, theirs = tensors(two_processes / name), tensors(tmp_path / name)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=1e-5, atol=1e-6, msg=key)
    assert json.loads((two_processes / name / "environment.json").read_text())[0]["processes"] == 2


def test_a_failure_of_the_first_process_is_told_to_those_that_wait_for_it(two_processes: Path) -> None:
    first, second = ((two_processes / f"told-{process}").read_text() for process in (0, 1))
    assert first.startswith("ZeroDivisionError: ")
    assert second.startswith("ClusterError: The first process stopped: ZeroDivisionError")


def test_what_one_process_alone_meets_it_says_and_what_all_meet_is_said_once(two_processes: Path) -> None:
    first, second = ((two_processes / f"said-{process}").read_text().split("\n") for process in (0, 1))
    assert first == [
        "LabelError: no disk",
        "LabelError: no model",
        f"ClusterError: Process 1 of this work, on {platform.node()}, stopped: no data",
        "LabelError: no run",
    ]
    assert second == ["LabelError: no room", "", "LabelError: no data", ""]


@pytest.mark.usefixtures("one_thread")
def test_a_process_that_dies_under_torchrun_is_started_again_and_the_run_goes_on(project: Path) -> None:
    asked = [*OPTIONS, "--epochs", "8", "--device", "cpu"]
    launcher = subprocess.Popen(
        launch("--max-restarts", "1", "-m", "poster_zoo.train", *asked, "--out", "run"),
        env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(project / "run" / "last" / "trainer.json", launcher)
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True).stdout
    os.kill(int(children.split()[-1]), signal.SIGKILL)
    _, words = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, words
    starts = json.loads((project / "run" / "environment.json").read_text())
    assert [start["processes"] for start in starts] == [2, 2]
    assert invoke(*asked, "--set", "accumulate=2", "--out", "straight").exit_code == 0
    assert losses(project / "run") == pytest.approx(losses(project / "straight"), rel=1e-4)
