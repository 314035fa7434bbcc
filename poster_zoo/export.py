"""A model as a file that answers without this package: ONNX, TorchScript, or an archive of torch.export.

Each file takes float32 images (B, C, H, W), resized and normalised as its own metadata say, and gives float32 answers,
whatever it computes in. Before it gets its name it is read back by the runtime it is for, and its answers on faces are
compared with the model's.

ONNX is written by torch's TorchScript-based exporter, at opset 18: it needs the package onnx alone, takes seconds, and
writes the same operators with torch 2.6 and 2.14. The newer exporter would also need onnxscript, whose releases follow
those of torch, takes seven times as long or more, and with torch 2.6 fails.

>>> from poster_zoo.export import export, read_metadata
>>> exported = export("poster_tiny", "poster_tiny.pt2", format="pt2")  # doctest: +SKIP
>>> read_metadata(exported.out).labels  # doctest: +SKIP
('Neutral', 'Happiness', 'Surprise', 'Sadness', 'Anger', 'Disgust', 'Fear', 'Contempt')
"""

from __future__ import annotations

import copy
import io
import json
import logging
import tempfile
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional as F

from poster_zoo._version import __version__
from poster_zoo.data.images import ImageSource, read_image
from poster_zoo.data.transforms import create_transform
from poster_zoo.errors import (
    ExportError,
    MissingExtraError,
    OptionError,
    OutputError,
    WeightsError,
    WeightsNotFoundError,
    nearest,
)
from poster_zoo.extras import installed
from poster_zoo.files import check_place, whole_file
from poster_zoo.models._builder import refuse_detector
from poster_zoo.models._registry import create_model
from poster_zoo.models.mobilefacenet import MobileFaceNet
from poster_zoo.weights.save import model_config, refuse_wrapped

__all__ = ["DTYPES", "FORMATS", "OPSET", "Change", "Exported", "Metadata", "export", "read_metadata"]

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}
"""The formats, and how the names of their files end."""

DTYPES = {"float32": torch.float32, "float16": torch.float16}
"""The types that a file can compute in."""

OPSET = 18
"""Of ONNX: both exporters of torch write it, in every release since 2.6, and ONNX Runtime reads it since 1.14."""

INPUT = "images"

# How far from the model's the answers may be, as a part of the model's largest number. In float32 only the order of
# sums differs, and 1e-4 is far above that. The other two are meant to differ: theirs only tell a rounded answer from
# a wrong one.
_TOLERANCES = {"float32": 1e-4, "float16": 0.05, "int8": 0.5}

_SAMPLE_FACE = Path(__file__).resolve().parents[1] / "examples" / "face.png"
"""A face beside the package in a checkout; an installed package brings none."""


@dataclass(frozen=True)
class Change:
    """How the answers of a file differ from those of the model, in float32, on the images of the check.

    Attributes:
        images: Number of images; half of them are mirror images of the others.
        faces: Whether they show faces; otherwise they were made up.
        output: The largest difference of a number in the answers.
        relative: The same, as a part of the largest number in the model's answers.
        probability: The largest difference of a class's probability; None for a model without classes.
        labels: Number of images whose likeliest class is another one; None for a model without classes.
    """

    images: int
    faces: bool
    output: float
    relative: float
    probability: float | None = None
    labels: int | None = None


