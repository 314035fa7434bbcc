"""Labelled photographs → class folders of aligned crops, ready for training.

A photograph bears one label, and the label is taken to be that of the face in front: `several` says what becomes of a
photograph with more faces than one. What is skipped is written down with the reason; nothing is guessed.

Each photograph that is done is a line of `prepare.jsonl` in the folder, written after its crop: killed at any moment,
the same call goes on with the photographs that are missing, and later with those that were added since. Two calls at
once would take each other's half-written crops for left ones, so that the second is refused.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePath
from typing import IO, Any, Literal, NamedTuple, TypeAlias, get_args

from PIL import Image

from poster_zoo.data.datasets import FaceDataset
from poster_zoo.data.datasets.base import NO_LABEL
from poster_zoo.data.datasets.folders import folder_name
from poster_zoo.data.datasets.layout import ALL
from poster_zoo.data.datasets.spec import COLLECTIONS, parse_spec
from poster_zoo.data.images import read_image
from poster_zoo.errors import DatasetError, ImageError, OptionError, OutputError, PosterZooError
from poster_zoo.faces.align import align_faces
from poster_zoo.faces.detect import Detector, FaceDetector, faces_of
from poster_zoo.faces.found import Face, Faces
from poster_zoo.files import locked_folder, whole_file
from poster_zoo.progress import progress_bar

__all__ = ["Prepared", "Several", "prepare_faces"]

Several: TypeAlias = Literal["front", "largest", "skip"]
"""Which face of several the label is of: the largest if no other has half its area, the largest, or none."""

_JOURNAL, _CROPS, _SKIPPED = "prepare.jsonl", "faces.csv", "skipped.csv"
_FRONT = 0.5  # of the largest face's area; a face larger than that is as near as the largest
_BATCH = 8  # photographs in memory at once, and as many that are being read


@dataclass
class Prepared:
    """What a folder of crops holds.

    Attributes:
        folder: The folder.
        photographs: How many photographs there are, by label.
        crops: How many of them have a crop, by label.
        skipped: How many have none, by the reason's first words.
        before: How many had been looked at by earlier calls.
    """

    folder: Path
    photographs: Counter[str] = field(default_factory=Counter)
    crops: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    before: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "folder": str(self.folder),
            "photographs": sum(self.photographs.values()),
            "crops": sum(self.crops.values()),
            "before": self.before,
            "labels": {
                label: {"photographs": count, "crops": self.crops[label]} for label, count in self.photographs.items()
            },
            "skipped": dict(self.skipped),
        }


class _Photograph(NamedTuple):
    """One labelled photograph: its path as seen from the place, and as it is; `read` gives its bytes.

    Without a class its label, as it is written, stands for none.
    """

    source: str
    path: str
    label: str
    has_class: bool
    split: str
    read: Callable[[], bytes]


def prepare_faces(
    place: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    several: Several = "front",
    size: int = 112,
    detector: Detector | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> Prepared:
    """Cut out the face of each labelled photograph, or go on with what an earlier call began.

    The folder holds `LABEL/NAME.png`, below `train`, `valid` or `test` where the photographs are parted so; and
    `faces.csv` (file, label, split, source, box, score) and `skipped.csv` (source, label, split, reason). A source is
    named as seen from `place`.

    Args:
        place: A folder with a folder a class, those in folders `train`, `valid`, `test` or not parted; a CSV of files
            and labels; or NAME:PATH, as for `poster_zoo.data.datasets.open_dataset`.
        folder: Where the crops go; made where it is missing. Not in `place`.
        several: Which face of several is the labelled one.
        size: Height and width of the crops in pixels.
        detector: What to find the faces with; None for `FaceDetector`.
        device: Where that computes; by default on a CUDA GPU if there is one.
        progress: Whether to draw a progress bar on stderr; by default where that is a terminal.

    Raises:
        DatasetError: `place` holds no labelled photographs.
        OptionError: `several` or `size` is none of these, or the device cannot be used.
        OutputError: The folder holds something else, was begun with other options, or cannot be written; or another
            call is writing there.
    """
    if several not in get_args(Several):
        raise OptionError(f"several is {several!r}; give {', '.join(map(repr, get_args(Several)))}.")
    if size < 8:
        raise OptionError(f"size is {size}; it must be 8 pixels or more.")
    out = Path(folder)
    photographs = _photographs(os.fspath(place), out)
    settings = {"place": os.path.abspath(_path_of(os.fspath(place))), "several": several, "size": size}
    with ExitStack() as held:
        with _writing(out):
            journal = held.enter_context(_Journal(out, settings))
            before = journal.pending(photographs)
        detector = detector or FaceDetector(device=device)
        prepared = _prepare(photographs, journal, several, size, detector, progress, before)
        with _writing(out):
            _write_tables(out, journal.rows, photographs)
    return prepared


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Say of the folder that it cannot be written: only while we do so, as detectors may meet the disk and the net."""
    try:
        yield
    except PosterZooError:  # some of which are an OSError too
        raise
    except OSError as error:
        raise OutputError(
            f"The crops cannot be written into {str(out)!r}: {error.strerror or error}; choose a folder you can write."
        ) from error


