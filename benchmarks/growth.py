"""How the cost of `predict` grows with the number of files: speed, memory, and the time to the first answer.

    python benchmarks/growth.py --json growth.json

Every number of files is answered by a fresh interpreter. Clocks start before the interpreter does, also that of
`import timm`, which is measured in turns with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import torch

from poster_zoo import bench

_PREDICT = """\
import sys, time
import poster_zoo
from poster_zoo.bench import peak_memory
predictor = poster_zoo.Predictor(sys.argv[2], device="cpu", progress=False)
answers = predictor.stream(sys.argv[1])
next(answers)
first = time.time()
count = 1 + sum(answer.error is None for answer in answers)
print(first, time.time(), count, peak_memory())"""
_IMPORT = "import timm, time; print(time.time())"


@click.command()
@click.option("--model", "name", default="poster_tiny", show_default=True)
@click.option("--files", "counts", type=int, multiple=True, default=(100, 1000, 10000), show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(name: str, counts: tuple[int, ...], json_file: str | None) -> None:
    """Answer more and more files."""
    reports = []
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            for i in range(count):
                (Path(folder) / f"{i}.jpg").write_bytes(bench.jpeg(100, i % 50))
            start = time.time()
            imported = float(_output(_IMPORT)[0]) - start
            start = time.time()
            first, last, answered, memory = map(float, _output(_PREDICT, folder, name))
        speed = (answered - 1) / (last - first)
        click.echo(
            f"{count:6} files: first answer after {first - start:.2f} s, {first - start - imported:.2f} s more than "
            f"import timm; then {speed:.1f} images/s; peak memory {memory / 1e6:.0f} MB"
        )
        reports.append(
            {
                "files": count,
                "answered": int(answered),
                "import_timm": imported,
                "first_answer": first - start,
                "images_per_second": speed,
                "peak_memory": int(memory),
            }
        )
    if json_file:
        bench.write_report(json_file, torch.device("cpu"), model=name, growth=reports)


def _output(program: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.split()


if __name__ == "__main__":
    main()
