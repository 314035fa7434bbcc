"""A run's folder: what was trained and how, its numbers, and checkpoints that are whole at every moment.

    recipe.json       the recipe; `--recipe` takes it
    run.json          what was trained on what
    environment.json  versions and machines, an entry a start
    metrics.jsonl     a line an epoch
    last/  best/      models at once, for `local-dir:`; last/ also holds trainer.json and trainer.safetensors,
                      best/ also evaluation.json
    curves.png  confusion_matrix.png   after each epoch, where matplotlib is installed; each with its table beside it
    tensorboard/      where TensorBoard is installed

A checkpoint is a folder that is written beside its place, brought to the disk, and then renamed. Two renames are
needed, the old one's and the new one's; a run that is killed between them finds the new one beside its place and
finishes them. Of the other files, all are whole or as they were. recipe.json is the first of all, then comes run.json:
where that is, the short `--resume` has all that it needs.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from poster_zoo._version import __version__
from poster_zoo.errors import OptionError, PosterZooError, TrainingError, WeightsError
from poster_zoo.evaluate import Evaluation, evaluate
from poster_zoo.extras import installed
from poster_zoo.files import bring_to_disk, locked_folder, whole_file
from poster_zoo.models._builder import ENTRIES
from poster_zoo.train.recipe import Recipe, differences
from poster_zoo.weights.card import evaluation_section, own_card
from poster_zoo.weights.save import model_config, save_pretrained
from poster_zoo.weights.tensors import read_tensors

if TYPE_CHECKING:
    from poster_zoo.data.datasets import FaceDataset

__all__ = [
    "Progress",
    "RunFolder",
    "check_run",
    "count_faces",
    "launched_by",
    "reached",
    "read_json",
    "selection_words",
]

_logger = logging.getLogger(__name__)

_DISK_ERRORS = (OSError, SafetensorError, WeightsError)
# What run.json holds beside what must be the same where a run is resumed.
_MAY_DIFFER = ("options", "train_faces")
_LOCK_PATIENCE = 15.0  # seconds; processes that load images outlive a killed run by five or so, and hold its lock


@dataclass
class Progress:
    """Where a run is.

    Attributes:
        epoch: Epochs that are through.
        step: Steps of the next one that are through.
        updates: Steps of all epochs.
        loss: Sum of the losses of this epoch's images.
        right: How many of them were answered rightly.
        images: How many there were.
        norms: Sum of the gradients' norms.
        normed: Number of those.
        seconds: What this epoch's steps took.
        best: The best epoch's score so far, or None before the first.
        best_epoch: Which one that is, counted from 1.
        rows: What metrics.jsonl holds.
    """

    epoch: int = 0
    step: int = 0
    updates: int = 0
    loss: float = 0.0
    right: int = 0
    images: int = 0
    norms: float = 0.0
    normed: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def count(self, loss: float, right: int, norm: float | None, images: int, seconds: float) -> None:
        """Add a step that was taken: the mean loss of its images, how many were right, the gradient's norm."""
        self.step, self.updates = self.step + 1, self.updates + 1
        self.loss, self.right, self.images = self.loss + loss * images, self.right + right, self.images + images
        self.seconds += seconds
        if norm is not None:
            self.norms, self.normed = self.norms + norm, self.normed + 1

    def row(self, lr: float) -> dict[str, Any]:
        """Return what the steps of this epoch say, for its row."""
        return {
            "epoch": self.epoch + 1,
            "updates": self.updates,
            "lr": lr,
            "train_loss": self.loss / self.images,
            "train_accuracy": self.right / self.images,
            "grad_norm": self.norms / self.normed if self.normed else None,
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images / self.seconds, 2),
        }

    def end_epoch(self, row: dict[str, Any], score: float | None) -> bool:
        """Close the epoch with its row; return whether its score is the best so far."""
        self.rows.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss, self.right, self.images, self.norms, self.normed, self.seconds = 0.0, 0, 0, 0.0, 0, 0.0
        if score is None or (self.best is not None and score <= self.best):
            return False
        self.best, self.best_epoch = score, self.epoch
        return True


