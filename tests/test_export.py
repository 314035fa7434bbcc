"""Files for other programs: they answer as the model does, and say how they are to be used."""

from __future__ import annotations

import inspect
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn

import poster_zoo
from poster_zoo.cli.errors import CommandGroup
from poster_zoo.cli.export import command
from poster_zoo.errors import ExportError, MissingExtraError, OptionError, OutputError, WeightsError
from poster_zoo.export import FORMATS, OPSET, Exported, Int8Linear, export, read_metadata
from poster_zoo.labels import FERPLUS

# Cheap enough to be tested in each format; docs/pages/export.md has the command for all.
CHEAP = ("poster_tiny_image", "mobilefacenet")


@pytest.fixture(params=FORMATS, scope="module")
def format(request: pytest.FixtureRequest) -> str:
    """Each format whose packages are installed."""
    if request.param == "onnx":
        pytest.importorskip("onnx", reason="poster-zoo[export] is not installed")
        pytest.importorskip("onnxruntime", reason="poster-zoo[export] is not installed")
    return str(request.param)


def build(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    model = poster_zoo.create_model(name, **arguments)
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():  # as if trained: an untouched BatchNorm would hide one that was left out
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def load(path: Path, format: str) -> Callable[[Tensor], Tensor]:
    """Read a file with what its users have, which knows nothing of this package."""
    if format == "torchscript":
        return torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    if format == "pt2":
        return torch.export.load(str(path)).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (asked,) = session.get_inputs(), session.get_outputs()
    assert given.type == asked.type == "tensor(float)"
    return lambda images: torch.from_numpy(session.run([asked.name], {given.name: images.numpy()})[0])


@pytest.fixture(scope="module")
def tiny(format: str, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """poster_tiny with its weights, in each format."""
    if "poster_tiny" not in poster_zoo.list_models(pretrained=True):
        pytest.skip("this checkout carries no weights of poster_tiny")
    return export("poster_tiny", tmp_path_factory.mktemp(format) / "model.pt2", format=format)


def answers_as(model: nn.Module, exported: Exported) -> bool:
    images = torch.randn(5, 3, *exported.metadata.size, generator=torch.Generator().manual_seed(2))
    answer = load(exported.out, exported.format)
    with torch.inference_mode():
        expected = model(images)
        for batch in (1, 2, 5):
            torch.testing.assert_close(answer(images[:batch]), expected[:batch], rtol=1e-4, atol=1e-5)
    return True


@pytest.mark.parametrize("name", CHEAP)
def test_the_file_answers_batches_of_any_size_as_the_model_does(name: str, format: str, tmp_path: Path) -> None:
    model = build(name)
    exported = export(model, tmp_path / "model.pt2", format=format)
    assert answers_as(model, exported)
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]
    assert exported.size == exported.out.stat().st_size


def test_a_name_exports_the_weights_of_that_name(tiny: Exported) -> None:
    assert answers_as(poster_zoo.create_model("poster_tiny", pretrained=True).eval(), tiny)


@pytest.mark.parametrize("reduced", [{"dtype": "float16"}, {"int8": True}], ids=["float16", "int8"])
def test_reduced_precision_is_smaller_takes_float32_and_says_how_much_it_changes(
    reduced: dict[str, Any], format: str, root: Path, tmp_path: Path
) -> None:
    model = build("poster_tiny_baseline", depth=1)
    face = root / "examples" / "face.png"
    exported = export(model, tmp_path / "model.pt2", format=format, faces=[face], **reduced)
    transform = poster_zoo.create_transform(model)
    picture = Image.open(face).convert("RGB")
    sides = (picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    images = torch.stack([transform(side) for side in sides])
    with torch.inference_mode():
        expected, actual = model(images), load(exported.out, format)(images)
    assert actual.dtype == torch.float32
    assert torch.equal(actual.argmax(1), expected.argmax(1))
    change = exported.change
    # Of a rounded model: alone and together, images are summed in another order and may be rounded the other way.
    assert change.output == pytest.approx(float((actual - expected).abs().max()), rel=0.5)
    assert change.relative == pytest.approx(change.output / float(expected.abs().max()))
    assert 1e-5 < change.relative < 0.2  # with random weights, whose answers are small
    assert (change.images, change.faces, change.labels) == (2, True, 0)
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    parameters = sum(p.numel() for p in model.parameters())
    saved = 2 * parameters if "dtype" in reduced else 3 * linear
    if format != "pt2":  # the program itself takes a megabyte there, more or less in each release of torch
        assert exported.size < 4 * parameters - saved + 400_000


def test_int8_rounds_weights_by_output_and_inputs_by_row() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(16, 5)
    x = torch.randn(2, 3, 16)
    weight, rows = linear.weight.detach().double(), x.double()
    weight_step, row_step = weight.abs().amax(1) / 127, rows.abs().amax(2, keepdim=True) / 127
    product = (rows / row_step).round() @ (weight / weight_step[:, None]).round().t()
    expected = product * row_step * weight_step + linear.bias.detach().double()
    torch.testing.assert_close(Int8Linear(linear)(x), expected.float(), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(Int8Linear(linear)(x), linear(x), atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- metadata


def test_the_file_says_how_it_is_to_be_used(tiny: Exported) -> None:
    metadata = read_metadata(tiny.out)
    assert metadata == tiny.metadata
    assert (metadata.model, metadata.output, metadata.labels) == ("poster_tiny", "logits", FERPLUS)
    assert (metadata.size, metadata.colours, metadata.interpolation) == ((112, 112), "RGB", "bilinear")
    assert metadata.mean == (0.485, 0.456, 0.406)
    assert metadata.std == (0.229, 0.224, 0.225)
    assert (metadata.precision, metadata.weights) == ("float32", "pretrained")
    assert (metadata.poster_zoo, metadata.torch) == (poster_zoo.__version__, torch.__version__)
    assert metadata.change == tiny.change


def test_the_metadata_are_where_each_format_keeps_them(tiny: Exported, format: str) -> None:
    path = tiny.out
    texts = {"labels": "", "mean": "", "size": "", "colours": ""}
    if format == "torchscript":
        torch.jit.load(str(path), _extra_files=texts)  # type: ignore[no-untyped-call]
    elif format == "pt2":
        torch.export.load(str(path), extra_files=texts)
    else:
        import onnx

        model = onnx.load(path)
        texts = {prop.key: prop.value for prop in model.metadata_props}
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", OPSET)]
    read = {key: value.decode() if isinstance(value, bytes) else value for key, value in texts.items()}
    assert json.loads(read["labels"]) == list(FERPLUS)
    assert json.loads(read["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(read["size"]) == [112, 112]
    assert read["colours"] == "RGB"


def test_features_landmarks_and_grey_models_are_named_as_such(tmp_path: Path) -> None:
    landmarks = export(build("mobilefacenet"), tmp_path / "a.pt", format="torchscript")
    assert (landmarks.metadata.output, landmarks.metadata.labels) == ("landmarks", ())
    assert landmarks.change.labels is None
    grey = poster_zoo.create_model("poster_tiny_image", num_classes=0, in_chans=1)
    features = export(grey, tmp_path / "b.pt", format="torchscript").metadata
    assert (features.output, features.colours, features.weights) == ("features", "grey", "given")
    assert features.mean == pytest.approx([(0.485 + 0.456 + 0.406) / 3])


def test_without_a_face_at_hand_the_change_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poster_zoo.export._SAMPLE_FACE", tmp_path / "none.png")
    exported = export(build("poster_tiny_image"), tmp_path / "model.pt", format="torchscript")
    assert (exported.change.faces, exported.change.images) == (False, 4)


def test_a_file_of_others_has_no_metadata(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "broken.pt2", "w") as archive:
        archive.writestr("model/extra/labels", "[")
    for name in ("weights.pt", "broken.pt2"):
        with pytest.raises(WeightsError, match=f"{name}.*poster-zoo export"):
            read_metadata(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx"):
        read_metadata(tmp_path / "nowhere.onnx")


def test_a_file_that_is_no_onnx_has_no_metadata(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="poster-zoo[export] is not installed")
    (tmp_path / "notes.onnx").write_text("not a model")
    with pytest.raises(WeightsError, match=r"notes\.onnx"):
        read_metadata(tmp_path / "notes.onnx")


# ------------------------------------------------------------------------------------------------------------ refusals


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(self: Any, model: nn.Module, images: Tensor, precision: str) -> Any:
        changed = build("poster_tiny_image")
        changed.head.bias.data += 1e-2
        return torch.jit.script(changed)  # type: ignore[no-untyped-call]

    monkeypatch.setattr("poster_zoo.export._TorchScript.build", other)
    out = tmp_path / "model.pt"
    out.write_bytes(b"what was here before")
    with pytest.raises(ExportError, match="does not answer as poster_tiny_image does"):
        export(build("poster_tiny_image"), out, format="torchscript")
    assert out.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [out]


def test_a_model_that_overflows_in_half_precision_is_refused(tmp_path: Path) -> None:
    model = build("poster_tiny_image")
    model.head.weight.data *= 1e7
    with pytest.raises(ExportError, match=r"float16 .* float32"):
        export(model, tmp_path / "model.pt", format="torchscript", dtype="float16")
    assert not list(tmp_path.iterdir())


def test_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = build("poster_tiny_image").train()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    export(model, tmp_path / "model.pt", format="torchscript", dtype=torch.float16)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])
        assert tensor.dtype == before[key].dtype


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"format": "onx"}, OptionError, "Did you mean 'onnx'"),
        ({"dtype": "float8"}, OptionError, "float32, float16"),
        ({"dtype": "float16", "int8": True}, OptionError, "choose one"),
        ({"out": "."}, OutputError, "is a folder"),
        ({"out": "missing/model.pt"}, OutputError, "make 'missing' first"),
        ({"faces": ["nobody.png"]}, poster_zoo.errors.ImageError, "nobody.png"),
    ],
)
def test_wrong_use_is_told_before_a_model_is_built(
    asked: dict[str, Any], error: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("poster_zoo.export.create_model", None)
    with pytest.raises(error, match=words):
        export("poster_tiny", **{"format": "torchscript"} | asked)


def test_models_that_say_too_little_or_are_optimized_are_refused() -> None:
    features = poster_zoo.create_model("poster_tiny", features_only=True)
    for model in (nn.Linear(1, 1), features):
        with pytest.raises(OptionError, match="create_model"):
            export(model, format="torchscript")
    with torch.device("meta"):
        empty = poster_zoo.create_model("poster_tiny")
    with pytest.raises(OptionError, match="meta device"):
        export(empty, format="torchscript")
    empty.is_optimized = True  # as `optimize` marks what it returns
    with pytest.raises(OptionError, match="before `optimize`"):
        export(empty, format="torchscript")


def test_a_detector_is_refused_in_one_sentence(tmp_path: Path) -> None:
    for model in ("centerface", poster_zoo.create_model("centerface")):
        with pytest.raises(
            OptionError, match=r"^centerface finds faces .*; `export` takes models that answer about one"
        ):
            export(model, tmp_path / "model.pt", format="torchscript", pretrained=False)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'onnx and onnxruntime.*pip install "poster-zoo\[export\]"'):
        export("poster_tiny")


# -------------------------------------------------------------------------------------------------------- command line


def run(*arguments: str) -> Result:
    # Before click 8.2 a runner kept stdout and stderr together.
    apart: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart).invoke(CommandGroup(commands=[command]), ["export", *arguments])


