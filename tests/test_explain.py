"""Where a model looked: made networks whose evidence is known, attention computed a second way, and real faces."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import poster_zoo
from poster_zoo import plots
from poster_zoo.cli import main
from poster_zoo.data.datasets import open_dataset
from poster_zoo.errors import ImageError, LabelError, MissingExtraError, OptionError
from poster_zoo.explain import PARTS, Explainer, Explanation, blank, class_token_attention, explain, fuse, marked
from poster_zoo.models._builder import ENTRIES
from poster_zoo.models.layers import SelfAttention
from poster_zoo.models.poster import CrossAttention

FACE = "examples/face.png"
SIDE = 20
ENTRY = {
    "input_size": (3, SIDE, SIDE),
    "crop_pct": 1.0,
    "mean": (0, 0, 0),
    "std": (1, 1, 1),
    "interpolation": "bilinear",
}


class Weighed(nn.Module):
    """A network whose logits are sums of the picture's grey values, each times a known weight."""

    feature_info = ({"module": "grey", "num_chs": 1, "reduction": 1},)
    pretrained_cfg = ENTRY | {"label_names": ("Anger", "Fear")}
    num_classes = 2

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.grey = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.grey.weight, 1 / 3)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        return (self.grey(x) * self.weights).sum((2, 3))


@pytest.fixture
def weighed() -> Weighed:
    """Anger is in the upper left eighth of the picture; Fear below, with what speaks against it on its right."""
    weights = torch.zeros(2, SIDE, SIDE)
    weights[0, :5, :10] = 0.02
    weights[1, 12:, :8] = 0.02
    weights[1, 12:, 12:] = -0.01
    return Weighed(weights)


@pytest.fixture(scope="module")
def tiny() -> Explainer:
    return Explainer("poster_tiny")