class RunFolder:
    """The folder of one run; from `claim` to the end of the context other runs are kept out of it.

    Args:
        path: The folder.

    Attributes:
        label_names: The model's classes, in the order of its logits.
        model_args: Arguments without which the factory would build another model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.label_names: tuple[str, ...] = ()
        self.model_args: dict[str, Any] = {}
        self._recipe: dict[str, Any] = {}
        self._facts: dict[str, Any] = {}
        self._board: Any = None
        self._board_is_wanted = installed("tensorboard")
        self._lock: ExitStack | None = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def claim(self, recipe: Recipe, facts: Mapping[str, Any], resume: bool) -> None:
        """Take the folder for a new run, or for the one that is in it, and write down what that is.

        Args:
            recipe: The recipe.
            facts: What is trained on what; JSON.
            resume: Whether a run that is there is wanted.

        Raises:
            OptionError: There is a run that is not wanted, or another than the one that is wanted, or another process
                is at it.
            TrainingError: The folder cannot be written.
        """
        self._recipe, self._facts = recipe.to_dict(), json.loads(json.dumps(facts))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                refusal = OptionError(
                    f"Another process is training in the folder {str(self.path)!r}; wait for its end, or choose "
                    f"another --out."
                )
                with ExitStack() as lock:
                    lock.enter_context(locked_folder(self.path, refusal, _LOCK_PATIENCE))
                    self._lock = lock.pop_all()
            for folder in ("last", "best"):
                _finish_renaming(self.path / folder)
            check_run(self.path, self._recipe, self._facts, resume)
            _write_json(self.path / "recipe.json", self._recipe)
            known = read_json(self.path / "run.json", {}) if _has_checkpoint(self.path) else {}
            _write_json(self.path / "run.json", known | self._facts)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def begin(self, recipe: Recipe, facts: Mapping[str, Any], resume: bool, processes: int) -> bool:
        """Claim the folder, note the machine and its processes, and return whether there is a checkpoint.

        Raises:
            OptionError, TrainingError: As `claim`.
        """
        self.claim(recipe, facts, resume)
        try:
            starts = read_json(self.path / "environment.json", [])
            _write_json(self.path / "environment.json", [*starts, _environment(processes)])
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        return (self.path / "last" / "trainer.json").is_file()

    def save_last(self, model: nn.Module, state: Mapping[str, Any]) -> None:
        """Replace last/ by this model and all that resuming needs.

        Raises:
            TrainingError: The disk does not take it; last/ is as it was.
        """

        def write(folder: Path) -> None:
            self._write_model(model, folder, self._card(state["progress"]))
            tensors: dict[str, Tensor] = {}
            packed = _pack(state, tensors)
            save_file(tensors, folder / "trainer.safetensors")
            (folder / "trainer.json").write_text(json.dumps(packed), encoding="utf-8")

        self._replace("last", write)

    def save_best(self, model: nn.Module, evaluation: Evaluation, progress: Mapping[str, Any]) -> None:
        """Replace best/ by this model and what was measured of it.

        Raises:
            TrainingError: The disk does not take it; best/ is as it was.
        """

        def write(folder: Path) -> None:
            self._write_model(model, folder, self._card(progress, evaluation))
            (folder / "evaluation.json").write_text(json.dumps(evaluation.to_dict(), indent=2) + "\n", encoding="utf-8")

        self._replace("best", write)

    def _write_model(self, model: nn.Module, folder: Path, training: str) -> None:
        save_pretrained(model, folder, self.label_names, self.model_args)
        config = model_config(model, self.label_names, self.model_args)
        if entry := ENTRIES.get(config["architecture"]):
            training = own_card(config, entry, repository=f"OWNER/{self.path.name}") + "\n" + training
        (folder / "README.md").write_text(training, encoding="utf-8")

    def _replace(self, name: str, write: Callable[[Path], None]) -> None:
        try:
            _replace_folder(self.path / name, write)
        except _DISK_ERRORS as error:
            raise _cannot_write(self.path / name, error) from error

    def load_last(self) -> dict[str, Any]:
        """Return what `save_last` was given, the model's tensors under "weights".

        Raises:
            TrainingError: last/ cannot be read.
        """
        folder = self.path / "last"
        try:
            packed = json.loads((folder / "trainer.json").read_text(encoding="utf-8"))
            state: dict[str, Any] = _unpack(packed, read_tensors(folder / "trainer.safetensors"))
            return state | {"weights": read_tensors(folder / "model.safetensors")}
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise TrainingError(
                f"The checkpoint {str(folder)!r} cannot be read ({error}); "
                f"take its model by --model local-dir:{folder}, or begin again in another --out."
            ) from error

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl, and the last row to TensorBoard.

        Raises:
            TrainingError: The disk does not take it.
        """
        try:
            _write_text(self.path / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
            if rows and (board := self._tensorboard(len(rows))) is not None:
                for name, value in rows[-1].items():
                    if value is not None:
                        board.add_scalar(name, value, len(rows))
                board.flush()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _tensorboard(self, epoch: int) -> Any:
        """Return what writes for TensorBoard, if that is installed; what is in its way is told once and ends no run."""
        if self._board_is_wanted and self._board is None:
            self._board_is_wanted = False
            try:
                from torch.utils.tensorboard import SummaryWriter

                # What a run that was killed had written of this epoch and later ones is void.
                self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=epoch)
            except Exception as error:  # noqa: BLE001 - a broken installation of it raises whatever its parts do
                _logger.warning("The run goes on without TensorBoard, which cannot be used here: %s", error)
        return self._board

    def draw(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Draw the curves, and the confusion matrix of the best epoch, where matplotlib is installed.

        No run ends for want of a picture: what is in the way is only told.
        """
        if not installed("matplotlib") or not rows:
            return
        try:
            from poster_zoo import plots

            plots.curves(rows, out=self.path / "curves.png")
            best = read_json(self.path / "best" / "evaluation.json", None)
            if best is not None:
                plots.confusion_matrix(_evaluation(best), out=self.path / "confusion_matrix.png", table=True)
        except (OSError, PosterZooError, ImportError) as error:
            _logger.warning("The pictures of the run cannot be drawn: %s", error)

    def _card(self, progress: Mapping[str, Any], evaluation: Evaluation | None = None) -> str:
        """Return what a model card says of the training, in Markdown."""
        facts, recipe = self._facts, self._recipe
        # A place on somebody's disk is no business of the card's readers.
        data = [spec if spec.startswith("hf:") else spec.partition(":")[0] for spec in facts.get("data", ())]
        lines = [
            "## Training",
            "",
            f"- By poster-zoo {__version__}, with the recipe below",
            f"- Images: {facts['train_images']:,}" + (f", of {', '.join(data)}" if data else ""),
            *(f"- {line}" for line in _who(facts["train_faces"])),
            f"- Epochs: {progress['epoch']} of {recipe['epochs']}; the best so far: {progress['best_epoch'] or '–'}",
            f"- {selection_words(recipe['select_on'])}",
        ]
        lines += ["", "```json", json.dumps(recipe), "```"]
        if evaluation is not None:
            title = {"valid": "Validation", "test": "Test"}[recipe["select_on"]]
            lines += ["", evaluation_section(title, evaluation.to_dict())]
        return "\n".join(lines) + "\n"


def check_run(path: Path, recipe: Mapping[str, Any], facts: Mapping[str, Any], resume: bool) -> None:
    """Refuse a folder with a run that is not to be resumed, or that is another one.

    Args:
        path: The folder.
        recipe: The recipe that is wanted.
        facts: What is wanted of that which run.json holds.
        resume: Whether a run that is there is wanted.

    Raises:
        OptionError: Says what to do, and which settings differ.
    """
    if not _has_checkpoint(path):
        return  # what was begun there, if anything, is not worth keeping
    if not resume:
        raise OptionError(
            f"The folder {str(path)!r} already holds a run; go on with it by --resume, or choose another --out."
        )
    wanted = {name: value for name, value in facts.items() if name not in _MAY_DIFFER}
    stored = {name: value for name, value in read_json(path / "run.json", {}).items() if name in wanted}
    changed = [*differences(read_json(path / "recipe.json", {}), recipe), *differences(stored, wanted)]
    if changed:
        raise OptionError(
            f"The run in {str(path)!r} is another one, and cannot be resumed as this: {'; '.join(changed)}. "
            "Ask for the same, or choose another --out."
        )


def reached(path: Path) -> Path | None:
    """Return the checkpoint that a run goes on from, wherever a kill has left it; None where there is none."""
    last = path / "last"
    new, old = _beside(last)
    # There is an old one only once the new one is whole.
    places = (last, new, old) if old.exists() else (last,)
    return next((place for place in places if (place / "trainer.json").is_file()), None)


def _has_checkpoint(path: Path) -> bool:
    return any(place.exists() for name in ("last", "best") for place in (path / name, _beside(path / name)[1]))


def selection_words(select_on: str) -> str:
    """Return the sentence that says by which images the best epoch is chosen."""
    if select_on == "test":
        return "The best epoch is chosen on the test images, as the authors did: its numbers on them are too good"
    return "The best epoch is chosen on validation images"


def count_faces(data: FaceDataset) -> dict[str, Any]:
    """Return who is in the data: images a class; persons, and the images of one, where persons are known."""
    counts = Counter(data.labels)
    facts: dict[str, Any] = {"counts": {name: counts[place] for place, name in enumerate(data.label_names)}}
    if data.persons:
        images = Counter(data.persons).values()
        facts["persons"] = {"count": len(images), "median_images": median(images), "most_images": max(images)}
    return facts


def _who(faces: Mapping[str, Any]) -> list[str]:
    """Return what a card says of `count_faces`."""
    counts, persons = faces["counts"], faces.get("persons")
    return [
        "By class: " + ", ".join(f"{name} {count:,}" for name, count in counts.items()),
        f"Persons: {persons['count']:,}, of whom one has {persons['most_images']:,} images and the middle one "
        f"{persons['median_images']:g}"
        if persons
        else "Persons: not known",
        "Not counted: which images are grey. Not measured: groups that the data does not label",
    ]


def _evaluation(stored: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation whose JSON this is, counted again from its confusion matrix."""
    labels = stored["labels"]
    pairs = [
        pair
        for true, row in zip(labels, stored["confusion_matrix"], strict=True)
        for answer, count in zip(labels, row, strict=True)
        for pair in [(true, answer)] * count
    ]
    return evaluate([true for true, _ in pairs], [answer for _, answer in pairs], labels)


def _environment(processes: int) -> dict[str, Any]:
    import accelerate
    import timm
    import torchvision

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "poster_zoo": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "accelerate": accelerate.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "gpus": gpus,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "torchrun": launched_by(),
    }


