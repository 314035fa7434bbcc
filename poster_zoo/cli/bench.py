"""`poster-zoo bench`: how fast models answer on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.errors import WrongUse
from poster_zoo.cli.options import device_option, examples
from poster_zoo.cli.output import note, print_table

if TYPE_CHECKING:
    from poster_zoo.bench import Ceiling, Report

DTYPES = ("float32", "bfloat16", "float16")


@click.command(
    "bench",
    epilog=examples("poster-zoo bench --batch 1 --rounds 3", "poster-zoo bench poster_tiny --batch 8 --rounds 3"),
)
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    help="Images a call; several may be given.  [default: 1, 8, 32]",
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
    batches: tuple[int, ...],
    rounds: int,
    compile: bool,
    dtype: str,
    device: str | None,
    threads: int | None,
    json_file: str | None,
) -> None:
    """Time models: as they are built, and as `optimize` makes them.

    Weights are not needed: the numbers in a model do not change its speed. The sides take turns; printed are the
    median of a call in milliseconds, half the spread of its middle half, images a second, and which part of that time
    the model's counted operations would take at the rates that large convolutions and matrix products reach in the
    same run.
    """
    import torch

    from poster_zoo import bench
    from poster_zoo.devices import check_device

    if device is not None:
        check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    ceiling = bench.measure_ceiling(target, getattr(torch, dtype))
    note(
        f"Ceiling in {dtype}: convolutions {ceiling.convolution / 1e9:.0f} GFLOP/s, "
        f"products {ceiling.matmul / 1e9:.0f} GFLOP/s."
    )
    reports = []
    print_table([_HEADER])
    for name in models or ("poster_tiny",):
        for report in _time(name, batches or (1, 8, 32), rounds, compile, dtype, target, ceiling):
            reports.append(report)
            for row in _rows(report):
                click.echo(row)
    if json_file is not None:
        content = {
            "machine": bench.describe_machine(target),
            "dtype": dtype,
            "ceiling": asdict(ceiling),
            "peak_memory": bench.peak_memory(),
            "reports": [asdict(report) for report in reports],
        }
        Path(json_file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        note(f"Wrote {json_file}")


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
)


def _rows(report: Report) -> list[str]:
    rows = []
    for side, timing in report.latency.items():
        spread = (timing.quartiles[1] - timing.quartiles[0]) / 2
        rows.append(
            f"{report.model:24}  {report.batch:5}  {report.gmacs:6.3f}  {side:10}  {timing.median * 1e3:8.2f}  "
            f"{spread * 1e3:4.1f}  {report.images_per_second[side]:8.1f}  {report.of_ceiling[side]:10.2f}  "
            f"{report.largest_difference[side]:10.1e}"
        )
    return rows


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
