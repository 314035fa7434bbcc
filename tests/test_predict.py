"""From photographs to named answers. Most tests ask a model whose answer can be worked out by hand."""

from __future__ import annotations

import io
import json
import pickle
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image
from torch import Tensor, nn

from poster_zoo.errors import ImageError, LabelError, OptionError, WeightsError
from poster_zoo.predict import Prediction, Predictor

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
LABELS = ("Reddish", "Greenish", "Bluish")
EXPECTED = dict(zip(COLOURS, LABELS, strict=True))
ENTRY = {
    "input_size": (3, 16, 16),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "squash",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "label_names": LABELS,
}


class ColourModel(nn.Module):
    """Its logits are the mean of each channel, in 0…1, times its one weight."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.pretrained_cfg = ENTRY | changes
        self.num_classes = 3
        self.weight = nn.Parameter(torch.tensor(4.0))
        self.dropout = nn.Dropout(0.9)
        self.batches: list[tuple[int, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append((len(x), x.dtype))
        logits: Tensor = self.dropout(x.mean((2, 3)) * self.weight)
        return logits


class LandmarkModel(nn.Module):
    """Puts point i at (i / 100, 0.5)."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {key: value for key, value in ENTRY.items() if key != "label_names"}
        self.weight = nn.Parameter(torch.ones(1))

    def forward_landmarks(self, x: Tensor) -> Tensor:
        points = torch.stack([torch.arange(68) / 100, torch.full((68,), 0.5)], dim=1)
        return points.flatten().expand(len(x), -1) * self.weight


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (20, 30), COLOURS[colour])


def png(colour: str) -> bytes:
    file = io.BytesIO()
    picture(colour).save(file, "PNG")
    return file.getvalue()


def one(prediction: Prediction | list[Prediction]) -> Prediction:
    assert isinstance(prediction, Prediction)
    return prediction


def many(predictions: Prediction | list[Prediction]) -> list[Prediction]:
    assert isinstance(predictions, list)
    return predictions