def launched_by() -> str | None:
    """Return torchrun's id of the job that this process belongs to, if it has one of its own (--rdzv-id)."""
    job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return None if job == "none" else job


# ------------------------------------------------------------------------------------------------- files that are whole


def _cannot_write(path: Path, error: BaseException) -> TrainingError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return TrainingError(
        f"{str(path)!r} cannot be written: {reason}. What was saved there before is whole; "
        "make room, or make the folder writable, and go on with --resume."
    )


def read_json(path: Path, default: Any) -> Any:
    """Return what a JSON file of ours holds, or `default` where there is none that can be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    # By a name that is the same each time, so that kills leave one at most.
    with whole_file(path, beside=path.with_name(f".{path.name}.new"), durable=True) as beside:
        beside.write_text(text, encoding="utf-8")


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace a folder by what `write` puts into a new one, all of it or nothing."""
    _finish_renaming(folder)
    new, old = _beside(folder)
    try:
        new.mkdir(parents=True)
        write(new)
        for path in new.iterdir():
            bring_to_disk(path)
        bring_to_disk(new)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    bring_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _finish_renaming(folder: Path) -> None:
    """Finish what was killed: there is an old folder only once the new one is whole."""
    new, old = _beside(folder)
    if old.exists() and not folder.exists():
        os.rename(new if new.exists() else old, folder)
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON in which each tensor stands as its name in `tensors`, where it is put."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous()
        return {"tensor": name}
    if isinstance(value, Mapping):  # keys may be numbers, which JSON's objects do not have
        return {"items": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_pack(item, tensors) for item in value]
    return value


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what was packed; tuples come back as lists."""
    if isinstance(packed, list):
        return [_unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if "tensor" in packed:
        return tensors[packed["tensor"]]
    return {key: _unpack(item, tensors) for key, item in packed["items"]}
