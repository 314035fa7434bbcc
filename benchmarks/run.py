"""All of the benchmarks, one after another, each with its own JSON file.

python benchmarks/run.py results
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent
COMMANDS = {
    "models": ["-m", "poster_zoo", "bench", "poster_tiny", "poster_rafdb", "poster_v2_rafdb"],
    "start": ["-m", "poster_zoo", "bench", "poster_tiny", "poster_rafdb", "--part", "start", "--rounds", "5"],
    "inference": [str(HERE / "inference.py")],
    "training": [str(HERE / "training.py")],
    "data": [str(HERE / "data.py")],
    "tiny": [str(HERE / "tiny.py")],
    "growth": [str(HERE / "growth.py")],
}


@click.command()
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--only", type=click.Choice(list(COMMANDS)), multiple=True, help="Some of them.")
def main(out: str, only: tuple[str, ...]) -> None:
    """Run the benchmarks and write their numbers into OUT."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name in only or COMMANDS:
        click.echo(f"\n{name}")
        subprocess.run([sys.executable, *COMMANDS[name], "--json", str(folder / f"{name}.json")], check=True)


if __name__ == "__main__":
    main()