@dataclass(frozen=True)
class Metadata:
    """What a file says about itself, by these names, so that it can be used without this package.

    Attributes:
        model: Name of the architecture.
        output: "logits", "features" or "landmarks" (x then y of 68 points, in 0…1 of the image).
        labels: Names of the classes in the order of the logits.
        size: Height and width of the input in pixels; the image is resized to exactly that.
        colours: Order of the input's channels: "RGB", or "grey".
        mean: A channel's mean, subtracted from pixels in 0…1.
        std: What a channel is divided by after that.
        interpolation: PIL's name of the (antialiased) filter for resizing.
        precision: "float32", "float16", or "int8" (the linear layers' products only; the rest is in float32).
        weights: "pretrained", "random" (an architecture without weights), or "given" with the model.
        poster_zoo: Version of this package.
        torch: Version of torch that wrote the file.
        change: How its answers differ from the model's; None before it was measured.
    """

    model: str
    output: str
    labels: tuple[str, ...]
    size: tuple[int, int]
    colours: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    precision: str
    weights: str
    poster_zoo: str
    torch: str
    change: Change | None = None

    def to_properties(self) -> dict[str, str]:
        """Return the fields as texts: words as they are, everything else as JSON."""
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def from_properties(cls, properties: Mapping[str, str]) -> Metadata:
        """Return what `to_properties` wrote.

        Raises:
            KeyError: A field is missing.
            ValueError: A field does not hold what it should.
        """
        fields: dict[str, Any] = {name: properties[name] for name in cls.__dataclass_fields__}
        for name in ("labels", "size", "mean", "std"):
            fields[name] = tuple(json.loads(fields[name]))
        change = json.loads(fields["change"])
        fields["change"] = change and Change(**change)
        return cls(**fields)


@dataclass(frozen=True)
class Exported:
    """A file that was written, read back and compared.

    Attributes:
        out: The file.
        format: "onnx", "torchscript" or "pt2".
        size: Of the file, in bytes.
        change: How its answers differ from the model's.
        metadata: What the file says about itself.
    """

    out: Path
    format: str
    size: int
    change: Change
    metadata: Metadata

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return asdict(self) | {"out": str(self.out)}


def export(
    model: str | nn.Module,
    out: str | Path | None = None,
    *,
    format: str = "onnx",
    dtype: str | torch.dtype = "float32",
    int8: bool = False,
    faces: Sequence[ImageSource] = (),
    pretrained: bool = True,
) -> Exported:
    """Write a model as a file that answers without this package, and check the file.

    Args:
        model: Name of a model, or a model; it stays as it is.
        out: The file to write; by default one in the current folder that is named after the model.
        format: One of `FORMATS`.
        dtype: What to compute in, one of `DTYPES`. Input and answer are float32 all the same.
        int8: Multiply in the linear layers with 8-bit integers: weights rounded once, a scale each for every output,
            inputs as they come (dynamic quantization). Convolutions stay in float32.
        faces: Images to check with, whatever `read_image` takes: aligned crops around one face. By default
            examples/face.png where the package is used from a checkout, else images that are made up.
        pretrained: Whether to load the weights of a model that is given by name.

    Returns:
        What was written, with the measured change of the answers.

    Raises:
        OptionError: There is no such format or type, or the model cannot be exported in this state.
        OutputError: `out` cannot be written.
        MissingExtraError: Packages for this format are not installed.
        WeightsNotFoundError: The weights are nowhere to be had.
        ImageError: One of `faces` cannot be read.
        ExportError: The file does not answer as the model does; it was not kept.
    """
    precision = _precision(dtype, int8)
    kind = _format(format)
    if not isinstance(model, str):
        _refuse_unfit(model)
    out = _check_out(out or _default_out(model, format, precision))
    sources: Sequence[ImageSource] = faces or ([_SAMPLE_FACE] if _SAMPLE_FACE.is_file() else [])
    pictures = [read_image(source) for source in sources]

    network = create_model(model, pretrained=pretrained) if isinstance(model, str) else copy.deepcopy(model)
    refuse_detector(network, "`export` takes")
    network = network.to("cpu", torch.float32).eval().requires_grad_(False)
    images = _prepared(network, pictures or _made_up_images())
    expected = _answers(network, images)
    program = kind.build(network, images[:2], precision)
    weights = ("pretrained" if pretrained else "random") if isinstance(model, str) else "given"
    metadata = _metadata(network, precision, weights)

    try:
        with whole_file(out) as file:
            for _ in range(2):  # the second time with what the first one told
                kind.save(program, file, metadata.to_properties())
                change = _compare(expected, _answers(kind.load(file), images), metadata, faces=bool(pictures))
                metadata = replace(metadata, change=change)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(f"The file {str(out)!r} cannot be written: {reason}. Choose another place.") from error
    assert metadata.change is not None  # noqa: S101 - it was written
    return Exported(out, format, out.stat().st_size, metadata.change, metadata)


