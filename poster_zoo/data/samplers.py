"""Drawing rare classes more often, the same in one process and in several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Generator, distributed
from torch.utils.data import Sampler

from poster_zoo.data.datasets import NO_LABEL
from poster_zoo.errors import LabelError, OptionError

__all__ = ["BalancedSampler", "draw_balanced"]


def draw_balanced(labels: Sequence[int], count: int, generator: Generator, balance: float = 1.0) -> list[int]:
    """Draw images with replacement, with weights in proportion to 1 / (images of their class) to the power `balance`.

    The class is drawn first and one of its images then: these are the same chances, and `torch.multinomial` over the
    images themselves takes 16 million at most.

    Args:
        labels: Each image's class; an image with `NO_LABEL` is never drawn.
        count: How many to draw.
        generator: Where the random numbers come from; on the CPU.
        balance: 1 for all classes equally often, 0 for each as often as it is there.

    Raises:
        LabelError: No image has a label.
    """
    every = torch.as_tensor(labels)
    images = torch.nonzero(every != NO_LABEL).flatten()
    if not len(images):
        raise LabelError("There are no labelled images to draw from.")
    sizes = torch.unique(every[images], return_counts=True)[1]  # of the classes in order, as `by_class` has them
    by_class = images[torch.argsort(every[images], stable=True)]
    drawn = torch.multinomial(sizes.double() ** (1 - balance), count, replacement=True, generator=generator)
    within = (torch.rand(count, generator=generator, dtype=torch.double) * sizes[drawn]).long()
    drawn_images: list[int] = by_class[(sizes.cumsum(0) - sizes)[drawn] + within].tolist()
    return drawn_images


class BalancedSampler(Sampler[int]):
    """Images of each class equally often, drawn with replacement: AffectNet's authors train so.

    All processes make the same draw, of the same seed and epoch, and each takes every `num_replicas`-th of it: so
    together they see what one process would see, in batches of the same images.

    Give it to a `DataLoader` as its `sampler`. A loader that accelerate prepares is shared out by accelerate itself:
    then `num_replicas=1`.

    Args:
        labels: Each image's class.
        balance: As for `draw_balanced`.
        num_samples: How many images an epoch has, over all processes; by default as many as there are. It is rounded up
            to a multiple of `num_replicas`.
        seed: Of all epochs; not negative.
        num_replicas: How many processes there are; by default what `torch.distributed` says, or 1.
        rank: Which of them this is; by default what `torch.distributed` says, or 0.

    Raises:
        LabelError: No image has a label.
        OptionError: `rank` is none of `num_replicas`.
    """

    def __init__(
        self,
        labels: Sequence[int],
        balance: float = 1.0,
        num_samples: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        together = distributed.is_available() and distributed.is_initialized()
        self.num_replicas = num_replicas or (distributed.get_world_size() if together else 1)
        self.rank = rank if rank is not None else (distributed.get_rank() if together and num_replicas is None else 0)
        if not 0 <= self.rank < self.num_replicas:
            raise OptionError(f"Process {self.rank} is none of {self.num_replicas}; count them from 0.")
        self.labels = labels
        self.balance = balance
        self.num_samples = -(-(num_samples or len(labels)) // self.num_replicas)  # of this process, rounded up
        self.seed = seed
        self.epoch = 0
        self._start = self._yielded = 0

    def __len__(self) -> int:
        """Return how many images an epoch has for this process."""
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        """Draw the epoch that is set; after `load_state_dict` what is left of it, once."""
        self._yielded, self._start = self._start, 0
        for image in self._draw()[self._yielded :]:
            self._yielded += 1
            yield image
        self._yielded = 0

    def set_epoch(self, epoch: int) -> None:
        """Have the next iteration draw another epoch; the same one is drawn again otherwise."""
        self.epoch = epoch

    def state_dict(self, taken: int | None = None) -> dict[str, Any]:
        """Return what the rest of the epoch follows from.

        Args:
            taken: How many of this process's images the training has seen in this epoch: a loader with workers, or one
                that is between batches, has drawn more of them than it has handed out. By default, as many as were
                drawn.
        """
        return {**self._settings(), "epoch": self.epoch, "taken": self._yielded if taken is None else taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the next iteration go on after the images that were taken.

        Raises:
            OptionError: The state is of other images, settings or numbers of processes.
        """
        changed = [name for name, value in self._settings().items() if state.get(name) != value]
        if changed:
            raise OptionError(
                "The sampler's state is of another draw: "
                + ", ".join(f"{name} was {state.get(name)} and is {self._settings()[name]}" for name in changed)
                + "; go on with what it was, or start the epoch afresh."
            )
        self.epoch, self._start = state["epoch"], state["taken"]

    def _settings(self) -> dict[str, Any]:
        return {
            "images": len(self.labels),
            "balance": self.balance,
            "num_samples": self.num_samples,
            "num_replicas": self.num_replicas,
            "seed": self.seed,
        }

    def _draw(self) -> list[int]:
        # torch's generator takes 32 bits; hashed, epoch 1 of seed 0 is not epoch 0 of seed 1.
        hashed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        generator = Generator().manual_seed(int(hashed[0]))
        common = draw_balanced(self.labels, self.num_samples * self.num_replicas, generator, self.balance)
        return common[self.rank :: self.num_replicas]
