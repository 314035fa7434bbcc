"""Runtimes other than torch, for a processor on which one of them is faster: the exported graph, on the CPU.

The graph is the one that `export` writes and compares with the model, in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poster_zoo.digest import keep_digest, weights_digest
from poster_zoo.errors import MissingExtraError, OptionError, nearest
from poster_zoo.export import INPUT, export
from poster_zoo.extras import installed

__all__ = ["ENGINES", "OtherEngine", "on_engine"]

Run = Callable[["np.ndarray[Any, Any]"], "np.ndarray[Any, Any]"]


class OtherEngine(nn.Module):
    """A model whose answers another runtime computes; landmarks, where it finds any, stay torch's.

    Args:
        model: The model, in float32 on the CPU.
        name: What messages call the runtime.
        run: Gives the answers (B, classes) for images (B, C, H, W).
    """

    def __init__(self, model: nn.Module, name: str, run: Run) -> None:
        super().__init__()
        self.model = model
        self.name = name
        self.run = run
        for fact in ("pretrained_cfg", "num_classes", "in_chans", "img_size", "forward_landmarks"):
            if hasattr(model, fact):
                setattr(self, fact, getattr(model, fact))

    def forward(self, images: Tensor) -> Tensor:
        """Return the answers (B, classes) of images (B, C, H, W)."""
        return torch.from_numpy(self.run(images.numpy()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> OtherEngine:
        """Refuse to be moved or cast: the graph would stay what it is.

        Raises:
            OptionError: As it says.
        """
        moved = fn(torch.empty(0))
        if moved.device.type != "cpu" or moved.dtype != torch.float32:
            raise OptionError(
                f"{self.name} computes in float32 on the CPU here, and {moved.dtype} on {moved.device} was asked for; "
                "leave out `engine` for that."
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def on_engine(model: nn.Module, engine: str, graph: Path | None = None) -> OtherEngine:
    """Return a model that answers as `model` does, computed by another runtime with as many threads as torch has.

    It takes some seconds: the graph is exported and compared first.

    Args:
        model: A model of the zoo that was not optimized, in float32 on the CPU.
        engine: "onnxruntime" or "openvino".
        graph: What `export` made of that model before, if it did.

    Raises:
        OptionError: There is no such engine; the model is elsewhere or in another type, or cannot be exported.
        MissingExtraError: It is not installed, or onnx is not.
        ExportError: The graph does not answer as the model does.
    """
    check_engine(engine)
    if any(p.device.type != "cpu" or p.dtype != torch.float32 for p in model.parameters()):
        raise OptionError(f"{engine} takes a model in float32 on the CPU; give it one that was moved and cast there.")
    with tempfile.TemporaryDirectory() as folder:
        run = ENGINES[engine](graph or export(model, Path(folder) / "model.onnx").out)
    digest = weights_digest(model)
    other = OtherEngine(model.eval(), engine, run)
    keep_digest(other, digest)
    return other


def check_engine(engine: str) -> None:
    """Refuse an engine that is not there.

    Raises:
        OptionError: Nobody knows it.
        MissingExtraError: It is not installed.
    """
    if engine not in ENGINES:
        known = ["torch", *ENGINES]
        raise OptionError(f"There is no engine {engine!r}.{nearest(engine, known)} Choose one of {', '.join(known)}.")
    if not installed(engine):
        raise MissingExtraError(
            f"The engine {engine!r} needs {engine}, which is not installed: "
            f'pip install "poster-zoo[{_EXTRAS[engine]}]".'
        )


def _onnxruntime(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {INPUT: images})[0]


def _openvino(file: Path) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",  # left alone, it takes bfloat16 where the processor has it
        "PERFORMANCE_HINT": "LATENCY",
    }
    # Read into memory: the file is gone before the first answer.
    compiled = openvino.Core().compile_model(openvino.Core().read_model(file.read_bytes()), "CPU", settings)
    return lambda images: compiled(images)[0]


ENGINES: dict[str, Callable[[Path], Run]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}
"""What makes of a graph's file something that runs it, by the name of the runtime."""

_EXTRAS = {"onnxruntime": "export", "openvino": "openvino"}
