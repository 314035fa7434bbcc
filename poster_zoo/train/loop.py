"""The training loop: epochs, steps, what is measured, what is kept.

    import poster_zoo
    from poster_zoo.data.datasets import open_training
    from poster_zoo.train import RECIPES, train

    data, valid = open_training("rafdb:RAF-DB")
    model = poster_zoo.create_model("poster_rafdb", pretrained_streams=True, drop_path_rate=0.1)
    train(model, RECIPES["rafdb"], data, valid, "runs/rafdb")

A run can be killed at any moment. `resume=True` goes on from its last checkpoint and, on a CPU, to the same numbers
bit for bit: what is random follows from the seed and the step (see `batches`), and the rest is in the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler, StepLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from tqdm import tqdm

from poster_zoo.data.datasets import FaceDataset
from poster_zoo.data.transforms import split_transform
from poster_zoo.errors import FaultyDataError, LabelError, PosterZooError, TrainingError
from poster_zoo.evaluate import Evaluation, evaluate
from poster_zoo.progress import progress_bar
from poster_zoo.train.batches import EpochBatches, evaluation_loader, seed_everything, training_loader
from poster_zoo.train.interrupt import Interrupt
from poster_zoo.train.losses import ExpressionLoss, balanced_weights
from poster_zoo.train.processes import by_all, make_accelerator, on_main
from poster_zoo.train.recipe import Recipe
from poster_zoo.train.run import Progress, RunFolder, count_faces
from poster_zoo.train.step import NotFinite, Outcome, Step, make_optimizer, on_device

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Training", "label_names_of", "train"]


@dataclass(frozen=True)
class Training:
    """What a training came to.

    Attributes:
        out: The run's folder.
        rows: A row an epoch, as in metrics.jsonl.
        best_epoch: The epoch in best/, counted from 1; 0 where nothing was measured.
    """

    out: Path
    rows: tuple[dict[str, Any], ...]
    best_epoch: int


def train(
    model: Any,
    recipe: Recipe,
    data: FaceDataset,
    valid: FaceDataset | None,
    out: str | Path | RunFolder,
    *,
    resume: bool = False,
    label_names: Sequence[str] | None = None,
    model_args: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    workers: int = 0,
    save_every: int = 500,
    progress: bool | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Training:
    """Train a model by a recipe.

    Args:
        model: Any model of the zoo, or of timm, with a class head. It is changed; the weights of the best epoch are
            in OUT/best, for `poster_zoo.create_model("local-dir:OUT/best")`.
        recipe: How. `drop_rate` and `drop_path_rate` are for whoever builds the model.
        data: Images to learn from; what is done to them the recipe says.
        valid: Images to choose the best epoch by, or None for no choice.
        out: The run's folder.
        resume: Go on with the run that is there, or begin it where there is none.
        label_names: Class names in the order of the logits; None for those that the model came with, or the data's
            where it has none of that number.
        model_args: Arguments without which the factory would build another model.
        facts: What else is to stand in run.json, and must be the same where a run is resumed.
        accelerator: The devices and processes; None for what is there, see `make_accelerator`.
        workers: Processes that load images, for each process that trains. The numbers do not depend on it.
        save_every: Steps between checkpoints within an epoch; 0 for none.
        progress: Show a progress bar; None where stderr is a terminal.
        on_epoch: Called in the main process with each epoch's row.

    Raises:
        LabelError: A class of the data is none of the model's, or the model has another number of classes.
        FaultyDataError: `valid` holds no images.
        OptionError: The folder holds another run, or one that another process is at; or the recipe does not fit the
            data.
        TrainingError: The loss or a weight is no number, or the disk is full. OUT/last is what it was.
        ImageError: An image cannot be read.
        MissingExtraError: accelerate is not installed.
        KeyboardInterrupt: Ctrl-C, after the step was finished and saved.
        SystemExit: SIGTERM, likewise, with status 143. Where the program has set a handler of its own for either,
            that is called in place of raising, and where it returns, so does this, with the rows so far.
    """
    labels = tuple(label_names or label_names_of(model) or data.label_names)
    if len(labels) != model.num_classes:
        raise LabelError(
            f"The model has {model.num_classes} classes and {len(labels)} label names ({', '.join(labels)}); "
            f"build it with num_classes={len(labels)}, or give label_names, one a class."
        )
    if valid is not None and not len(valid):
        raise FaultyDataError(
            f"{valid.name} holds no images to choose the best epoch by; give some, or valid=None to choose none."
        )
    change, _ = split_transform(model, recipe.transform)
    resize, _ = split_transform(model)
    changed = data.with_labels(labels).with_transform(change, recipe.soft_targets)
    plain = None if valid is None else valid.with_labels(labels).with_transform(resize)
    about = {"model": model.pretrained_cfg["architecture"], "labels": list(labels), **(facts or {})}
    about |= {"train_images": len(data), f"{recipe.select_on}_images": len(valid or ())}
    about |= {"train_faces": count_faces(changed)}
    with out if isinstance(out, RunFolder) else RunFolder(out) as run:
        run.label_names, run.model_args = labels, dict(model_args or {})
        trainer = _Trainer(model, recipe, changed, plain, run, accelerator or make_accelerator(), workers, save_every)
        trainer.show_progress, trainer.on_epoch = progress, on_epoch
        return trainer.run_to_the_end(about, resume)


class _Trainer:
    """A model, what it learns from, and how far it is."""

    show_progress: bool | None = None
    on_epoch: Callable[[dict[str, Any]], None] | None = None

    def __init__(
        self,
        model: Any,
        recipe: Recipe,
        data: FaceDataset,
        valid: FaceDataset | None,
        run: RunFolder,
        accelerator: Accelerator,
        workers: int,
        save_every: int,
    ) -> None:
        process, processes = accelerator.process_index, accelerator.num_processes
        pin = accelerator.device.type == "cuda"
        self.recipe, self.accelerator, self.run, self.save_every = recipe, accelerator, run, save_every

        def prepare() -> tuple[EpochBatches, Any, torch.optim.Optimizer]:
            cut = (recipe.accumulate, process, processes)
            batches = EpochBatches(data.labels, recipe.batch_size, recipe.seed, recipe.balance, *cut)
            moved = on_device(model, recipe, accelerator)
            return batches, moved, make_optimizer(moved, recipe)

        self.batches, self.model, self.optimizer = by_all(accelerator, prepare)

        # What it learns from.
        self.data, self.valid = data, valid
        self.loader = training_loader(data, self.batches, recipe.seed, workers, pin)
        share = -(-recipe.batch_size // (recipe.accumulate * processes))
        self.valid_loader = valid and evaluation_loader(valid, share, process, processes, workers, pin)
        _, self.normalise = split_transform(model)

        # What learns.
        self.schedule = _schedule(self.optimizer, recipe, len(self.batches))
        weights = balanced_weights(data.labels, len(data.label_names)) if recipe.class_weights else None
        loss = ExpressionLoss.of(recipe, weights if weights is None else weights.to(accelerator.device))
        self.step = Step(self.model, self.optimizer, recipe, loss, accelerator)
        self.ema = ModelEmaV3(self.model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        self.kept: Any = self.model if self.ema is None else self.ema.module

        self.at = Progress()
        self.saved: int | None = None  # the updates after which last/ was written

    def run_to_the_end(self, about: Mapping[str, Any], resume: bool) -> Training:
        """Train from where the run is, epoch by epoch."""
        with Interrupt() as interrupt:
            if self._on_main(lambda: self.run.begin(self.recipe, about, resume, self.accelerator.num_processes)):
                self._restore(by_all(self.accelerator, self.run.load_last))
            while self.at.epoch < self.recipe.epochs and not self._is_stuck():
                if self._take_steps(interrupt):
                    break
                self._close_epoch()
                if interrupt.noted(self.accelerator):
                    break
        interrupt.obey()
        return Training(self.run.path, tuple(self.at.rows), self.at.best_epoch)

    def _is_stuck(self) -> bool:
        patience = self.recipe.patience if self.valid is not None else 0
        return bool(patience) and self.at.epoch - self.at.best_epoch >= patience

    def _take_steps(self, interrupt: Interrupt) -> bool:
        """Take the steps of an epoch that are left, and save now and then; return whether to stop, with all saved."""
        at, batches = self.at, self.batches
        batches.epoch, batches.first = at.epoch, at.step
        self.model.train()
        began = time.perf_counter()
        with self._bar() as bar:
            for batch in self.loader:
                outcome = self._take_step(*_usable(batch))
                now = time.perf_counter()
                at.count(outcome.loss, outcome.right, outcome.norm, batches.images(at.step), now - began)
                began = now
                _show(bar, at, batches.images(at.step - 1))
                stopping = interrupt.noted(self.accelerator)
                due = self.save_every and at.step % self.save_every == 0 and at.step < len(batches)
                if stopping or due:
                    self._save()
                if stopping:
                    return True
        return False

    def _take_step(self, images: Tensor, targets: Tensor) -> Outcome:
        at = self.at
        seed = partial(seed_everything, self.recipe.seed, at.epoch, at.step)
        self.schedule.step_update(at.updates)
        try:
            outcome = self.step(self._input(images), self._moved(targets), self.batches.images(at.step), seed)
        except NotFinite as error:
            raise self._gone_wrong(error) from error
        if self.ema is not None:
            self.ema.update(self.model, step=at.updates + 1)
        return outcome

    def _close_epoch(self) -> None:
        """Measure the epoch, keep it, and write its row."""
        row = self.at.row(max(group["lr"] for group in self.optimizer.param_groups))
        evaluation, score = None, None
        if self.valid is not None:
            evaluation, loss = self._measure(self.valid)
            score = getattr(evaluation, self.recipe.select_by)
            row |= _measured(self.recipe.select_on, evaluation, loss)
        if self.at.end_epoch(row, score) and evaluation is not None:
            best = evaluation
            self._on_main(lambda: self.run.save_best(self.kept, best, asdict(self.at)))
        self._save()
        self._tell_rows()
        if self.on_epoch is not None and self.accelerator.is_main_process:
            self.on_epoch(row)

    @torch.no_grad()
    def _measure(self, valid: FaceDataset) -> tuple[Evaluation, float]:
        """Return how the kept weights answer, in single precision, and their mean cross-entropy.

        Raises:
            TrainingError: That is no number.
        """
        from accelerate.utils import gather_object

        self.kept.eval()
        answers: list[int] = []
        scores: list[float] = []
        losses: list[float] = []
        for batch in self.valid_loader or ():
            images, labels = _usable(batch)
            logits = self.kept(self._input(images)).float()
            best = logits.softmax(1).max(1)
            answers += best.indices.tolist()
            scores += best.values.tolist()
            losses += F.cross_entropy(logits, self._moved(labels), reduction="none").tolist()
        # Process p has the images p, p + processes, …
        parts = gather_object([(answers, scores, losses)])
        table = np.empty((3, len(valid)))
        for process, part in enumerate(parts):
            table[:, process :: len(parts)] = part
        loss = float(table[2].mean())
        if not math.isfinite(loss):
            raise self._stopped(f"The loss on the {self.recipe.select_on} images is {loss}")
        names = valid.label_names
        true, found = ([names[int(place)] for place in places] for places in (valid.labels, table[0]))
        return evaluate(true, found, names, table[1]), loss

    def _input(self, images: Tensor) -> Tensor:
        """Return the model's input of a batch of bytes, on the device, in the memory format of the recipe."""
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        return self.normalise(self._moved(images)).contiguous(memory_format=layout)

    def _moved(self, values: Tensor) -> Tensor:
        return values.to(self.accelerator.device, non_blocking=True)

    def _save(self) -> None:
        state: dict[str, Any] = {
            "progress": asdict(self.at),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.step.scaler.state_dict(),
            "model": {} if self.ema is None else self.model.state_dict(),
        }

        def save() -> None:
            for name, tensor in chain(self.kept.state_dict().items(), state["model"].items()):
                if not tensor.isfinite().all():
                    raise self._stopped(f"Numbers in {name} are infinite or none at all")
            self.run.save_last(self.kept, state)

        self._on_main(save)
        self.saved = self.at.updates

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.at = Progress(**state["progress"])
        self.kept.load_state_dict(state["weights"])
        if self.ema is not None:
            self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for weight, values in self.optimizer.state.items():
            for name, value in values.items():
                # In the weight's own memory format, or its arithmetic would round otherwise.
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
        self.step.scaler.load_state_dict(state["scaler"])
        self.saved = self.at.updates
        self._tell_rows()

    def _tell_rows(self) -> None:
        def tell() -> None:
            self.run.write_rows(self.at.rows)
            self.run.draw(self.at.rows)

        self._on_main(tell)

    def _on_main(self, work: Callable[[], Any]) -> Any:
        return on_main(self.accelerator, work)

    def _gone_wrong(self, error: NotFinite) -> TrainingError:
        order = self.batches.order()
        start = self.at.step * self.recipe.batch_size
        first = [repr(self.data.source(i)) for i in order[start : start + 3]]
        return self._stopped(
            f"{error} in epoch {self.at.epoch + 1}, batch {self.at.step + 1} (step {self.at.updates + 1} of the run), "
            f"whose first images are {', '.join(first)}"
        )

    def _stopped(self, why: str) -> TrainingError:
        """Return the error for numbers that are none, which says what is left of the run."""
        last = str(self.run.path / "last")
        left = "nothing was saved before" if self.saved is None else f"{last!r} holds the run after step {self.saved}"
        if self.saved == self.at.updates:
            left += ", the last one, and would stop here again"
        error = TrainingError(
            f"{why}. Training stopped after step {self.at.updates} of the run; {left}. "
            "Look at the images, or begin again with a lower lr, in another --out."
        )
        error.said = not self.accelerator.is_main_process  # all have the same numbers
        return error

    def _bar(self) -> tqdm[Any]:
        images = [self.batches.images(step) for step in range(len(self.batches))]
        return progress_bar(
            sum(images),
            self.show_progress if self.accelerator.is_main_process else False,
            initial=sum(images[: self.at.step]),
            desc=f"epoch {self.at.epoch + 1}/{self.recipe.epochs}",
            leave=False,
        )


