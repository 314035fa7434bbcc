"""`poster-zoo bench`: how fast models answer, start and learn on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.errors import WrongUse
from poster_zoo.cli.options import device_option, examples
from poster_zoo.cli.output import note, print_table

if TYPE_CHECKING:
    from poster_zoo.bench import Ceiling, Report, Timing

PARTS = ("answers", "start", "training", "data")
DTYPES = ("float32", "bfloat16", "float16")


@click.command(
    "bench",
    epilog=examples(
        "poster-zoo bench --batch 1 --rounds 3", "poster-zoo bench poster_tiny --part start --part data --rounds 3"
    ),
)
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--part",
    "parts",
    type=click.Choice(PARTS),
    multiple=True,
    help="What to measure; several may be given.  [default: answers]",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Images a call; several may be given.  [default: 1, 8, 32; of training: 8]",
)
@click.option("--rounds", type=click.IntRange(min=3), default=15, show_default=True, help="Calls of each side.")
@click.option(
    "--compile", is_flag=True, help="Also time the compiled model: a minute or more of compiling a batch size."
)
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of the optimized sides."
)
@device_option
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's own number]")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, writable=True),
    metavar="FILE",
    help="Write all numbers there.",
)
def command(
    models: tuple[str, ...],
    parts: tuple[str, ...],
    batches: tuple[int, ...],
    rounds: int,
    compile: bool,
    dtype: str,
    device: str | None,
    threads: int | None,
    json_file: str | None,
) -> None:
    """Time models. Weights are not needed: the numbers in a model do not change its speed.

    answers: As models are built, and as `optimize` makes them, in turns. Printed are the median of a call in
    milliseconds, half the spread of its middle half, images a second, and which part of that time the model's counted
    operations would take at the rates that large convolutions and matrix products reach in the same run.

    start: Imports, construction and loading of weights, each in fresh interpreters.

    training: Steps of Adam and of SAM over it, as `train` makes them; needs poster-zoo[train].

    data: From a JPEG file to input, on one thread.
    """
    import torch

    from poster_zoo import bench
    from poster_zoo.devices import check_device

    if device is not None:
        check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    models, parts = models or ("poster_tiny",), parts or ("answers",)
    found: dict[str, Any] = {}
    if "answers" in parts:
        found |= _answers(models, batches or (1, 8, 32), rounds, compile, dtype, target)
    if "start" in parts:
        found["start"] = [_start(name, rounds) for name in models]
    if "training" in parts:
        found["training"] = [_training(name, batch, rounds, target) for name in models for batch in batches or (8,)]
    if "data" in parts:
        found["data"] = [_data(name, side, rounds) for name in models for side in (100, 224, 480)]
    if json_file is not None:
        bench.write_report(json_file, target, **found)
        note(f"Wrote {json_file}")


def _answers(
    models: tuple[str, ...], batches: tuple[int, ...], rounds: int, compile: bool, dtype: str, device: Any
) -> dict[str, Any]:
    import torch

    from poster_zoo import bench

    ceiling = bench.measure_ceiling(device, getattr(torch, dtype))
    note(
        f"Ceiling in {dtype}: convolutions {ceiling.convolution / 1e9:.0f} GFLOP/s, "
        f"products {ceiling.matmul / 1e9:.0f} GFLOP/s."
    )
    print_table([_HEADER])
    reports = []
    for name in models:
        for report in _time(name, batches, rounds, compile, dtype, device, ceiling):
            reports.append(report)
            for row in _rows(report):
                click.echo(row)
    return {"dtype": dtype, "ceiling": ceiling, "reports": reports}


def _start(name: str, rounds: int) -> Any:
    from poster_zoo import bench

    start = bench.measure_start(name, rounds)
    rows = {
        "import timm": start.import_timm,
        "import poster_zoo after it": start.import_package,
        "construct": start.construct,
        "construct and load": start.construct_and_load,
        "load": start.load,
        "read the file": start.read,
    }
    click.echo(f"{name}, a file of {start.file / 1e6:.1f} MB")
    for what, timing in rows.items():
        click.echo(f"  {what:28}{_milliseconds(timing)}")
    click.echo(f"  {'memory of loading':28}{start.load_memory:9.2f} x the file")
    return start


def _training(name: str, batch: int, rounds: int, device: Any) -> Any:
    from poster_zoo import bench

    training = bench.measure_training(name, batch, rounds, device)
    for kind, timing in training.step.items():
        click.echo(
            f"{name:24}{kind:6} step of {batch:3} {_milliseconds(timing)}  "
            f"{training.images_per_second[kind]:7.1f} images/s  {training.peak_memory[kind] / 1e6:7.0f} MB"
        )
    return training


def _data(name: str, side: int, rounds: int) -> Any:
    from poster_zoo import bench

    data = bench.measure_data(name, side, 32, rounds)
    click.echo(
        f"{name:24}{side} × {side}: read and resize {_milliseconds(data.read)}, "
        f"normalise {_milliseconds(data.normalise)}, {data.images_per_second:.0f} images/s a thread"
    )
    return data


def _milliseconds(timing: Timing) -> str:
    return f"{timing.median * 1e3:9.2f} ms ± {_spread(timing) * 1e3:.2f}"


def _spread(timing: Timing) -> float:
    return (timing.quartiles[1] - timing.quartiles[0]) / 2


_HEADER = (
    f"{'model':24}",
    "batch",
    " GMACs",
    f"{'side':10}",
    "      ms",
    "   ±",
    "images/s",
    "of ceiling",
    "difference",
    "    MB",
)


def _rows(report: Report) -> Iterator[str]:
    for side, timing in report.latency.items():
        yield (
            f"{report.model:24}  {report.batch:5}  {report.gmacs:6.3f}  {side:10}  {timing.median * 1e3:8.2f}  "
            f"{_spread(timing) * 1e3:4.1f}  {report.images_per_second[side]:8.1f}  {report.of_ceiling[side]:10.2f}  "
            f"{report.largest_difference[side]:10.1e}  {report.peak_memory[side] / 1e6:6.0f}"
        )


def _time(
    name: str, batches: tuple[int, ...], rounds: int, compile: bool, dtype: str, device: Any, ceiling: Ceiling
) -> list[Report]:
    import torch

    import poster_zoo
    from poster_zoo import bench

    model: Any = poster_zoo.create_model(name).eval().to(device)
    if not hasattr(model, "img_size"):
        raise WrongUse(f"The model {name!r} takes pictures of any size; `bench` times models of one size.")
    kind = getattr(torch, dtype)
    models = {"eager": model, "optimized": poster_zoo.optimize(model, dtype=kind)}
    if compile:
        models["compiled"] = poster_zoo.optimize(model, dtype=kind, compile=True)
    reports = []
    for batch in batches:
        images = torch.randn(batch, model.in_chans, *model.img_size, device=device)
        sides: dict[str, Callable[[Any], Any]] = {"eager": model}
        sides |= {side: _in_type(each, kind) for side, each in models.items() if side != "eager"}
        flops = bench.count_flops(model, images)
        reports.append(bench.benchmark(name, sides, images, flops, ceiling, rounds))
    return reports


def _in_type(model: Any, dtype: Any) -> Callable[[Any], Any]:
    return lambda images: model(images.to(dtype))
