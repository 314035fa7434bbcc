"""The clock and the counts that benchmarks are made of."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import inference
import numpy as np
import pytest
import run
import torch
from click import ClickException
from click.testing import CliRunner
from PIL import Image
from plain import PlainPoster
from torch import nn

import poster_zoo
from poster_zoo import bench
from poster_zoo.cli import main
from poster_zoo.cli.bench import command
from poster_zoo.errors import OptionError


def test_sides_take_turns_and_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    called = []
    costs = {"slow": iter([90, 90, 5, 1, 100, 3, 2]), "fast": iter([1] * 7)}

    def call(name: str) -> None:
        nonlocal now
        called.append(name)
        now += next(costs[name])

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now)
    timings = bench.take_turns({"slow": lambda: call("slow"), "fast": lambda: call("fast")}, rounds=5)
    assert called == ["slow", "fast"] * 7
    assert timings["slow"] == bench.Timing(median=3, quartiles=(2, 5), rounds=5)  # of 1, 2, 3, 5, 100
    assert timings["fast"].median == 1


@pytest.mark.parametrize("device", ["mps", "xpu", "cuda", "cuda:1"])
def test_the_clock_waits_for_the_device_that_works(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: waited.append("the current one"))
    wait = bench.waiter(torch.device(device))
    assert wait is not None
    wait()
    assert waited == [torch.device(device)]
    assert bench.waiter(torch.device("cpu")) is None


def test_training_is_not_measured_on_another_device_than_it_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = SimpleNamespace(device=torch.device("cuda", 0))
    monkeypatch.setattr("poster_zoo.train.processes.make_accelerator", lambda kind: accelerator)
    with pytest.raises(OptionError, match=r"'cuda:1' was asked for and training runs on 'cuda:0'.*VISIBLE_DEVICES"):
        bench.measure_training("poster_tiny", 2, 3, torch.device("cuda:1"))


def test_two_rounds_have_no_spread() -> None:
    with pytest.raises(OptionError, match="at least 3"):
        bench.take_turns({}, rounds=2)


def test_operations_are_counted_by_kind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    flops = bench.count_flops(model, torch.zeros(2, 3, 4, 4))
    assert flops == {"convolution": 2 * 2 * 8 * 16 * 27, "matmul": 2 * 2 * 128 * 5}
    assert bench.Ceiling(convolution=100, matmul=10).seconds({"convolution": 50, "matmul": 20}) == 2.5


@pytest.mark.parametrize("options", [{}, {"token_mixing": False}], ids=["mixed", "not mixed"])
def test_the_plain_form_gives_the_same_answers(options: dict[str, bool]) -> None:
    model = poster_zoo.create_model("poster_tiny", **options).eval()
    images = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        torch.testing.assert_close(PlainPoster(model)(images), model(images), rtol=1e-4, atol=1e-5)


def test_the_command_times_every_side_and_writes_the_numbers(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    arguments = ["bench", "poster_tiny", "--batch", "2", "--rounds", "3", "--device", "cpu", "--json", str(file)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads(file.read_text())
    [report] = content["reports"]
    assert report["batch"] == 2
    assert report["gmacs"] == pytest.approx(0.389, rel=0.02)
    assert set(report["latency"]) == {"eager", "optimized"}
    assert report["largest_difference"]["optimized"] < 1e-4
    for side, timing in report["latency"].items():
        assert report["images_per_second"][side] == pytest.approx(2 / timing["median"])
    assert "poster_tiny" in result.output


@pytest.mark.parametrize("name", run.commands())
def test_one_command_runs_every_benchmark_with_options_that_it_has(name: str, tmp_path: Path) -> None:
    file = tmp_path / "graph"
    file.touch()
    script, *words = run.commands(centerface=str(file), fer=str(file))[name]
    words += ["--json", str(tmp_path / "out.json")]
    if script == "-m":
        assert words[:2] == ["poster_zoo", "bench"]
        command.make_context("bench", words[2:])
    else:
        importlib.import_module(Path(script).stem).main.make_context(script, words)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell only the peak of a process's whole life")
def test_the_peak_of_memory_can_begin_anew() -> None:
    # Far more than what the system may meanwhile take back of the libraries that lie in memory as files.
    held = np.ones(50_000_000)
    bench.reset_peak_memory()
    low = bench.peak_memory()
    more = np.ones(50_000_000)
    assert bench.peak_memory() - low > more.nbytes / 2
    del held, more
    bench.reset_peak_memory()
    assert bench.peak_memory() < low


def in_this_process(program: str) -> float:
    """Run what a fresh interpreter would run: the imports cost nothing here."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program, {})  # noqa: S102
    return float(printed.getvalue().split()[-1])


def test_start_is_measured_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_printed_by", in_this_process)
    start = bench.measure_start("poster_tiny", rounds=3)
    assert start.file > 4 * poster_zoo.model_info("poster_tiny").parameters  # float32, and the norms' statistics
    for timing in (start.import_timm, start.import_package, start.construct, start.construct_and_load, start.load):
        assert timing.rounds == 3
    assert start.read.median < start.construct_and_load.median


def test_training_is_measured_with_one_pass_and_with_two() -> None:
    training = bench.measure_training("poster_tiny", batch=2, rounds=3, device=torch.device("cpu"))
    assert set(training.step) == {"plain", "SAM"}
    for kind, timing in training.step.items():
        assert training.images_per_second[kind] == pytest.approx(2 / timing.median)


def test_data_is_measured_on_one_thread_and_threads_come_back() -> None:
    threads = torch.get_num_threads()
    data = bench.measure_data("poster_tiny", side=100, batch=2, rounds=3)
    assert torch.get_num_threads() == threads
    assert data.images_per_second == pytest.approx(1 / (data.read.median + data.normalise.median))
    assert Image.open(io.BytesIO(bench.jpeg(100))).size == (100, 100)


AUTHORS = """\
import torch
calls = []
class pyramid_trans_expr(torch.nn.Module):
    def __init__(self, img_size, num_classes, type):
        super().__init__()
        open("models/pretrain/ir50.pth").close()
        self.head = torch.nn.Linear(3, num_classes)
    def forward(self, x):
        calls.append(x)
        return self.head(x.mean((2, 3))), x
"""


def test_the_authors_network_is_built_in_its_checkout_and_called_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "emotion_hyp.py").write_text(AUTHORS)
    model = poster_zoo.create_model("poster_tiny")
    here = Path.cwd()
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ClickException, match=r"models/pretrain/ir50\.pth"):
        inference._upstream(str(tmp_path), model)
    (tmp_path / "models" / "pretrain").mkdir()
    (tmp_path / "models" / "pretrain" / "ir50.pth").touch()
    side = inference._upstream(str(tmp_path), model)
    assert side(torch.zeros(2, 3, 8, 8)).shape == (2, 8)
    assert len(importlib.import_module("models.emotion_hyp").calls) == 1
    assert Path.cwd() == here
    for name in ("models", "models.emotion_hyp"):
        del sys.modules[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["posterr"], "poster"), (["--rounds", "2"], "3"), (["--device", "nowhere"], "nowhere")],
    ids=["model", "rounds", "device"],
)
def test_wrong_use_is_one_sentence(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
