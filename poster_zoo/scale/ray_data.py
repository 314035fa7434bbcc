"""Ray Data: a class for pipelines that others write, and parts of a plan shared out over a cluster."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from poster_zoo.data.label_files import FILE_COLUMNS
from poster_zoo.errors import ClusterError, MissingExtraError, OptionError, PosterZooError
from poster_zoo.predict import Predictor
from poster_zoo.scale.answers import Answerer
from poster_zoo.scale.arrow import answer_columns, pyarrow
from poster_zoo.scale.inputs import CONTENT_COLUMNS
from poster_zoo.scale.plan import ATTEMPTS, Plan

__all__ = ["BatchPredictor", "answer_on_ray"]

_CPUS_AN_ACTOR = 0.5  # less than one, or Ray Data's own tasks, such as reading, wait for ever where actors hold all
_PATIENCE = 10.0  # seconds for a cluster to answer
_MOST_ATTEMPTS = 5  # at a part that ended every process which began it


class BatchPredictor:
    """Names expressions on batches of Ray Data: a class for `ray.data.Dataset.map_batches`, one model an actor.

    A batch is a dictionary of columns, a pyarrow Table or a pandas DataFrame. The images are in the column `bytes`
    (files' content) or `image` (arrays H×W×3, or what Hugging Face writes), else in `path`. What comes out is a pyarrow
    Table of the same rows in the same order: the other columns as they were, then `label`, `score`, `probabilities` (a
    structure of one number a label), `face` and `error`, which says why an image has no answer and is null for others.
    With `faces="auto"` a row becomes one for each face of its image, surest first; `face` is a structure of `box`,
    `points` and `score`, and null where the answer is about the whole image.

    Args:
        model: Name of a model, whose weights are loaded, or a model.
        prefix: What to put before the names of the new columns, where the data has columns of those names.
        **options: As for `Predictor`; by default one thread decodes and nothing is drawn.

    Raises:
        MissingExtraError: pyarrow is not installed.
        LabelError: As for `Predictor`; the model finds landmarks and no classes.
    """

    def __init__(self, model: str | nn.Module = "poster_tiny", *, prefix: str = "", **options: Any) -> None:
        pyarrow()
        self.predictor = Predictor(model, **{"num_workers": 1, "progress": False, **options})
        self.predictor.stream([])  # says if the model has no classes
        self.prefix = prefix

    def __call__(self, batch: Any) -> Any:
        """Answer one batch.

        Args:
            batch: As the class says.

        Returns:
            As the class says.

        Raises:
            OptionError: No column holds images, or one has the name of a new one.
            LabelError: The model's answer is not as wide as its labels.
        """
        arrow = pyarrow()
        table = _table(batch)
        contents = [name for name in CONTENT_COLUMNS if name in table and not _is_text(table[name])]
        paths = next((name for name in FILE_COLUMNS if name in table and name not in contents), None)
        if not contents and paths is None:
            raise OptionError(
                f"The batch has the columns {', '.join(table)}, none of which holds images; call one `path`, `bytes` "
                f"or `image`."
            )
        named = _images(table, contents[0] if contents else None, paths)
        images = list(self.predictor.stream_named_images(named))
        predictions = list(chain.from_iterable(images))
        answers = {
            self.prefix + name: column for name, column in answer_columns(predictions, self.predictor.labels).items()
        }
        kept = {name: column for name, column in table.items() if name not in contents}
        if both := sorted(answers.keys() & kept.keys()):
            raise OptionError(
                f"The batch has a column {both[0]!r} already; give BatchPredictor a `prefix` for the columns it adds."
            )
        rows = arrow.array([row for row, of_image in enumerate(images) for _ in of_image], arrow.int64())
        columns = {name: _column(values) for name, values in kept.items()}
        if len(rows) != len(images):
            columns = {name: values.take(rows) for name, values in columns.items()}
        return arrow.table(columns | answers)


def _table(batch: Any) -> dict[str, Any]:
    """Return the columns of a batch in any of the forms that Ray Data gives."""
    if isinstance(batch, Mapping):
        return dict(batch)
    names = getattr(batch, "column_names", None) or list(batch.columns)
    return {name: batch[name] for name in names}


def _column(values: Any) -> Any:
    """Return a column as pyarrow has it; arrays of more dimensions become lists."""
    arrow = pyarrow()
    if isinstance(values, (arrow.Array, arrow.ChunkedArray)):
        return values
    return arrow.array(values.tolist() if getattr(values, "ndim", 1) > 1 else values)


def _values(column: Any) -> Iterable[Any]:
    return column.to_pylist() if hasattr(column, "to_pylist") else column


def _is_text(column: Any) -> bool:
    return isinstance(next(iter(_values(column[:1])), None), str)


def _images(table: dict[str, Any], content: str | None, paths: str | None) -> Iterator[tuple[str, Any]]:
    count = len(next(iter(table.values())))
    names = _values(table[paths]) if paths else [None] * count
    images = _values(table[content]) if content else [None] * count
    for i, (name, image) in enumerate(zip(names, images, strict=True)):
        if isinstance(image, Mapping):
            name, image = name or image.get("path"), image.get("bytes")
        yield str(name or f"image {i} of the batch"), name if image is None else image


def answer_on_ray(
    plan: Plan,
    pending: Sequence[int],
    predictor: Predictor,
    address: str | None,
    actors: int | None,
    device: str | None,
    bar: tqdm[Any],
) -> None:
    """Answer parts on a Ray cluster, as `predict_into` says.

    Raises:
        ClusterError: Ray could not finish the work.
        MissingExtraError: Ray is not installed.
    """
    if not pending:
        return
    if predictor.device.type != "cpu":  # where an actor without a GPU could not unpack it
        predictor = copy.deepcopy(predictor).to("cpu")
    address = address or os.environ.get("RAY_ADDRESS")
    ray = _ray(address)
    with _cluster(ray, address), _quiet(ray):
        resources = ray.cluster_resources()
        gpus = 0 if device == "cpu" else int(resources.get("GPU", 0))
        count = min(actors or gpus or max(int(resources.get("CPU", 1)), 1), len(pending))
        need = {"num_gpus": 1 / ceil(count / gpus)} if gpus else {"num_cpus": _CPUS_AN_ACTOR}
        rows = ray.data.from_items([{"part": number} for number in pending], override_num_blocks=len(pending))
        answered = rows.map_batches(
            _PartPredictor,
            fn_constructor_args=(str(plan.folder), predictor, device),
            batch_size=1,
            # From one on, as an actor whose machine is lost may have to wait for the room of another.
            compute=ray.data.ActorPoolStrategy(
                min_size=1, initial_size=count, max_size=count, max_tasks_in_flight_per_actor=2
            ),
            **need,
        )
        try:
            for row in answered.iter_rows():
                if row["error"]:
                    raise ClusterError(row["error"])
                bar.update(plan.parts[row["part"]].images)
        except ray.exceptions.RayError as error:
            raise ClusterError(f"Ray could not finish: {_last_line(error)}; repeat the call to go on.") from error


class _PartPredictor:
    """An actor that answers parts; the error of a part is returned, as Ray would print a traceback of what is raised.

    Args:
        folder: Where a plan was begun.
        predictor: Who answers.
        device: Where; None for the GPU that Ray gave this actor, if it did.
    """

    def __init__(self, folder: str, predictor: Predictor, device: str | None) -> None:
        self.folder = Path(folder)
        self.predictor = predictor.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.answerer: Answerer | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        numbers = [int(number) for number in batch["part"]]
        return {"part": numbers, "error": [self._answer(number) for number in numbers]}

    def _answer(self, number: int) -> str:
        try:
            self.answerer = self.answerer or Answerer(Plan.load(self.folder), self.predictor)
            plan = self.answerer.plan
            if plan.file(number).exists():  # Ray asks again where the answer was lost on its way
                return ""
            if _attempt(plan, number) > _MOST_ATTEMPTS:
                return (
                    f"Part {number} ended its process {_MOST_ATTEMPTS} times, mostly a sign of too little memory; try "
                    f"fewer actors or a smaller batch."
                )
            self.answerer.answer(number)
        except PosterZooError as error:  # some of which are an OSError too
            return str(error)
        except OSError as error:
            return f"{error.strerror}: {error.filename!r}." if error.filename else str(error)
        return ""


def _attempt(plan: Plan, number: int) -> int:
    """Count, across processes that may end at any moment, how often a part was begun."""
    (plan.work / ATTEMPTS).mkdir(exist_ok=True)
    with (plan.work / ATTEMPTS / f"{number:06d}").open("ab") as file:
        file.write(b".")
        return file.tell()


def _ray(address: str | None) -> Any:
    """Import Ray as we want it: sending no usage reports, quiet, and on 127.0.0.1 alone where it starts a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not address:
        # Read as Ray is imported. It is meant for other systems, and on all of them decides on the loopback address.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtraError('Ray is not installed: pip install "poster-zoo[ray]".') from error
    return ray


@contextlib.contextmanager
def _quiet(ray: Any) -> Iterator[None]:
    """Keep Ray Data from telling on the terminal what `predict_into` tells."""
    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Be in a cluster: the one that the program is in, else that at an address, else one for the time being."""
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        _knock(address)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has no type of its own for this: a node that is slow to start is a bare Exception
        if address:
            advice = f"at {address!r}", "`ray start --head` starts one and prints its address"
        else:
            advice = "on this machine", "repeat the command, at a quieter time if the machine is busy"
        raise ClusterError(f"No Ray cluster {advice[0]}: {_last_line(error)}; {advice[1]}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """See that somebody listens at an address: Ray itself would try for many minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
