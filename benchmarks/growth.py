"""How the cost of `predict` grows with the number of files: speed, memory, and the time to the first answer.

    python benchmarks/growth.py --json growth.json

Every number of files is answered by a fresh interpreter, in turns with the others; printed are medians. Clocks start
before the interpreter does, also that of `import timm`, which is measured in turns with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

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
@click.option("--rounds", default=3, show_default=True, help="How often each number is answered, in turns.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(name: str, counts: tuple[int, ...], rounds: int, json_file: str | None) -> None:
    """Answer more and more files."""
    measured: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            place = Path(folder, str(count))
            place.mkdir()
            for i in range(count):
                (place / f"{i}.jpg").write_bytes(bench.jpeg(100, i % 50))
        for _ in range(rounds):
            for count in counts:
                measured[count].append(_measure(name, Path(folder, str(count)), count))
    reports = []
    for count, rows in measured.items():
        report = {key: median(row[key] for row in rows) for key in rows[0]}
        click.echo(
            f"{count:6} files: first answer after {report['first_answer']:.2f} s, "
            f"{report['more_than_import']:.2f} s more than import timm; then {report['images_per_second']:.1f} "
            f"images/s; peak memory {report['peak_memory'] / 1e6:.0f} MB"
        )
        reports.append({"files": count, "rounds": rows, **report})
    if json_file:
        bench.write_report(json_file, torch.device("cpu"), model=name, growth=reports)


def _measure(name: str, folder: Path, count: int) -> dict[str, float]:
    """Answer the files of a folder in a fresh interpreter."""
    start = time.time()
    imported = float(_output(_IMPORT)[0]) - start
    start = time.time()
    first, last, answered, memory = map(float, _output(_PREDICT, str(folder), name))
    if answered != count:
        raise click.ClickException(f"{count - int(answered)} of {count} files have no answer.")
    return {
        "import_timm": imported,
        "first_answer": first - start,
        "more_than_import": first - start - imported,
        "images_per_second": (answered - 1) / (last - first),
        "peak_memory": memory,
    }


def _output(program: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.split()


if __name__ == "__main__":
    main()