def read_metadata(path: str | Path) -> Metadata:
    """Return what a file that `export` wrote says about itself. Nothing in the file is run.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: It was not written by `export`.
        MissingExtraError: It is no archive of torch, and reading others needs onnx, which is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsNotFoundError(f"There is no file {str(path)!r}; `poster-zoo export` writes one.")
    properties = _torch_properties(path) if zipfile.is_zipfile(path) else _onnx_properties(path)
    try:
        return Metadata.from_properties(properties)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"The file {str(path)!r} does not say how it is to be used; `poster-zoo export` writes files that do."
        ) from error


# ----------------------------------------------------------------------------------------------------- what was asked


def _precision(dtype: str | torch.dtype, int8: bool) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise OptionError(f"The type {name!r} was asked for; choose one of {', '.join(DTYPES)}.")
    if int8 and name != "float32":
        raise OptionError(f"8-bit integers and {name} were both asked for; choose one of them.")
    return "int8" if int8 else name


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise OptionError(f"There is no format {name!r}.{nearest(name, FORMATS)} Choose one of {', '.join(FORMATS)}.")
    kind = _KINDS[name]
    missing = [package for package in kind.packages if not installed(package)]
    if missing:
        raise MissingExtraError(
            f"Exporting to {name} needs {' and '.join(missing)}, which is not installed: "
            'pip install "poster-zoo[export]".'
        )
    return kind


def _default_out(model: Any, format: str, precision: str) -> Path:
    """Return a name after the model's; that of a folder or repository is its last part."""
    name = model if isinstance(model, str) else model.pretrained_cfg["architecture"]
    name = PurePosixPath(name.rpartition(":")[2]).name.partition("@")[0]
    suffix = "" if precision == "float32" else f"_{precision}"
    return Path(f"{name}{suffix}{FORMATS[format]}")


def _check_out(out: str | Path) -> Path:
    """Return where the file is to go, or say why it cannot go there before any work begins."""
    path = Path(out).expanduser()
    check_place("file", path)
    return path


def _refuse_unfit(model: nn.Module) -> None:
    if getattr(model, "is_optimized", False):
        raise OptionError("An optimized model is bound to this process; export the model as it was before `optimize`.")
    refuse_wrapped(model, "export")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise OptionError("The model is on the meta device and has no numbers; load its weights before exporting it.")


def _metadata(model: Any, precision: str, weights: str) -> Metadata:
    config = model_config(model)
    cfg = config["pretrained_cfg"]
    channels, *size = cfg["input_size"]
    mean, std = cfg["mean"], cfg["std"]
    if channels == 1:  # as `create_transform` does
        mean, std = [fmean(mean)], [fmean(std)]
    labels = tuple(config.get("label_names", ()))
    finds_points = isinstance(model, MobileFaceNet) and not labels
    return Metadata(
        model=config["architecture"],
        output="features" if not model.num_classes else "landmarks" if finds_points else "logits",
        labels=labels,
        size=(size[0], size[1]),
        colours="grey" if channels == 1 else "RGB",
        mean=tuple(mean),
        std=tuple(std),
        interpolation=cfg["interpolation"],
        precision=precision,
        weights=weights,
        poster_zoo=__version__,
        torch=torch.__version__,
    )


# ---------------------------------------------------------------------------------------------------------- the check


def _prepared(model: nn.Module, images: Sequence[Image.Image]) -> Tensor:
    """Return the images as the model takes them, (B, C, H, W), each before its mirror image: so there are two."""
    transform = create_transform(model)
    return torch.stack([transform(side) for image in images for side in (image, ImageOps.mirror(image))])


