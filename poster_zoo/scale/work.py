"""Answers about any number of images, by as many processes as there are."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tqdm import tqdm

from poster_zoo.digest import weights_digest
from poster_zoo.errors import ClusterError, OptionError, OutputError, counted
from poster_zoo.predict import Prediction, Predictor, join_processes
from poster_zoo.progress import progress_bar
from poster_zoo.scale.answers import Answerer
from poster_zoo.scale.plan import FileFormat, Plan, begin, detector_digest
from poster_zoo.scale.ray_data import answer_on_ray

if TYPE_CHECKING:
    from accelerate import PartialState

__all__ = ["Outcome", "predict_into", "predict_together"]


@dataclass(frozen=True)
class Outcome:
    """What a folder of answers holds.

    Attributes:
        folder: The folder.
        images: How many images were answered.
        before: How many of them by earlier runs.
        failures: How many of the images have no answer.
        first_failure: Why the first of these has none; empty where there is none.
        faces: How many faces were found, where they were looked for.
        without_face: In how many images none was found, so that the whole image was answered.
    """

    folder: Path
    images: int
    before: int
    failures: int
    first_failure: str
    faces: int = 0
    without_face: int = 0


def predict_into(
    predictor: Predictor,
    inputs: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    file_format: FileFormat | None = None,
    engine: Literal["processes", "ray"] = "processes",
    address: str | None = None,
    actors: int | None = None,
    device: str | None = None,
    progress: bool | None = None,
) -> Outcome:
    """Answer any number of images into a folder, or go on with what an earlier call began there.

    Parquet holds the columns `source`, `label`, `score`, `probabilities` (a structure of one number a label), `face`
    (a structure of `box`, `points` and `score`, null where the answer is about the whole image) and `error`; JSON lines
    hold what `Prediction.to_dict` gives. There is a row an image; where the predictor looks for faces, a row for each
    face of it, surest first. Rows are in the order of the parts' names. Which images there are is written down by the
    first call; a later one does not look for new ones. To have a part answered again, delete its file and repeat the
    call.

    Where `accelerate launch` or torchrun started several processes, all of them call this, each with a predictor on its
    own device; `folder` and the images have to be on file systems that all see, and so they have for Ray.

    Args:
        predictor: Who answers; `Predictor(faces="auto")` about each face of photographs.
        inputs: Images, folders of images (with their subfolders, each folder in the order of its names), Parquet files
            and folders of them. A Parquet file has a column of bytes (`bytes`, or `image` as Hugging Face writes it),
            or one of paths (`path`, `file`, …), relative ones of which begin where the first call was made.
        folder: Where the answers go; made where it is missing.
        file_format: How; by default as Parquet where pyarrow is installed, else as JSON lines.
        engine: Who shares the work: the processes that were started, or the actors of a Ray cluster.
        address: The Ray cluster to join; by default that of `RAY_ADDRESS`, else one is started on this machine, which
            listens on 127.0.0.1 and ends with the call. A program that is in a cluster already stays there.
        actors: How many processes Ray starts; by default one a GPU, or one a CPU where there are no GPUs.
        device: Where Ray's actors compute; by default on a GPU each if the cluster has any.
        progress: Whether to draw a progress bar on stderr; by default where that is a terminal.

    Returns:
        What the folder holds in the end.

    Raises:
        OptionError: There is nothing to answer, an input is of no use, or Ray was asked for by several processes.
        OutputError: The folder holds something else, or the answers of another call.
        MissingExtraError: Ray, or pyarrow for Parquet, is not installed.
        LabelError: The model finds landmarks and no classes, or its answer is not as wide as its labels.
        ClusterError: Ray could not finish the work.
    """
    folder, given = Path(folder).absolute(), [os.fspath(path) for path in inputs]
    processes = join_processes(predictor.device)
    if engine == "ray" and processes is not None:
        raise OptionError("Ray starts processes of its own; start one process, without accelerate launch or torchrun.")
    if actors is not None and actors < 1:
        raise OptionError(f"actors is {actors}; it must be 1 or more.")
    first = processes is None or processes.is_main_process
    if first:
        begin(folder, given, predictor, file_format)
    if processes is not None:
        processes.wait_for_everyone()
    plan = Plan.load(folder)
    for other, begun, own in (
        ("weights", plan.weights, weights_digest(predictor.model)),
        ("face detection", plan.detector, detector_digest(predictor.detector)),
    ):
        if begun != own:
            raise OutputError(f"This process has other {other} than the first has; give all of them the same.")
    left_over = plan.half_written()
    pending = _agreed(plan.pending(), processes)
    before = plan.images - sum(plan.parts[number].images for number in pending)

    with progress_bar(plan.images, progress if first else False, initial=before) as bar:
        if engine == "ray":
            answer_on_ray(plan, pending, predictor, address, actors, device, bar)
        else:
            _answer_in_processes(plan, pending, predictor, processes, bar)
    if missing := plan.pending():
        parts = counted(len(missing), "part is", "parts are")
        raise ClusterError(f"{parts} missing in {str(folder)!r}; repeat the call to go on.")
    for file in left_over if first else ():
        file.unlink(missing_ok=True)
    return Outcome(folder, plan.images, before, **asdict(plan.tally()))


def _agreed(pending: list[int], processes: PartialState | None) -> list[int]:
    """Return what the first process sees: another could have a look when a part is there already."""
    if processes is None:
        return pending
    from accelerate.utils import broadcast_object_list

    return list(broadcast_object_list([pending])[0])


def _answer_in_processes(
    plan: Plan, pending: Sequence[int], predictor: Predictor, processes: PartialState | None, bar: tqdm[Any]
) -> None:
    """Answer this process's share of the parts, and wait for the others."""
    rank, count = (0, 1) if processes is None else (processes.process_index, processes.num_processes)
    answerer = Answerer(plan, predictor)
    for number in pending[rank::count]:
        answerer.answer(number)
        if not bar.disable:
            left = sum(plan.parts[other].images for other in plan.pending())  # whoever answered them
            bar.update(plan.images - left - bar.n)
    if processes is not None:
        processes.wait_for_everyone()


def predict_together(predictor: Predictor, images: Sequence[str], processes: PartialState) -> Iterator[Prediction]:
    """Answer in several processes as `Predictor.stream` does in one: the same batches, and all answers in each process.

    Args:
        predictor: Who answers, on this process's device.
        images: Paths; those of the first process are taken everywhere.
        processes: What `join_processes` returned.

    Yields:
        One prediction an image, or for each face of it where faces are looked for, in order.
    """
    from accelerate.utils import broadcast_object_list, gather_object

    images = broadcast_object_list([images])[0]
    size, count = predictor.images_at_once, processes.num_processes
    starts = range(processes.process_index * size, len(images), count * size)
    answers = predictor.stream_images(image for start in starts for image in images[start : start + size])
    for _ in range(0, len(images), count * size):
        for predictions in gather_object(list(itertools.islice(answers, size))):
            yield from predictions
