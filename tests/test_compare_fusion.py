"""The script that compares cross-fusion with plain encoders, on a made FERPlus."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy import stats

import poster_zoo


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location(
        "compare_fusion", Path(__file__).parent.parent / "scripts" / "compare_fusion.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ferplus(tmp_path: Path) -> Path:
    """Eight images a split in FERPlus's layout, one a class."""
    for split in ("Train", "Valid", "Test"):
        folder = tmp_path / "FERPlus" / f"FER2013{split}"
        folder.mkdir(parents=True)
        rows = []
        for i in range(8):
            pixels = np.random.default_rng([len(split), i]).integers(0, 256, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).resize((48, 48)).save(folder / f"fer{i}.png")
            rows.append(f'fer{i}.png,"(0, 0, 48, 48)",' + ",".join("9" if j == i else "0" for j in range(10)))
        (folder / "label.csv").write_text("\n".join(rows) + "\n")
    return tmp_path / "FERPlus"


def test_foreign_landmarks_change_what_a_two_stream_model_says_and_own_ones_do_not(script: Any) -> None:
    model = poster_zoo.create_model("poster_tiny", pretrained=True).eval()
    torch.manual_seed(0)
    faces = torch.randn(3, 3, 112, 112)
    with torch.inference_mode():
        own, foreign = model(faces), script.ForeignLandmarks(model)(faces)
        alone = script.ForeignLandmarks(model)(faces[:1])  # the next image of a batch of one is itself
    torch.testing.assert_close(alone, own[:1])
    assert (own - foreign).abs().max() > 0.01


def test_train_and_report_put_the_models_side_by_side(
    script: Any, ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MODELS", ("poster_tiny", "poster_tiny_image"))
    given = ["--data", str(ferplus), "--out", str(tmp_path / "out"), "--seeds", "1"]
    for command in (["train", "--epochs", "1", "--set", "batch_size=8"], ["report"]):
        result = CliRunner().invoke(script.main, [*command, *given], catch_exceptions=False)
        assert result.exit_code == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(found["models"]) == ["poster_tiny", "poster_tiny_image"]
    for name, model in found["models"].items():
        (run,) = model["runs"]
        assert np.sum(run["test"]["confusion_matrix"]) == 8
        assert model["accuracy"] == np.trace(run["test"]["confusion_matrix"]) / 8
        assert ("valid_accuracy_with_foreign_landmarks" in run) == (name != "poster_tiny_image")
        assert f"{name}: accuracy {model['accuracy']:.4f}" in result.stdout
    (pair,) = found["pairs"]
    only_first, only_second = pair["only_first_right"], pair["only_second_right"]
    if only_first + only_second:
        assert pair["p_value"] == pytest.approx(stats.binomtest(only_first, only_first + only_second).pvalue)
    assert f"{pair['accuracy_difference']:+.4f}, McNemar p = {pair['p_value']:.3g}" in result.stdout
    assert (tmp_path / "out" / "poster_tiny_poster_tiny_image_0.png").is_file()
