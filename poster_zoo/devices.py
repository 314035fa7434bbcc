"""Where to compute, and with which other processes."""

from __future__ import annotations

import atexit
import functools
import os
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch

from poster_zoo.errors import OptionError

__all__ = ["check_device", "meeting_options"]

_SCHEME = "poster-zoo"
_ANSWER = timedelta(seconds=5)  # within which a store that is alive has answered


def check_device(device: str | torch.device) -> None:
    """Refuse a device that cannot be used here.

    Raises:
        OptionError: With torch's reason.
    """
    try:
        torch.empty(1, device=device).cpu()  # so that it is asked for an answer: "meta" has none
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise OptionError(f"The device {str(device)!r} cannot be used here: {reason}. `cpu` always can.") from error


def meeting_options(patience: timedelta) -> dict[str, Any]:
    """Return the options of `torch.distributed.init_process_group` by which processes that a launcher started meet.

    They also see to it that the process group is left when the program ends: its threads may otherwise meet an
    interpreter that is gone, and abort.

    Args:
        patience: How long one process waits for another, here and in all that they do together.
    """
    _leave_at_the_end()
    options: dict[str, Any] = {"timeout": patience}
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        _register()
        options["init_method"] = f"{_SCHEME}://"
    return options


@functools.cache
def _leave_at_the_end() -> None:
    atexit.register(_leave)


def _leave() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


@functools.cache
def _register() -> None:
    from torch.distributed import register_rendezvous_handler

    register_rendezvous_handler(_SCHEME, _meet)  # type: ignore[no-untyped-call]


def _meet(url: str, timeout: timedelta, **_: Any) -> Iterator[tuple[torch.distributed.Store, int, int]]:
    """Yield a store that this start's processes share, this process's rank, and how many they are.

    torchrun's agents keep their store when they start processes again (up to torch 2.14 at least), and in it stand the
    addresses of those that have died. So the first process opens a store of its own and tells its port in the
    agents'; the others ask there until what they find is alive.
    """
    from torch.distributed import TCPStore

    host = os.environ["MASTER_ADDR"]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    agents = TCPStore(host, int(os.environ["MASTER_PORT"]), is_master=False, timeout=timeout, wait_for_workers=False)
    if rank == 0:
        store = TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
        token = secrets.token_hex()
        store.set(_SCHEME, token)
        agents.set(_SCHEME, f"{store.port} {token}")
    else:
        deadline = time.monotonic() + timeout.total_seconds()
        while (found := _if_alive(host, *agents.get(_SCHEME).decode().split())) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"The first process, on {host}, was not reached within {timeout}.")
            time.sleep(0.2)
        store = found
        store.set_timeout(timeout)
    yield store, rank, size
    raise RuntimeError("Processes that have met cannot meet anew.")


def _if_alive(host: str, port: str, token: str) -> torch.distributed.TCPStore | None:
    """Return the store at a port, or None where it is gone or another program's."""
    from torch.distributed import TCPStore

    try:
        store = TCPStore(host, int(port), is_master=False, timeout=_ANSWER, wait_for_workers=False)
        return store if store.get(_SCHEME).decode() == token else None
    except RuntimeError:  # all of torch.distributed's errors are
        return None
