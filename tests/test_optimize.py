"""An optimized model answers as the model it was made of."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d, ScaledStdConv2d
from torch import Tensor, nn

import poster_zoo
from poster_zoo.errors import OptionError
from poster_zoo.models._builder import ENTRIES
from poster_zoo.models.ir50 import IRBlock
from poster_zoo.optimize import FastIRBlock, can_optimize, optimize
from poster_zoo.predict import Predictor
from poster_zoo.weights.upstream import LAYOUTS, rename

EXPECTED = load_file(Path(__file__).parent / "upstream" / "expected.safetensors")
SMALL = ["poster_tiny", "poster_tiny_baseline", "poster_tiny_image", "mobilefacenet"]
LARGE = {"poster_rafdb_small": "poster_small", "poster_affectnet7_large": "poster_affectnet7"}


def as_if_trained(model: nn.Module) -> None:
    """Give every norm numbers of its own: those of a new one, 1 and 0, would hide a wrong fold."""
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.6, 1.4)
            nn.init.normal_(module.bias, std=0.3)


def build(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(3)
    model = poster_zoo.create_model(name, **kwargs).eval()
    as_if_trained(model)
    return model


def images(model: Any, count: int) -> Tensor:
    return torch.randn(count, model.in_chans, *model.img_size, generator=torch.Generator().manual_seed(count))


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", SMALL)
def test_answers_stay_what_they_were(name: str, count: int) -> None:
    model = build(name)
    fast = optimize(model)
    x = images(model, count)
    with torch.inference_mode():
        close(fast(x), model(x))
        close(fast.forward_features(x), model.forward_features(x))
        if hasattr(model, "forward_landmarks"):
            close(fast.forward_landmarks(x), model.forward_landmarks(x))
        for ours, theirs in zip(
            fast.forward_intermediates(x, intermediates_only=True),
            model.forward_intermediates(x, intermediates_only=True),
            strict=True,
        ):
            close(ours, theirs)


@pytest.mark.parametrize("variant", [*LARGE, "posterv2_rafdb", "ir50"])
def test_optimized_models_give_the_authors_numbers(variant: str) -> None:
    name = LARGE.get(variant) or {"posterv2_rafdb": "poster_v2_rafdb", "ir50": "ir50"}[variant]
    tensors = checkpoints.tensors(variant)
    used = rename(LAYOUTS[ENTRIES[name].upstream_layout or ""], tensors).used
    model: Any = poster_zoo.create_model(name)
    model.load_state_dict({ours: tensors[theirs] for theirs, ours in used.items()})
    fast = optimize(model, inplace=True)
    noise = np.random.RandomState(0).standard_normal((2, 3, *model.img_size)).astype(np.float32)
    with torch.inference_mode():
        answer = fast(torch.from_numpy(noise))
    expected = EXPECTED[f"{variant}/{'embedding' if variant == 'ir50' else 'logits'}"]
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{"token_mixing": False}, {"global_pool": "avg"}, {"num_classes": 0}, {"in_chans": 1}, {"depth": 1}],
    ids=str,
)
def test_other_forms_of_poster_stay_what_they_were(options: dict[str, Any]) -> None:
    model = build("poster_tiny", **options)
    x = images(model, 2)
    with torch.inference_mode():
        close(optimize(model)(x), model(x))


@pytest.mark.parametrize(("in_chs", "out_chs", "stride"), [(8, 8, 1), (8, 8, 2), (8, 12, 2)])
@pytest.mark.parametrize("side", [1, 2, 5])
def test_borders_are_exact_even_where_a_norm_has_no_scale(in_chs: int, out_chs: int, stride: int, side: int) -> None:
    torch.manual_seed(side)
    block = IRBlock(in_chs, out_chs, stride).eval()
    as_if_trained(block)
    block.double().bn1.weight.data[0] = 0  # what pads the image before such a norm cannot stand for it
    block.bn1.bias.data[0] = 5
    x = torch.randn(2, in_chs, side, side, dtype=torch.float64)
    with torch.inference_mode():
        expected = block(x)
        torch.testing.assert_close(FastIRBlock(block)(x.clone()), expected, rtol=0, atol=1e-12)


def test_the_model_itself_is_left_as_it_was() -> None:
    model = build("poster_tiny").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = optimize(model)
    with torch.inference_mode():
        fast(images(model, 1))
    assert fast is not model
    assert model.training
    assert any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_inplace_takes_the_model_itself_and_twice_is_once() -> None:
    model = build("poster_tiny")
    x = images(model, 1)
    with torch.inference_mode():
        expected = model(x)
        fast = optimize(model, inplace=True)
        assert fast is model
        close(optimize(fast)(x), expected)
        close(optimize(fast, inplace=True)(x), expected)


def test_what_is_asked_for_later_is_done_as_well() -> None:
    model = build("poster_tiny")
    exact = optimize(optimize(model), dtype=torch.float64)
    x = images(model, 1)
    with torch.inference_mode():
        torch.testing.assert_close(exact(x.double()), model.double()(x.double()), rtol=1e-5, atol=1e-6)


def test_weights_that_are_loaded_later_are_computed_with() -> None:
    first, second = build("mobilefacenet"), build("mobilefacenet", num_classes=0)
    for parameter in second.parameters():
        nn.init.normal_(parameter, std=0.1)
    fast, other = optimize(first, inplace=True), optimize(second, inplace=True)
    x = images(first, 1)
    with torch.inference_mode():
        fast.forward_features(x)
        fast.load_state_dict(other.state_dict(), strict=False)
        close(fast.forward_features(x), other.forward_features(x))


def test_copies_and_pickles_of_it_answer_alike() -> None:
    model = optimize(build("poster_tiny"))
    x = images(model, 1)
    with torch.inference_mode():
        answer = model(x)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
            assert torch.equal(again(x), answer)


def test_images_are_not_written_into() -> None:
    model = optimize(build("ir50", depths=(1, 1, 1, 1)))
    x = images(model, 1)
    before = x.clone()
    with torch.inference_mode():
        assert torch.equal(model(x), model(x))
    assert torch.equal(x, before)


def test_gradients_by_the_image_stay_what_they_were() -> None:
    model = build("poster_tiny").requires_grad_(False)
    gradients = []
    for each in (model, optimize(model)):
        x = images(model, 2).requires_grad_()
        each(x).logsumexp(1).sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_type_is_computed_in(dtype: torch.dtype) -> None:
    model = build("poster_tiny")
    fast = optimize(model, dtype=dtype)
    x = images(model, 2)
    with torch.inference_mode():
        answer = fast(x.to(dtype))
        assert answer.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float64 else 0.05
        torch.testing.assert_close(answer.float(), model(x), rtol=tolerance, atol=tolerance)


def test_autocast_still_computes_in_its_type() -> None:
    model = build("poster_tiny")
    fast, x = optimize(model), images(model, 1)
    with torch.inference_mode():
        exact = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            answer = fast(x)
    assert answer.dtype == torch.bfloat16
    torch.testing.assert_close(answer.float(), exact, rtol=0.05, atol=0.05)


OTHERS = {
    "convolution and norm": lambda: (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)),
    "a padding that is no number": lambda: (nn.Conv2d(3, 8, 3, padding="same"), nn.BatchNorm2d(8)),
    "a norm without numbers": lambda: (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False, track_running_stats=False)),
    "a norm that also activates": lambda: (nn.Conv2d(3, 8, 3), BatchNormAct2d(8)),
    "a convolution that scales itself": lambda: (ScaledStdConv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)),
}


@pytest.mark.parametrize("layers", OTHERS.values(), ids=OTHERS)
def test_a_model_of_another_package_answers_as_before(layers: Callable[[], tuple[nn.Module, ...]]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*layers(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()
    x = torch.randn(2, 3, 8, 8)
    assert not can_optimize(model)
    with torch.inference_mode():
        close(optimize(model)(x), model(x))


class Doubled(nn.Module):
    """A layer that a user has put around another one."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