def test_the_command_writes_names_and_tells(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    face = str(root / "examples" / "face.png")
    common = ("poster_tiny_image", "--no-pretrained", "-f", "torchscript")
    told = run(*common, "--dtype", "float16", "--check", face)
    assert told.exit_code == 0, told.stderr
    assert "of 2 labels changed" in told.stdout
    assert read_metadata("poster_tiny_image_float16.pt").precision == "float16"
    printed = run(*common, "--out", "a.pt", "--json")
    assert printed.exit_code == 0, printed.stderr
    answer = json.loads(printed.stdout)
    assert answer["metadata"]["weights"] == "random"
    assert (answer["out"], answer["size"]) == ("a.pt", Path("a.pt").stat().st_size)


def test_the_command_takes_a_checkpoint(tmp_path: Path) -> None:
    model = build("poster_tiny_image")
    poster_zoo.save_pretrained(model, tmp_path / "mine")
    weights, out = tmp_path / "mine" / "model.safetensors", tmp_path / "mine.pt"
    told = run("poster_tiny_image", "-f", "torchscript", "--checkpoint", str(weights), "--out", str(out))
    assert told.exit_code == 0, told.stderr
    images = torch.zeros(1, 3, 112, 112)
    with torch.inference_mode():
        torch.testing.assert_close(load(out, "torchscript")(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["poster_tinny", "-f", "pt2"], 2, "Did you mean 'poster_tiny'"),
        (["poster_tiny", "-f", "tflite"], 2, "onnx, torchscript, pt2"),
        (["poster_tiny_image", "-f", "pt2"], 1, "poster_tiny_image"),
        (["poster_tiny", "--checkpoint", "a", "--no-pretrained"], 2, "exclude each other"),
        (["poster_tiny", "--check", "nowhere"], 2, "nowhere"),
    ],
)
def test_the_command_ends_in_one_sentence(
    arguments: list[str], status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in result.stderr
    assert "bug" not in result.stderr
    assert not list(tmp_path.iterdir())