def _made_up_images(count: int = 2, size: int = 224) -> list[Image.Image]:
    """Return images that are the same everywhere: soft blobs of colour, as varied and as smooth as faces are."""
    blobs = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(blobs, size=(size, size), mode="bicubic", align_corners=False).clamp(0, 1)
    return [read_image(image) for image in smooth]


def _answers(answer: Answer, images: Tensor) -> Tensor:
    """Answer one image alone and the others together: a batch of any size must do."""
    with torch.inference_mode():
        return torch.cat([answer(images[:1]), *(answer(images[i : i + 16]) for i in range(1, len(images), 16))])


def _compare(expected: Tensor, actual: Tensor, metadata: Metadata, faces: bool) -> Change:
    """Return how `actual` differs from `expected`.

    Raises:
        ExportError: By more than the precision explains.
    """
    output = float((actual - expected).abs().max())
    relative = output / max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
    # Written so that a number that is none fails too.
    if not relative <= _TOLERANCES[metadata.precision]:
        advice = " Export it in float32." if metadata.precision != "float32" else ""
        raise ExportError(
            f"The file does not answer as {metadata.model} does: in {metadata.precision} its answers differ by "
            f"{output:.2g}, {relative:.2g} of the largest number. It was not kept.{advice}"
        )
    change = Change(len(expected), faces, output, relative)
    if metadata.output != "logits":
        return change
    probability = float((actual.softmax(1) - expected.softmax(1)).abs().max())
    return replace(change, probability=probability, labels=int((actual.argmax(1) != expected.argmax(1)).sum()))


# -------------------------------------------------------------------------------------------------------- the formats


Answer = Callable[[Tensor], Tensor]


class Format(ABC):
    """A way to write a model as a file."""

    packages: Sequence[str] = ()

    @abstractmethod
    def build(self, model: nn.Module, images: Tensor, precision: str) -> Any:
        """Return the program that gives the model's answers, made with a batch of two images."""

    @abstractmethod
    def save(self, program: Any, file: Path, properties: dict[str, str]) -> None:
        """Write the program and texts about it."""

    @abstractmethod
    def load(self, file: Path) -> Answer:
        """Read a file back as its users will."""