class TimesThree(poster_zoo.models.poster.Poster):
    """A model that a user has derived from ours."""

    def fuse(self, image_maps: list[Tensor], landmark_maps: list[Tensor]) -> Tensor:
        return 3 * super().fuse(image_maps, landmark_maps)


def with_another_layer() -> Any:
    model = build("poster_tiny")
    branch = model.fusion.blocks[1].large.image
    branch.mlp.fc1 = Doubled(branch.mlp.fc1)
    model.image_stream.stages[0][0].conv1 = Doubled(model.image_stream.stages[0][0].conv1)
    return model


def with_hooks() -> Any:
    model = build("poster_tiny")
    model.fusion.blocks[0].small.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    model.image_stream.stem.conv.register_forward_pre_hook(lambda _module, inputs: (2 * inputs[0],))
    return model


def with_parametrization() -> Any:
    model = build("poster_tiny")
    for conv in (model.image_stream.stem.conv, model.image_stream.stages[1][0].conv1):
        nn.utils.parametrizations.weight_norm(conv)
    return model


def derived() -> Any:
    model = TimesThree(tiny=True, depth=2, embed_dim=160, num_heads=4, img_size=112).eval()
    as_if_trained(model)
    return model


def with_another_activation() -> Any:
    model = build("poster_tiny")
    model.landmark_stream.stem[0].act = nn.ReLU()
    model.image_stream.stages[1][0].act = nn.Sigmoid()
    return model