@pytest.fixture
def noise() -> Image.Image:
    pixels = np.random.default_rng(0).integers(100, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_evidence_is_each_positions_share_in_the_logit(weighed: Weighed, noise: Image.Image) -> None:
    explainer = Explainer(weighed)
    grey = np.asarray(noise, dtype=float).mean(2) / 255
    for i, label in enumerate(weighed.pretrained_cfg["label_names"]):
        expected = grey * weighed.weights[i].numpy()
        found = explainer(noise, label).grad_cam
        np.testing.assert_allclose(found, expected / np.abs(expected).max(), atol=1e-5)


def test_the_evidence_is_about_the_class_that_was_asked_for(weighed: Weighed, noise: Image.Image) -> None:
    explainer = Explainer(weighed)
    fear = explainer(noise, "afraid")
    assert fear.label == "Fear"
    assert fear.grad_cam[12:, :8].min() > 0
    assert fear.grad_cam[12:, 12:].max() < 0
    assert fear.answer == explainer(noise).answer
    assert 0 < fear.score < 1


def test_without_the_marked_fifth_the_class_is_as_likely_as_the_blanked_picture_says(
    weighed: Weighed, noise: Image.Image
) -> None:
    explanation = Explainer(weighed)(noise, "Anger")
    pixels = np.asarray(noise)
    # A fifth of 400 pixels is 80: the 50 that speak for Anger and 30 more; which does not matter to Anger, and of
    # those that matter to Fear the first in the order of rows are at hand.
    blanked = np.where(marked(explanation.grad_cam)[..., None], np.rint(pixels.mean((0, 1))), pixels)
    logits = (torch.tensor(blanked).mean(2) / 255 * weighed.weights).sum((1, 2))
    assert explanation.score_without == pytest.approx(logits.softmax(0)[0].item(), abs=1e-4)
    assert marked(explanation.grad_cam)[:5, :10].all()


def test_a_white_picture_blanked_is_still_white(weighed: Weighed) -> None:
    explanation = Explainer(weighed)(Image.new("RGB", (SIDE, SIDE), "white"))
    assert explanation.score_without == explanation.score
    assert explanation.score_elsewhere == pytest.approx(explanation.score)


def test_the_marked_part_is_what_is_blanked_in_the_mean_colour() -> None:
    image = torch.zeros(3, 10, 10, dtype=torch.uint8)
    image[0, :5] = 100
    values = np.arange(100, dtype=np.float32).reshape(10, 10)
    mark = marked(values, 0.2)
    assert mark.sum() == 20
    assert mark[8:].all()
    changed = blank(image, mark)
    assert torch.equal(changed[:, :8], image[:, :8])
    assert (changed[:, 8:].permute(1, 2, 0) == torch.tensor([50, 0, 0], dtype=torch.uint8)).all()


def test_where_all_is_equal_a_fifth_is_still_a_fifth() -> None:
    assert marked(np.zeros((7, 9), np.float32)).sum() == 13


def test_stages_count_by_what_they_add_up_to_not_by_how_fine_they_are() -> None:
    left = torch.zeros(1, 8, 8)
    left[:, :, :4] = 1 / 32  # adds up to 1
    right = torch.zeros(2, 2, 2)
    right[:, :, 1] = 1 / 4  # adds up to 1 as well, over both channels
    fused = fuse([left, right], (8, 8))
    assert fused[:, 0] == pytest.approx(fused[:, -1])
    assert fused.max() == pytest.approx(1)


@pytest.mark.parametrize("heads", [1, 4])
def test_the_class_tokens_weights_give_back_what_the_layer_makes(heads: int) -> None:
    torch.manual_seed(0)
    own, asking = torch.randn(2, 50, 32), torch.randn(2, 50, 32)
    cross = CrossAttention(32, heads)
    nn.init.normal_(cross.kv.bias)
    weights = class_token_attention(cross, (own, asking))
    values = cross.kv(own)[..., 32:].reshape(2, 50, heads, 32 // heads)
    made = cross.proj(torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1))
    torch.testing.assert_close(made, cross(own, asking)[:, 0])
    own_alone = SelfAttention(32, heads)
    weights = class_token_attention(own_alone, (own,))
    values = own_alone.qkv(own)[..., 64:].reshape(2, 50, heads, 32 // heads)
    made = own_alone.proj(torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1))
    torch.testing.assert_close(made, own_alone(own)[:, 0])


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("poster_tiny", {}, {"image", "landmark"}),
        ("poster_tiny", {"global_pool": "avg"}, set()),  # the answer is read from all tokens
        ("poster_small", {"depth": 1}, {"landmark"}),  # an image token of the authors' is no position
        ("poster_tiny", {"depth": 1, "token_mixing": False}, {"image", "landmark"}),  # as the AffectNet releases
        ("poster_v2", {}, {"fused"}),
        ("poster_tiny_baseline", {}, set()),
        ("poster_tiny_image", {}, set()),
    ],
)
def test_each_network_of_the_zoo_tells_what_it_has(name: str, options: dict[str, Any], expected: set[str]) -> None:
    torch.manual_seed(0)
    model = poster_zoo.create_model(name, **options)
    explanation = explain(model, FACE)
    assert isinstance(explanation, Explanation)
    assert explanation.grad_cam.shape == (model.img_size if isinstance(model.img_size, tuple) else None)
    assert np.abs(explanation.grad_cam).max() == pytest.approx(1)
    assert set(explanation.attention) == expected
    for values in explanation.attention.values():
        assert values.shape == (7, 7)
        assert values.min() >= 0
        assert 0 < values.sum() < 1  # the rest fell on the first token
    assert (explanation.landmarks is None) == (name == "poster_tiny_image")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_lies_where_the_keys_that_were_asked_for_are() -> None:
    model = poster_zoo.create_model("poster_tiny").eval()
    model.global_pool = "token"
    explainer = Explainer(model)
    # All that the last large block's image branch is asked is answered by token 1 + 7 · 2 + 5: row 2, column 5.
    for level in ("large", "medium", "small"):
        layer = getattr(model.fusion.blocks[-1], level).image.attn
        layer.register_forward_pre_hook(_point_at(1 + 7 * 2 + 5))
    values = explainer(FACE).attention["image"]
    assert np.unravel_index(values.argmax(), values.shape) == (2, 5)
    assert values[2, 5] > 0.9


