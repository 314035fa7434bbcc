"""Does it harm to look for faces in crops that are aligned already? Their answers with faces found anew, and without.

    python benchmarks/aligned_crops.py --data rafdb:faces --data ferplus:FERPlus

Printed is, for faces drawn at random: the accuracy with `faces="none"` and with `faces="auto"` (the surest face's
answer), how often both answer the same, and in how many images no face is found or several are.
"""

from __future__ import annotations

import click
import numpy as np

from poster_zoo.data.datasets import open_dataset
from poster_zoo.labels import canonical_label
from poster_zoo.predict import Predictor


@click.command()
@click.option("--data", "specs", multiple=True, required=True, metavar="NAME:PATH", help="Labelled faces.")
@click.option("--split", default="test", show_default=True)
@click.option("--images", default=500, show_default=True, help="How many of each collection, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--model", default="poster_tiny", show_default=True)
def main(specs: tuple[str, ...], split: str, images: int, seed: int, model: str) -> None:
    """Answer the same crops with their faces found anew, and as they are."""
    plain, finding = (Predictor(model, faces=faces, progress=False) for faces in ("none", "auto"))
    for spec in specs:
        dataset = open_dataset(spec, split)
        drawn = np.random.default_rng(seed).choice(len(dataset), min(images, len(dataset)), replace=False)
        crops = [dataset.image(int(i)) for i in drawn]
        true = [canonical_label(dataset.label_names[dataset.labels[int(i)]]) for i in drawn]
        answers = [canonical_label(str(answer.label)) for answer in plain.stream(crops)]
        found = list(finding.stream_images(crops))
        anew = [canonical_label(str(faces[0].label)) for faces in found]
        click.echo(
            f"{spec}  as they are {np.mean(np.equal(answers, true)):.4f}  found anew "
            f"{np.mean(np.equal(anew, true)):.4f}  same answer {np.mean(np.equal(answers, anew)):.4f}  no face "
            f"{sum(faces[0].face is None for faces in found)}  several {sum(len(faces) > 1 for faces in found)} "
            f"of {len(crops)}"
        )


if __name__ == "__main__":
    main()
