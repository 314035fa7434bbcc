"""CenterFace computes what the release's graph computes, and is a model like the others as far as a detector can be."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from test_cli import run
from torch import Tensor, nn

import poster_zoo
from poster_zoo.errors import InputShapeError, MissingExtraError, OptionError, WeightsError, WeightsNotFoundError
from poster_zoo.models.centerface import CenterFace, decode
from poster_zoo.weights import graph

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model() -> Any:
    return poster_zoo.create_model("centerface", pretrained=True).eval()


def pictures(*size: int, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(1)) * 255


# ------------------------------------------------------------------------------------------------ the authors' graph

# MobileNetV2 as its paper's table 2 has it: expansion, channels, repeats and stride of each group of blocks.
GROUPS = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]


class Graph:
    """Writes the release's graph: its operators, with its names of the constants, for any size of picture.

    Constants are numbered by fours in the order in which convolutions took their norms in; the rest has names.
    """

    def __init__(self, numbers: dict[str, np.ndarray[Any, Any]]) -> None:
        self.numbers, self.count, self.nodes, self.constants = numbers, 542, [], {}  # type: ignore[var-annotated]

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, name: str, ours: str) -> str:
        self.constants[name] = self.numbers[ours]
        return name

    def conv(self, x: str, ours: str, relu: bool, named: str | None = None, stride: int = 1, groups: int = 1) -> str:
        """Add a convolution whose numbers are our layer `ours`, under the release's name or the next number."""
        weight, bias = (f"{named}.weight", f"{named}.bias") if named else (str(self.count), str(self.count + 2))
        self.count += 0 if named else 4
        shape = self.numbers[f"{ours}.weight"].shape
        inputs = [x, self.constant(weight, f"{ours}.weight"), self.constant(bias, f"{ours}.bias")]
        pad = shape[2] // 2
        x = self.node("Conv", inputs, pads=[pad] * 4, strides=[stride] * 2, group=groups, kernel_shape=shape[2:])
        return self.node("Relu", [x]) if relu else x

    def widened(self, x: str, ours: int) -> str:
        name = f"neck.deconv_layers.{2 - ours}"
        weight = self.constant(f"{name}.conv.weight", f"neck.widen.{ours}.0.weight")
        x = self.node("ConvTranspose", [x, weight], strides=[2, 2], kernel_shape=[2, 2])
        norm = [
            self.constant(f"{name}.bn.{part}", f"neck.widen.{ours}.1.{part}")
            for part in ("weight", "bias", "running_mean", "running_var")
        ]
        self.constant(f"{name}.bn.num_batches_tracked", f"neck.widen.{ours}.1.num_batches_tracked")
        return self.node("Relu", [self.node("BatchNormalization", [x, *norm], epsilon=1e-3)])

    def save(self, path: Path, outputs: list[str]) -> None:
        helper, kind = onnx.helper, onnx.TensorProto.FLOAT
        # The release says that it takes ten pictures of 32 × 32.
        picture = helper.make_tensor_value_info("input.1", kind, [10, 3, 32, 32])
        answers = [helper.make_tensor_value_info(name, kind, [10, None, 8, 8]) for name in outputs]
        constants = [onnx.numpy_helper.from_array(numbers, name) for name, numbers in self.constants.items()]
        built = helper.make_graph(self.nodes, "centerface", [picture], answers, constants)
        opsets = [helper.make_opsetid("", 9)]
        onnx.save(helper.make_model(built, opset_imports=opsets, ir_version=4), path)