def _point_at(token: int) -> Any:
    def change(layer: CrossAttention, inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        own, asking = inputs
        dim = own.shape[-1]
        with torch.no_grad():
            layer.kv.weight[:dim] = torch.eye(dim)
            layer.kv.bias[:dim] = 0
        own = torch.zeros_like(own)
        own[:, token] = 100
        return own, torch.ones_like(asking)

    return change


def test_the_same_answer_as_the_predictors(tiny: Explainer) -> None:
    answer = poster_zoo.Predictor("poster_tiny")(FACE)
    assert isinstance(answer, poster_zoo.Prediction)
    explanation = tiny(FACE)
    assert explanation.answer == explanation.label == answer.label
    assert explanation.score == pytest.approx(answer.score, abs=1e-4)
    np.testing.assert_allclose(explanation.landmarks, poster_zoo.Predictor("poster_tiny").landmarks(FACE), atol=1e-2)
    other = tiny(FACE, "fear")
    assert other.score == pytest.approx(answer.probabilities["Fear"], abs=1e-4)


def test_on_a_face_the_marked_fifth_matters_more_than_others(tiny: Explainer) -> None:
    explanation = tiny(FACE)
    assert explanation.score_without < explanation.score_elsewhere - 0.1


@pytest.mark.parametrize(("kind", "folder", "split"), [("ferplus", "ferplus", "valid"), ("rafdb", "faces", "test")])
def test_on_real_faces_the_marked_fifth_matters_more_than_a_random_one(
    kind: str, folder: str, split: str, shared: Path, tiny: Explainer
) -> None:
    place = shared / "data" / folder
    if not place.is_dir():
        pytest.skip(f"there are no faces in {place}")
    faces, chance = open_dataset(f"{kind}:{place}", split), np.random.default_rng(0)
    falls = []
    for row in chance.choice(len(faces), 12, replace=False):
        image = faces.image(int(row))
        found = tiny(image)
        # The same shape, put elsewhere by chance, over the picture's edges: a fifth as large and as torn.
        mark = marked(found.grad_cam)
        random = np.roll(mark, chance.integers(0, mark.shape), (0, 1))
        # The rest by hand: Pillow's pixels, blanked, answered as any other picture.
        side = mark.shape[::-1]
        pixels = np.asarray(image.convert("RGB").resize(side, Image.Resampling.BILINEAR))
        pictures = [
            Image.fromarray(np.where(m[..., None], np.rint(pixels.mean((0, 1))), pixels).astype(np.uint8))
            for m in (np.zeros_like(mark), mark, random)
        ]
        whole, without, elsewhere = (p.probabilities[found.label] for p in tiny.predictor(pictures))
        falls.append((whole - without, whole - elsewhere))
    by_map, by_chance = np.array(falls).T
    assert by_map.mean() > by_chance.mean() + 0.1
    assert (by_map > by_chance).mean() > 0.6


def test_a_wide_picture_has_its_places_in_its_own_pixels(weighed: Weighed) -> None:
    explanation = Explainer(weighed)(Image.new("RGB", (400, 100), "white"), "Anger")
    one = np.zeros((SIDE, SIDE), np.float32)
    one[10, 5] = 1
    assert explanation.peak(one) == pytest.approx((5.5 / SIDE * 400, 10.5 / SIDE * 100))
    assert explanation.parts(one) == {}  # no landmarks


def a_face(**changes: Any) -> Explanation:
    """An explanation of a picture of 200 × 100 pixels with landmarks at known places."""
    points = np.zeros((68, 2), np.float32)
    centres = {"jaw": (100, 95), "eyebrows": (100, 10), "nose": (100, 50), "eyes": (60, 30), "mouth": (100, 75)}
    for part, span in PARTS.items():
        points[slice(*span)] = centres[part]
    points[0], points[16] = (40, 50), (160, 50)  # the jaw is 120 wide: a part reaches 15 pixels
    given: dict[str, Any] = {
        "source": "face.png", "answer": "Fear", "label": "Fear", "score": 0.5, "score_without": 0.25,
        "score_elsewhere": 0.375, "grad_cam": np.zeros((50, 100), np.float32), "attention": {}, "landmarks": points,
        "size": (200, 100),
    }  # fmt: skip
    return Explanation(**given | changes)


@pytest.mark.parametrize(
    ("x", "y", "part"),
    [
        (100, 74, "mouth"),
        (60, 32, "eyes"),
        (42, 52, "jaw"),
        (100, 12, "eyebrows"),
        (106, 50, "nose"),
        (190, 10, "elsewhere"),
    ],
)
def test_a_spot_belongs_to_the_part_whose_landmark_is_nearest(x: int, y: int, part: str) -> None:
    values = np.full((50, 100), -1.0, np.float32)  # what speaks against the class counts for no part
    values[y // 2, x // 2] = 1
    shares = a_face().parts(values)
    assert shares.pop(part) == pytest.approx(1)
    assert set(shares.values()) == {0}


def test_shares_of_the_face_add_up_to_one() -> None:
    shares = a_face().parts(np.random.default_rng(0).random((7, 7), np.float32))
    assert sum(shares.values()) == pytest.approx(1)
    assert list(shares) == [*PARTS, "elsewhere"]


def test_many_images_give_a_list_in_order(weighed: Weighed, noise: Image.Image) -> None:
    white = Image.new("RGB", (9, 9), "white")
    found = explain(weighed, [noise, white, FACE])
    assert isinstance(found, list)
    assert [one.source for one in found] == ["image 0", "image 1", FACE]
    assert [one.size for one in found] == [(SIDE, SIDE), (9, 9), Image.open(FACE).size]


def test_inference_mode_does_not_stand_in_the_way(tiny: Explainer) -> None:
    outside = tiny(FACE)
    with torch.inference_mode():
        inside = tiny(FACE)
    np.testing.assert_allclose(inside.grad_cam, outside.grad_cam, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, entry in sorted(ENTRIES.items()) if not entry.label_names])
def test_a_model_without_classes_is_told_before_its_weights_are_looked_for(name: str) -> None:
    with pytest.raises(OptionError, match=rf"^{name} names no expressions, .* such as poster_tiny\.$"):
        Explainer(name)


def test_what_cannot_be_explained_is_told_in_a_sentence(weighed: Weighed, noise: Image.Image) -> None:
    with pytest.raises(OptionError, match="IRNet names no expressions"):
        Explainer(poster_zoo.create_model("ir50"))
    with pytest.raises(OptionError, match="explain the model that `optimize` was given"):
        Explainer(poster_zoo.optimize(poster_zoo.create_model("poster_tiny")))
    with pytest.raises(LabelError, match="joke"):
        Explainer(weighed)(noise, "joke")
    with pytest.raises(ImageError, match=r"'nowhere\.png' does not exist"):
        Explainer(weighed)("nowhere.png")


def test_a_network_whose_stages_make_no_maps_is_told_so(noise: Image.Image) -> None:
    class Flat(Weighed):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.grey(x.flatten(1)), self.weights)

    flat = Flat(torch.randn(2, 4))
    flat.grey = nn.Linear(3 * SIDE * SIDE, 4)
    with pytest.raises(OptionError, match=r"Flat give no maps"):
        Explainer(flat)(noise)
    flat.feature_info = ()
    with pytest.raises(OptionError, match="does not say in `feature_info`"):
        Explainer(flat)


