"""Weights loaded into models: strict everywhere but where the caller asked for something else."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import poster_zoo
from poster_zoo.errors import LabelError, OptionError, WeightsError, WeightsMismatchError, WeightsNotFoundError
from poster_zoo.weights.find import installed_folder
from poster_zoo.weights.save import model_config
from poster_zoo.weights.tensors import read_tensors

TINY = ["poster_tiny", "poster_tiny_baseline", "poster_tiny_image", "mobilefacenet"]


def same(a: nn.Module, b: nn.Module, but: tuple[str, ...] = ()) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    names = [n for n in ours if not n.startswith(but)] if but else list(ours)
    return all(torch.equal(ours[n], theirs[n]) for n in names)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A model with random weights, and the folder it was saved in."""
    torch.manual_seed(1)
    model = poster_zoo.create_model("poster_tiny").eval()
    return model, poster_zoo.save_pretrained(model, tmp_path_factory.mktemp("saved") / "tiny")


# ------------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("name", TINY)
def test_a_saved_model_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    model = poster_zoo.create_model(name, num_classes=6).eval()
    labels = ["a", "b", "c", "d", "e", "f"]
    folder = poster_zoo.save_pretrained(model, tmp_path / "saved", label_names=labels)
    x = torch.randn(2, 3, 112, 112)
    for again in (poster_zoo.from_pretrained(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)):
        with torch.inference_mode():
            assert torch.equal(again.eval()(x), model(x))
        assert list(again.pretrained_cfg["label_names"]) == labels
        assert again.pretrained_cfg["mean"] == pytest.approx(model.pretrained_cfg["mean"])


