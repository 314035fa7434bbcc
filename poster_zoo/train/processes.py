"""The devices and processes that accelerate gives, and what one of them does for all."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch

from poster_zoo.devices import meeting_options
from poster_zoo.errors import ClusterError, MissingExtraError, OptionError, PosterZooError
from poster_zoo.extras import installed

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["by_all", "largest", "make_accelerator", "on_main"]

T = TypeVar("T")

_PATIENCE = timedelta(hours=3)  # of processes that wait while the first one checks a large collection
_PARTED = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "XLA")


def make_accelerator(device: str | None = None) -> Accelerator:
    """Return the processes that `accelerate launch` or torchrun started, or this one alone, and their devices.

    Args:
        device: "cpu" for the processor where there is something faster; None for what is there. Which GPUs are used
            is for CUDA_VISIBLE_DEVICES and the launcher to say.

    Raises:
        MissingExtraError: accelerate is not installed.
        OptionError: A device that is not there, or a way to share the work that is not supported.
    """
    if not installed("accelerate"):
        raise MissingExtraError('Training needs accelerate, which is not installed: pip install "poster-zoo[train]".')
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    fastest = found.type if found else "cpu"
    if device not in (None, "cpu", fastest):
        raise OptionError(
            f"Training on {device!r} was asked for and {fastest!r} is there; "
            f"leave the choice out, or take 'cpu'. Of several GPUs, CUDA_VISIBLE_DEVICES chooses."
        )
    accelerator = Accelerator(
        cpu="cpu" in (device, fastest),
        mixed_precision="no",  # see `Step`
        kwargs_handlers=[
            DistributedDataParallelKwargs(),
            InitProcessGroupKwargs(**meeting_options(_PATIENCE)),
        ],
    )
    if accelerator.distributed_type.value in _PARTED:
        raise OptionError(
            f"Training by {accelerator.distributed_type.value} is not supported: the models fit on one device. "
            "Choose plain data parallelism in `accelerate config`."
        )
    return accelerator


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Let the main process do `work`, and all have what it returns, or raise what it raised.

    Raises:
        ClusterError: In the other processes, where the main one raised something else than an error of ours.
    """
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import broadcast_object_list

    if not accelerator.is_main_process:
        result, raised = broadcast_object_list([None, None])
        if raised is not None:
            raised.said = True
            raise raised
        return result
    try:
        result = work()
    except BaseException as error:  # whatever it is, the others wait
        ours = isinstance(error, PosterZooError)
        broadcast_object_list([None, error if ours else ClusterError(f"The first process stopped: {error!r}.")])
        raise
    broadcast_object_list([result, None])
    return result


def by_all(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Let every process do `work`, which waits for no other, and go on once it is done in all of them.

    Of an error of ours, the first process on each machine that met it is the one to say it: data, packages or weights
    may lack on one machine alone.

    Raises:
        ClusterError: In the other processes, where `work` failed in some.
    """
    if accelerator.num_processes == 1:
        return work()
    from accelerate.utils import gather_object

    failure: PosterZooError | None = None
    try:
        result = work()
    except PosterZooError as error:
        failure = error
    place = platform.node()
    met = gather_object([None if failure is None else (place, str(failure))])
    if failure is not None:
        failure.said = (place, str(failure)) in met[: accelerator.process_index]
        raise failure
    if first := next(filter(None, met), None):
        stopped = ClusterError(f"Process {met.index(first)} of this work, on {first[0]}, stopped: {first[1]}")
        stopped.said = not accelerator.is_main_process
        raise stopped
    return result


def largest(accelerator: Accelerator, number: int) -> int:
    """Return the largest of the numbers that the processes have."""
    if accelerator.num_processes == 1:
        return number
    return int(accelerator.gather(torch.tensor([float(number)], device=accelerator.device)).max())
