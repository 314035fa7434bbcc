"""Other runtimes answer as torch does, and say what they cannot do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

import poster_zoo
from poster_zoo import Predictor
from poster_zoo.engines import ENGINES, on_engine
from poster_zoo.errors import MissingExtraError, OptionError

FACE = Path(__file__).resolve().parent.parent / "examples" / "face.png"
INSTALLED = [
    pytest.param(name, marks=pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is missing"))
    for name in ENGINES
]


@pytest.mark.parametrize("engine", INSTALLED)
def test_an_engine_answers_as_torch_does(engine: str) -> None:
    plain, other = Predictor(device="cpu", optimize=False), Predictor(engine=engine)
    with Image.open(FACE) as face:
        images = [face.convert("RGB").rotate(angle) for angle in (0, 10, 20)]
    for ours, theirs in zip(other(images), plain(images), strict=True):
        assert ours.label == theirs.label
        assert ours.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)
    assert other(FACE).label == plain(FACE).label
    assert other.landmarks(FACE) == pytest.approx(plain.landmarks(FACE), abs=1e-3)


def test_an_engine_takes_a_model_that_is_given() -> None:
    pytest.importorskip("onnxruntime")
    model = poster_zoo.create_model("poster_tiny").eval()
    images = torch.rand(2, 3, 112, 112)
    with torch.inference_mode():
        torch.testing.assert_close(on_engine(model, "onnxruntime")(images), model(images), rtol=1e-4, atol=1e-4)


def test_an_engine_refuses_what_it_would_not_do() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(OptionError, match=r"onnxruntime computes in float32 on the CPU.*bfloat16"):
        Predictor(engine="onnxruntime", dtype=torch.bfloat16)
    with pytest.raises(OptionError, match="float32 on the CPU"):
        on_engine(poster_zoo.create_model("poster_tiny").double(), "onnxruntime")


def test_an_unknown_engine_is_told_with_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"no engine 'onnxrt'.*Choose one of torch, onnxruntime, openvino"):
        Predictor(engine="onnxrt")


def test_an_engine_that_is_not_installed_is_told_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs openvino.*pip install"):
        Predictor("poster_rafdb", engine="openvino")
