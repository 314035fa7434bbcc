"""A photograph → the name of the expression on each face; or on one face, where it was cut out and aligned before.

>>> from poster_zoo import Predictor
>>> predictor = Predictor(faces="auto")
>>> [prediction.label for prediction in predictor("examples/face.png")]
['Happiness']
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from poster_zoo.data.images import ImageSource, each_image, is_many, read_image
from poster_zoo.data.transforms import split_transform
from poster_zoo.devices import check_device, meeting_options
from poster_zoo.errors import ImageError, LabelError, MissingExtraError, OptionError, WeightsError, counted
from poster_zoo.faces import Detector, Face, FaceDetector, Faces, align_faces
from poster_zoo.faces.align import similarity
from poster_zoo.faces.detect import faces_of
from poster_zoo.models._builder import ENTRIES, refuse_detector
from poster_zoo.optimize import can_optimize
from poster_zoo.optimize import optimize as optimized
from poster_zoo.progress import is_drawn, progress_bar
from poster_zoo.weights.entry import FIVE_POINTS, Points

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["Prediction", "Predictor", "join_processes"]

_PHOTOGRAPHS = 8  # that are in memory at once, and as many that are being read
# How many processes there are, as torchrun and the starters of MPI tell each of them; the names are accelerate's.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LONGEST_WAIT = timedelta(hours=12)  # of a process for the slowest; torch's own ten minutes are a matter of training


@dataclass(frozen=True)
class Prediction:
    """The answer about one image.

    Attributes:
        source: Which image: its path as it was given, or "image N" for one in memory, N being its place among the
            answers, counted from 0.
        label: Name of the likeliest class; None where `error` says why there is no answer.
        score: Its probability, in 0…1.
        probabilities: Of every class of the model, in the model's order; they add up to 1.
        error: One sentence, or None.
        face: Which face of the image; None where the answer is about the whole image.
        sought: Whether faces were looked for: without `face`, none was found.
    """

    source: str
    label: str | None
    score: float | None
    probabilities: dict[str, float]
    error: str | None = None
    face: Face | None = None
    sought: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return `source`, `label`, `score`, `probabilities` and `face`, or `source` and `error`, ready for JSON.

        `face` has `box`, `points` and `score`; it is None where the answer is about the whole image.
        """
        if self.error is not None:
            return {"source": self.source, "error": self.error}
        return {
            "source": self.source,
            "label": self.label,
            "score": self.score,
            "probabilities": dict(self.probabilities),
            "face": None if self.face is None else self.face.to_dict(),
        }


