"""How fast models answer here, and how much of what this machine's arithmetic allows that is.

Sides of a comparison take turns in one run, so that what else the machine does at the moment falls on all of them;
of each the median is kept. The ceiling is measured in the same run: the rates of large 3 × 3 convolutions and of large
products of matrices in the same type, and with them the time that the model's counted operations would take.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from poster_zoo._version import __version__
from poster_zoo.errors import OptionError

__all__ = [
    "Ceiling",
    "Report",
    "Timing",
    "benchmark",
    "count_flops",
    "describe_machine",
    "measure_ceiling",
    "peak_memory",
    "take_turns",
    "waiter",
]


@dataclass(frozen=True)
class Timing:
    """How long one call takes.

    Attributes:
        median: In seconds.
        quartiles: The first and the third, in seconds.
        rounds: How often it was called.
    """

    median: float
    quartiles: tuple[float, float]
    rounds: int


@dataclass(frozen=True)
class Ceiling:
    """The rates that large operations reach here, in floating-point operations a second.

    Attributes:
        convolution: Of 3 × 3 convolutions, 256 to 256 channels, 56 × 56.
        matmul: Of products of two matrices of 2048 × 2048.
    """

    convolution: float
    matmul: float

    def seconds(self, flops: Mapping[str, int]) -> float:
        """Return the time that the operations of `count_flops` take at these rates."""
        return flops["convolution"] / self.convolution + flops["matmul"] / self.matmul


def take_turns(
    sides: Mapping[str, Callable[[], object]], rounds: int, wait: Callable[[], None] | None = None
) -> dict[str, Timing]:
    """Call the sides in turn and return how long each takes.

    Args:
        sides: What to call, by name. Each is called twice before the clock is looked at.
        rounds: How often.
        wait: What to call before the clock is read, where work goes on after a call: `torch.cuda.synchronize`.

    Raises:
        OptionError: Fewer than three rounds, of which there is no spread.
    """
    if rounds < 3:
        raise OptionError(f"{rounds} rounds were asked for; a median and its spread need at least 3.")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if wait is not None:
                wait()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(values: list[float]) -> Timing:
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, (first, third), len(values))


def measure_ceiling(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> Ceiling:
    """Measure what large convolutions and products of matrices reach."""
    convolution = nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device, dtype=dtype)
    convolution = convolution.to(memory_format=torch.channels_last).requires_grad_(False)
    maps = torch.randn(4, 256, 56, 56, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    matrix = torch.randn(2048, 2048, device=device, dtype=dtype)
    with torch.inference_mode():
        timings = take_turns(
            {"convolution": lambda: convolution(maps), "matmul": lambda: matrix @ matrix}, rounds, waiter(device)
        )
    flops = {"convolution": 2 * maps.numel() * 256 * 9, "matmul": 2 * 2048**3}
    return Ceiling(**{name: flops[name] / timings[name].median for name in flops})


def waiter(device: torch.device) -> Callable[[], None] | None:
    """Return what waits until `device` has done its work, or None where calls return only then."""
    return torch.cuda.synchronize if device.type == "cuda" else None


def count_flops(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the floating-point operations of one call, two a multiply-add, by kind: convolution and matmul."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(images)
    flops = {"convolution": 0, "matmul": 0}
    for operation, count in counter.get_flop_counts()["Global"].items():
        flops["convolution" if "convolution" in str(operation) else "matmul"] += int(count)
    return flops


def peak_memory() -> int:
    """Return the most memory that this process has held so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what somebody needs to know of the machine to judge the numbers."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "poster_zoo": __version__,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Report:
    """What one model costs at one batch size.

    Attributes:
        model: Its name.
        batch: Images a call.
        gmacs: Multiply-adds of one image, in 10⁹.
        latency: Seconds a call, by side: "eager", "optimized", "compiled".
        images_per_second: By side.
        of_ceiling: The time that the counted operations would take at the ceiling's rates, divided by the time taken;
            by side.
        largest_difference: Of the logits to the eager ones, by side.
    """

    model: str
    batch: int
    gmacs: float
    latency: dict[str, Timing]
    images_per_second: dict[str, float]
    of_ceiling: dict[str, float]
    largest_difference: dict[str, float]


def benchmark(
    name: str,
    sides: Mapping[str, Callable[[Tensor], Tensor]],
    images: Tensor,
    flops: Mapping[str, int],
    ceiling: Ceiling,
    rounds: int,
) -> Report:
    """Time the sides of one model on one batch; the first side is the one whose answers the others must give.

    Args:
        name: Of the model.
        sides: What turns images into logits.
        images: (B, C, H, W).
        flops: Of one call, as `count_flops` gives them.
        ceiling: Measured in the same run.
        rounds: How often each side is called.
    """
    batch = len(images)
    with torch.inference_mode():
        answers = {side: call(images).float() for side, call in sides.items()}
        calls = {side: (lambda call=call: call(images)) for side, call in sides.items()}
        latency = take_turns(calls, rounds, waiter(images.device))
    first = answers[next(iter(sides))]
    return Report(
        model=name,
        batch=batch,
        gmacs=sum(flops.values()) / 2 / batch / 1e9,
        latency=latency,
        images_per_second={side: batch / timing.median for side, timing in latency.items()},
        of_ceiling={side: ceiling.seconds(flops) / timing.median for side, timing in latency.items()},
        largest_difference={side: float((answer - first).abs().max()) for side, answer in answers.items()},
    )