def _path_of(place: str) -> str:
    return place if os.path.exists(place) or ":" not in place else parse_spec(place)[1]


def _photographs(place: str, out: Path) -> list[_Photograph]:
    """Return the photographs of all splits, before anything is written."""
    path = _path_of(place)
    if path == place and not os.path.exists(path):
        raise DatasetError(f"{place!r} does not exist; give class folders, a CSV of files and labels, or NAME:PATH.")
    if os.path.isdir(path) and _holds(Path(os.path.realpath(path)), Path(os.path.realpath(out))):
        raise OutputError(f"{str(out)!r} lies in {path!r}, whose photographs are read; choose a folder beside it.")
    if path != place:
        collection = COLLECTIONS[parse_spec(place)[0]]
    else:
        collection = COLLECTIONS["folder" if os.path.isdir(path) else "csv"]
    base = path if os.path.isdir(path) else os.path.dirname(path)
    return [
        photograph
        for split in collection.splits(path)
        for photograph in _of_split(collection(path, split), "" if split == ALL else split, base)
    ]


def _holds(folder: PurePath, other: PurePath) -> bool:
    """Return whether a folder is another one or holds it; on Windows, that may be on another drive."""
    return folder in (other, *other.parents)


def _seen_from(base: str, path: str) -> str:
    try:
        return os.path.relpath(path, base or os.curdir)
    except ValueError:  # Windows: on another drive
        return os.path.abspath(path)


def _of_split(dataset: FaceDataset, split: str, base: str) -> Iterator[_Photograph]:
    def reader(index: int) -> Callable[[], bytes]:
        return lambda: dataset.read(index)

    for i, label in enumerate(dataset.labels):
        known = label != NO_LABEL
        name = dataset.label_names[label] if known else dataset.written_label(i)
        path = dataset.source(i)
        yield _Photograph(_seen_from(base, path), path, name, known, split, reader(i))


# ------------------------------------------------------------------------------------------------------ the journal


class _Journal:
    """What was done, a line a photograph, and where new crops go.

    Args:
        out: The folder.
        settings: What must be the same for all of its crops.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        self.out = out
        self.settings = dict(settings)
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.taken: set[str] = set()
        self._file: IO[str] | None = None
        self._held = ExitStack()

    def __enter__(self) -> _Journal:
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / _JOURNAL
        refusal = OutputError(
            f"Another call of prepare is writing into {str(self.out)!r}; wait for its end, or name another folder."
        )
        with ExitStack() as held:
            held.enter_context(locked_folder(self.out, refusal))
            if path.exists():
                self._load(path)
            elif any(self.out.iterdir()):
                raise OutputError(
                    f"{str(self.out)!r} holds other files; name a folder that is empty or does not exist."
                )
            # Written anew: the last line of a killed call may be half of one.
            lines: list[Mapping[str, Any]] = [{"settings": self.settings}, *self.rows.values()]
            _write_whole(path, lambda file: file.writelines(json.dumps(line) + "\n" for line in lines))
            self._file = held.enter_context(path.open("a", encoding="utf-8"))
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    def _load(self, path: Path) -> None:
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        begun = lines[0].get("settings", {}) if lines and isinstance(lines[0], dict) else {}
        if key := next((key for key in self.settings if begun.get(key) != self.settings[key]), None):
            raise OutputError(
                f"{str(self.out)!r} was begun with {key} {begun.get(key)!r}, not {self.settings[key]!r}; give the "
                f"same, or name another folder."
            )
        for row in lines[1:]:
            # A crop that was deleted is made again, and what could not be read may have been mended.
            if "kind" in row if row["crop"] is None else (self.out / row["crop"]).is_file():
                self.rows[row["split"], row["source"]] = row
                self.taken.add(str(row["crop"]).casefold())
        for left in self.out.rglob(".*.tmp"):
            left.unlink()

    def pending(self, photographs: Iterable[_Photograph]) -> int:
        """Forget photographs that are gone or have another label now; return how many are done."""
        there = {(photograph.split, photograph.source): photograph.label for photograph in photographs}
        for key, row in list(self.rows.items()):
            if there.get(key) != row["label"]:
                del self.rows[key]
                if row["crop"] is not None:
                    (self.out / row["crop"]).unlink(missing_ok=True)
        return len(self.rows)

    def place(self, photograph: _Photograph) -> str:
        """Return where a photograph's crop goes, as seen from the folder."""
        folder = Path(photograph.split, folder_name(photograph.label))
        stem, number = Path(photograph.source).stem, 1
        while (
            place := (folder / f"{stem}{'' if number == 1 else f'-{number}'}.png").as_posix()
        ).casefold() in self.taken:
            number += 1
        self.taken.add(place.casefold())
        return place

    def add(self, photograph: _Photograph, row: dict[str, Any]) -> None:
        """Write down what became of a photograph."""
        assert self._file is not None  # noqa: S101 - within `with`
        row = {"source": photograph.source, "label": photograph.label, "split": photograph.split} | row
        self.rows[photograph.split, photograph.source] = row
        with _writing(self.out):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()


