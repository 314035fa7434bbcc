"""How fast models answer here, and how much of what this machine's arithmetic allows that is.

Sides of a comparison take turns in one run, so that what else the machine does at the moment falls on all of them;
of each the median is kept. The ceiling is measured in the same run: the rates of large 3 × 3 convolutions and of large
products of matrices in the same type, and with them the time that the model's counted operations would take.
"""

from __future__ import annotations

import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from poster_zoo._version import __version__
from poster_zoo.data.images import read_image
from poster_zoo.data.transforms import quick_resize, split_transform
from poster_zoo.errors import OptionError
from poster_zoo.models._registry import create_model
from poster_zoo.weights.save import save_pretrained

__all__ = [
    "Ceiling",
    "Data",
    "Report",
    "Start",
    "Timing",
    "Training",
    "benchmark",
    "count_flops",
    "count_flops_of",
    "describe_machine",
    "jpeg",
    "measure_ceiling",
    "measure_data",
    "measure_start",
    "measure_training",
    "peak_memory",
    "reset_peak_memory",
    "take_turns",
    "waiter",
    "write_report",
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
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    wait: Callable[[], None] | None = None,
    clock: Callable[[], float] | None = None,
    pause: float = 0.0,
) -> dict[str, Timing]:
    """Call the sides in turn and return how long each takes.

    Args:
        sides: What to call, by name. Each is called twice before the clock is looked at.
        rounds: How often.
        wait: What to call before the clock is read, where work goes on after a call: see `waiter`.
        clock: What tells the time in seconds; by default the wall's clock. `time.process_time` counts the work that
            the processor does for this process: on one thread hardly more where it has other work to do as well.
        pause: Seconds to wait before each call. Some runtimes' threads go on looking for work for a while after an
            answer, on the cores that the next side needs.

    Raises:
        OptionError: Fewer than three rounds, of which there is no spread.
    """
    if rounds < 3:
        raise OptionError(f"{rounds} rounds were asked for; a median and its spread need at least 3.")
    clock = clock or time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 2):
        for name, side in sides.items():
            time.sleep(pause)
            start = clock()
            side()
            if wait is not None:
                wait()
            if turn >= 2:
                seconds[name].append(clock() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(values: list[float]) -> Timing:
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, (first, third), len(values))


