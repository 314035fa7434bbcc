"""From JPEG files to input: the authors' pipeline beside ours, on one thread, at the same pixels.

    python benchmarks/data.py --json data.json

The authors decode, resize, scale to floats and normalise image by image, in the process that loads. Ours decodes and
resizes there, and normalises a whole batch of bytes where the model is: "worker" is the first part alone, "all" is
both. The files are made up, of the sizes of RAF-DB's aligned faces, of the model's input, and of a photograph.
"""

from __future__ import annotations

import io

import click
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

import poster_zoo
from poster_zoo import bench
from poster_zoo.data.images import read_image
from poster_zoo.data.transforms import quick_resize, split_transform


@click.command()
@click.option("--model", "name", default="poster_rafdb", show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--rounds", default=15, show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(name: str, batch: int, rounds: int, json_file: str | None) -> None:
    """Time both pipelines, and compare what they make."""
    torch.set_num_threads(1)
    with torch.device("meta"):
        model = poster_zoo.create_model(name)
    entry = poster_zoo.model_info(name).weights.preprocessing
    authors = transforms.Compose(
        [transforms.Resize(entry.size), transforms.ToTensor(), transforms.Normalize(entry.mean, entry.std)]
    )
    resize, (_, normalise) = quick_resize(model), split_transform(model)
    reports = []
    for side in (100, 224, 480):
        files = [bench.jpeg(side, seed) for seed in range(batch)]

        def by_authors(files: list[bytes] = files) -> Tensor:
            return torch.stack([authors(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])

        def by_worker(files: list[bytes] = files) -> Tensor:
            return torch.stack([resize(read_image(file)) for file in files])

        def by_all(files: list[bytes] = files) -> Tensor:
            return normalise(by_worker(files))

        levels = float(((by_authors() - by_all()).abs() * torch.tensor(entry.std)[:, None, None]).max() * 255)
        sides = {"authors": by_authors, "worker": by_worker, "all": by_all}
        timings = bench.take_turns(sides, rounds)
        for what, timing in timings.items():
            click.echo(
                f"{side} × {side}  {what:8} {timing.median / batch * 1e3:7.3f} ms an image  "
                f"{batch / timing.median:7.0f} images/s  {timings['authors'].median / timing.median:5.2f} x"
            )
        click.echo(f"{side} × {side}  largest difference {levels:.2g} grey levels")
        reports.append({"side": side, "batch": batch, "seconds_a_batch": timings, "largest_difference": levels})
    if json_file:
        bench.write_report(json_file, torch.device("cpu"), model=name, data=reports)


if __name__ == "__main__":
    main()