def test_without_captum_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(MissingExtraError, match=r'pip install "poster-zoo\[explain\]"'):
        explain("poster_tiny", FACE)


# ------------------------------------------------------------------------------------------------------ the picture


def texts(svg: Path) -> list[str]:
    """Return what is written in a picture: beside the glyphs, matplotlib states each text in a comment."""
    return re.findall(r"<!-- (.+?) -->", svg.read_text(encoding="utf-8"))


def test_the_picture_shows_the_face_the_evidence_and_the_attention(tmp_path: Path, tiny: Explainer) -> None:
    out = tmp_path / "explained.svg"
    explained = [tiny(FACE), tiny(FACE, "fear")]
    plots.explanations(FACE, explained, out=out)
    written = texts(out)
    first = explained[0]
    assert f"answer: {first.answer}" in written
    assert f"{first.label} {first.score:.2f}" in written
    assert f"blanked: {first.score_without:.2f} outlined, {first.score_elsewhere:.2f} elsewhere" in written
    assert any(text.startswith("Fear 0.") for text in written)
    assert {"attention: image", "attention: landmark"} <= set(written)
    # Each kind of heat has its scale.
    assert {"evidence for the class, in parts of the largest", "attention, in even shares"} <= set(written)
    assert out.read_text().count("<image") == 1 + len(explained) + len(first.attention) + 2