class _Onnx(Format):
    packages = ("onnx", "onnxruntime")

    def build(self, model: nn.Module, images: Tensor, precision: str) -> Any:
        import onnx

        with tempfile.TemporaryDirectory() as folder, _quiet():
            file = Path(folder, "model.onnx")
            torch.onnx.export(
                _InHalf(model) if precision == "float16" else model,
                (images,),
                file,
                input_names=[INPUT],
                output_names=["answers"],
                dynamic_axes={INPUT: {0: "batch"}, "answers": {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
            if precision == "int8":
                _quantize_onnx(file)
            return onnx.load(file)

    def save(self, program: Any, file: Path, properties: dict[str, str]) -> None:
        import onnx

        del program.metadata_props[:]
        onnx.helper.set_model_props(program, properties)
        file.write_bytes(program.SerializeToString())

    def load(self, file: Path) -> Answer:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; what it tells of its own optimizations is not for our users
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def _quantize_onnx(file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        file,
        file,
        op_types_to_quantize=["MatMul", "Gemm"],  # no convolutions, as in the other formats
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


class _TorchScript(Format):
    def build(self, model: nn.Module, images: Tensor, precision: str) -> Any:
        with _quiet():
            return torch.jit.script(_in_precision(model, precision))

    def save(self, program: Any, file: Path, properties: dict[str, str]) -> None:
        buffer = io.BytesIO()
        with _quiet():
            torch.jit.save(program, buffer, _extra_files=properties)
        file.write_bytes(buffer.getbuffer())  # torch's own writer says nothing of a full disk

    def load(self, file: Path) -> Answer:
        with _quiet():
            return torch.jit.load(io.BytesIO(file.read_bytes()))  # type: ignore[no-untyped-call]


class _Pt2(Format):
    def build(self, model: nn.Module, images: Tensor, precision: str) -> Any:
        batch = torch.export.Dim("batch", min=1, max=2**31 - 1)  # torch 2.6 refuses one without an end
        with _quiet():
            program = torch.export.export(_in_precision(model, precision), (images,), dynamic_shapes=({0: batch},))
        for node in program.graph.nodes:  # the way to each operation through files of this machine: nobody else's
            node.meta.pop("stack_trace", None)
        return program

    def save(self, program: Any, file: Path, properties: dict[str, str]) -> None:
        buffer = io.BytesIO()
        with _quiet():
            torch.export.save(program, buffer, extra_files=properties)
        file.write_bytes(buffer.getbuffer())

    def load(self, file: Path) -> Answer:
        with _quiet():
            return torch.export.load(io.BytesIO(file.read_bytes())).module()


_KINDS: dict[str, Format] = {"onnx": _Onnx(), "torchscript": _TorchScript(), "pt2": _Pt2()}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what the exporters say to programmers, as that TorchScript is old; a failure still raises."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _torch_properties(path: Path) -> dict[str, str]:
    """Return the extra files of an archive of torch; its releases call their folder by either name."""
    try:
        with zipfile.ZipFile(path) as archive:
            extra = [name for name in archive.namelist() if PurePosixPath(name).parent.name in ("extra", "extra_files")]
            return {PurePosixPath(name).name: archive.read(name).decode() for name in extra}
    except (zipfile.BadZipFile, UnicodeDecodeError):
        return {}


def _onnx_properties(path: Path) -> dict[str, str]:
    if not installed("onnx"):
        raise MissingExtraError(
            f'Reading {str(path)!r} needs onnx, which is not installed: pip install "poster-zoo[export]".'
        )
    import onnx
    from google.protobuf.message import DecodeError

    try:
        return {prop.key: prop.value for prop in onnx.load(path, load_external_data=False).metadata_props}
    except DecodeError:
        return {}


# --------------------------------------------------------------------------------------------------------- precisions


class _InHalf(nn.Module):
    """A model in float16, between float32 images and float32 answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x.half()).float()


class Int8Linear(nn.Module):
    """A linear layer whose product is one of 8-bit integers (dynamic quantization).

    Weights are rounded once, with a scale for every output; each row of the input is rounded as it comes, with a
    scale of its own. torch's own dynamic quantization is on its way out of torch, and torch.export cannot save it.

    Args:
        linear: The layer to stand for.
    """

    if TYPE_CHECKING:  # TorchScript cannot read annotations that are texts
        weight: Tensor
        scale: Tensor
        bias: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = _scale(weight)
        self.register_buffer("weight", (weight / scale).round().to(torch.int8).t().contiguous())  # (in, out)
        self.register_buffer("scale", scale[:, 0].clone())
        bias = weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's answers (…, out) for (…, in)."""
        rows = x.flatten(0, -2)
        scale = _scale(rows)
        product = torch._int_mm((rows / scale).round().to(torch.int8), self.weight)
        return torch.unflatten(product.to(x.dtype) * scale * self.scale + self.bias, 0, x.shape[:-1])


def _scale(rows: Tensor) -> Tensor:
    """Return what each row is divided by to lie within -127…127, (rows, 1)."""
    return rows.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127


def _in_precision(model: nn.Module, precision: str) -> nn.Module:
    if precision == "float16":
        return _InHalf(model)
    return _with_int8(copy.deepcopy(model)) if precision == "int8" else model


def _with_int8(module: nn.Module) -> nn.Module:
    """Put an `Int8Linear` in the place of each linear layer below `module`."""
    for name, child in module.named_children():
        setattr(module, name, Int8Linear(child) if type(child) is nn.Linear else _with_int8(child))
    return module
