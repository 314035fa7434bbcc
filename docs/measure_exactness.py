"""Measure how far each published network here is from its authors' code; print the table of the page on exactness.

    .venv/bin/python docs/measure_exactness.py

It takes what `tests/test_parity.py` compares, through that file's own functions, and prints the largest absolute
differences instead of passing or failing. Features on the way are measured where the folder of reference numbers lies
beside the checkout, or where POSTER_ZOO_SHARED says.
"""

from __future__ import annotations

import os
import runpy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from make_tables import table
from safetensors.torch import load_file
from torch import Tensor

import poster_zoo

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(os.environ.get("POSTER_ZOO_SHARED", ROOT.parent / "shared")) / "parity" / "golden"
HEAD = ("release", "here", "tensors used", "largest answer", "answer", "landmarks", "on the way", "face to logits")

parity = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "test_parity.py")))


def difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference; the reference may hold the first images and channels alone."""
    return float((actual[: len(expected), : expected.shape[1]] - expected).abs().max())


def answer_kind(variant: str) -> str:
    """Return what the network answers, as the reference calls it."""
    return next(kind for kind in ("logits", "embedding", "landmarks") if f"{variant}/{kind}" in parity.EXPECTED)


def features_difference(variant: str, features: Mapping[str, Tensor]) -> float | None:
    """Return the largest difference on the way to the answer; None without the reference."""
    if not GOLDEN.is_dir():
        return None
    golden = load_file(GOLDEN / f"{variant}.safetensors")
    return max(difference(actual, golden[name]) for name, actual in features.items())


def face_difference(variant: str) -> float:
    """Return the difference of the logits for examples/face.png, from a checkpoint file and the image file on."""
    with tempfile.TemporaryDirectory(prefix="poster-zoo-") as folder:
        release = Path(folder) / "release.pth"
        torch.save(parity.checkpoints.checkpoint(variant), release)
        model = poster_zoo.load_checkpoint(release, parity.MODELS[variant]).eval()
        image = poster_zoo.create_transform(model)(poster_zoo.read_image(ROOT / "examples" / "face.png"))
        return difference(model(image[None]), parity.EXPECTED[f"{variant}/face_png"])


@torch.inference_mode()
def row(variant: str) -> list[str]:
    """Return one release's line of the table."""
    model, kind = parity.network(variant), answer_kind(variant)
    x = parity.images(model)
    expected = parity.EXPECTED[f"{variant}/{kind}"]
    inside = kind == "logits" and f"{variant}/landmarks" in parity.EXPECTED
    landmarks = difference(model.forward_landmarks(x), parity.EXPECTED[f"{variant}/landmarks"]) if inside else None
    on_the_way = features_difference(variant, parity._features(model, x))
    face = face_difference(variant) if f"{variant}/face_png" in parity.EXPECTED else None
    total, dropped = parity.TENSORS[variant]
    return [
        f"`{variant}`",
        f"`{parity.MODELS[variant]}`",
        f"{total - dropped} of {total}",
        f"{float(expected.abs().max()):.2f}",
        scientific(difference(model(x), expected)),
        scientific(landmarks),
        "not measured" if on_the_way is None else scientific(on_the_way),
        scientific(face),
    ]


def scientific(value: float | None) -> str:
    """Return a difference with two digits; a dash where the reference has none, 0 where every bit is the same."""
    if value is None:
        return "–"
    return f"{value:.1e}" if value else "0"


if __name__ == "__main__":
    print(table(HEAD, map(row, parity.MODELS)))
