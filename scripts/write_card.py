"""Write the card of the bundled weights from the report of `train_poster_tiny.py test` and from `poster-zoo eval`.

    poster-zoo eval --model poster_tiny --data ferplus:DATA/ferplus --json > OUT/ferplus.json
    poster-zoo eval --model poster_tiny --data rafdb:DATA/faces --json > OUT/faces.json
    python scripts/write_card.py OUT/report.json OUT/ferplus.json OUT/faces.json

The numbers of the card's first table stand in the entry of `poster_tiny`; a test compares both with what was measured,
which is kept beside the weights as poster_tiny.json: there the two programs count the same answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from poster_zoo.models.poster import WEIGHTS
from poster_zoo.weights.card import evaluation_section, model_card

BUNDLED = Path(__file__).resolve().parent.parent / "poster_zoo" / "weights" / "bundled"

# Of an evaluation, what the card shows.
_KEPT = (
    "images",
    "labels",
    "accuracy",
    "mean_class_accuracy",
    "classes_with_images",
    "macro_f1",
    "expected_calibration_error",
    "per_class",
    "intervals",
    "calibration",
    "confusion_matrix",
)

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
@click.argument("ferplus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("faces", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(report: Path, ferplus: Path, faces: Path) -> None:
    """Write poster_zoo/weights/bundled/poster_tiny.md, and what was measured beside it.

    REPORT is what `train_poster_tiny.py test` wrote, FERPLUS and FACES what `poster-zoo eval --json` printed.
    """
    measured = json.loads(report.read_text())
    for collection, printed in (("ferplus", ferplus), ("faces", faces)):
        evaluation = json.loads(printed.read_text())
        if evaluation["accuracy"] != measured[collection]["file"]["accuracy"]:
            raise click.ClickException(f"{report} and {printed} differ in accuracy: they are of different weights.")
        measured[collection]["evaluation"] = {name: evaluation[name] for name in _KEPT}
    entry = WEIGHTS["poster_tiny"]
    card = model_card("poster_tiny", entry, entry.label_names)
    sections = [
        f"## Training\n\n{TRAINING}",
        *_section("FERPlus test", measured["ferplus"]),
        *_section("Photographs, test", measured["faces"]),
    ]
    (BUNDLED / "poster_tiny.md").write_text("\n\n".join([card.rstrip(), *sections]) + "\n")
    (BUNDLED / "poster_tiny.json").write_text(json.dumps(measured, indent=1) + "\n")


def _section(title: str, collection: dict[str, Any]) -> list[str]:
    always = collection["file"]["always_commonest"]
    return [
        evaluation_section(f"{title}, one view of each", collection["evaluation"]),
        f"Always answering {always['class']} has an accuracy of {always['accuracy']:.4f} and a mean class accuracy of "
        f"{always['mean_class_accuracy']:.4f}.{_unseen(collection)} The landmark stream's points are off by "
        f"{collection['landmark_error']:.3f} of the distance between the outer corners of the eyes, on average.",
    ]


def _unseen(collection: dict[str, Any]) -> str:
    """Return the scores without test images that are also training images, where there are any."""
    if "unseen" not in collection:
        return ""
    scores = collection["unseen"]
    left_out = collection["file"]["images"] - scores["images"]
    return (
        f" Without the {left_out} pictures that the release also has in its train split, poster_tiny's are "
        f"{scores['accuracy']:.4f} and {scores['mean_class_accuracy']:.4f}."
    )


if __name__ == "__main__":
    main()
