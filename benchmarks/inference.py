"""POSTER against its plain form, against other engines on the graph that we export, and against the ceiling.

    python benchmarks/inference.py --batch 1 --batch 8 --compile --onnxruntime --openvino --json inference.json

All sides answer the same images in turns, in one run; printed are medians and quartiles. The ceiling is measured
before each batch size. `--upstream DIR` puts the authors' own network beside them for whoever has a checkout of it:
DIR is what `git clone` made, with the two files that its README has one put into `models/pretrain/`. It is built as
the authors' test script builds it, with a head of random numbers, and so is timed and not compared.
"""

from __future__ import annotations

import importlib
import os
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
    reports = []
    with tempfile.TemporaryDirectory() as folder:
        wanted["graph"] = Path(wanted["graph"] or Path(folder) / "model.onnx")
        for batch in batches:
            torch._dynamo.reset()  # what is compiled is compiled for this batch size
            sides = _sides(model, **wanted)
            ceiling = bench.measure_ceiling(device, torch.float32, clock=clock)
            click.echo(f"ceiling: {ceiling.convolution / 1e9:.0f} and {ceiling.matmul / 1e9:.0f} GFLOP/s")
            images = torch.randn(batch, model.in_chans, *model.img_size)
            flops = bench.count_flops(model, images)
            report = bench.benchmark(name, sides, images, flops, ceiling, rounds, clock, pause=0.1)
            report.largest_difference.pop("upstream", None)
            _tell(report)
            reports.append((ceiling, report))
    if json_file:
        ceilings, reports_alone = zip(*reports, strict=True)
        bench.write_report(json_file, device, clock=clock.__name__, ceilings=ceilings, reports=reports_alone)


def _tell(report: bench.Report) -> None:
    plain = report.latency["plain"].median
    for side, timing in report.latency.items():
        first, third = timing.quartiles
        difference = report.largest_difference.get(side)
        click.echo(
            f"batch {report.batch:3}  {side:12} {timing.median * 1e3:9.1f} ms ({first * 1e3:.1f} … {third * 1e3:.1f})  "
            f"{plain / timing.median:5.2f} x plain  {report.of_ceiling[side]:5.2f} of the ceiling  "
            + ("not compared" if difference is None else f"difference {difference:.1e}")
        )


def _sides(
    model: Any,
    compile: bool,
    bfloat16: bool,
    onnxruntime: bool,
    openvino: bool,
    graph: Path,
    upstream: str | None,
) -> dict[str, Side]:
    sides: dict[str, Side] = {"plain": PlainPoster(model), "eager": model, "optimized": poster_zoo.optimize(model)}
    if compile:
        sides["compiled"] = poster_zoo.optimize(model, compile=True)
    if bfloat16:
        narrow = poster_zoo.optimize(model, dtype=torch.bfloat16)
        sides["bfloat16"] = lambda images: narrow(images.bfloat16())
    engines = [name for name, asked in (("onnxruntime", onnxruntime), ("openvino", openvino)) if asked]
    if engines and not graph.exists():
        export(model, graph)
    sides |= {name: on_engine(model, name, graph) for name in engines}
    if upstream:
        sides["upstream"] = _upstream(upstream, model)
    return sides


def _upstream(folder: str, model: Any) -> Side:
    sys.path.insert(0, folder)
    network: Any = importlib.import_module("models.emotion_hyp").pyramid_trans_expr
    here = Path.cwd()
    os.chdir(folder)  # its constructor reads files beside itself
    try:
        built = network(img_size=model.img_size[0], num_classes=model.num_classes, type="large").eval()
    except FileNotFoundError as error:
        raise click.ClickException(
            f"The authors' network is built from {error.filename}, which is not in {folder}; "
            "put it there as the authors' README says."
        ) from error
    finally:
        os.chdir(here)

    def answer(images: Tensor) -> Tensor:
        given = built(images)  # logits, and features beside them
        logits: Tensor = given[0] if isinstance(given, tuple) else given
        return logits

    return answer


if __name__ == "__main__":
    main()