class Predictor:
    """Names expressions: on each face of a photograph with `faces="auto"`, on aligned crops of faces without.

    One image is a path, a file's bytes, a PIL image, an RGB array H×W×3 or a tensor 3×H×W: whatever `read_image`
    takes. Many are a folder (with its subfolders, in natural order), an array or tensor of four dimensions, or any
    iterable of images and folders.

    Args:
        model: Name of a model, whose weights are loaded, or a model, which is put into eval mode and moved as `device`
            and `dtype` say.
        device: Where to compute; by default where a given model is, and for a name a CUDA GPU if there is one.
        dtype: In which type; by default the model's own. The softmax is in float32 whatever it is.
        batch_size: Images a step.
        labels: Class names in the order of the logits, for a model whose entry holds none.
        progress: Whether to draw a progress bar on stderr; by default where stderr is a terminal and the work is more
            than one batch and takes longer than a few seconds.
        num_workers: Threads that read and resize images while the model works.
        optimize: Answer by the model's faster form, as `poster_zoo.optimize` makes it: probabilities stay the same
            within 1e-5. By default a model that is given by its name does; a given model is used as it is, so that
            it can be trained further. With True, what answers is a copy of it. A model that is not of the zoo has
            no faster form.
        faces: "none" for aligned crops, each image being one face; "auto" to find the faces of each image with
            `FaceDetector` and answer about each of them; or a detector to do so with: whatever takes an upright RGB
            image and gives `Faces`, or boxes and points. An image in which no face is found is answered as a whole.
        engine: What computes the answers: "torch", or on a CPU, in float32, "onnxruntime" or "openvino" on the exported
            graph, which takes some seconds to make. On some processors one of them is faster.

    Raises:
        LabelError: The model has no label names, or not one for each of its outputs.
        OptionError: The device cannot be used, there is no such engine, a number is less than 1, or `faces` is none of
            these.
        MissingExtraError: The engine is not installed.
    """

    def __init__(
        self,
        model: str | nn.Module = "poster_tiny",
        *,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        batch_size: int = 32,
        labels: Sequence[str] | None = None,
        progress: bool | None = None,
        num_workers: int = min(4, os.cpu_count() or 1),
        optimize: bool | None = None,
        faces: Literal["auto", "none"] | Detector = "none",
        engine: str = "torch",
    ) -> None:
        for name, number in (("batch_size", batch_size), ("num_workers", num_workers)):
            if number < 1:
                raise OptionError(f"{name} is {number}; it must be 1 or more.")
        if device is not None:
            check_device(device)
        if engine != "torch":
            from poster_zoo.engines import check_engine

            check_engine(engine)
        by_name = isinstance(model, str)
        if isinstance(model, str):
            from poster_zoo import create_model  # late: the package's front door imports this file

            model = create_model(model, pretrained=True)
            device = device or ("cuda" if torch.cuda.is_available() and engine == "torch" else "cpu")
        self.labels = _read_labels(model, labels)
        self._resize, self._normalise = split_transform(model)
        if engine != "torch":
            from poster_zoo.engines import on_engine

            model = on_engine(model, engine)
        elif (by_name if optimize is None else optimize) and can_optimize(model):
            model = optimized(model, dtype=dtype, inplace=by_name)
        self.model = model.eval().to(device=device, dtype=dtype)
        numbers = chain(model.parameters(), model.buffers())
        like = next((tensor for tensor in numbers if tensor.is_floating_point()), torch.empty(0))
        self.device, self.dtype = like.device, like.dtype
        self.batch_size = batch_size
        self.progress = progress
        self.num_workers = num_workers
        self.detector = _detector(faces, self.device)
        self._alignment = _alignment(model)

    def __call__(self, inputs: ImageSource | Iterable[ImageSource]) -> Prediction | list[Prediction]:
        """Answer for one image, or for each of many.

        Args:
            inputs: One image or many, as the class says.

        Returns:
            One prediction for one image. For many a list in their order, in which an image that cannot be read is a
            prediction with `error`. Where faces are looked for, a list also for one image: a prediction for each face,
            surest first, or one for the whole image.

        Raises:
            ImageError: One image was given and cannot be read.
            WeightsError: One image was given and the model's answer is not a number.
            LabelError: The model finds landmarks and no classes, or its answer is not as wide as its labels.
            OptionError: The detector gives something else than faces.
        """
        if is_many(inputs):
            return list(self.stream(inputs))
        self._check_classes()
        named = _named(inputs, 0)
        (predictions,) = self._predict([(named.source, self._read(named))])
        for prediction in predictions:
            if prediction.error is not None:
                raise WeightsError(prediction.error)
        return predictions[0] if self.detector is None else predictions

    def stream(self, inputs: ImageSource | Iterable[ImageSource]) -> Iterator[Prediction]:
        """Answer for each of many images as soon as its batch is done, in order and in bounded memory.

        The iterable is read in the caller's thread, one batch ahead of the answers. Files and bytes are decoded on
        other threads while the model works; images already in memory are taken over at once, so that the iterable
        may use its buffers again. What the iterable raises comes after the answers for all that it gave. Closing the
        generator ends the threads.

        Args:
            inputs: One image or many, as the class says.

        Yields:
            One prediction an image, or for each face of it where faces are looked for, in order; an image that cannot
            be read is a prediction with `error`.

        Raises:
            LabelError: As for a call.
        """
        return _one_by_one(self.stream_images(inputs))

    def stream_images(self, inputs: ImageSource | Iterable[ImageSource]) -> Generator[list[Prediction], None, None]:
        """Answer as `stream` does, with the predictions of each image in a list of their own."""
        self._check_classes()
        images: Iterable[Any] = each_image(inputs)
        if isinstance(inputs, (list, tuple, str, os.PathLike)):
            images = list(images)
        total = len(images) if isinstance(images, list) else None
        return self._stream((_named(image, i) for i, image in enumerate(images)), total)

    def stream_named(self, images: Iterable[tuple[str, ImageSource]]) -> Iterator[Prediction]:
        """Answer as `stream` does for images that have a name of their own.

        Args:
            images: Pairs of what the answer is to call the image, in `source` and in `error`, and the image; no
                folders.

        Yields:
            One prediction an image, in order; an image that cannot be read is a prediction with `error`.

        Raises:
            LabelError: As for a call.
            OptionError: Faces are looked for: who gives names counts on one answer for each.
        """
        self._check_classes()
        if self.detector is not None:
            raise OptionError(
                "One answer an image was asked for, and this predictor gives one a face; make it with faces='none'."
            )
        return _one_by_one(self.stream_named_images(images))

    def stream_named_images(self, images: Iterable[tuple[str, ImageSource]]) -> Generator[list[Prediction], None, None]:
        """Answer as `stream_named` does, with the predictions of each image in a list, and about faces as well."""
        self._check_classes()
        return self._stream((_Named(name, repr(name), image) for name, image in images), None)

    def crops(self, image: ImageSource, faces: Faces | Iterable[Face]) -> list[Image.Image]:
        """Cut out faces as the model sees them: of its input's size, and aligned as those that it was trained on.

        Where nobody says how those were aligned, they come as the crops that `poster_tiny` was trained on.

        Raises:
            ImageError: The image cannot be read.
        """
        return align_faces(image, faces, size=self._size, alignment=self._alignment)

    def landmarks(self, image: ImageSource, face: Face | None = None) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Find the 68 points of 300-W on one aligned crop of a face, or on one of the faces of a photograph.

        Args:
            image: One image, as the class says.
            face: Which face of it, such as an answer's `face`; None where the image is an aligned crop.

        Returns:
            (68, 2) x and y in pixels of the upright image; 0 is its left or upper edge.

        Raises:
            ImageError: The image cannot be read.
            OptionError: The model finds no landmarks.
        """
        find: Callable[[Tensor], Tensor] | None = getattr(self.model, "forward_landmarks", None)
        if find is None:
            raise OptionError(
                f"{type(self.model).__name__} finds no landmarks; take a model with a landmark stream, "
                f"such as poster_tiny, or mobilefacenet."
            )
        upright = read_image(image)
        crop = upright if face is None else self.crops(upright, [face])[0]
        with torch.inference_mode():
            points = find(self._input([self._resize(crop)])).float().reshape(-1, 2).cpu().numpy()
        if face is None:
            return points * np.array(crop.size, np.float32)
        # The crop's fractions, back by the way that the face was turned to them.
        (there,) = similarity(np.array([face.points]), np.array(self._alignment) * crop.size)
        back = (points * crop.size - there[:, 2]) @ np.linalg.inv(there[:, :2]).T
        return back.astype(np.float32)

    def to(self, device: str | torch.device) -> Predictor:
        """Move the model to another device, and return this predictor.

        Raises:
            OptionError: The device cannot be used.
        """
        check_device(device)
        self.model.to(device)
        self.device = torch.device(device)
        if isinstance(self.detector, FaceDetector):
            self.detector.model.to(device)
        return self

    @property
    def images_at_once(self) -> int:
        """How many images are in memory together, and answered together."""
        # Photographs are kept whole until their faces are found; of aligned crops only the model's input is.
        return self.batch_size if self.detector is None else min(self.batch_size, _PHOTOGRAPHS)

    def _check_classes(self) -> None:
        if not self.labels:
            raise LabelError(f"{type(self.model).__name__} finds landmarks and no classes; call `landmarks` instead.")

    def _stream(self, images: Iterable[_Named], total: int | None) -> Generator[list[Prediction], None, None]:
        bar = self._progress_bar(total)
        pool = ThreadPoolExecutor(self.num_workers, thread_name_prefix="poster_zoo")
        try:
            batches = _batched(self._submitted(pool, images), self.images_at_once)
            batch = next(batches, None)
            while batch:
                try:
                    following = next(batches, None)  # decoded by the threads while the model works on this one
                except Exception:
                    yield from self._predict(batch)
                    raise
                for predictions in self._predict(batch):
                    yield predictions
                    if bar is not None:
                        bar.update()
                batch = following
        finally:
            if bar is not None:
                bar.close()
            pool.shutdown(cancel_futures=True)

    def _progress_bar(self, total: int | None) -> tqdm[Any] | None:
        # None, not a disabled bar: tqdm keeps a thread of its own even for that.
        if not is_drawn(self.progress) or (self.progress is None and total is not None and total <= self.batch_size):
            return None
        return progress_bar(total, self.progress, leave=bool(self.progress))

    def _submitted(self, pool: ThreadPoolExecutor, images: Iterable[_Named]) -> Iterator[_Reading]:
        for named in images:
            if isinstance(named.image, (str, os.PathLike, bytes)):
                yield named.source, pool.submit(self._try_read, named)
            else:
                yield named.source, self._try_read(named)

    def _read(self, named: _Named) -> _Image:
        image = read_image(named.image, named.shown)
        return image if self.detector is not None else self._resize(image)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        height, width = self._resize(Image.new("RGB", (1, 1))).shape[-2:]
        return height, width

    def _input(self, images: Sequence[Tensor]) -> Tensor:
        """Return the model's input of resized images; they travel as bytes and are normalised where it computes."""
        return self._normalise(torch.stack(list(images)).to(self.device)).to(self.dtype)

    def _try_read(self, named: _Named) -> _Image | ImageError:
        try:
            return self._read(named)
        except ImageError as error:
            return error

    def _predict(self, batch: Sequence[_Reading]) -> list[list[Prediction]]:
        """Return the predictions of each image."""
        readings = [(source, read.result() if isinstance(read, Future) else read) for source, read in batch]
        parts = iter(self._parts([read for _, read in readings if not isinstance(read, ImageError)]))
        asked = [(source, [] if isinstance(read, ImageError) else next(parts), read) for source, read in readings]
        rows = self._rows([tensor for _, some, _ in asked for _, tensor in some])
        return [
            [self._prediction(source, next(rows), face) for face, _ in some]
            if not isinstance(read, ImageError)
            else [_failure(source, str(read))]
            for source, some, read in asked
        ]

    def _parts(self, images: Sequence[_Image]) -> list[list[tuple[Face | None, Tensor]]]:
        """Return what the model is asked about each image: its faces, or else the whole."""
        if self.detector is None:
            return [[(None, cast("Tensor", image))] for image in images]
        photographs = cast("Sequence[Image.Image]", images)
        if isinstance(self.detector, FaceDetector):
            found = self.detector.find(photographs)
        else:
            found = [faces_of(self.detector, photograph) for photograph in photographs]
        return [
            [(face, self._resize(crop)) for face, crop in zip(faces, self.crops(image, faces), strict=True)]
            or [(None, self._resize(image))]
            for image, faces in zip(photographs, found, strict=True)
        ]

    def _rows(self, images: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the probabilities of each of any number of inputs."""
        for start in range(0, len(images), self.batch_size):
            yield from self._probabilities(images[start : start + self.batch_size])

    def _probabilities(self, images: Sequence[Tensor]) -> Tensor:
        """Return (B, classes) in float32 on the CPU."""
        with torch.inference_mode():
            logits: Tensor = self.model(self._input(images))
        if logits.shape != (len(images), len(self.labels)):
            raise LabelError(
                f"The model answered {len(images)} images with the shape {tuple(logits.shape)}, but there are "
                f"{len(self.labels)} labels; give `labels` one name for each output."
            )
        return logits.float().softmax(1).cpu()

    def _prediction(self, source: str, row: Tensor, face: Face | None) -> Prediction:
        if not row.isfinite().all():
            return _failure(
                source,
                f"The model's answer for {source} is not a number; its weights are damaged, "
                f"or {self.dtype} is too narrow for them: try torch.float32.",
            )
        probabilities = dict(zip(self.labels, row.tolist(), strict=True))
        label = self.labels[int(row.argmax())]
        sought = self.detector is not None
        return Prediction(source, label, probabilities[label], probabilities, face=face, sought=sought)


class _Named(NamedTuple):
    """An image, what its answer calls it, and what messages do: None for a path that speaks for itself."""

    source: str
    shown: str | None
    image: Any


_Image: TypeAlias = Tensor | Image.Image  # a photograph where faces are looked for, else the model's input
_Reading: TypeAlias = tuple[str, _Image | ImageError | Future[_Image | ImageError]]


def _one_by_one(images: Generator[list[Prediction], None, None]) -> Generator[Prediction, None, None]:
    """Yield the predictions of image after image; closing it closes `images`."""
    try:
        for predictions in images:
            yield from predictions
    finally:
        images.close()


def _failure(source: str, error: str) -> Prediction:
    return Prediction(source, None, None, {}, error)


def _named(image: Any, place: int) -> _Named:
    if isinstance(image, (str, os.PathLike)):
        return _Named(str(image), None, image)
    return _Named(f"image {place}", f"image {place}", image)


def _batched(readings: Iterator[_Reading], size: int) -> Iterator[list[_Reading]]:
    """Yield lists of `size`; where `readings` raises, first what came before."""
    batch: list[_Reading] = []
    try:
        for reading in readings:
            batch.append(reading)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _detector(faces: str | Detector, device: torch.device) -> Detector | None:
    if callable(faces):
        return faces
    if faces not in ("auto", "none"):
        raise OptionError(f"faces is {faces!r}; give 'auto', 'none' or a detector.")
    return FaceDetector(device=device) if faces == "auto" else None


def _alignment(model: nn.Module) -> Points:
    """Return where the five points stand in the crops that a model was trained on, or else in ours."""
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    entry = ENTRIES.get(str(architecture))
    return (entry and entry.alignment) or FIVE_POINTS


def _read_labels(model: nn.Module, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the label names, one for each of the model's outputs; none for a model that finds landmarks alone."""
    refuse_detector(model, "expressions and landmarks come from")
    name = type(model).__name__
    entry = getattr(model, "pretrained_cfg", None) or {}
    labels = tuple(entry.get("label_names") or () if given is None else given)
    if not labels:
        if hasattr(model, "forward_landmarks"):
            return ()
        raise LabelError(f"{name} has no label names; give `labels`, one name for each of its outputs in order.")
    if len(set(labels)) != len(labels):
        raise LabelError(f"The labels {', '.join(labels)} hold a name twice; give each class its own.")
    outputs = getattr(model, "num_classes", len(labels))
    if outputs != len(labels):
        raise LabelError(
            f"{name} has {counted(outputs, 'output')} and {counted(len(labels), 'label name')} ({', '.join(labels)}); "
            f"give `labels` one name for each output in order."
        )
    return labels


def join_processes(device: str | torch.device | None = None) -> PartialState | None:
    """Return the processes that `accelerate launch` or torchrun started together, or None where this is the only one.

    Args:
        device: Where they are to compute, if that was asked for; `.device` says where this one does.

    Raises:
        MissingExtraError: There are several, and accelerate is not installed.
        OptionError: There are several, and they cannot work together on that device.
    """
    size = next((int(os.environ[name]) for name in _SIZES if name in os.environ), 1)
    if size == 1:
        return None
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtraError(
            'Several processes need accelerate, which is not installed: pip install "poster-zoo[train]".'
        ) from error
    # Not told that there is no GPU, accelerate takes each of several processes on CPUs for the only one.
    on_cpu = str(device).startswith("cpu")
    no_gpu = not torch.accelerator.is_available() or torch.backends.mps.is_available()
    processes = PartialState(cpu=on_cpu or no_gpu, **meeting_options(_LONGEST_WAIT))
    if processes.num_processes != size:
        raise OptionError(
            f"{size} processes were started, but accelerate joined {processes.num_processes} of them on "
            f"{processes.device}; give --device cpu, or start one process."
        )
    return processes