def write_release(path: Path, model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Write the release's file with the numbers of `model`; return its constants."""
    numbers = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    g = Graph(numbers)
    x = g.conv("input.1", "stem.0", relu=True, stride=2)
    maps, stage, block, channels = [], -1, 0, 32
    for expansion, width, repeats, first_stride in GROUPS:
        if first_stride == 2:
            maps.append(x)
            stage, block = stage + 1, 0
        for i in range(repeats):
            stride, shortcut = first_stride if i == 0 else 1, x
            ours = f"stages.{stage}.{block}"
            if expansion == 1:
                x = g.conv(x, "stem.2", relu=True, groups=channels)
                x = g.conv(x, "stem.4", relu=False)
            else:
                x = g.conv(x, f"{ours}.expand", relu=True)
                x = g.conv(x, f"{ours}.depthwise", relu=True, stride=stride, groups=expansion * channels)
                x = g.conv(x, f"{ours}.project", relu=False)
                block += 1
            x = g.node("Add", [shortcut, x]) if stride == 1 and width == channels else x
            channels = width
    # Maps at strides 4, 8, 16 and 32; the first that was kept is the stem's.
    x, *finer = (g.conv(level, f"neck.lateral.{i}", relu=True) for i, level in enumerate((x, *maps[:0:-1])))
    for i, level in enumerate(finer):
        x = g.node("Add", [g.widened(x, i), level])
    x = g.conv(x, "head.mix", relu=True)
    heads = {"pos": "heat", "reg": "size", "off": "offset", "lm": "points"}
    outputs = [g.conv(x, f"head.{ours}", relu=False, named=f"head.{theirs}_conv") for theirs, ours in heads.items()]
    outputs[0] = g.node("Sigmoid", [outputs[0]])
    for i in range(3):  # of the norms that are no more, their counters are left
        g.numbers[f"counter.{i}"] = np.array(1658440, np.int64)
        g.constant(f"backbone.features.{i}.1.num_batches_tracked", f"counter.{i}")
    g.save(path, outputs)
    return g.constants


@pytest.fixture(scope="module")
def release(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("release") / "centerface.onnx"
    write_release(path, model)
    return path


@pytest.mark.parametrize("size", [(480, 640), (32, 32), (96, 160)])
def test_every_map_is_that_of_onnx_runtime_on_the_graph(model: Any, release: Path, size: tuple[int, int]) -> None:
    x = pictures(*size)
    with torch.inference_mode():
        ours = model(x)
    for a, b in zip(ours, graph.run_graph(release, x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)


def test_the_faster_form_gives_the_same_maps(model: Any) -> None:
    fast = poster_zoo.optimize(model)
    x = pictures(160, 224)
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            for a, b in zip(fast(x.contiguous(memory_format=layout)), model(x), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        again = copy.deepcopy(fast)(x)
        assert all(torch.equal(a, b) for a, b in zip(again, fast(x), strict=True))
    assert not hasattr(model, "is_optimized")


def test_the_trunk_is_timms_with_its_norms_folded_in() -> None:
    theirs = timm.create_model("mobilenetv2_100", features_only=True, out_indices=(1, 2, 3, 4), act_layer=nn.ReLU)
    generator = torch.Generator().manual_seed(2)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.1, generator=generator)
    theirs.double().eval()
    pairs, convs = [], [(n, m) for n, m in theirs.named_modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    for (_, conv), (_, norm) in zip(convs[::2], convs[1::2], strict=True):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        pairs.append((conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale))
    ours = CenterFace(dtype=torch.float64).eval()
    layers = [m for part in (ours.stem, ours.stages) for m in part.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for layer, (weight, bias) in zip(layers, pairs, strict=True):
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
        x = torch.randn(2, 3, 96, 64, dtype=torch.float64)
        for a, b in zip(ours.forward_maps(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b)


def test_cells_become_boxes_and_points_as_the_release_writes_it() -> None:
    numbers = np.random.RandomState(0)
    heat = numbers.uniform(0, 0.55, (2, 1, 12, 20))
    size = numbers.uniform(0, 4, (2, 2, 12, 20))  # up to 4 e⁴ = 218 pixels: many reach beyond the picture
    offset, points = numbers.uniform(-1, 1, (2, 2, 12, 20)), numbers.uniform(0, 1, (2, 10, 12, 20))
    maps = tuple(torch.from_numpy(part) for part in (heat, size, offset, points))
    for i, (boxes, scores, five) in enumerate(decode(maps, 0.5)):  # type: ignore[arg-type]
        n = 0
        for r in range(12):
            for c in range(20):
                if heat[i, 0, r, c] <= 0.5:
                    continue
                h, w = 4 * math.exp(size[i, 0, r, c]), 4 * math.exp(size[i, 1, r, c])
                x0 = min(max(0, 4 * (c + offset[i, 1, r, c] + 0.5) - w / 2), 80)
                y0 = min(max(0, 4 * (r + offset[i, 0, r, c] + 0.5) - h / 2), 48)
                box = [x0, y0, min(x0 + w, 80), min(y0 + h, 48)]
                np.testing.assert_allclose(boxes[n], box, rtol=1e-5, atol=1e-3)
                expected = [[points[i, 2 * k + 1, r, c] * w + x0, points[i, 2 * k, r, c] * h + y0] for k in range(5)]
                np.testing.assert_allclose(five[n], expected, rtol=1e-5, atol=1e-3)
                assert scores[n] == pytest.approx(heat[i, 0, r, c])
                n += 1
        assert n == len(boxes) > 5


# --------------------------------------------------------------------------------------------------------- converting


def equal(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_releases_file_is_recognised_and_converted_bit_for_bit(model: Any, release: Path, tmp_path: Path) -> None:
    result = run("convert", str(release), "--out", str(tmp_path / "out"), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["model"] == "centerface"
    assert told["tensors"] == {"used": 138, "dropped": 3, "left_over": 0}
    assert equal(load_file(tmp_path / "out" / "model.safetensors"), model.state_dict())
    assert "object-detection" in (tmp_path / "out" / "README.md").read_text()
    loaded = poster_zoo.from_pretrained(tmp_path / "out").eval()
    x = pictures(64, 64)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(loaded(x), model(x), strict=True))


def test_a_graph_that_answers_otherwise_is_not_converted(model: Any, tmp_path: Path) -> None:
    """Names alone prove nothing: a graph with the same constants and another wiring is refused."""
    write_release(tmp_path / "odd.onnx", model)
    odd = onnx.load(tmp_path / "odd.onnx")
    relu = next(node for node in odd.graph.node if node.op_type == "Relu")
    relu.op_type = "Abs"
    onnx.save(odd, tmp_path / "odd.onnx")
    with pytest.raises(WeightsError, match="answer with a difference of"):
        poster_zoo.convert(tmp_path / "odd.onnx", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_check_is_refused_for_a_detector_before_anything_is_written(release: Path, root: Path, tmp_path: Path) -> None:
    face = str(root / "examples" / "face.png")
    result = run("convert", str(release), "--out", str(tmp_path / "out"), "--check", face)
    assert result.exit_code == 2
    assert "centerface, which finds faces and has no logits; convert it without --check" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_release_can_be_loaded_without_converting(model: Any, release: Path) -> None:
    loaded = poster_zoo.load_checkpoint(release).eval()
    assert equal(loaded.state_dict(), model.state_dict())


def test_other_graphs_and_damaged_files_are_refused_in_one_sentence(release: Path, tmp_path: Path) -> None:
    other = onnx.helper.make_graph([], "other", [], [], [onnx.numpy_helper.from_array(np.zeros(3, np.float32), "a")])
    onnx.save(onnx.helper.make_model(other), tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match="fits no release that convert knows"):
        poster_zoo.convert(tmp_path / "other.onnx", out=tmp_path / "out")
    data = release.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=r"cut\.onnx cannot be read as an ONNX file"):
        poster_zoo.convert(tmp_path / "cut.onnx", out=tmp_path / "out")
    with pytest.raises(WeightsNotFoundError, match=r"no file .*nowhere\.onnx"):
        poster_zoo.convert(tmp_path / "nowhere.onnx")


def test_numbers_that_lie_in_other_files_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(4000))
    tensor = onnx.numpy_helper.from_array(np.zeros(1000, np.float32), "542")
    built = onnx.helper.make_model(onnx.helper.make_graph([], "outside", [], [], [tensor]))
    onnx.save(built, tmp_path / "outside.onnx", save_as_external_data=True, location="numbers", size_threshold=0)
    with pytest.raises(WeightsError, match="keeps its numbers in other files, which are not read"):
        poster_zoo.convert(tmp_path / "outside.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_without_onnx_the_extra_is_named(release: Path, tmp_path: Path, monkeypatch: Any, package: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(MissingExtraError, match=rf'needs {package}, .* pip install "poster-zoo\[export\]"'):
        poster_zoo.convert(release, out=tmp_path / "out")


# --------------------------------------------------------------------------------------------------- a model of the zoo


def test_pictures_of_other_sizes_get_one_clear_sentence() -> None:
    with torch.device("meta"):
        net = poster_zoo.centerface()
    for shape in ((2, 3, 50, 64), (2, 3, 64, 50), (3, 64, 64), (2, 1, 64, 64)):
        with pytest.raises(InputShapeError, match=r"\(B, 3, H, W\), H and W multiples of 32, got"):
            net(torch.empty(shape, device="meta"))


def test_it_gives_no_classes() -> None:
    with pytest.raises(OptionError, match="num_classes=7 was asked for; CenterFace finds faces"):
        poster_zoo.centerface(num_classes=7)
    with pytest.raises(TypeError):
        poster_zoo.centerface(drop_rate=0.1)


def test_grey_pictures_start_from_the_weights_for_coloured_ones(model: Any) -> None:
    grey = poster_zoo.create_model("centerface", pretrained=True, in_chans=1).eval()
    x = pictures(64, 96, channels=1)
    with torch.inference_mode():
        for a, b in zip(grey(x), model(x.expand(-1, 3, -1, -1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_features_only_gives_the_trunks_maps_and_nothing_else(model: Any) -> None:
    wrapped = poster_zoo.create_model("centerface", pretrained=True, features_only=True).eval()
    x = pictures(64, 96)
    with torch.inference_mode():
        features, maps = model.forward_intermediates(x)
        assert torch.equal(features, model.forward_features(x))
        for a, b in zip(wrapped(x), maps, strict=True):
            assert torch.equal(a, b)
    assert [m.shape[1] for m in maps] == wrapped.feature_info.channels() == [24, 32, 96, 320]
    assert [64 // m.shape[2] for m in maps] == wrapped.feature_info.reduction() == [4, 8, 16, 32]
    first = poster_zoo.create_model("centerface", features_only=True, out_indices=(0,))
    assert not any(part in name for name in first.state_dict() for part in ("stages.1", "neck", "head"))


def test_every_parameter_gets_a_gradient_also_with_checkpointing() -> None:
    net = poster_zoo.centerface().train()
    gradients = []
    for checkpointing in (False, True):
        net.set_grad_checkpointing(checkpointing)
        net.zero_grad()
        sum(part.sum() for part in net(pictures(64, 64) / 255)).backward()
        assert [name for name, p in net.named_parameters() if p.grad is None] == []
        gradients.append([p.grad.clone() for p in net.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_compilers_take_the_whole_model(model: Any) -> None:
    x = pictures(64, 96)
    sizes = {2: torch.export.Dim("rows", min=2, max=64) * 32, 3: torch.export.Dim("columns", min=2, max=64) * 32}
    exported = torch.export.export(model, (x,), dynamic_shapes=(sizes,)).module()
    scripted = torch.jit.script(model)
    # A backend of "eager" still refuses graph breaks, and compiles nothing that would take minutes.
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=None)
    for other in (x, pictures(96, 64)):
        with torch.inference_mode():
            expected = model(other)
            for form in (exported, scripted, compiled):
                for a, b in zip(form(other), expected, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_it_comes_back_from_a_folder_as_it_was(model: Any, tmp_path: Path) -> None:
    poster_zoo.save_pretrained(model, tmp_path / "saved")
    loaded = poster_zoo.FaceDetector(f"local-dir:{tmp_path / 'saved'}", optimize=False).model
    assert equal(loaded.state_dict(), model.state_dict())


def test_list_and_info_say_that_it_finds_faces() -> None:
    row = run("list", "centerface").stdout.splitlines()[1]
    assert "any size" in row
    assert "faces" in row
    assert "bundled" in row
    text = run("info", "centerface").stdout
    assert "boxes, scores and five points" in text
    assert "any size in multiples of 32" in text
    assert "classes" not in text
