"""What users of timm expect, asked of every model of the zoo: a new model is tested by existing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner
from timm.layers import DropPath
from torch import nn
from torch.nn import functional as F

import poster_zoo
from poster_zoo.cli import main
from poster_zoo.errors import InputShapeError, OptionError, UnknownArgumentError, UnknownModelError
from poster_zoo.models._builder import ENTRIES, refuse_detector
from poster_zoo.models._registry import model_info
from poster_zoo.models.ir50 import IRBlock
from poster_zoo.models.mobilefacenet import Bottleneck
from poster_zoo.models.poster import CrossFusionBlock, PlainEncoder, Pyramid
from poster_zoo.models.poster_v2 import WindowCrossAttention
from poster_zoo.train import recipe_for

ALL = poster_zoo.list_models()
CLASSIFIERS = [name for name in ALL if not ENTRIES[name].detects]
# Networks with the same code and other numbers need no second run of what is slow.
SMALL = [
    "ir50",
    "mobilefacenet",
    "poster_small",
    "poster_tiny",
    "poster_tiny_baseline",
    "poster_tiny_image",
    "poster_v2",
]
FUSED = [name for name in SMALL if name.startswith("poster") and name != "poster_tiny_image"]


def build(name: str, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs).eval()


def on_meta(name: str, **kwargs: Any) -> Any:
    with torch.device("meta"):
        return timm.create_model(name, **kwargs).eval()


def images(model: Any, batch: int = 2) -> torch.Tensor:
    noise = torch.Generator().manual_seed(1)
    return torch.randn(batch, model.in_chans, *model.img_size, generator=noise).to(next(model.parameters()).device)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# ------------------------------------------------------------------------------------------------- registry and entry


def test_public_factories_are_the_registry() -> None:
    factories = {name for name in poster_zoo.__all__ if name in timm.list_models()}
    assert factories == set(ALL) == set(ENTRIES)


def test_timm_lists_the_zoo_by_pattern_and_with_tags() -> None:
    assert set(timm.list_models("poster*")) == {name for name in ALL if name.startswith("poster")}
    assert "poster_tiny.ferplus" in timm.list_pretrained("poster*")


def test_a_name_with_its_tag_is_the_model() -> None:
    assert model_info("poster_tiny.ferplus").name == "poster_tiny"
    assert recipe_for("poster_tiny.ferplus") == recipe_for("poster_tiny")
    with pytest.raises(OptionError, match="centerface finds faces"):
        refuse_detector("centerface.widerface", "training takes")
    for asked in (poster_zoo.create_model, model_info, recipe_for):
        with pytest.raises(UnknownModelError, match=r"'poster_tiny\.imagenet'\. Did you mean 'poster_tiny\.ferplus'"):
            asked("poster_tiny.imagenet")


def test_the_filter_of_list_models_is_a_pattern() -> None:
    assert poster_zoo.list_models("poster_v2*") == [name for name in ALL if name.startswith("poster_v2")]
    assert poster_zoo.list_models("nothing*") == []


def test_only_models_with_weights_at_hand_count_as_pretrained() -> None:
    assert poster_zoo.list_models(pretrained=True) == ["centerface", "poster_tiny"]


def test_every_entry_is_complete() -> None:
    faults = []
    for name, entry in ENTRIES.items():
        model = on_meta(name)
        cfg = model.pretrained_cfg
        checks = {
            "description": bool(entry.description),
            "license": bool(entry.license),
            "paper": bool(entry.paper_name and entry.paper_ids),
            "classifier": entry.detects or (entry.classifier is not None and hasattr(model, entry.classifier)),
            "stems": all(f"{stem}.weight" in model.state_dict() for stem in entry.first_conv),
            "classes": model.num_classes == entry.num_classes == cfg["num_classes"],
            "labels": tuple(cfg.get("label_names", ())) == entry.label_names,
            "input": cfg["input_size"] == (3, *getattr(model, "img_size", entry.preprocessing.size)),
            "docstring": bool(poster_zoo.model_info(name).doc),
            "parameters": entry.parameters in (None, sum(p.numel() for p in model.parameters())),
            "upstream": bool(entry.origin_url and entry.hub_id) if entry.upstream_layout else not entry.upstream_file,
            "commands": all(bool(m.command) == (m.measured is not None) for m in entry.metrics),
        }
        faults += [f"{name}: {what}" for what, good in checks.items() if not good]
    assert not faults


def test_label_orders_are_the_releases_not_the_alphabets() -> None:
    assert ENTRIES["poster_rafdb"].label_names[3] == "Happiness"
    assert ENTRIES["poster_affectnet8"].label_names[0::7] == ("Neutral", "Contempt")
    assert ENTRIES["poster_tiny"].label_names[1:3] == ("Happiness", "Surprise")
    assert ENTRIES["poster_v2_caers"].label_names[3:6] == ("Happy", "Neutral", "Sad")


def test_parameters_that_no_entry_states_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENTRIES, "mobilefacenet", replace(ENTRIES["mobilefacenet"], parameters=None))
    assert poster_zoo.model_info("mobilefacenet").parameters == sum(
        tensor.numel() for name, tensor in on_meta("mobilefacenet").named_parameters()
    )


def test_listing_builds_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Module, "__init__", None)  # none could be built
    assert CliRunner().invoke(main, ["list"]).output.count("\n") == len(ALL) + 1


def test_model_info_counts_what_the_papers_count() -> None:
    large, v2, tiny = (poster_zoo.model_info(name) for name in ("poster", "poster_v2", "poster_tiny"))
    # 71.85 M as built upstream, of which 12.85 M are an embedding head that never runs (25088 × 512 and norms).
    assert large.parameters == pytest.approx(71.85e6 - 12.85e6, rel=1e-3)
    assert v2.parameters == pytest.approx(43.7e6, rel=0.01)
    assert 2 * v2.macs == pytest.approx(2 * 8.4e9, rel=0.05)  # the paper calls multiply-adds flops
    assert tiny.parameters <= 4e6
    assert tiny.macs <= 0.4e9


def test_the_tiny_family_costs_the_same() -> None:
    tiny = poster_zoo.model_info("poster_tiny").macs
    for name in ("poster_tiny_baseline", "poster_tiny_image"):
        assert poster_zoo.model_info(name).macs == pytest.approx(tiny, rel=0.1)


# ------------------------------------------------------------------------------------------------------- construction


@pytest.mark.parametrize("name", ["poster_tiny", "poster_tiny_baseline", "poster_v2"])
def test_linear_layers_start_as_in_vision_transformers(name: str) -> None:
    model = build(name)
    model.landmark_stream = nn.Identity()
    weights = [layer.weight.flatten() for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert torch.cat(weights).std().item() == pytest.approx(0.02, rel=0.01)
    assert not any(layer.bias.any() for layer in model.modules() if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_head_can_be_replaced_and_dropped(name: str) -> None:
    model = on_meta(name, num_classes=5)
    assert model(images(model)).shape == (2, 5)
    model.reset_classifier(3)
    assert model(images(model)).shape == (2, 3)
    model.reset_classifier(0)
    assert model(images(model)).shape == (2, model.num_features)
    assert model.num_features == model.head_hidden_size


@pytest.mark.parametrize("name", SMALL)
def test_head_after_features_is_forward(name: str) -> None:
    model = build(name)
    x = images(model)
    with torch.inference_mode():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert torch.equal(model.forward_head(features), model(x))
    assert pre_logits.shape == (2, model.head_hidden_size)
    if model.num_classes:
        assert model.get_classifier() is getattr(model, model.pretrained_cfg["classifier"])


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_grey_images_and_other_sizes_are_built_for(name: str) -> None:
    model = on_meta(name, in_chans=1, img_size=160)
    assert model(images(model)).shape[0] == 2
    assert images(model).shape[1:] == (1, 160, 160)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_wrong_images_get_one_clear_sentence(name: str) -> None:
    model = on_meta(name)
    height, width = model.img_size
    with pytest.raises(InputShapeError, match=rf"\(B, 3, {height}, {width}\), got \(2, 3, 50, 60\)"):
        model(torch.empty(2, 3, 50, 60, device="meta"))
    with pytest.raises(ValueError, match=r"got \(3, 50, 60\)"):
        model(torch.empty(3, 50, 60, device="meta"))


def test_misspelt_keywords_and_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownArgumentError, match=r"'drop_path'.*'drop_path_rate'"):
        timm.create_model("poster_tiny", drop_path=0.1)
    with pytest.raises(TypeError):
        poster_zoo.ir50(no_such=1)
    with pytest.raises(UnknownModelError, match="'poster_rafdb'"):
        poster_zoo.create_model("poster_rafbd")
    with pytest.raises(UnknownModelError, match=r"poster_tiny\.ferplus"):
        poster_zoo.create_model("poster_tiny.imagenet")
    with pytest.raises(OptionError, match="'token', 'avg', ''"):
        poster_zoo.create_model("poster_tiny", global_pool="max")


@pytest.mark.parametrize("name", ALL)
def test_everything_is_created_where_and_as_what_it_was_asked_for(name: str) -> None:
    model = timm.create_model(name, device="meta", dtype=torch.float64)
    tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
    assert all(t.is_meta and t.dtype == torch.float64 for t in tensors)


# ------------------------------------------------------------------------------------------------------------ training


@pytest.mark.parametrize("name", SMALL)
def test_every_trainable_parameter_gets_a_gradient(name: str) -> None:
    model = build(name, num_classes=4, drop_rate=0.1, drop_path_rate=0.1).train()
    F.cross_entropy(model(images(model)), torch.tensor([0, 3])).backward()
    assert [n for n, p in trainable(model).items() if p.grad is None] == []


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_takes_dropout_and_stochastic_depth(name: str) -> None:
    plain, model = on_meta(name), on_meta(name, drop_rate=0.2, drop_path_rate=0.3)
    assert list(model.state_dict()) == list(plain.state_dict())
    # Not those of a landmark stream: it stands still.
    assert [m.p for n, m in model.named_modules() if n == "head_drop"] == [0.2]
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    assert not any(isinstance(m, DropPath) for m in plain.modules())


@pytest.mark.parametrize("block", [IRBlock(8, 8, 1, 0.4), Bottleneck(8, 16, 8, 1, 0.4)], ids=["ir", "mobile"])
def test_stochastic_depth_keeps_the_shortcut_alone_or_scales_the_branch_up(block: nn.Module) -> None:
    x = torch.randn(64, 8, 6, 6)
    block.eval()
    branch = block(x) - x
    block.drop_path.train()
    answer = block(x)
    dropped = torch.tensor([torch.equal(a, b) for a, b in zip(answer, x, strict=True)])
    assert 0 < dropped.sum() < 64
    torch.testing.assert_close(answer[~dropped], (x + branch / 0.6)[~dropped])


def test_dropout_changes_mobilefacenet_in_training_alone() -> None:
    plain, model = build("mobilefacenet"), build("mobilefacenet", drop_rate=0.5, drop_path_rate=0.5)
    assert torch.equal(plain(images(plain)), model(images(model)))
    features = model.forward_features(images(model))
    model.head_drop.train()
    zeros = (model.forward_head(features, pre_logits=True) == 0).float().mean()
    assert 0.4 < zeros < 0.6


@pytest.mark.parametrize("name", FUSED)
def test_landmark_stream_stands_still_in_training(name: str) -> None:
    model = build(name).train()
    before = {key: t.clone() for key, t in model.landmark_stream.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(images(model)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(t, before[key]) for key, t in model.landmark_stream.state_dict().items())
    assert not any(n.startswith("landmark_stream") for n in trainable(model))
    assert not any(m.training for m in model.landmark_stream.modules())
    assert model.fusion.training


def test_landmark_stream_can_be_let_loose() -> None:
    model = build("poster_tiny", freeze_landmarks=False).train()
    before = model.landmark_stream.stem[0].bn.running_mean.clone()
    model(images(model)).sum().backward()
    assert not torch.equal(model.landmark_stream.stem[0].bn.running_mean, before)
    assert model.landmark_stream.stem[0].conv.weight.grad is not None


def test_freezing_everything_survives_a_new_head() -> None:
    model = on_meta("poster_tiny")
    model.requires_grad_(False)
    model.reset_classifier(0)
    assert not trainable(model)


@pytest.mark.parametrize("name", FUSED)
def test_grad_checkpointing_halves_what_is_saved_for_backward_and_changes_no_gradient(name: str) -> None:
    model = build(name, drop_path_rate=0.0)

    def saved_bytes_and_gradient(fusion: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, list[torch.Tensor]]:
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, nn.Parameter) and tensor.untyped_storage().data_ptr() not in parameters:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        parameters = {p.untyped_storage().data_ptr() for p in fusion.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            answer = fusion(*inputs)
        fusion.zero_grad()
        answer.square().sum().backward()
        return sum(sizes.values()), [p.grad.clone() for p in fusion.parameters() if p.grad is not None]

    with torch.no_grad():
        x = model.resize(images(model))
        maps, landmarks = model.image_stream.forward_stages(x), model.landmark_stream.forward_maps(x)
        inputs = (maps, landmarks) if model.tokens is None else model.tokens(maps[-1], landmarks[-1])
    plain, gradient = saved_bytes_and_gradient(model.fusion, inputs)
    model.set_grad_checkpointing()
    less, again = saved_bytes_and_gradient(model.fusion, inputs)
    assert less <= plain / 2
    for a, b in zip(gradient, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ALL)
def test_layers_are_grouped_for_layer_wise_learning_rates(name: str) -> None:
    from timm.optim import param_groups_layer_decay

    model = on_meta(name)
    groups = param_groups_layer_decay(
        model, layer_decay=0.5, no_weight_decay_list=list(getattr(model, "no_weight_decay", set)())
    )
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    by_name = {n: scales[id(p)] for n, p in trainable(model).items()}
    assert by_name[next(iter(by_name))] == min(by_name.values())  # the stem learns slowest
    head = [scale for n, scale in by_name.items() if n.startswith("head.")]
    assert all(scale == 1.0 for scale in head)
    assert len(set(by_name.values())) >= 5
    if "poster" in name and "image" not in name:
        fusion, stage = (
            next(n for n in by_name if n.startswith(p)) for p in ("fusion.blocks.0", "image_stream.stages.2")
        )
        assert by_name[fusion] > by_name[stage]


# ------------------------------------------------------------------------------------------------------------ features


@pytest.mark.parametrize("name", SMALL)
def test_features_only_gives_the_maps_that_the_whole_model_passes(name: str) -> None:
    model, wrapped = build(name), build(name, features_only=True)
    x = images(model)
    with torch.inference_mode():
        features, maps = model.forward_intermediates(x)
        assert torch.equal(features, model.forward_features(x))
        for a, b in zip(wrapped(x), maps, strict=True):
            assert torch.equal(a, b)
    assert [m.shape[1] for m in maps] == wrapped.feature_info.channels()
    assert [model.img_size[0] // m.shape[2] for m in maps] == wrapped.feature_info.reduction()


def test_features_only_keeps_nothing_but_the_stages_asked_for() -> None:
    wrapped = on_meta("poster_tiny", features_only=True, out_indices=(0,))
    assert {n.split(".")[1] for n, _ in wrapped.named_parameters()} == {"image_stream"}
    assert not any("stages.1" in n for n, _ in wrapped.named_parameters())


# ------------------------------------------------------------------------------------------- compilers, formats, types


@pytest.mark.parametrize(
    "name", ["poster_tiny", "poster_tiny_baseline", "poster_tiny_image", "mobilefacenet", "poster_v2"]
)
def test_compilers_take_the_whole_model(name: str) -> None:
    model = build(name)
    x = images(model)
    with torch.inference_mode():
        expected = model(x)
        # A backend of "eager" still refuses graph breaks, and compiles nothing that would take minutes.
        compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=None)
        torch.testing.assert_close(compiled(x), expected)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    with torch.inference_mode():
        torch.testing.assert_close(exported.module()(x[:1]), expected[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(torch.jit.script(model)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_answers_the_same(name: str) -> None:
    model = build(name)
    x = images(model)
    with torch.inference_mode():
        expected = model(x)
        actual = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["poster_tiny", "poster_v2"])
def test_autocast_to_bf16_stays_near(name: str) -> None:
    model = build(name)
    x = images(model)
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            actual = model(x)
    assert actual.dtype == torch.bfloat16
    # bf16 has 8 bits: a relative error of 2⁻⁸ a layer, which the norms keep from growing.
    assert float((actual.float() - expected).norm() / expected.norm()) < 0.1


# ---------------------------------------------------------------------------------------- second implementations


def test_plain_encoder_is_torchs_own_layer() -> None:
    encoder = PlainEncoder(64, depth=2, num_heads=8, mlp_ratio=2.0, drop_path_rate=0.0).eval()
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.1)
    image, landmark = torch.randn(3, 49, 64), torch.randn(3, 49, 64)
    x = torch.cat((image, landmark), 1) + encoder.pos_embed
    for block in encoder.blocks:
        layer = nn.TransformerEncoderLayer(
            64, 8, 128, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        ).eval()
        layer.load_state_dict(
            {
                "self_attn.in_proj_weight": block.attn.qkv.weight,
                "self_attn.in_proj_bias": block.attn.qkv.bias,
                "self_attn.out_proj.weight": block.attn.proj.weight,
                "self_attn.out_proj.bias": block.attn.proj.bias,
                "linear1.weight": block.mlp.fc1.weight,
                "linear1.bias": block.mlp.fc1.bias,
                "linear2.weight": block.mlp.fc2.weight,
                "linear2.bias": block.mlp.fc2.bias,
                "norm1.weight": block.norm1.weight,
                "norm1.bias": block.norm1.bias,
                "norm2.weight": block.norm2.weight,
                "norm2.bias": block.norm2.bias,
            }
        )
        x = layer(x)
    torch.testing.assert_close(encoder(image, landmark), encoder.norm(x), rtol=1e-4, atol=1e-5)


def test_cross_fusion_is_multi_head_attention_asked_by_the_other_stream() -> None:
    dim, heads = 32, 4
    block = CrossFusionBlock(dim, heads, num_tokens=10, token_mixing=False).eval()
    for p in block.parameters():
        nn.init.normal_(p, std=0.2)
    x = torch.randn(2, 10, dim)
    image, landmark = x[:, :5], x[:, 5:]

    def branch(parts: Any, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        queries, keys = parts.norm1(other), parts.norm1(own)
        weight, bias = parts.attn.kv.weight, parts.attn.kv.bias
        attended, _ = F.multi_head_attention_forward(
            queries.transpose(0, 1), keys.transpose(0, 1), keys.transpose(0, 1), dim, heads, None,
            torch.cat((torch.zeros(dim), bias)), None, None, False, 0.0, parts.attn.proj.weight, parts.attn.proj.bias,
            training=False, use_separate_proj_weight=True, q_proj_weight=torch.eye(dim),
            k_proj_weight=weight[:dim], v_proj_weight=weight[dim:],
        )  # fmt: skip
        own = own + attended.transpose(0, 1)
        return own + parts.mlp(parts.norm2(own))

    expected = torch.cat((branch(block.image, image, landmark), branch(block.landmark, landmark, image)), 1)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_window_bias_belongs_to_the_offset_between_two_positions() -> None:
    window = 3
    attention = WindowCrossAttention(8, 2, window)
    side = 2 * window - 1
    bias = attention.relative_bias()
    for query in range(window**2):
        for key in range(window**2):
            row = query // window - key // window + window - 1
            column = query % window - key % window + window - 1
            assert torch.equal(bias[0, :, query, key], attention.position_bias[row * side + column])


def test_stochastic_depth_rises_with_depth_and_drops_nothing_in_eval() -> None:
    pyramid = Pyramid(dim=32, depth=3, num_heads=4, drop_path_rate=0.2)
    rates = [getattr(block.large.image.drop_path, "drop_prob", 0.0) for block in pyramid.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])
    image, landmark = torch.randn(2, 49, 32), torch.randn(2, 49, 32)
    pyramid.eval()
    assert torch.equal(pyramid(image, landmark), pyramid(image, landmark))


@pytest.mark.parametrize("shift", ["image", "landmark"])
def test_both_streams_matter(shift: str) -> None:
    model = build("poster_tiny")
    x = images(model)
    with torch.inference_mode():
        maps, landmarks = model.image_stream.forward_stages(x), model.landmark_stream.forward_maps(x)
        straight = model.forward_head(model.fuse(maps, landmarks))
        if shift == "image":
            maps = [m.flip(0) for m in maps]
        else:
            landmarks = [m.flip(0) for m in landmarks]
        assert not torch.allclose(model.forward_head(model.fuse(maps, landmarks)), straight, atol=1e-6)
