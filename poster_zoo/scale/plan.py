"""The plan of a folder of answers: which images there are, and how they are cut into parts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import IO, Literal, TypeAlias

from poster_zoo.digest import weights_digest
from poster_zoo.errors import OptionError, OutputError
from poster_zoo.extras import installed
from poster_zoo.faces import Detector, FaceDetector
from poster_zoo.files import locked_folder, whole_file
from poster_zoo.predict import Prediction, Predictor
from poster_zoo.scale.arrow import pyarrow
from poster_zoo.scale.inputs import ParquetRows, each_once, listed, names_in_folder, parquet_files

__all__ = [
    "ATTEMPTS",
    "NAMES",
    "FileFormat",
    "Part",
    "Plan",
    "Tally",
    "begin",
    "check_request",
    "detector_digest",
    "write_whole",
]

FileFormat: TypeAlias = Literal["parquet", "jsonl"]

NAMES = "images"
"""The list of the images that are files: one JSON string a line."""

ATTEMPTS = "attempts"
"""The folder that holds, by the number of a part, a byte for each time that it was begun."""

_WORK = ".poster_zoo"  # readers of Parquet folders pass over names that begin with a dot
_PLAN = "plan.json"
_TALLIES = "tallies"  # the folder that holds, by the number of a part, its `Tally` as JSON
_VERSION = 2

_PARTS = 64  # that a small job is cut into, where that leaves a batch for each: enough for many processes to share
_PART_IMAGES = 1024  # in a part of a larger job: so much is answered again after a kill
_MOST_PARTS = 10_000  # of a still larger one, whose parts grow: folders with more files are slow to list


@dataclass(frozen=True)
class Part:
    """Some neighbouring images.

    Attributes:
        source: The place in the plan's `sources` of what holds them.
        start: Where they begin there: a row of a Parquet file, a byte of the list of names.
        images: How many they are.
    """

    source: int
    start: int
    images: int


@dataclass(frozen=True)
class Tally:
    """What the answers about some images are.

    Attributes:
        failures: How many of the images have no answer.
        first_failure: Why the first of these has none; empty where there is none.
        faces: How many faces were found.
        without_face: In how many images none was found, where faces were looked for.
    """

    failures: int = 0
    first_failure: str = ""
    faces: int = 0
    without_face: int = 0

    @classmethod
    def of(cls, images: Iterable[Sequence[Prediction]]) -> Tally:
        """Count answers, those about each image in a list."""
        total = cls()
        for answers in images:
            error = next((answer.error for answer in answers if answer.error is not None), None)
            faces = sum(answer.face is not None for answer in answers)
            without = error is None and not faces and any(answer.sought for answer in answers)
            total += cls(error is not None, error or "", faces, without)
        return total

    def __add__(self, later: Tally) -> Tally:
        """Return the tally of both, of which this one comes first."""
        return Tally(
            self.failures + later.failures,
            self.first_failure or later.first_failure,
            self.faces + later.faces,
            self.without_face + later.without_face,
        )


@dataclass(frozen=True)
class Plan:
    """What a folder of answers is for.

    Attributes:
        folder: The folder.
        inputs: Digest of what was asked about.
        weights: Digest of the model's numbers.
        detector: What tells how faces are found from other ways.
        labels: The model's labels.
        file_format: In which form the answers are.
        origin: Where relative names begin.
        images: How many images there are.
        sources: What the parts are cut from: Parquet files, None being the list of names.
        parts: The parts.
    """

    folder: Path
    inputs: str
    weights: str
    detector: str
    labels: tuple[str, ...]
    file_format: FileFormat
    origin: str
    images: int
    sources: tuple[str | None, ...]
    parts: tuple[Part, ...]

    @property
    def work(self) -> Path:
        """Return the folder of what the work itself needs."""
        return self.folder / _WORK

    def file(self, number: int) -> Path:
        """Return where a part's answers go."""
        return self.folder / f"part-{number:06d}.{self.file_format}"

    def pending(self) -> list[int]:
        """Return the parts that are not answered."""
        done = set(os.listdir(self.folder))
        return [number for number in range(len(self.parts)) if self.file(number).name not in done]

    def note(self, number: int, tally: Tally) -> None:
        """Write down what the answers of a part are, before they are in place: a part that is there is noted."""
        place = self.work / _TALLIES / f"{number:06d}"
        if tally == Tally():
            place.unlink(missing_ok=True)  # an earlier answer to this part, since deleted, may have had something
        else:
            write_whole(place, lambda file: file.write(json.dumps(asdict(tally)).encode("ascii")), self.work)

    def tally(self) -> Tally:
        """Return what all answers are."""
        files = sorted((self.work / _TALLIES).iterdir())
        return sum((Tally(**json.loads(file.read_text(encoding="ascii"))) for file in files), Tally())

    def half_written(self) -> list[Path]:
        """Return what is half written: by others, or by processes that were killed, whose it still is in the end."""
        return list(self.work.glob("*.new"))

    def save(self) -> None:
        """Write the plan, which is the last thing before the first answer."""
        values = asdict(self) | {"version": _VERSION}
        del values["folder"]
        values["parts"] = [(part.source, part.start, part.images) for part in self.parts]
        write_whole(self.work / _PLAN, lambda file: file.write(json.dumps(values).encode("ascii")), self.work)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read the plan of a folder.

        Raises:
            OutputError: None is to be seen there, or it is another version's.
        """
        try:
            values = json.loads((folder / _WORK / _PLAN).read_text(encoding="ascii"))
        except FileNotFoundError as error:
            raise OutputError(
                f"This machine does not see what was begun in {str(folder)!r}; answers and images have to be on a "
                f"file system that all machines share."
            ) from error
        if values.pop("version") != _VERSION:
            raise OutputError(f"{str(folder)!r} was begun by another version of poster-zoo; give another folder.")
        parts = tuple(Part(*part) for part in values.pop("parts"))
        labels, sources = tuple(values.pop("labels")), tuple(values.pop("sources"))
        return cls(folder=folder, labels=labels, sources=sources, parts=parts, **values)


def check_request(inputs: Sequence[str], folder: str | os.PathLike[str]) -> None:
    """See, before a model is loaded for `predict_into`, that there may be something to answer and a place for it.

    Raises:
        OptionError: None of the inputs exists.
        OutputError: The folder is a file, or holds something else.
    """
    if not any(os.path.lexists(path) for path in inputs):
        raise OptionError(f"There is no {listed(inputs)}; name images, folders of images or Parquet files.")
    if os.path.isdir(folder):
        if not os.path.exists(os.path.join(folder, _WORK, _PLAN)) and set(os.listdir(folder)) - {_WORK}:
            raise OutputError(f"{os.fspath(folder)!r} holds other files; give the answers a folder of their own.")
    elif os.path.lexists(folder):
        raise OutputError(f"{os.fspath(folder)!r} is a file; give a folder for the answers.")


def begin(folder: Path, inputs: list[str], predictor: Predictor, file_format: FileFormat | None) -> None:
    """Write the plan of new work, or see that this call goes on with the work that is there.

    Raises:
        OptionError: There is nothing to answer, or an input is of no use.
        OutputError: The folder holds something else, or the answers of another call; or another call begins there.
        MissingExtraError: pyarrow, for Parquet, is not installed.
        LabelError: The model finds landmarks and no classes.
    """
    check_request(inputs, folder)
    predictor.stream([])  # says if the model has no classes
    folder.mkdir(parents=True, exist_ok=True)
    refusal = OutputError(
        f"Another call is looking for images to answer into {str(folder)!r}; wait until it answers, or give another "
        f"folder."
    )
    try:
        with locked_folder(folder, refusal):
            _begin(folder, inputs, predictor, file_format)
    except BaseException:
        with contextlib.suppress(OSError):  # it is not ours alone
            folder.rmdir()
        raise


def _begin(folder: Path, inputs: list[str], predictor: Predictor, file_format: FileFormat | None) -> None:
    """Do as `begin` says, alone in the folder."""
    digest = hashlib.sha256("\0".join(map(os.path.abspath, inputs)).encode("utf-8", "surrogateescape")).hexdigest()
    weights, detector = weights_digest(predictor.model), detector_digest(predictor.detector)
    if (folder / _WORK / _PLAN).exists():
        plan = Plan.load(folder)
        same = {
            "images": plan.inputs == digest,
            "weights": plan.weights == weights,
            "face detection": plan.detector == detector,
            "labels": plan.labels == tuple(predictor.labels),
            "format": file_format in (None, plan.file_format),
        }
        if others := [name for name, equal in same.items() if not equal]:
            raise OutputError(
                f"{str(folder)!r} holds the answers of a run with other {' and '.join(others)}; give this one a folder "
                f"of its own, or repeat the command that began it to go on."
            )
        shutil.rmtree(plan.work / ATTEMPTS, ignore_errors=True)
        return
    file_format = file_format or ("parquet" if installed("pyarrow") else "jsonl")
    if file_format == "parquet":
        pyarrow()
    tables, others = each_once(inputs)
    parquet = tuple(file for path in tables for file in parquet_files(path))
    rows = [ParquetRows(file, file).count for file in parquet]
    work = folder / _WORK
    (work / _TALLIES).mkdir(parents=True, exist_ok=True)
    try:
        names = _write_names(work, others)
        images = names + sum(rows)
        if not images:
            raise OptionError(f"There are no images in {listed(inputs)}; name a file that holds some.")
        parts = _cut(work / NAMES, names, rows, _part_size(images, predictor.images_at_once))
        labels = tuple(predictor.labels)
        origin, sources = os.getcwd(), (None, *parquet)
        Plan(folder, digest, weights, detector, labels, file_format, origin, images, sources, parts).save()
    except BaseException:
        shutil.rmtree(work)
        raise


def detector_digest(detector: Detector | None) -> str:
    """Return what tells a way of finding faces from others; of detectors that are not ours the name alone."""
    if isinstance(detector, FaceDetector):
        options = f"{detector.threshold} {detector.max_side} {detector.second_look}"
        return f"{weights_digest(detector.model)} {options}"
    if detector is None:
        return "none"
    named = detector if hasattr(detector, "__qualname__") else type(detector)  # an instance has none
    return f"{named.__module__}.{named.__qualname__}"


def _part_size(images: int, batch_size: int) -> int:
    """Return how many images a part has: whole batches, so that parts change no batch."""
    size = max(min(images // _PARTS, _PART_IMAGES), images // _MOST_PARTS, 1)
    return ceil(size / batch_size) * batch_size


def _write_names(work: Path, inputs: Sequence[str]) -> int:
    """Write the list of all images that are files; return how many there are."""
    count = 0

    def write(file: IO[bytes]) -> None:
        nonlocal count
        for path in inputs:
            before = count
            for name in names_in_folder(path) if os.path.isdir(path) else [path]:
                file.write(json.dumps(name).encode("ascii") + b"\n")
                count += 1
            if count == before:
                raise OptionError(f"There are no images in the folder {path!r}; name a folder that holds some.")

    write_whole(work / NAMES, write, work)
    return count


def _cut(file: Path, names: int, rows: Sequence[int], size: int) -> tuple[Part, ...]:
    """Cut the list of names, and Parquet files of so many rows each, into parts of a size, the last ones smaller."""
    parts, offset = [], 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            if number % size == 0:
                parts.append(Part(0, offset, min(size, names - number)))
            offset += len(line)
    for source, count in enumerate(rows, start=1):
        parts += [Part(source, start, min(size, count - start)) for start in range(0, count, size)]
    return tuple(parts)


def write_whole(place: Path, write: Callable[[IO[bytes]], object], work: Path) -> None:
    """Write a file in the folder of the work and rename it: it is there whole or not at all."""
    beside = work / f"{uuid.uuid4().hex}.new"
    with whole_file(place, beside=beside, durable=True), beside.open("wb") as file:
        write(file)
