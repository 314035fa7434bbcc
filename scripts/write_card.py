"""Write the card of the bundled weights from the report that `train_poster_tiny.py test` wrote.

    python scripts/write_card.py OUT/report.json

The numbers of the card's first table stand in the entry of `poster_tiny`; a test compares both with the report, which
is kept beside the weights as poster_tiny.json.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click

from poster_zoo.models.poster import WEIGHTS
from poster_zoo.weights.card import model_card

BUNDLED = Path(__file__).resolve().parent.parent / "poster_zoo" / "weights" / "bundled"

TRAINING = """\
By `scripts/train_poster_tiny.py`, on two CPU cores, from random numbers, in three stages: the landmark stream on 68
points a face (nine passes over 16,384 drawn faces at half the input's side, three at the whole), then frozen; the image
stream alone at half the side (34 passes); the whole on FERPlus's vote distributions and the labels of the second
collection (10 passes; the rate fell for an end after nine, then six, then ten of them, since the time that was left
was known only by and by). Torch compiled each stage. The commands, with the recipes that stand in the script:

```text
python scripts/train_poster_tiny.py landmarks  --data DATA --cache CACHE --out OUT
python scripts/train_poster_tiny.py image      --data DATA --cache CACHE --out OUT
python scripts/train_poster_tiny.py expression --data DATA --cache CACHE --out OUT --set stop_after=3
python scripts/train_poster_tiny.py expression --data DATA --cache CACHE --out OUT --set epochs=6
python scripts/train_poster_tiny.py expression --data DATA --cache CACHE --out OUT --set epochs=10
python scripts/train_poster_tiny.py test       --data DATA --cache CACHE --out OUT
```

- **FERPlus** (Barsoum et al., ICMI 2016): FER2013's faces, 48 × 48, grey, loosely cut, with ten votes each. Trained on
  its train split, the epoch chosen on its valid split, measured on its test split; majority protocol. An earlier set
  of weights had been measured there before; nothing was chosen by that.
- **Photographs** of `muxspace/facial_expressions` (Apache-2.0), cut to 100 × 100 and aligned; labelled by students and
  noisy, mostly grey, mostly Neutral and Happiness, most of Disgust one person. A tenth of the persons of its train
  split were held out for choosing; no person stands in two splits.

Both hold few faces of Disgust, Fear and Contempt. Age, sex and skin colour are not labelled in either, so nothing was
measured by them."""


@click.command()
@click.argument("report", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(report: Path) -> None:
    """Write poster_zoo/weights/bundled/poster_tiny.md from REPORT, and keep the report beside it."""
    measured = json.loads(report.read_text())
    entry = WEIGHTS["poster_tiny"]
    card = model_card("poster_tiny", entry, entry.label_names)
    sections = [f"## Training\n\n{TRAINING}", *(_section(*part) for part in _parts(measured))]
    (BUNDLED / "poster_tiny.md").write_text("\n\n".join([card.rstrip(), *sections]) + "\n")
    shutil.copyfile(report, BUNDLED / "poster_tiny.json")


def _parts(measured: dict[str, Any]) -> list[tuple[str, dict[str, Any], list[str]]]:
    labels = measured["labels"]
    return [("FERPlus test", measured["ferplus"], labels), ("Photographs, test", measured["faces"], labels)]


def _section(title: str, collection: dict[str, Any], labels: list[str]) -> str:
    scores, images = collection["file"], collection["file"]["images_a_class"]
    always = scores["always_commonest"]
    rows = [
        f"## {title}, {scores['images']:,} images, one view of each",
        "| | accuracy | mean class accuracy |\n|---|---|---|\n"
        f"| poster_tiny | {scores['accuracy']:.4f} | {scores['mean_class_accuracy']:.4f} |\n"
        f"{_unseen(collection)}"
        f"| always {always['class']} | {always['accuracy']:.4f} | {always['mean_class_accuracy']:.4f} |",
        "| class | images | recall |\n|---|---|---|\n"
        + "\n".join(f"| {label} | {images[label]} | {_recall(scores, label)} |" for label in labels),
        "Confusion matrix; a row is a true class, a column an answer:",
        f"| | {' | '.join(labels)} |\n|---{'|---' * len(labels)}|\n"
        + "\n".join(
            f"| {label} | {' | '.join(map(str, row))} |" for label, row in zip(labels, scores["confusion"], strict=True)
        ),
        f"The landmark stream's points are off by {collection['landmark_error']:.3f} of the distance between the "
        "outer corners of the eyes, on average.",
    ]
    return "\n\n".join(rows)


def _unseen(collection: dict[str, Any]) -> str:
    """Return the row of the scores without test images that are also training images, where there are any."""
    if "unseen" not in collection:
        return ""
    scores = collection["unseen"]
    left_out = collection["file"]["images"] - scores["images"]
    return (
        f"| poster_tiny, without the {left_out} pictures that the release also has in its train split "
        f"| {scores['accuracy']:.4f} | {scores['mean_class_accuracy']:.4f} |\n"
    )


def _recall(scores: dict[str, Any], label: str) -> str:
    return f"{scores['recall'][label]:.4f}" if label in scores["recall"] else "no images"


if __name__ == "__main__":
    main()