def with_other_settings() -> Any:
    model = build("poster_tiny")
    model.image_stream.stages[0][0].conv1.padding_mode = "reflect"
    model.landmark_stream.stem[0].bn = nn.GroupNorm(4, model.landmark_stream.stem[0].bn.num_features)
    model.fusion.blocks[0].medium.landmark.norm2.eps = 1.0
    dim = model.fusion.blocks[1].large.image.mlp.fc1.in_features
    model.fusion.blocks[1].large.image.attn.proj = nn.Linear(dim, dim, bias=False)
    return model


@pytest.mark.parametrize(
    "make",
    [with_another_layer, with_another_activation, with_other_settings, with_hooks, with_parametrization, derived],
)
def test_what_a_user_has_changed_keeps_its_effect(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = make()
    x = images(model, 2)
    assert can_optimize(model)  # its other parts
    with torch.inference_mode():
        close(optimize(model)(x), model(x))


def test_compiled_models_answer_alike_without_a_graph_break() -> None:
    model = build("poster_tiny")
    fast = optimize(model)
    torch._dynamo.reset()
    compiled = torch.compile(fast, backend="eager", fullgraph=True)
    with torch.inference_mode():
        for count in (1, 2, 3):
            x = images(model, count)
            close(compiled(x), model(x))


def test_what_cannot_be_optimized_is_said() -> None:
    with pytest.raises(OptionError, match="floating"):
        optimize(nn.Linear(2, 2), dtype=torch.int8)
    with pytest.raises(OptionError, match="meta"):
        optimize(nn.Linear(2, 2, device="meta"))


def test_an_optimized_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="before"):
        poster_zoo.save_pretrained(optimize(build("poster_tiny")), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


# ------------------------------------------------------------------------------------------------------ who uses it


@pytest.mark.parametrize("model", ["poster_tiny", "poster_rafdb"])
def test_a_predictor_by_name_answers_by_the_faster_form(
    model: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model == "poster_rafdb":
        installed = build(model)
        poster_zoo.save_pretrained(installed, tmp_path / model)
        model = f"local-dir:{tmp_path / model}"
    fast, plain = Predictor(model), Predictor(model, optimize=False)
    assert (can_optimize(fast.model), can_optimize(plain.model)) == (False, True)
    faces = [root / "examples" / "face.png", np.random.RandomState(0).rand(90, 80, 3)]
    for mine, theirs in zip(fast.stream(faces), plain.stream(faces), strict=True):
        assert mine.label == theirs.label
        assert mine.probabilities == pytest.approx(theirs.probabilities, rel=0, abs=1e-5)


def test_a_given_model_answers_itself_so_that_it_can_be_trained_further(root: Path) -> None:
    model = poster_zoo.create_model("poster_tiny", pretrained=True)
    predictor = Predictor(model)
    assert predictor.model is model
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(8.0))
    assert predictor(root / "examples" / "face.png").label == "Contempt"  # the last of the eight


def test_a_given_model_is_copied_where_speed_is_wanted(root: Path) -> None:
    model = poster_zoo.create_model("poster_tiny", pretrained=True)
    fast = Predictor(model, optimize=True)
    assert fast.model is not model
    assert can_optimize(model)
    assert fast.dtype == torch.float32
    assert fast(root / "examples" / "face.png").label == "Happiness"


def test_a_model_that_is_not_of_the_zoo_goes_on_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}  # type: ignore[assignment]
    predictor = Predictor(model, labels=list("abcdefgh"), optimize=True)
    assert predictor.model is model