def test_transformers_pipeline_reads_a_saved_folder_labels_included(tiny: tuple[Any, Path], root: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, folder = tiny
    answers = transformers.pipeline("image-classification", model=str(folder), top_k=8)(str(root / "examples/face.png"))
    image = poster_zoo.create_transform(model)(poster_zoo.read_image(root / "examples/face.png"))
    with torch.inference_mode():
        expected = model(image[None]).softmax(1)[0].tolist()
    labels = model.pretrained_cfg["label_names"]
    assert {a["label"]: a["score"] for a in answers} == pytest.approx(
        dict(zip(labels, expected, strict=True)), abs=1e-5
    )


def test_a_grey_model_of_another_shape_comes_back(tmp_path: Path) -> None:
    model = poster_zoo.create_model("poster_tiny", in_chans=1, depth=1, num_classes=2).eval()
    folder = poster_zoo.save_pretrained(model, tmp_path, label_names=["no", "yes"], model_args={"depth": 1})
    again = poster_zoo.from_pretrained(folder).eval()
    assert same(again, model)
    assert again.in_chans == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"global_pool": "avg"},
        {"num_heads": 8},
        {"depth": 1},
        {"token_mixing": False},
        {"embed_dim": 128},
        {"mlp_ratio": 4.0},
    ],
    ids=str,
)
def test_a_model_of_other_arguments_comes_back_without_being_told_them(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = poster_zoo.create_model("poster_tiny", **arguments, num_classes=3, drop_path_rate=0.1).eval()
    nn.init.normal_(model.fusion.blocks[0].large.image.attn.kv.weight)  # so that the number of heads is seen
    before = torch.get_rng_state()
    folder = poster_zoo.save_pretrained(model, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)  # a training that saves goes on as if it had not
    assert json.loads((folder / "config.json").read_text())["model_args"] == arguments
    x = torch.randn(2, 3, 112, 112)
    for again in (poster_zoo.from_pretrained(folder), timm.create_model(f"local-dir:{folder}", pretrained=True)):
        with torch.inference_mode():
            torch.testing.assert_close(again.eval()(x), model(x), rtol=1e-5, atol=1e-6)
    assert "model_args" not in model_config(poster_zoo.create_model("poster_tiny"))


def test_a_pooling_that_was_changed_later_comes_back(tmp_path: Path) -> None:
    model = poster_zoo.create_model("poster_tiny")
    model.reset_classifier(2, global_pool="avg")
    again: Any = poster_zoo.from_pretrained(poster_zoo.save_pretrained(model, tmp_path))
    assert again.global_pool == "avg"


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", ["resnet18", "mixer_s32_224"])
def test_a_model_of_timm_that_does_not_say_its_channels_comes_back(name: str, channels: int, tmp_path: Path) -> None:
    model: Any = timm.create_model(name, num_classes=3, in_chans=channels).eval()
    if hasattr(model, "in_chans"):  # the oldest timm that is admitted sets it in few models
        del model.in_chans
    folder = poster_zoo.save_pretrained(model, tmp_path, label_names=list("abc"))
    again = timm.create_model(f"local-dir:{folder}").eval()  # the oldest timm takes a folder's weights for a pickle
    again.load_state_dict(load_file(folder / "model.safetensors"))
    x = torch.randn(1, channels, 224, 224)
    with torch.inference_mode():
        assert torch.equal(again(x), model(x))
    assert poster_zoo.create_transform(model)(Image.new("RGB", (300, 300))).shape == (channels, 224, 224)


def test_a_compiled_model_is_saved_as_the_one_within(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    compiled: Any = torch.compile(tiny[0])
    assert same(poster_zoo.from_pretrained(poster_zoo.save_pretrained(compiled, tmp_path)), tiny[0])


def test_what_does_not_describe_itself_is_refused(tmp_path: Path) -> None:
    features = poster_zoo.create_model("poster_tiny", features_only=True)
    for model in (features, nn.Sequential(poster_zoo.create_model("poster_tiny"))):
        with pytest.raises(OptionError, match=rf"{type(model).__name__} does not say .*; save a model as"):
            poster_zoo.save_pretrained(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_labels_of_another_head_are_not_kept(tmp_path: Path) -> None:
    folder = poster_zoo.save_pretrained(poster_zoo.create_model("poster_tiny", num_classes=3), tmp_path)
    assert "label_names" not in json.loads((folder / "config.json").read_text())
    with pytest.raises(LabelError, match="2 label names were given for a model of 3 classes"):
        poster_zoo.save_pretrained(poster_zoo.create_model("poster_tiny", num_classes=3), tmp_path, ["a", "b"])
    with pytest.raises(LabelError, match="1 label name was given for a model of 3 classes"):
        poster_zoo.save_pretrained(poster_zoo.create_model("poster_tiny", num_classes=3), tmp_path, ["a"])


@pytest.mark.parametrize("name", ["poster_tiny", "poster_tiny_image", "mobilefacenet"])
def test_a_new_head_of_the_same_width_has_no_names_yet(name: str, tmp_path: Path) -> None:
    saved = poster_zoo.create_model(name, num_classes=8)
    folder = poster_zoo.save_pretrained(saved, tmp_path / "before", label_names=list("abcdefgh"))
    model: Any = poster_zoo.from_pretrained(folder)
    entry = dict(poster_zoo.create_model(name).pretrained_cfg)
    model.reset_classifier(8)
    poster_zoo.save_pretrained(model, tmp_path / "after")
    assert "label_names" not in json.loads((tmp_path / "after" / "config.json").read_text())
    assert poster_zoo.create_model(name).pretrained_cfg == entry  # which other models go on having
    if name == "poster_tiny_image":
        with pytest.raises(LabelError, match="no label names"):
            poster_zoo.Predictor(model)
    else:  # which find landmarks too
        assert poster_zoo.Predictor(model).labels == ()
    assert poster_zoo.Predictor(model, labels=list("ijklmnop")).labels == tuple("ijklmnop")


def test_nothing_is_left_behind_where_a_folder_cannot_be_written(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsError, match="cannot be saved"):
        poster_zoo.save_pretrained(tiny[0], tmp_path / "file")
    (tmp_path / "model" / "config.json").mkdir(parents=True)
    with pytest.raises(WeightsError, match="cannot be saved"):
        poster_zoo.save_pretrained(tiny[0], tmp_path / "model")
    assert not [f for f in (tmp_path / "model").iterdir() if f.name.startswith(".")]


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    folder = poster_zoo.save_pretrained(poster_zoo.create_model("poster_tiny"), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))  # a file that outgrows it fails as on a full disk
    try:
        with pytest.raises(WeightsError, match=r"cannot be saved in .*too large.*room"):
            poster_zoo.save_pretrained(tiny[0], folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_others_may_read_what_the_umask_lets_them(
    tiny: tuple[Any, Path], tmp_path: Path, umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        folder = poster_zoo.save_pretrained(tiny[0], tmp_path / "model")
    finally:
        os.umask(before)
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {
        "config.json": mode,
        "model.safetensors": mode,
    }


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"holds no config\.json"):
        poster_zoo.create_model(f"local-dir:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as JSON"),
        (b"\x80\x81", "cannot be read as JSON"),
        (b"[1]", "is not a model's config"),
        (b'{"architecture": "poster_tiny"}', "is not a model's config"),
        (b'{"pretrained_cfg": {}}', "is not a model's config"),
        (b'{"architecture": "poster_tinny", "pretrained_cfg": {}}', "'poster_tinny', which neither .* 'poster_tiny'"),
    ],
)
def test_a_broken_config_is_one_sentence(tiny: tuple[Any, Path], tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "model.safetensors").symlink_to(tiny[1] / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(WeightsError, match=words) as error:
        poster_zoo.create_model(f"local-dir:{tmp_path}")
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------- loading


def test_weights_from_a_file_or_a_folder(tiny: tuple[Any, Path]) -> None:
    model, folder = tiny
    for place in (folder, folder / "model.safetensors", str(folder)):
        assert same(poster_zoo.create_model("poster_tiny", weights=place), model)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of poster_tiny's architecture, but with other classes, another mean and more heads in each attention."""
    torch.manual_seed(3)
    model: Any = poster_zoo.create_model("poster_tiny", num_heads=8).eval()
    nn.init.normal_(model.fusion.blocks[0].large.image.attn.kv.weight)  # so that the number of heads is seen
    model.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    labels = sorted(model.pretrained_cfg["label_names"])
    return poster_zoo.save_pretrained(model, tmp_path_factory.mktemp("own") / "best", label_names=labels)


def loaded(way: str, folder: Path, **kwargs: Any) -> Any:
    file = folder / "model.safetensors"
    if way == "train":
        from poster_zoo.train import recipe_for
        from poster_zoo.train.prepare import build_model

        return build_model("poster_tiny", recipe_for("poster_tiny"), checkpoint=str(folder))
    if way == "timm":
        return timm.create_model("poster_tiny", pretrained=True, pretrained_cfg_overlay={"file": str(folder)}, **kwargs)
    if way == "load_checkpoint":
        return poster_zoo.load_checkpoint(folder, "poster_tiny", **kwargs)
    return poster_zoo.create_model("poster_tiny", weights=folder if way == "folder" else file, **kwargs)


@pytest.mark.parametrize("way", ["folder", "file", "load_checkpoint", "train", "timm"])
def test_a_named_folder_brings_its_classes_its_preprocessing_and_its_arguments(way: str, own: Path) -> None:
    expected: Any = poster_zoo.from_pretrained(own).eval()
    model = loaded(way, own).eval()
    assert list(model.pretrained_cfg["label_names"]) == sorted(poster_zoo.labels.FERPLUS)
    assert model.pretrained_cfg["mean"] == pytest.approx((0.1, 0.2, 0.3))
    assert model.built_with["num_heads"] == 8
    x = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        assert torch.equal(model(x), expected(x))


def test_an_argument_that_is_given_comes_before_the_folders(own: Path) -> None:
    model: Any = poster_zoo.create_model("poster_tiny", weights=own, num_heads=4, num_classes=3)
    assert model.built_with["num_heads"] == 4
    assert model.num_classes == 3


def test_a_named_folder_of_other_classes_keeps_its_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved = poster_zoo.create_model("poster_tiny", num_classes=2, in_chans=1, img_size=96)
    folder = poster_zoo.save_pretrained(saved, tmp_path, label_names=["no", "yes"])
    model: Any = poster_zoo.create_model("poster_tiny", weights=folder)
    assert same(model, saved)
    assert (model.num_classes, model.in_chans, model.img_size) == (2, 1, (96, 96))
    assert list(model.pretrained_cfg["label_names"]) == ["no", "yes"]
    assert not caplog.records


def test_classes_without_names_do_not_get_those_of_the_entry(own: Path, tmp_path: Path) -> None:
    config = json.loads((own / "config.json").read_text())
    del config["label_names"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(own / "model.safetensors")
    assert not poster_zoo.create_model("poster_tiny", weights=tmp_path).pretrained_cfg.get("label_names")


@pytest.mark.parametrize("name", ["poster_tiny_baseline", "poster_tiny_image", "poster_rafdb"])
def test_a_named_folder_of_another_model_is_refused_by_name(name: str, tiny: tuple[Any, Path]) -> None:
    for build in (
        lambda: poster_zoo.create_model(name, weights=tiny[1]),
        lambda: poster_zoo.load_checkpoint(tiny[1], name),
        lambda: poster_zoo.create_model(name, weights=tiny[1] / "model.safetensors", num_classes=3),
    ):
        with pytest.raises(WeightsError, match=rf"holds a poster_tiny and no {name}; .*poster_tiny") as error:
            build()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["installed", "the Hub's cache"])
def test_installed_weights_and_those_of_the_hub_are_what_their_config_says(place: str, tmp_path: Path) -> None:
    saved = poster_zoo.create_model("mobilefacenet", num_classes=10, img_size=64)
    saved.pretrained_cfg["mean"] = (0.1, 0.2, 0.3)
    folder = installed_folder("mobilefacenet")
    if place != "installed":
        folder = tmp_path / "models--poster-zoo--mobilefacenet" / "snapshots" / ("0" * 40)
        (tmp_path / "models--poster-zoo--mobilefacenet" / "refs").mkdir(parents=True)
        (tmp_path / "models--poster-zoo--mobilefacenet" / "refs" / "main").write_text("0" * 40)
    poster_zoo.save_pretrained(saved, folder)
    model: Any = poster_zoo.create_model("mobilefacenet", pretrained=True, cache_dir=tmp_path)
    assert same(model, saved)
    assert (model.num_classes, model.img_size) == (10, (64, 64))
    assert model.pretrained_cfg["mean"] == pytest.approx((0.1, 0.2, 0.3))
    assert model.pretrained_cfg["hf_hub_id"] == "poster-zoo/mobilefacenet"


def test_installed_weights_of_the_entrys_own_kind_leave_the_entry_as_it_is() -> None:
    plain = poster_zoo.create_model("mobilefacenet")
    poster_zoo.save_pretrained(plain, installed_folder("mobilefacenet"))
    model = poster_zoo.create_model("mobilefacenet", pretrained=True)
    assert same(model, plain)
    assert model.pretrained_cfg == plain.pretrained_cfg


def test_weights_of_models_that_share_them_fit_both_names(tmp_path: Path) -> None:
    folder = poster_zoo.save_pretrained(poster_zoo.create_model("poster_rafdb", depth=1), tmp_path)
    model: Any = poster_zoo.create_model("poster", weights=folder)
    assert model.built_with["depth"] == 1


def test_a_file_that_is_named_comes_before_the_folders_own(tiny: tuple[Any, Path], own: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    other = poster_zoo.create_model("poster_tiny")
    folder = poster_zoo.save_pretrained(other, tmp_path / "other", label_names=list("abcdefgh"))
    (tmp_path / "alone.safetensors").symlink_to(tiny[1] / "model.safetensors")
    model: Any = poster_zoo.create_model(f"local-dir:{folder}", weights=tmp_path / "alone.safetensors")
    assert same(model, tiny[0])
    assert list(model.pretrained_cfg["label_names"]) == list("abcdefgh")  # a file alone says no others
    for name, weights in ((folder, own), (own, folder)):
        model = poster_zoo.create_model(f"local-dir:{name}", weights=weights)
        expected: Any = poster_zoo.from_pretrained(weights)
        assert same(model, expected)
        assert model.built_with == expected.built_with
        assert list(model.pretrained_cfg["label_names"]) == list(expected.pretrained_cfg["label_names"])
    with pytest.raises(WeightsNotFoundError, match="no weights file"):
        poster_zoo.create_model(f"local-dir:{folder}", weights=tmp_path / "nowhere.safetensors")


def test_a_saved_file_says_by_the_config_beside_it_what_model_it_is(tiny: tuple[Any, Path], tmp_path: Path) -> None:
    assert same(poster_zoo.load_checkpoint(tiny[1] / "model.safetensors"), tiny[0])
    (tmp_path / "alone.safetensors").symlink_to(tiny[1] / "model.safetensors")
    with pytest.raises(WeightsError, match=r"alone\.safetensors .*--model"):
        poster_zoo.load_checkpoint(tmp_path / "alone.safetensors")
    assert same(poster_zoo.load_checkpoint(tmp_path / "alone.safetensors", "poster_tiny"), tiny[0])


def test_new_head_keeps_the_rest_strict(
    tiny: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, folder = tiny
    with caplog.at_level(logging.WARNING):
        other = poster_zoo.create_model("poster_tiny", weights=folder, num_classes=5)
    assert [r.getMessage() for r in caplog.records if "head is new" in r.getMessage()] == [
        "poster_tiny: the head is new, for 5 classes; every other tensor comes from the weights."
    ]
    assert other.get_classifier().out_features == 5
    assert same(other, model, but=("head.",))

    tensors = load_file(folder / "model.safetensors")
    del tensors["fusion.norm.weight"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(WeightsMismatchError, match=r"fusion\.norm\.weight: expected \(160,\), not in the file"):
        poster_zoo.create_model("poster_tiny", weights=tmp_path / "less.safetensors", num_classes=5)


def test_weights_that_the_model_has_no_place_for_are_refused(tiny: tuple[Any, Path]) -> None:
    _, folder = tiny
    with pytest.raises(WeightsMismatchError, match=r"fusion\.blocks\.0\.large\.mix\.weight: not in the model"):
        poster_zoo.create_model("poster_tiny", weights=folder, token_mixing=False)


def test_no_classes_load_everything_but_the_head(tiny: tuple[Any, Path], caplog: pytest.LogCaptureFixture) -> None:
    model, folder = tiny
    headless = poster_zoo.create_model("poster_tiny", weights=folder, num_classes=0).eval()
    x = torch.randn(1, 3, 112, 112)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
        # Tensors of a file lie at its offsets in memory, and products of matrices round by how they are aligned.
        torch.testing.assert_close(headless(x), expected, rtol=0, atol=1e-6)
    assert not caplog.records


def test_grey_stems_answer_as_colour_stems_do_to_grey_images(tiny: tuple[Any, Path]) -> None:
    model, folder = tiny
    grey = poster_zoo.create_model("poster_tiny", weights=folder, in_chans=1).eval()
    x = torch.randn(2, 1, 112, 112)
    with torch.inference_mode():
        torch.testing.assert_close(grey(x), model(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_wrong_weights_are_one_error_that_names_the_first_tensors(
    tiny: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = tmp_path / "alone.safetensors"  # without the config.json that would say what it is
    alone.symlink_to(tiny[1] / "model.safetensors")
    with pytest.raises(
        WeightsMismatchError, match=r"do not fit poster_tiny_image: \d+ of its tensors differ \(trunk\."
    ):
        poster_zoo.create_model("poster_tiny_image", weights=alone)
    with pytest.raises(WeightsMismatchError, match=r"expected .*, found "):
        poster_zoo.create_model("poster_tiny", weights=tiny[1], embed_dim=80)
    with pytest.raises(WeightsMismatchError):
        poster_zoo.create_model("poster_v2", weights=alone)  # of another number of classes too
    assert caplog.records == []


def test_features_only_loads_the_weights(tiny: tuple[Any, Path]) -> None:
    model, folder = tiny
    wrapped = poster_zoo.create_model("poster_tiny", weights=folder, features_only=True)
    assert same(wrapped.model.image_stream, model.image_stream)


def test_loading_weights_draws_no_numbers_that_they_replace(tiny: tuple[Any, Path]) -> None:
    before = torch.get_rng_state()
    again = poster_zoo.from_pretrained(tiny[1])
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for p in again.landmark_stream.parameters())
    assert all(p.requires_grad for p in again.image_stream.parameters())


@pytest.mark.parametrize("name", TINY)
def test_a_new_head_on_loaded_weights_has_numbers_and_learns(name: str, tmp_path: Path) -> None:
    saved = poster_zoo.create_model(name, num_classes=6)
    folder = poster_zoo.save_pretrained(saved, tmp_path / "saved", label_names=list("abcdef"))
    model = poster_zoo.create_model(f"local-dir:{folder}", pretrained=True, num_classes=3)
    head = model.get_classifier()
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert head.weight.shape[0] == 3
    assert head.weight.requires_grad
    assert 0 < float(head.weight.detach().std()) < 1


def _overwrite(file: Path) -> None:
    """Put zeros over a file's numbers where they lie, as `cp` or `rsync --inplace` would."""
    with file.open("r+b") as data:
        start = 8 + int.from_bytes(data.read(8), "little")
        data.seek(start)
        data.write(bytes(file.stat().st_size - start))


@pytest.mark.parametrize("way", ["folder", "local-dir", "load_checkpoint"])
def test_a_model_stays_as_it_is_when_its_file_is_written_over(way: str, tiny: tuple[Any, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny[1], folder)
    model = poster_zoo.from_pretrained(folder) if way == "local-dir" else loaded(way, folder)
    _overwrite(folder / "model.safetensors")
    assert same(model, tiny[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool], ids=str)
def test_tensors_of_a_file_are_those_that_the_library_reads(dtype: torch.dtype, tmp_path: Path) -> None:
    saved = {"matrix": (torch.randn(3, 5) * 9).to(dtype), "number": torch.tensor(7), "none": torch.empty(0, 4)}
    save_file(saved, tmp_path / "some.safetensors", metadata={"format": "pt"})
    read, expected = read_tensors(tmp_path / "some.safetensors"), load_file(tmp_path / "some.safetensors")
    assert read.keys() == expected.keys()
    for name in expected:
        assert read[name].dtype == expected[name].dtype
        assert torch.equal(read[name], expected[name])
    torch.save(read["number"], tmp_path / "number.pt")  # which brings no other tensor along
    assert (tmp_path / "number.pt").stat().st_size < 4096


@pytest.mark.parametrize("kept", [0, 5, 100, -1], ids=["empty", "no header", "half a header", "a byte less"])
def test_weights_that_break_off_are_one_sentence(kept: int, tiny: tuple[Any, Path], tmp_path: Path) -> None:
    whole = (tiny[1] / "model.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[:kept])
    with pytest.raises(WeightsError, match=r"cannot be read from .*half\.safetensors") as error:
        poster_zoo.create_model("poster_tiny", weights=tmp_path / "half.safetensors")
    assert "\n" not in str(error.value)


def test_numbers_of_a_kind_that_no_model_has_are_one_sentence(tmp_path: Path) -> None:
    save_file({"stem": torch.zeros(2, dtype=torch.float8_e5m2)}, tmp_path / "small.safetensors")
    with pytest.raises(WeightsError, match="stem is of the type F8_E5M2"):
        poster_zoo.create_model("poster_tiny", weights=tmp_path / "small.safetensors")


def test_weights_given_as_tensors_stay_the_callers_own(tiny: tuple[Any, Path]) -> None:
    given = load_file(tiny[1] / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in given.items()}
    model = timm.create_model("poster_tiny", pretrained=True, pretrained_cfg_overlay={"state_dict": given})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert all(torch.equal(given[name], kept[name]) for name in kept)


def test_weights_take_the_type_and_device_that_were_asked_for(tiny: tuple[Any, Path]) -> None:
    file = str(tiny[1] / "model.safetensors")
    model = timm.create_model(
        "poster_tiny", pretrained=True, pretrained_cfg_overlay={"file": file}, dtype=torch.bfloat16
    )
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    shapes = timm.create_model("poster_tiny", pretrained=True, pretrained_cfg_overlay={"file": file}, device="meta")
    assert all(p.is_meta for p in shapes.parameters())


def test_pretrained_without_weights_raises_and_says_what_to_do() -> None:
    with pytest.raises(WeightsNotFoundError) as error:
        timm.create_model("poster_rafdb", pretrained=True)
    message = str(error.value)
    assert "rafdb_best.pth" in message
    assert "github.com/zczcwh/POSTER" in message
    assert "poster-zoo convert rafdb_best.pth --model poster_rafdb --install" in message
    assert len(message.splitlines()) <= 8
    with pytest.raises(WeightsNotFoundError):
        poster_zoo.create_model("poster_tiny_image", pretrained=True)


@pytest.mark.parametrize(
    "asked",
    [
        {"url": "https://example.org/mine.safetensors"},
        {"hf_hub_filename": "pytorch_model.bin"},
        {"hf_hub_id": "somebody/faces", "hf_hub_filename": "other.safetensors"},
        {"custom_load": True},
    ],
    ids=str,
)
def test_weights_that_are_asked_for_in_ways_of_timm_alone_are_refused(asked: dict[str, Any]) -> None:
    *_, (name, value) = asked.items()
    with pytest.raises(WeightsError, match=rf"poster_tiny cannot be loaded by {name}={value!r}") as error:
        timm.create_model("poster_tiny", pretrained=True, pretrained_cfg_overlay=asked)
    assert "\n" not in str(error.value)
    timm.create_model("poster_tiny", pretrained_cfg_overlay=asked)  # whose weights nobody wants


def test_pickles_are_refused_as_weights(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="poster-zoo convert"):
        poster_zoo.create_model("poster_tiny", weights=tmp_path / "weights.pth")


def test_fine_tuning_is_four_lines_of_plain_torch(tiny: tuple[Any, Path]) -> None:
    model = poster_zoo.create_model("poster_tiny", weights=tiny[1], num_classes=2).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    x, y = torch.randn(8, 3, 112, 112), torch.tensor([0, 1] * 4)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# ------------------------------------------------------------------------------------------------------------- bundled


def test_bundled_weights_know_the_expression_on_the_example(root: Path) -> None:
    answer = poster_zoo.Predictor("poster_tiny")(root / "examples" / "face.png")
    assert answer.label == "Happiness"  # the astronaut in the portrait smiles
    assert sum(answer.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_bundled_weights_fit_in_the_package(root: Path) -> None:
    file = root / "poster_zoo" / "weights" / "bundled" / "poster_tiny.safetensors"
    assert file.stat().st_size <= 8_000_000
    assert poster_zoo.model_info("poster_tiny").source.source == "bundled"


def test_weights_arrive_on_the_device_of_the_context() -> None:
    with torch.device("meta"):
        assert all(tensor.is_meta for tensor in poster_zoo.create_model("poster_tiny", pretrained=True).parameters())
