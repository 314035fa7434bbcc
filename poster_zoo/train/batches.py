"""Which images make which batch, in which process, and what randomly happens to them.

Everything random here follows from the recipe's seed and from where one is: epoch, step, place in the epoch. No
generator's state is carried along, so nothing depends on how many processes load, or on where a run was cut.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from poster_zoo.data.datasets import FaceDataset
from poster_zoo.data.samplers import draw_balanced
from poster_zoo.errors import OptionError, PosterZooError

__all__ = ["EpochBatches", "epoch_order", "evaluation_loader", "seed_everything", "sizes", "training_loader"]

Key: TypeAlias = tuple[int, int, int]
"""An image of an epoch: the epoch, the place in its order, and which image that is."""

# What the seed is for; the same numbers must not come twice.
_ORDER, _IMAGE, _STEP = 0, 1, 2


def _derived(seed: int, *where: int) -> int:
    return int(np.random.SeedSequence((seed, *where)).generate_state(1)[0])


def seed_everything(seed: int, *where: int) -> None:
    """Seed Python's, numpy's and torch's generators, of all devices, for what `where` numbers: epoch, step, piece."""
    derived = _derived(seed, _STEP, *where)
    random.seed(derived)
    np.random.seed(derived)
    torch.manual_seed(derived)


@contextmanager
def _drawn_from(seed: int) -> Iterator[None]:
    """Seed the generators of the CPU, from which transforms draw, and put them back as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def epoch_order(labels: Sequence[int], epoch: int, seed: int, balance: float = 0.0) -> list[int]:
    """Return which images an epoch goes through, in order.

    Args:
        labels: Each image's class.
        epoch: Counted from 0.
        seed: The recipe's.
        balance: 0 for each image once; otherwise as many are drawn as for `draw_balanced`.
    """
    generator = torch.Generator().manual_seed(_derived(seed, _ORDER, epoch))
    if not balance:
        return torch.randperm(len(labels), generator=generator).tolist()
    return draw_balanced(labels, len(labels), generator, balance)


def sizes(images: int, parts: int) -> list[int]:
    """Return how many images each of `parts` gets, the first ones one more where it does not divide."""
    size, more = divmod(images, parts)
    return [size + (i < more) for i in range(parts)]


class EpochBatches(Sampler[list[Key]]):
    """One process's share of each batch of an epoch.

    A batch is cut into as many pieces as there are processes times `accumulate`; a process takes `accumulate` of them
    that lie together. So one process with two pieces sees what two processes with one piece each see. Of an epoch's
    last batch, where it is smaller, all is used, unless a piece would have fewer than two images, which BatchNorm
    cannot normalise: then it is left out, in this epoch.

    Args:
        labels: Each image's class.
        batch_size: Images a batch, over all processes.
        seed: The recipe's.
        balance: The recipe's.
        accumulate: Pieces a process.
        process: Which one this is.
        processes: How many there are.

    Attributes:
        epoch: The epoch that is gone through next.
        first: Its first batch that is wanted.

    Raises:
        OptionError: There are too few images, or a batch is too small, for so many pieces.
    """

    def __init__(
        self,
        labels: Sequence[int],
        batch_size: int,
        seed: int,
        balance: float = 0.0,
        accumulate: int = 1,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.balance = balance
        self.accumulate = accumulate
        self.process = process
        self.pieces = processes * accumulate
        self.epoch = self.first = 0
        self._whole, rest = divmod(len(labels), batch_size)
        self._steps = self._whole + (rest >= 2 * self.pieces)
        if not self._steps or batch_size < 2 * self.pieces:
            raise OptionError(
                f"{len(labels)} images in batches of {batch_size} cannot be cut into {self.pieces} "
                f"piece{'s' if self.pieces > 1 else ''} of two images or more ({processes} process"
                f"{'es' if processes > 1 else ''} × {accumulate}); take larger batches, or fewer pieces."
            )

    def __len__(self) -> int:
        """Return the steps of a whole epoch."""
        return self._steps

    def images(self, step: int) -> int:
        """Return how many images the batch of a step has, over all processes."""
        return self.batch_size if step < self._whole else len(self.labels) % self.batch_size

    def order(self) -> list[int]:
        """Return the order of the images in this epoch."""
        return epoch_order(self.labels, self.epoch, self.seed, self.balance)

    def __iter__(self) -> Iterator[list[Key]]:
        order = self.order()
        for step in range(self.first, self._steps):
            cut = sizes(self.images(step), self.pieces)
            mine = self.process * self.accumulate
            start = step * self.batch_size + sum(cut[:mine])
            places = range(start, start + sum(cut[mine : mine + self.accumulate]))
            yield [(self.epoch, place, order[place]) for place in places]


class _Drawn(Dataset[Any]):
    """The images of an epoch by their keys, each changed by random numbers of its own."""

    def __init__(self, data: FaceDataset, seed: int) -> None:
        self.data = data
        self.seed = seed

    def __getitem__(self, key: Key) -> Any:
        epoch, place, index = key
        with _drawn_from(_derived(self.seed, _IMAGE, epoch, place)):
            return _item_or_error(self.data, index)


class _InOrder(Dataset[Any]):
    """One process's share of the images, as they are."""

    def __init__(self, data: FaceDataset, places: range) -> None:
        self.data = data
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        return _item_or_error(self.data, self.places[index])


def _item_or_error(data: FaceDataset, index: int) -> Any:
    """Return an item, or the error why there is none: raised in a loader's process it would lose its sentence."""
    try:
        return data[index]
    except PosterZooError as error:
        return error


def _collate(items: list[Any]) -> Any:
    """Return a batch, or the first error in it."""
    return next((item for item in items if isinstance(item, PosterZooError)), None) or default_collate(items)


def _outlive_a_signal(worker: int) -> None:
    """Have a process that loads images live through a first Ctrl-C or SIGTERM; a second one ends it.

    They reach all that were started together, and the process that trains needs its images until the step is finished.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _expect_another)


def _expect_another(number: int, frame: FrameType | None) -> None:
    signal.signal(number, lambda *_: os._exit(0))


def training_loader(data: FaceDataset, batches: EpochBatches, seed: int, workers: int, pin: bool) -> DataLoader[Any]:
    """Return what loads `batches`; each time it is gone through, the epoch that is set there."""
    return DataLoader(
        _Drawn(data, seed),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_outlive_a_signal,
        pin_memory=pin,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # else it would draw from torch's
    )


def evaluation_loader(
    data: FaceDataset, batch_size: int, process: int, processes: int, workers: int, pin: bool
) -> DataLoader[Any]:
    """Return what loads one process's share of the images: every `processes`-th one, from `process` on."""
    return DataLoader(
        _InOrder(data, range(process, len(data), processes)),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_outlive_a_signal,
        pin_memory=pin,
        generator=torch.Generator(),
    )
