"""What starting costs: imports, construction, loading of weights.

    python benchmarks/load.py --json load.json

Every number comes from fresh interpreters, of which the median counts; the sides take turns. Weights are those of a
model with random numbers, saved for the occasion and read once before, so that the disk is out of the comparison.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import torch

import poster_zoo
from poster_zoo import bench

_CLOCK = "import time; start = time.perf_counter(); {work}; print(time.perf_counter() - start)"
_IMPORTED = "import poster_zoo, torch; torch.set_num_threads({threads}); " + _CLOCK
_MEMORY = (
    "import poster_zoo; from poster_zoo.bench import peak_memory; "
    "before = peak_memory(); {work}; print(peak_memory() - before)"
)


@click.command()
@click.option("--model", "name", default="poster_rafdb", show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Fresh interpreters a side.")
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(name: str, rounds: int, threads: int, json_file: str | None) -> None:
    """Time imports, construction and loading, and weigh the memory of loading."""
    with tempfile.TemporaryDirectory() as folder:
        saved = poster_zoo.save_pretrained(poster_zoo.create_model(name), Path(folder) / "saved")
        weights = saved / "model.safetensors"
        size = weights.stat().st_size
        load = f"model = poster_zoo.from_pretrained({str(saved)!r})"
        read = f"data = open({str(weights)!r}, 'rb').read()"
        sides = {
            "import timm": _CLOCK.format(work="import timm"),
            "import poster_zoo": _CLOCK.format(work="import poster_zoo"),
            "construct": _IMPORTED.format(threads=threads, work=f"poster_zoo.create_model({name!r})"),
            "construct and load": _IMPORTED.format(threads=threads, work=load),
            "read the file": _IMPORTED.format(threads=threads, work=read),
            "memory of loading": _MEMORY.format(work=load),
        }
        values: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, code in sides.items():
                values[side].append(float(subprocess.check_output([sys.executable, "-c", code], text=True)))
    medians = {side: statistics.median(numbers) for side, numbers in values.items()}
    for side, median in medians.items():
        click.echo(
            f"{side:20} " + (f"{median / size:.2f} x the file" if side.startswith("memory") else f"{median:.3f} s")
        )
    click.echo(f"poster_zoo adds to timm {medians['import poster_zoo'] - medians['import timm']:.3f} s")
    if json_file:
        content = {
            "machine": bench.describe_machine(torch.device("cpu")),
            "file": size,
            "median": medians,
            "all": values,
        }
        Path(json_file).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