def _write_whole(path: Path, write: Callable[[IO[str]], Any]) -> None:
    """Write a text file beside its place and rename it, so that it is whole or what it was before."""
    # Surrogates stand for bytes of file names that are no UTF-8; they go out as they came in.
    with (
        whole_file(path) as place,
        place.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        write(file)


def _write_tables(
    out: Path, rows: Mapping[tuple[str, str], Mapping[str, Any]], photographs: Sequence[_Photograph]
) -> None:
    """Write `faces.csv` and `skipped.csv`, in the photographs' order."""
    ordered = [rows[photograph.split, photograph.source] for photograph in photographs]
    crops = [row for row in ordered if row["crop"] is not None]
    split = ["split"] * any(photograph.split for photograph in photographs)
    edges = ["left", "upper", "right", "lower"]

    def faces(file: IO[str]) -> None:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["file", "label", *split, "source", *edges, "score", "faces"])
        table.writerows(
            [
                row["crop"],
                row["label"],
                *[row["split"]] * len(split),
                row["source"],
                *row["box"],
                row["score"],
                row["faces"],
            ]
            for row in crops
        )

    def skipped(file: IO[str]) -> None:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["source", "label", *split, "reason"])
        table.writerows(
            [row["source"], row["label"], *[row["split"]] * len(split), row["reason"]]
            for row in ordered
            if row["crop"] is None
        )

    _write_whole(out / _CROPS, faces)
    _write_whole(out / _SKIPPED, skipped)


# ---------------------------------------------------------------------------------------------------------- the work


def _prepare(
    photographs: Sequence[_Photograph],
    journal: _Journal,
    several: Several,
    size: int,
    detector: Detector,
    progress: bool | None,
    before: int,
) -> Prepared:
    left = [photograph for photograph in photographs if (photograph.split, photograph.source) not in journal.rows]
    pending = (photograph for photograph in left if photograph.has_class)
    bar = progress_bar(len(photographs), progress, initial=before)
    with bar, ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="poster_zoo") as pool:
        for photograph in left:
            if not photograph.has_class:
                reason = f"the label {photograph.label!r} stands for no class"
                journal.add(photograph, {"crop": None, "kind": "the label stands for no class", "reason": reason})
                bar.update()
        batch = [(photograph, pool.submit(_read, photograph)) for photograph in islice(pending, _BATCH)]
        while batch:
            following = [(photograph, pool.submit(_read, photograph)) for photograph in islice(pending, _BATCH)]
            read = [(photograph, future.result()) for photograph, future in batch]
            images = [image for _, image in read if isinstance(image, Image.Image)]
            found = iter(_find(detector, images))
            for photograph, image in read:
                if isinstance(image, str):
                    journal.add(photograph, {"crop": None, "reason": image})
                else:
                    journal.add(photograph, _done(journal, photograph, image, next(found), several, size))
                bar.update()
            batch = following
    prepared = Prepared(journal.out, before=before)
    for photograph in photographs:
        row = journal.rows[photograph.split, photograph.source]
        prepared.photographs[photograph.label] += 1
        prepared.crops[photograph.label] += row["crop"] is not None
        if row["crop"] is None:
            prepared.skipped[row.get("kind", "cannot be read")] += 1
    return prepared


def _read(photograph: _Photograph) -> Image.Image | str:
    """Return the upright photograph, or why there is none."""
    try:
        return read_image(photograph.read(), name=repr(photograph.path))
    except ImageError as error:
        return str(error)


def _find(detector: Detector, images: Sequence[Image.Image]) -> list[Faces]:
    if isinstance(detector, FaceDetector):
        return detector.find(images)
    return [faces_of(detector, image) for image in images]


def _done(
    journal: _Journal, photograph: _Photograph, image: Image.Image, faces: Faces, several: Several, size: int
) -> dict[str, Any]:
    """Write the crop of a photograph; return what the journal says of it."""
    face = _labelled(faces, several)
    if isinstance(face, str):
        kind = "no face was found" if not len(faces) else "several faces"
        return {"crop": None, "kind": kind, "reason": face}
    place = journal.place(photograph)
    path = journal.out / place
    (crop,) = align_faces(image, [face], size=size)
    with _writing(journal.out):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as beside:
            crop.save(beside, "PNG")
    told = face.to_dict()
    return {"crop": place, "box": told["box"], "score": round(told["score"], 4), "faces": len(faces)}


def _labelled(faces: Faces, several: Several) -> Face | str:
    """Return the face that a photograph's label is of, or why there is none."""
    if not len(faces):
        return "no face was found"
    sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
    areas = sides[:, 0] * sides[:, 1]
    largest = int(areas.argmax())
    if len(faces) == 1 or several == "largest":
        return faces[largest]
    if several == "skip":
        return f"{len(faces)} faces"
    near = int((areas > _FRONT * areas[largest]).sum())
    return faces[largest] if near == 1 else f"{len(faces)} faces, of which {near} are about as large as each other"
