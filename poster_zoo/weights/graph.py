"""Authors' files that are ONNX graphs: their constants by name, and what ONNX Runtime answers on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poster_zoo.errors import MissingExtraError, WeightsError, WeightsNotFoundError
from poster_zoo.extras import installed

__all__ = ["read_constants", "run_graph"]


def read_constants(path: Path) -> dict[str, Tensor]:
    """Return the constants of a graph by their names, in its order. Other files that it may point at are not read.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: It is no ONNX file, or keeps its numbers elsewhere.
        MissingExtraError: onnx is not installed.
    """
    graph = _load(path).graph
    from onnx import TensorProto, numpy_helper

    if any(constant.data_location == TensorProto.EXTERNAL for constant in graph.initializer):
        raise WeightsError(
            f"{path} keeps its numbers in other files, which are not read; save it as one file with onnx.save."
        )
    try:
        return {
            constant.name: torch.from_numpy(numpy_helper.to_array(constant).copy()) for constant in graph.initializer
        }
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}); fetch it again.") from error


def run_graph(path: Path, images: Tensor) -> tuple[Tensor, ...]:
    """Return what ONNX Runtime answers to a batch of images, whatever size the graph says that it takes.

    Raises:
        WeightsError: It cannot be run.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    model = _load(path)
    _require(path, "onnxruntime")
    import onnxruntime

    for i, value in enumerate((*model.graph.input, *model.graph.output)):
        for j, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"free_{i}_{j}"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every constant that it does not need
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        answers = session.run(None, {model.graph.input[0].name: images.numpy()})
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(f"{path} cannot be run by ONNX Runtime ({reason}); fetch it again.") from error
    return tuple(torch.from_numpy(answer) for answer in answers)


def _load(path: Path) -> Any:
    _require(path, "onnx")
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise WeightsNotFoundError(f"There is no file {path}; check the path.") from error
    except (OSError, DecodeError) as error:
        raise WeightsError(f"{path} cannot be read as an ONNX file ({error}); fetch it again.") from error


def _require(path: Path, package: str) -> None:
    if not installed(package):
        raise MissingExtraError(
            f'Converting {str(path)!r} needs {package}, which is not installed: pip install "poster-zoo[export]".'
        )
