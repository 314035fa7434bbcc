"""Every published network computes what its authors' code computes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import poster_zoo
from poster_zoo.models._builder import ENTRIES
from poster_zoo.weights.upstream import LAYOUTS, rename

EXPECTED = load_file(Path(__file__).parent / "upstream" / "expected.safetensors")
# Bound on the absolute difference, from float32 summed in another order through some hundred layers.
TOLERANCE = 1e-4

MODELS = {
    "poster_rafdb_small": "poster_small",
    "poster_rafdb_base": "poster_base",
    "poster_rafdb_large": "poster_rafdb",
    "poster_affectnet7_large": "poster_affectnet7",
    "poster_affectnet8_large": "poster_affectnet8",
    "posterv2_rafdb": "poster_v2_rafdb",
    "posterv2_affectnet8": "poster_v2_affectnet8",
    "ir50": "ir50",
    "mobilefacenet": "mobilefacenet",
}
# As the authors' files are counted: all tensors, and those that their own code never runs.
TENSORS = {
    "poster_rafdb_small": (981, 13),
    "poster_rafdb_base": (1145, 13),
    "poster_rafdb_large": (1309, 13),
    "poster_affectnet7_large": (1261, 13),
    "poster_affectnet8_large": (1261, 13),
    "posterv2_rafdb": (747, 27),
    "posterv2_affectnet8": (747, 27),
    "ir50": (349, 0),
    "mobilefacenet": (333, 0),
}


@lru_cache(maxsize=1)  # the tests are sorted by variant, so each is built once
def network(variant: str) -> Any:
    """The model of a variant with its tensors as released, colour order included."""
    name = MODELS[variant]
    tensors = checkpoints.tensors(variant)
    used = rename(LAYOUTS[ENTRIES[name].upstream_layout or ""], tensors).used
    model = poster_zoo.create_model(name).eval()
    model.load_state_dict({ours: tensors[theirs] for theirs, ours in used.items()})
    return model


def images(model: nn.Module) -> torch.Tensor:
    height, width = model.img_size
    noise = np.random.RandomState(0).standard_normal((2, 3, height, width))
    return torch.from_numpy(noise.astype(np.float32))


def compare(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module", params=MODELS, ids=str)
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@torch.inference_mode()
def test_answers_are_the_authors(variant: str) -> None:
    model = network(variant)
    kind = {"ir50": "embedding", "mobilefacenet": "landmarks"}.get(variant, "logits")
    compare(model(images(model)), EXPECTED[f"{variant}/{kind}"])


@torch.inference_mode()
def test_landmarks_inside_poster_are_the_authors(variant: str) -> None:
    if f"{variant}/landmarks" not in EXPECTED or variant == "mobilefacenet":
        pytest.skip("the authors' code gives no landmarks here")
    model = network(variant)
    compare(model.forward_landmarks(images(model)), EXPECTED[f"{variant}/landmarks"])


def test_every_tensor_of_a_release_is_accounted_for(variant: str) -> None:
    names = [name for name, _, _ in checkpoints.layouts()[variant]["tensors"]]
    renaming = rename(LAYOUTS[ENTRIES[MODELS[variant]].upstream_layout or ""], names)
    total, unused = TENSORS[variant]
    assert renaming.left_over == ()
    assert len(renaming.dropped) == unused
    assert len(renaming.used) + len(renaming.dropped) == total == len(names)
    assert sorted(renaming.used.values()) == sorted(network(variant).state_dict())


@torch.inference_mode()
def test_features_on_the_way_are_the_authors(variant: str, shared: Path) -> None:
    model, golden = network(variant), load_file(shared / "parity" / "golden" / f"{variant}.safetensors")
    x = images(model)
    for name, actual in _features(model, x).items():
        expected = golden[name]
        compare(actual[: len(expected), : expected.shape[1]], expected)


def _features(model: Any, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the reference holds between input and answer, by its names there."""
    if not hasattr(model, "fusion"):
        maps = model.forward_intermediates(x, intermediates_only=True)
        names = ["stage28", "stage14", "stage7"] if len(maps) == 3 else [f"stage{i + 1}" for i in range(4)]
        return dict(zip(names, maps, strict=True))
    resized = model.resize(x)
    image_maps, landmark_maps = model.image_stream.forward_stages(resized), model.landmark_stream.forward_maps(resized)
    if model.tokens is None:
        return {
            **{f"image_features{i + 1}": m for i, m in enumerate(image_maps)},
            **{f"landmark_features{i + 1}": m for i, m in enumerate(landmark_maps)},
        }
    tokens = model.forward_features(x)
    return {
        "image_features": model.tokens(image_maps[-1], landmark_maps[-1])[0],
        "landmark_features": landmark_maps[-1],
        "fused": tokens[:, 0],
        "head_features": model.forward_head(tokens, pre_logits=True),
    }


@pytest.mark.parametrize("variant", ["poster_rafdb_large", "poster_affectnet7_large", "posterv2_rafdb"])
@torch.inference_mode()
def test_a_face_from_its_file_to_logits_through_our_own_transform(variant: str, root: Path, tmp_path: Path) -> None:
    torch.save(checkpoints.checkpoint(variant), tmp_path / "release.pth")
    conversion = poster_zoo.convert(tmp_path / "release.pth", MODELS[variant], out=tmp_path / "converted")
    model = poster_zoo.from_pretrained(conversion.out).eval()
    image = poster_zoo.create_transform(model)(poster_zoo.read_image(root / "examples" / "face.png"))
    compare(model(image[None]), EXPECTED[f"{variant}/face_png"])