def test_what_is_not_marked_is_seen_as_it_is_and_the_scale_tells_the_colours(tmp_path: Path) -> None:
    out = tmp_path / "explained.png"
    values = np.zeros((50, 100), np.float32)
    values[10:40, 70:95] = 1
    face = Image.new("RGB", (200, 100), (100, 100, 100))
    plots.explanations(face, [a_face(landmarks=None, grad_cam=values)], out=out)
    picture = np.asarray(Image.open(out).convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(picture, axis=0, return_counts=True)
    seen = {tuple(int(value) for value in colour): int(count) for colour, count in zip(colours, counts, strict=True)}
    # Viridis ends in (253, 231, 37), laid over grey at four fifths: as a patch on the face, as one end of the scale.
    marked_colour = tuple(round(0.8 * end + 0.2 * 100) for end in (253, 231, 37))
    near = sum(
        count
        for colour, count in seen.items()
        if max(abs(a - b) for a, b in zip(colour, marked_colour, strict=True)) < 4
    )
    assert near > 5000
    assert seen[100, 100, 100] > 1.5 * near  # the face itself and, under no heat, the map's panel


def test_a_model_without_landmarks_or_attention_has_its_picture(tmp_path: Path) -> None:
    out = tmp_path / "explained.svg"
    face = Image.new("RGB", (300, 60), "white")
    plots.explanations(face, [a_face(landmarks=None, size=(300, 60))], out=out)
    written = texts(out)
    assert {"answer: Fear", "Fear 0.50", "blanked: 0.25 outlined, 0.38 elsewhere"} <= set(written)
    assert not any("attention" in text for text in written)


# ------------------------------------------------------------------------------------------------- the command line


def run(*arguments: str) -> Result:
    runner = CliRunner(**({"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}))
    return runner.invoke(main, ["explain", *arguments])


def test_the_command_prints_one_json_object(tiny: Explainer) -> None:
    result = run(FACE, "--label", "angry", "--faces", "none", "--json")
    assert result.exit_code == 0, result.stderr
    [line] = result.stdout.splitlines()
    said = json.loads(line)
    assert set(said) == {"source", "model", "face", "explanations"}
    answer, anger = said["explanations"]
    assert (said["source"], said["model"], said["face"]) == (FACE, "poster_tiny", None)
    scores = {"score", "score_without", "score_elsewhere"}
    for one in (answer, anger):
        assert set(one) == {"source", "answer", "label", "grad_cam", "attention", "landmarks", *scores}
        assert all(0 <= one[key] <= 1 for key in scores)
        assert np.abs(one["grad_cam"]["grid"]).max() <= 1  # means of what is at most 1, and may be negative
        for summary in (one["grad_cam"], *one["attention"].values()):
            assert set(summary) == {"peak", "parts", "grid"}
            assert all(0 <= value <= 100 for value in summary["peak"])  # pixels of the image
            assert set(summary["parts"]) == {*PARTS, "elsewhere"}
            assert all(0 <= share <= 1 for share in summary["parts"].values())
        for attention in one["attention"].values():
            assert np.min(attention["grid"]) >= 0
            assert np.sum(attention["grid"]) <= 1  # the rest fell on the first token
    expected = tiny(FACE)
    assert answer["answer"] == anger["answer"] == answer["label"] == expected.label
    assert anger["label"] == "Anger"
    assert answer["score_without"] == pytest.approx(expected.score_without, abs=1e-3)
    assert np.shape(answer["landmarks"]) == (68, 2)
    for one in (answer["grad_cam"], *answer["attention"].values()):
        assert np.shape(one["grid"]) == (7, 7)
        assert sum(one["parts"].values()) == pytest.approx(1, abs=1e-3)
    assert set(answer["attention"]) == {"image", "landmark"}
    # 7 × 7 means of 112 × 112 cells.
    assert answer["grad_cam"]["grid"][0][0] == pytest.approx(expected.grad_cam[:16, :16].mean(), abs=1e-3)


def test_the_command_prints_tables_and_draws(tmp_path: Path) -> None:
    out = tmp_path / "explained.png"
    result = run(FACE, "--plot", str(out))
    assert result.exit_code == 0, result.stderr
    assert "marked fifth blanked" in result.stdout
    assert re.search(r"^attention, landmark +0\.\d\d", result.stdout, re.MULTILINE)
    assert result.stderr == f"Wrote {out}\n"
    assert Image.open(out).width > 1000


def test_of_a_photograph_the_surest_face_is_explained(tmp_path: Path) -> None:
    photograph, face = Image.new("RGB", (600, 300), (90, 120, 90)), Image.open(FACE).convert("RGB")
    photograph.paste(face.resize((60, 60)), (20, 20))
    photograph.paste(face.resize((160, 160)), (350, 70))
    photograph.save(tmp_path / "two.png")
    result = run(str(tmp_path / "two.png"), "--json")
    assert result.stderr == "Of 2 faces the surest is taken.\n"
    said = json.loads(result.stdout)
    surest = max(poster_zoo.Predictor(faces="auto")(tmp_path / "two.png"), key=lambda answer: answer.face.score)
    assert said["face"] == surest.face.to_dict()
    [explanation] = said["explanations"]
    assert (explanation["label"], explanation["score"]) == (surest.label, pytest.approx(surest.score, abs=1e-2))


def test_a_picture_without_a_face_is_explained_as_a_whole_and_that_is_said(tmp_path: Path) -> None:
    Image.new("RGB", (80, 60), (20, 200, 20)).save(tmp_path / "green.png")
    result = run(str(tmp_path / "green.png"), "--json")
    assert result.stderr == "No face was found; the whole image is taken.\n"
    assert json.loads(result.stdout)["face"] is None


def test_the_class_that_is_the_answer_is_told_once() -> None:
    result = run(FACE, "--label", "joy", "--json")
    assert [one["label"] for one in json.loads(result.stdout)["explanations"]] == ["Happiness"]


@pytest.mark.parametrize(
    ("arguments", "sentence", "status"),
    [
        ((FACE, "--label", "joke"), "poster_tiny has no class 'joke'; it knows Neutral, Happiness", 2),
        ((FACE, "--model", "mobilefacenet"), "mobilefacenet names no expressions", 2),
        (("nowhere.png",), "'nowhere.png' does not exist", 1),
        ((FACE, "--plot", FACE), "would overwrite", 2),
        ((FACE, "--plot", "a.bmp"), "end its name in .png", 2),
    ],
)
def test_wrong_use_is_one_sentence(arguments: tuple[str, ...], sentence: str, status: int) -> None:
    result = run(*arguments)
    assert result.exit_code == status
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout
