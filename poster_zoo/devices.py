"""Where to compute."""

from __future__ import annotations

import torch

from poster_zoo.errors import OptionError

__all__ = ["check_device"]


def check_device(device: str | torch.device) -> None:
    """Refuse a device that cannot be used here.

    Raises:
        OptionError: With torch's reason.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise OptionError(f"The device {str(device)!r} cannot be used here: {reason}. `cpu` always can.") from error