def _show(bar: tqdm[Any], at: Progress, images: int) -> None:
    bar.set_postfix_str(f"loss {at.loss / at.images:.3f}, accuracy {at.right / at.images:.3f}", refresh=False)
    bar.update(images)


def _usable(batch: Any) -> tuple[Tensor, Tensor]:
    """Return a batch's images and targets, or raise the error that a loader met."""
    if isinstance(batch, PosterZooError):
        raise batch
    images, targets = batch
    return images, targets


def label_names_of(model: Any) -> tuple[str, ...]:
    """Return the label names that a model came with, if their number is still right; none where it has none."""
    names = tuple(model.pretrained_cfg.get("label_names") or ())
    return names if len(names) == model.num_classes else ()


def _schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Scheduler:
    """Return timm's scheduler, asked for the rate of each update; unlike torch's it knows layer-wise decay."""
    warmup = round(recipe.warmup_epochs * steps)
    rise: dict[str, Any] = {"warmup_t": warmup, "warmup_lr_init": recipe.lr / max(warmup, 1), "t_in_epochs": False}
    if recipe.schedule == "cosine":
        return CosineLRScheduler(optimizer, t_initial=recipe.epochs * steps, **rise)
    return StepLRScheduler(optimizer, decay_t=steps, decay_rate=recipe.gamma, warmup_prefix=False, **rise)


def _measured(split: str, evaluation: Evaluation, loss: float) -> dict[str, float]:
    return {
        f"{split}_loss": loss,
        f"{split}_accuracy": evaluation.accuracy,
        f"{split}_mean_class_accuracy": evaluation.mean_class_accuracy,
        f"{split}_macro_f1": evaluation.macro_f1,
    }
