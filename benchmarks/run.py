"""All of the benchmarks, one after another, each with its own JSON file; that takes half an hour or more.

    python benchmarks/run.py results

Sides that need another package are there where it is installed: ONNX Runtime, OpenVINO, facenet-pytorch. Those that
need a file of another package are asked for: `--centerface` and `--fer`, as detection.py and tiny.py say.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import click

HERE = Path(__file__).resolve().parent


def commands(centerface: str | None = None, fer: str | None = None) -> dict[str, list[str]]:
    """Return what to run by the name of its JSON file: words for Python."""
    engines = [*_if_installed("onnxruntime", "--onnxruntime"), *_if_installed("openvino", "--openvino")]
    bench = ["-m", "poster_zoo", "bench"]
    detection = ["--compile", *_if_installed("facenet_pytorch", "--mtcnn")]
    return {
        "models": [*bench, "poster_tiny", "poster_rafdb", "poster_v2_rafdb"],
        "start": [*bench, "poster_tiny", "poster_rafdb", "--part", "start", "--rounds", "5"],
        "inference": [str(HERE / "inference.py"), "--compile", *engines],
        "bfloat16": [str(HERE / "inference.py"), "--batch", "1", "--batch", "8", "--rounds", "3", "--bfloat16"],
        "tiny": [str(HERE / "tiny.py"), *(["--fer", fer] if fer else [])],
        "growth": [str(HERE / "growth.py")],
        "training": [str(HERE / "training.py"), "--compile", "--bfloat16"],
        "data": [str(HERE / "data.py")],
        "detection": [str(HERE / "detection.py"), *detection, *(["--onnx", centerface] if centerface else [])],
        "video": [str(HERE / "video.py")],
    }


def _if_installed(package: str, option: str) -> list[str]:
    return [option] if importlib.util.find_spec(package) else []


@click.command()
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--only", type=click.Choice(list(commands())), multiple=True, help="Some of them.")
@click.option("--centerface", type=click.Path(exists=True, dir_okay=False), help="CenterFace's own ONNX file.")
@click.option("--fer", type=click.Path(exists=True, dir_okay=False), help="The TFLite file of the package fer.")
def main(out: str, only: tuple[str, ...], centerface: str | None, fer: str | None) -> None:
    """Run the benchmarks and write their numbers into OUT."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = commands(centerface, fer)
    for name in only or wanted:
        click.echo(f"\n{name}")
        subprocess.run([sys.executable, *wanted[name], "--json", str(folder / f"{name}.json")], check=True)


if __name__ == "__main__":
    main()
