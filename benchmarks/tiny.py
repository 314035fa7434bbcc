"""`poster_tiny` beside what one would take instead for speed, from the bytes of a JPEG file to probabilities.

    python benchmarks/tiny.py --json tiny.json

`tf_efficientnet_b0` is timm's, at 224 × 224, with random numbers: the architecture of hsemotion's light models. `--fer`
names the TFLite file of the package fer (`fer/data/emotion_model_quantized.tflite`), which ai-edge-litert runs on a
grey 64 × 64 crop, as fer does. Only speed is compared.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import timm
import torch

import poster_zoo
from poster_zoo import bench
from poster_zoo.data.images import read_image


@click.command()
@click.option("--rounds", default=51, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--fer", type=click.Path(exists=True, dir_okay=False), help="Also the TFLite file of the package fer.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(rounds: int, threads: int, fer: str | None, json_file: str | None) -> None:
    """Time single faces, end to end."""
    torch.set_num_threads(threads)
    file = bench.jpeg(100)
    predictor = poster_zoo.Predictor("poster_tiny", device="cpu", progress=False)
    sides: dict[str, Callable[[], object]] = {
        "poster_tiny": lambda: predictor(file),
        "tf_efficientnet_b0": _efficientnet(file),
    }
    if fer:
        sides["fer"] = _fer(fer, file, threads)
    timings = bench.take_turns(sides, rounds)
    for side, timing in timings.items():
        click.echo(f"{side:20} {timing.median * 1e3:7.2f} ms  {1 / timing.median:7.1f} faces/s")
    if json_file:
        bench.write_report(json_file, torch.device("cpu"), sides=timings)


def _efficientnet(file: bytes) -> Callable[[], object]:
    model = timm.create_model("tf_efficientnet_b0", num_classes=8).eval()
    transform = poster_zoo.create_transform(model)

    def answer() -> object:
        with torch.inference_mode():
            return model(transform(read_image(file))[None]).softmax(1)

    return answer


def _fer(model: str, file: bytes, threads: int) -> Callable[[], object]:
    interpreter: Any = importlib.import_module("ai_edge_litert.interpreter").Interpreter(model, num_threads=threads)
    interpreter.allocate_tensors()
    entry, exit_ = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def answer() -> object:
        grey = np.asarray(read_image(file).convert("L").resize((64, 64)), dtype=np.float32)
        interpreter.set_tensor(entry, ((grey / 255 - 0.5) * 2)[None, :, :, None])
        interpreter.invoke()
        return interpreter.get_tensor(exit_)

    return answer


if __name__ == "__main__":
    main()