def measure_ceiling(
    device: torch.device, dtype: torch.dtype, rounds: int = 7, clock: Callable[[], float] | None = None
) -> Ceiling:
    """Measure what large convolutions and products of matrices reach."""
    convolution = nn.Conv2d(256, 256, 3, padding=1, bias=False, device=device, dtype=dtype)
    convolution = convolution.to(memory_format=torch.channels_last).requires_grad_(False)
    maps = torch.randn(4, 256, 56, 56, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    matrix = torch.randn(2048, 2048, device=device, dtype=dtype)
    with torch.inference_mode():
        timings = take_turns(
            {"convolution": lambda: convolution(maps), "matmul": lambda: matrix @ matrix},
            rounds,
            waiter(device),
            clock,
        )
    flops = {"convolution": 2 * maps.numel() * 256 * 9, "matmul": 2 * 2048**3}
    return Ceiling(**{name: flops[name] / timings[name].median for name in flops})


def waiter(device: torch.device) -> Callable[[], None] | None:
    """Return what waits until `device` has done its work, or None where calls return only then."""
    return None if device.type == "cpu" else partial(torch.accelerator.synchronize, device)


def count_flops(model: nn.Module, images: Tensor) -> dict[str, int]:
    """Return the floating-point operations of one answer, two a multiply-add, by kind: convolution and matmul."""
    with torch.inference_mode():
        return count_flops_of(lambda: model(images))


def count_flops_of(call: Callable[[], object]) -> dict[str, int]:
    """Return the floating-point operations of any call, as `count_flops` does of an answer."""
    with FlopCounterMode(display=False) as counter:
        call()
    flops = {"convolution": 0, "matmul": 0}
    for operation, count in counter.get_flop_counts()["Global"].items():
        flops["convolution" if "convolution" in str(operation) else "matmul"] += int(count)
    return flops


def peak_memory(device: torch.device | None = None) -> int:
    """Return the most memory that this process has held since `reset_peak_memory`, in bytes.

    Of a CUDA device it is what tensors have held there. On other systems than Linux it is the most since the process
    began, and 0 where the system does not say.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak_memory(device: torch.device | None = None) -> None:
    """Let `peak_memory` begin anew, where the system can do that."""
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _status(field: str) -> int | None:
    """Return a number of bytes from what Linux says about this process."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


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
        peak_memory: The most that the process held while that side answered for the first time, in bytes: all sides'
            weights, and this one's activations.
    """

    model: str
    batch: int
    gmacs: float
    latency: dict[str, Timing]
    images_per_second: dict[str, float]
    of_ceiling: dict[str, float]
    largest_difference: dict[str, float]
    peak_memory: dict[str, int]


def benchmark(
    name: str,
    sides: Mapping[str, Callable[[Tensor], Tensor]],
    images: Tensor,
    flops: Mapping[str, int],
    ceiling: Ceiling,
    rounds: int,
    clock: Callable[[], float] | None = None,
    pause: float = 0.0,
) -> Report:
    """Time the sides of one model on one batch; the first side is the one whose answers the others must give.

    Args:
        name: Of the model.
        sides: What turns images into logits.
        images: (B, C, H, W).
        flops: Of one call, as `count_flops` gives them.
        ceiling: Measured in the same run.
        rounds: How often each side is called.
        clock: As for `take_turns`.
        pause: As for `take_turns`.
    """
    batch = len(images)
    answers: dict[str, Tensor] = {}
    memory: dict[str, int] = {}
    with torch.inference_mode():
        for side, call in sides.items():
            reset_peak_memory(images.device)
            answers[side] = call(images).float()
            memory[side] = peak_memory(images.device)
        calls = {side: (lambda call=call: call(images)) for side, call in sides.items()}
        latency = take_turns(calls, rounds, waiter(images.device), clock, pause)
    first = answers[next(iter(sides))]
    return Report(
        model=name,
        batch=batch,
        gmacs=sum(flops.values()) / 2 / batch / 1e9,
        latency=latency,
        images_per_second={side: batch / timing.median for side, timing in latency.items()},
        of_ceiling={side: ceiling.seconds(flops) / timing.median for side, timing in latency.items()},
        largest_difference={side: float((answer - first).abs().max()) for side, answer in answers.items()},
        peak_memory=memory,
    )


# ---------------------------------------------------------------------------------------------------- before answers


@dataclass(frozen=True)
class Start:
    """What it costs until a model can be asked; each round is a fresh interpreter.

    Attributes:
        model: Its name.
        import_timm: Seconds of `import timm`.
        import_package: Seconds of `import poster_zoo` after that.
        construct: Seconds of `create_model`, its numbers drawn.
        construct_and_load: Seconds of `create_model` with weights from a file, which the system has read before.
        load: Seconds of the part of it that takes the numbers over, until each has been looked at.
        read: Seconds of reading the file's bytes.
        load_memory: The most memory that loading takes, as a multiple of the file.
        file: Size of the file in bytes.
    """

    model: str
    import_timm: Timing
    import_package: Timing
    construct: Timing
    construct_and_load: Timing
    load: Timing
    read: Timing
    load_memory: float
    file: int


_CLOCK = "{before}\nimport time\nstart = time.perf_counter()\n{work}\nprint(time.perf_counter() - start)"
_WEIGH = (
    "import poster_zoo\nfrom poster_zoo import bench\nbefore = bench._status('VmRSS') or bench.peak_memory()\n"
    "bench.reset_peak_memory()\n{work}\nprint(bench.peak_memory() - before)"
)
_LOAD = "model = poster_zoo.create_model({name!r}, weights={file!r})"
_TAKE_OVER = 'load_weights(model, read_tensors(Path({file!r})), device=torch.device("cpu"))'


def measure_start(name: str, rounds: int) -> Start:
    """Measure what `Start` says, with weights that are drawn and saved for the occasion."""
    threads = f"torch.set_num_threads({torch.get_num_threads()})"
    package = f"import torch, poster_zoo\n{threads}"
    meta = (
        f"{package}\nfrom pathlib import Path\nfrom poster_zoo.models._builder import load_weights\n"
        "from poster_zoo.weights.tensors import read_tensors\n"
        f'with torch.device("meta"):\n    model = poster_zoo.create_model({name!r})'
    )
    with tempfile.TemporaryDirectory() as folder:
        file = str(save_pretrained(create_model(name), folder) / "model.safetensors")
        load = _LOAD.format(name=name, file=file)
        programs = {
            "import_timm": _CLOCK.format(before="", work="import timm"),
            "import_package": _CLOCK.format(before="import timm", work="import poster_zoo"),
            "construct": _CLOCK.format(before=package, work=f"poster_zoo.create_model({name!r})"),
            "construct_and_load": _CLOCK.format(before=package, work=load),
            "load": _CLOCK.format(before=meta, work=_TAKE_OVER.format(file=file)),
            "read": _CLOCK.format(before=package, work=f"data = open({file!r}, 'rb').read()"),
            "memory": _WEIGH.format(work=load),
        }
        values: dict[str, list[float]] = {side: [] for side in programs}
        for _ in range(max(rounds, 3)):
            for side, program in programs.items():
                values[side].append(_printed_by(program))
        size = os.path.getsize(file)
    memory = statistics.median(values.pop("memory")) / size
    return Start(name, **{side: _timing(v) for side, v in values.items()}, load_memory=memory, file=size)


def _printed_by(program: str) -> float:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    return float(done.stdout.split()[-1])


@dataclass(frozen=True)
class Training:
    """What a step of training costs.

    Attributes:
        model: The model's name.
        batch: Images a step.
        step: Seconds of a step, by kind: "plain" with one pass, "SAM" with two.
        images_per_second: By kind.
        peak_memory: The most that the process, or the device, held during the first step, in bytes.
    """

    model: str
    batch: int
    step: dict[str, Timing]
    images_per_second: dict[str, float]
    peak_memory: dict[str, int]


def measure_training(
    name: str, batch: int, rounds: int, device: torch.device, precision: str = "fp32", **settings: Any
) -> Training:
    """Time steps of Adam, with and without SAM, as `poster-zoo train` makes them.

    Args:
        name: The model's.
        batch: Images a step.
        rounds: Steps of each kind.
        device: Where.
        precision: As of a recipe.
        **settings: Further fields of a recipe, such as `channels_last` and `compile`.

    Raises:
        MissingExtraError: accelerate is not installed.
        OptionError: Training does not run on that device.
    """
    from poster_zoo.train import ExpressionLoss, Recipe
    from poster_zoo.train.processes import make_accelerator
    from poster_zoo.train.step import Step, make_optimizer, on_device

    accelerator = make_accelerator(device.type)
    if (device.index or 0) != (accelerator.device.index or 0):
        raise OptionError(
            f"{str(device)!r} was asked for and training runs on {str(accelerator.device)!r}; leave the number out, "
            "and let CUDA_VISIBLE_DEVICES choose."
        )
    device = accelerator.device
    steps: dict[str, Callable[[], object]] = {}
    memory: dict[str, int] = {}
    for kind, rho in (("plain", 0.0), ("SAM", 0.05)):
        recipe = Recipe(rho=rho, precision=precision, **settings)
        model: Any = on_device(create_model(name), recipe, accelerator).train()
        step = Step(model, make_optimizer(model, recipe), recipe, ExpressionLoss.of(recipe), accelerator)
        layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
        images = torch.randn(batch, model.in_chans, *model.img_size, device=device).contiguous(memory_format=layout)
        targets = torch.arange(batch, device=device) % model.num_classes
        steps[kind] = partial(step, images, targets, batch)
        reset_peak_memory(device)
        steps[kind]()
        memory[kind] = peak_memory(device)
    timings = take_turns(steps, rounds, waiter(device))
    return Training(name, batch, timings, {kind: batch / t.median for kind, t in timings.items()}, memory)


# -------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Data:
    """What it costs to make input of a JPEG file, on one thread.

    Attributes:
        model: The model's name.
        side: Height and width of the file's image.
        read: Seconds of one image's way from its bytes to resized bytes.
        normalise: Seconds of one image's share of making input of a batch of those.
        images_per_second: By both together.
    """

    model: str
    side: int
    read: Timing
    normalise: Timing
    images_per_second: float


def measure_data(name: str, side: int, batch: int, rounds: int) -> Data:
    """Time the steps that training takes, on one thread, on a made-up photograph of `side` × `side` pixels."""
    with torch.device("meta"):
        model = create_model(name)
    resize, (_, normalise) = quick_resize(model), split_transform(model)
    file = jpeg(side)
    images = [resize(read_image(file)) for _ in range(batch)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        timings = take_turns(
            {
                "read": lambda: [resize(read_image(file)) for _ in range(batch)],
                "normalise": lambda: normalise(torch.stack(images)),
            },
            rounds,
        )
    finally:
        torch.set_num_threads(threads)
    read, normal = (_share(timings[step], batch) for step in ("read", "normalise"))
    return Data(name, side, read, normal, 1 / (read.median + normal.median))


def _share(timing: Timing, parts: int) -> Timing:
    low, high = timing.quartiles
    return Timing(timing.median / parts, (low / parts, high / parts), timing.rounds)


def jpeg(side: int, seed: int = 0) -> bytes:
    """Return a made-up photograph as a JPEG file: smooth colours and some grain."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float32)
    grainy = (smooth + random.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=92)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------------ report


def write_report(file: str | Path, device: torch.device, **parts: Any) -> None:
    """Write measurements as JSON, with the machine's description; dataclasses become dictionaries."""
    content = {"machine": describe_machine(device), **parts}
    Path(file).write_text(json.dumps(content, indent=2, default=asdict) + "\n", encoding="utf-8")
