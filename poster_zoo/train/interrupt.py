"""Ctrl-C, and a scheduler's SIGTERM, as a wish that is granted after the step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from poster_zoo.train.processes import largest

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Interrupt"]


_USUAL = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler, None)


class Interrupt:
    """Within this context the first SIGINT or SIGTERM is only noted; a second one does what it always did."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; in another one, signals stay with whoever has them.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # the last is none of Python's to put back
                    self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def noted(self, accelerator: Accelerator) -> bool:
        """Return whether any process was told to stop; all get the same answer, at the same step."""
        self.signal = largest(accelerator, self.signal or 0) or None
        return self.signal is not None

    def obey(self) -> None:
        """End as the signal would have ended the program; where that has a handler of its own, call it.

        Raises:
            KeyboardInterrupt: It was SIGINT.
            SystemExit: It was SIGTERM, with the status that shells give it.
        """
        self._restore()
        if self.signal is not None and signal.getsignal(self.signal) not in _USUAL:
            signal.raise_signal(self.signal)  # to which the whole program may have an answer, such as to queue again
            return
        if self.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        if self.signal is not None:
            raise KeyboardInterrupt