def labels_of(predictions: Any) -> list[str | None]:
    return [prediction.label for prediction in predictions]


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(ColourModel(), batch_size=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures, one of them broken, and one more in a subfolder."""
    (tmp_path / "more").mkdir()
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(png(list(COLOURS)[i % 3]))
    (tmp_path / "4.png").write_bytes(png("green")[:-30])
    (tmp_path / "more" / "10.png").write_bytes(png("blue"))
    return tmp_path


def test_the_embedded_model_sees_that_the_astronaut_smiles(root: Path) -> None:
    prediction = one(Predictor()(root / "examples" / "face.png"))
    assert prediction.label == "Happiness"
    assert list(prediction.probabilities) == [
        "Neutral",
        "Happiness",
        "Surprise",
        "Sadness",
        "Anger",
        "Disgust",
        "Fear",
        "Contempt",
    ]


@pytest.mark.parametrize("colour", COLOURS)
def test_every_kind_of_image_gets_the_same_answer(predictor: Predictor, colour: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(colour))
    array = np.asarray(picture(colour))
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    logits = np.array(COLOURS[colour]) / 255 * 4
    expected = np.exp(logits) / np.exp(logits).sum()
    with path.open("rb") as file:
        for image in (path, str(path), png(colour), bytearray(png(colour)), picture(colour), array, tensor, file):
            prediction = one(predictor(image))
            assert prediction.label == EXPECTED[colour]
            assert prediction.score == pytest.approx(expected.max(), abs=1e-6)
            assert tuple(prediction.probabilities) == LABELS
            assert list(prediction.probabilities.values()) == pytest.approx(expected, abs=1e-6)


def test_the_source_is_the_path_as_given_or_the_place_among_the_answers(predictor: Predictor, folder: Path) -> None:
    given: list[Any] = [str(folder / "0.png"), png("red"), folder / "more", picture("red"), folder / "1.png"]
    assert [prediction.source for prediction in many(predictor(given))] == [
        str(folder / "0.png"),
        "image 1",
        str(folder / "more" / "10.png"),
        "image 3",
        str(folder / "1.png"),
    ]
    assert one(predictor(picture("red"))).source == "image 0"


def test_a_prediction_becomes_json(predictor: Predictor) -> None:
    good, bad = many(predictor([picture("blue"), b"nothing"]))
    assert json.loads(json.dumps(good.to_dict())) == {
        "source": "image 0",
        "label": "Bluish",
        "score": good.score,
        "probabilities": good.probabilities,
        "face": None,
    }
    assert bad.to_dict() == {"source": "image 1", "error": bad.error}
    assert str(bad.error).startswith("image 1 is damaged or no image")
    assert (bad.label, bad.score, bad.probabilities) == (None, None, {})


def test_a_folder_is_answered_in_natural_order_past_a_broken_image(predictor: Predictor, folder: Path) -> None:
    predictions = many(predictor(folder))
    assert [Path(prediction.source).name for prediction in predictions] == [f"{i}.png" for i in range(11)]
    expected = [None if i == 4 else LABELS[i % 3] for i in range(10)] + ["Bluish"]
    assert labels_of(predictions) == expected
    assert "4.png' is damaged or cut short" in str(predictions[4].error)


def test_a_batch_of_nothing_but_broken_images_does_not_stop_the_rest(predictor: Predictor) -> None:
    predictions = many(predictor([b"x"] * 9 + [png("red")]))
    assert labels_of(predictions) == [None] * 9 + ["Reddish"]


def test_one_image_that_cannot_be_read_raises(predictor: Predictor, folder: Path) -> None:
    for image, words in (
        (folder / "4.png", "4.png"),
        (folder / "nobody.png", "does not exist"),
        (b"", "image 0 is empty"),
        (np.zeros((3, 4, 5)), r"image 0 has the shape \(3, 4, 5\)"),
        (7, "image 0 is given as int"),
    ):
        with pytest.raises(ImageError, match=words):
            predictor(image)  # type: ignore[arg-type]


def test_a_folder_without_images_is_said_and_not_passed_over(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given in (tmp_path / "empty", [tmp_path / "empty"]):
        (prediction,) = many(predictor(given))
        assert prediction.source == str(tmp_path / "empty")
        assert "no image file in it" in str(prediction.error)
    assert predictor([]) == []


def test_arrays_and_tensors_of_four_dimensions_are_batches(predictor: Predictor) -> None:
    array = np.stack([np.asarray(picture(colour)) for colour in COLOURS])
    assert labels_of(predictor(array)) == list(LABELS)
    assert labels_of(predictor(torch.from_numpy(array).permute(0, 3, 1, 2) / 255)) == list(LABELS)


def test_a_generator_is_read_one_batch_ahead_and_no_further(predictor: Predictor) -> None:
    given = []

    def images() -> Iterator[bytes]:
        for i in range(40):
            given.append(i)
            yield png("red")

    stream = predictor.stream(images())
    assert given == []
    for i in range(40):
        assert next(stream).source == f"image {i}"
        assert len(given) <= 4 * (i // 4 + 2)


def test_images_are_let_go_once_they_are_answered(predictor: Predictor) -> None:
    given: list[weakref.ref[Image.Image]] = []

    def images() -> Iterator[Image.Image]:
        for _ in range(60):
            image = picture("green")
            given.append(weakref.ref(image))
            yield image

    assert max(sum(image() is not None for image in given) for _ in predictor.stream(images())) <= 2


def test_a_buffer_may_be_used_again_and_an_image_closed_after_it_was_given(
    predictor: Predictor, tmp_path: Path
) -> None:
    buffer = np.zeros((8, 8, 3), np.uint8)
    data = bytearray(png("red"))

    def images() -> Iterator[Any]:
        for colour, value in COLOURS.items():
            buffer[:] = value
            yield buffer
            path = tmp_path / f"{colour}.png"
            path.write_bytes(png(colour))
            with Image.open(path) as image:
                yield image
            data[:] = png(colour)
            yield data
            data[:] = b"overwritten"

    assert labels_of(predictor.stream(images())) == [label for label in LABELS for _ in range(3)]


@pytest.mark.parametrize("before", [0, 3, 4, 10])
def test_what_a_generator_raises_comes_after_the_answers_for_what_it_gave(predictor: Predictor, before: int) -> None:
    def images() -> Iterator[bytes]:
        for _ in range(before):
            yield png("red")
        raise RuntimeError("the camera was unplugged")

    answered: list[str | None] = []
    with pytest.raises(RuntimeError, match="unplugged"):
        answered.extend(prediction.label for prediction in predictor.stream(images()))
    assert answered == ["Reddish"] * before


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("poster_zoo")]


@pytest.mark.parametrize("end", ["close", "exhaust", "fail", "forget"])
def test_no_thread_outlives_the_stream(predictor: Predictor, folder: Path, end: str) -> None:
    stream = predictor.stream(folder)
    next(stream)
    assert decoding_threads()
    if end == "close":
        stream.close()  # type: ignore[attr-defined]
    elif end == "exhaust":
        list(stream)
    elif end == "fail":
        predictor.labels = predictor.labels[:2]
        with pytest.raises(LabelError):
            list(stream)
    else:
        del stream
    assert decoding_threads() == []


def test_files_are_decoded_on_other_threads_and_the_iterable_is_read_on_the_callers() -> None:
    predictor = Predictor(ColourModel(), num_workers=2)
    decoders, readers = set(), set()
    resize = predictor._resize

    def watched(image: Image.Image) -> Tensor:
        decoders.add(threading.current_thread())
        return resize(image)

    def images() -> Iterator[bytes]:
        for _ in range(20):
            readers.add(threading.current_thread())
            yield png("blue")

    predictor._resize = watched
    list(predictor.stream(images()))
    assert readers == {threading.current_thread()}
    assert 1 <= len(decoders) <= 2
    assert threading.current_thread() not in decoders


def test_images_go_through_the_model_in_batches(folder: Path) -> None:
    model = ColourModel()
    Predictor(model, batch_size=4)(folder)
    assert [size for size, _ in model.batches] == [4, 3, 3]  # the fifth of eleven is broken


def test_answers_are_equal_whatever_the_batch_size() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=ENTRY | {"input_size": (3, 64, 64)})
    generator = np.random.default_rng(0)
    images = list(generator.integers(0, 256, (13, 40, 50, 3), dtype=np.uint8))
    alone = [list(one(Predictor(model)(image)).probabilities.values()) for image in images]
    for batch_size in (2, 5, 32):
        together = many(Predictor(model, batch_size=batch_size)(images))
        assert np.allclose([list(prediction.probabilities.values()) for prediction in together], alone, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_reaches_model_and_input_and_the_softmax_is_single(dtype: torch.dtype) -> None:
    model = ColourModel()
    prediction = one(Predictor(model, dtype=dtype)(picture("red")))
    assert model.weight.dtype == dtype
    assert model.batches == [(1, dtype)]
    logits = (torch.tensor(COLOURS["red"]) / 255).to(dtype).float() * 4
    assert list(prediction.probabilities.values()) == pytest.approx(logits.softmax(0).tolist(), abs=0.01)
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-6)


def test_the_model_is_put_into_eval_mode_and_answers_without_gradients(predictor: Predictor) -> None:
    assert not predictor.model.training
    assert one(predictor(picture("red"))) == one(predictor(picture("red")))
    seen = []
    predictor.model.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    for _ in predictor.stream([picture("red")]):
        assert not torch.is_inference_mode_enabled()
    assert seen == [True]


def test_a_predictor_can_be_sent_to_another_process(predictor: Predictor) -> None:
    twin = pickle.loads(pickle.dumps(predictor))  # noqa: S301
    assert twin(picture("red")) == predictor(picture("red"))


def test_labels_can_be_given() -> None:
    assert one(Predictor(ColourModel(label_names=None), labels=["a", "b", "c"])(picture("green"))).label == "b"
    assert one(Predictor(ColourModel(), labels=["a", "b", "c"])(picture("green"))).label == "b"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "ColourModel has no label names; give `labels`"),
        ((), "has no label names"),
        (("a", "b"), r"3 outputs and 2 label names \(a, b\)"),
        (("a", "b", "a"), "hold a name twice"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: tuple[str, ...] | None, words: str) -> None:
    with pytest.raises(LabelError, match=words):
        Predictor(ColourModel(label_names=labels))


def test_a_new_head_needs_new_labels() -> None:
    with pytest.raises(LabelError, match="5 outputs and 3 label names"):
        Predictor(timm.create_model("test_resnet", num_classes=5, pretrained_cfg_overlay=ENTRY))


def test_an_answer_of_another_width_is_refused() -> None:
    model = ColourModel(label_names=("a", "b"))
    del model.num_classes  # as a plain torch module, which does not say how many it gives
    with pytest.raises(LabelError, match="2 labels"):
        Predictor(model)(picture("red"))


def test_an_answer_that_is_no_number_is_not_named(predictor: Predictor) -> None:
    predictor.model.weight.data.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(WeightsError, match="image 0 is not a number"):
        predictor(picture("red"))
    (prediction,) = many(predictor([picture("red")]))
    assert prediction.label is None
    assert "float32" in str(prediction.error)


def test_options_that_no_predictor_takes_are_refused() -> None:
    for options in ({"batch_size": 0}, {"num_workers": -1}):
        with pytest.raises(OptionError, match="must be 1 or more"):
            Predictor(ColourModel(), **options)  # type: ignore[arg-type]
    for device in ("abacus", "cuda:999", "meta"):
        with pytest.raises(OptionError, match=f"'{device}' cannot be used here"):
            Predictor(ColourModel(), device=device)


def test_a_model_that_says_nothing_of_its_input_is_refused() -> None:
    with pytest.raises(OptionError, match="pretrained_cfg"):
        Predictor(nn.Flatten(), labels=["a"])


def test_landmarks_are_in_pixels_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    Image.new("RGB", (200, 50)).save(file, "JPEG", exif=exif)  # upright: 50 wide, 200 high
    points = Predictor(LandmarkModel()).landmarks(file.getvalue())
    assert points.shape == (68, 2)
    assert points.dtype == np.float32
    assert np.allclose(points[:, 0], np.arange(68) / 100 * 50)
    assert np.allclose(points[:, 1], 100)


def test_a_model_without_landmarks_says_so_and_one_without_classes_too(predictor: Predictor) -> None:
    with pytest.raises(OptionError, match="ColourModel finds no landmarks"):
        predictor.landmarks(picture("red"))
    for ask in (Predictor(LandmarkModel()), Predictor(LandmarkModel()).stream):
        with pytest.raises(LabelError, match="no classes; call `landmarks`"):
            ask(picture("red"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("progress", "terminal", "images", "drawn"),
    [
        (None, True, 9, True),
        (None, True, 4, False),
        (None, False, 9, False),
        (False, True, 9, False),
        (True, False, 1, True),
    ],
)
def test_progress_is_drawn_for_long_work_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, progress: bool | None, terminal: bool, images: int, drawn: bool
) -> None:
    stderr = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr("poster_zoo.progress._DELAY", 0)
    Predictor(ColourModel(), batch_size=4, progress=progress)([picture("red")] * images)
    assert ("image" in stderr.getvalue()) == drawn


def test_quick_work_draws_no_bar(monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    predictor([picture("red")] * 9)
    assert terminal.getvalue() == ""
