"""The clock and the counts that benchmarks are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from plain import PlainPoster
from torch import nn

import poster_zoo
from poster_zoo import bench
from poster_zoo.cli import main
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
