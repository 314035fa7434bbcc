"""POSTER against its plain form, against other engines on the graph that we export, and against the ceiling.

    python benchmarks/inference.py --batch 1 --batch 8 --compile --onnxruntime --openvino --json inference.json

All sides answer the same images in turns, in one run; printed are medians. `--upstream DIR` puts the authors' own
network beside them for whoever has a checkout of it: DIR is what `git clone` made, and its `models/emotion_hyp.py`
must give the class `pyramid_trans_expr`; it is built as the authors' test script builds it, with random numbers, and
so is timed and not compared.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from plain import PlainPoster
from torch import Tensor

import poster_zoo
from poster_zoo import bench
from poster_zoo.engines import on_engine
from poster_zoo.export import export

Side = Callable[[Tensor], Tensor]


@click.command()
@click.option("--model", "name", default="poster_rafdb", show_default=True, help="A POSTER of the zoo.")
@click.option("--batch", "batches", type=int, multiple=True, default=(1, 8, 32), show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--compile", is_flag=True, help="Also the compiled model.")
@click.option("--bfloat16", is_flag=True, help="Also the optimized model in bfloat16.")
@click.option("--onnxruntime", is_flag=True, help="Also ONNX Runtime on the exported graph.")
@click.option("--openvino", is_flag=True, help="Also OpenVINO on the exported graph.")
@click.option("--graph", type=click.Path(dir_okay=False), help="Keep the exported graph there, and take it from there.")
@click.option("--upstream", type=click.Path(exists=True, file_okay=False), help="Also the authors' checkout there.")
@click.option(
    "--processor-time",
    is_flag=True,
    help="Count this process's work instead of the clock: for a busy machine, with --threads 1.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(
    name: str,
    batches: tuple[int, ...],
    rounds: int,
    threads: int,
    processor_time: bool,
    json_file: str | None,
    **wanted: Any,
) -> None:
    """Time one model against its plain form and against other engines."""
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    torch.manual_seed(0)
    model: Any = poster_zoo.create_model(name).eval()
    clock = time.process_time if processor_time else time.perf_counter
    ceiling = bench.measure_ceiling(device, torch.float32, clock=clock)
    click.echo(f"ceiling: {ceiling.convolution / 1e9:.0f} and {ceiling.matmul / 1e9:.0f} GFLOP/s")
    sides = _sides(model, **wanted)
    reports = []
    for batch in batches:
        images = torch.randn(batch, model.in_chans, *model.img_size)
        report = bench.benchmark(name, sides, images, bench.count_flops(model, images), ceiling, rounds, clock)
        plain = report.latency["plain"].median
        for side, timing in report.latency.items():
            click.echo(
                f"batch {batch:3}  {side:12} {timing.median * 1e3:9.1f} ms  {plain / timing.median:5.2f} x plain  "
                f"{report.of_ceiling[side]:5.2f} of the ceiling  difference {report.largest_difference[side]:.1e}"
            )
        reports.append(report)
    if json_file:
        bench.write_report(json_file, device, clock=clock.__name__, ceiling=ceiling, reports=reports)


def _sides(
    model: Any,
    compile: bool,
    bfloat16: bool,
    onnxruntime: bool,
    openvino: bool,
    graph: str | None,
    upstream: str | None,
) -> dict[str, Side]:
    sides: dict[str, Side] = {"plain": PlainPoster(model), "eager": model, "optimized": poster_zoo.optimize(model)}
    if compile:
        sides["compiled"] = poster_zoo.optimize(model, compile=True)
    if bfloat16:
        narrow = poster_zoo.optimize(model, dtype=torch.bfloat16)
        sides["bfloat16"] = lambda images: narrow(images.bfloat16())
    engines = [name for name, asked in (("onnxruntime", onnxruntime), ("openvino", openvino)) if asked]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(graph or Path(folder) / "model.onnx")
        if engines and not file.exists():
            export(model, file)
        sides |= {name: on_engine(model, name, file) for name in engines}
    if upstream:
        sides["upstream"] = _upstream(upstream, model)
    return sides


def _upstream(folder: str, model: Any) -> Side:
    sys.path.insert(0, folder)
    network: Any = importlib.import_module("models.emotion_hyp").pyramid_trans_expr
    built = network(img_size=model.img_size[0], num_classes=model.num_classes, type="large").eval()
    return lambda images: built(images)[0] if isinstance(built(images), tuple) else built(images)


if __name__ == "__main__":
    main()
