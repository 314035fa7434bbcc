"""The study's comparison on FERPlus: cross-fusion against plain encoders against the image stream alone.

Two commands, in this order; FERPLUS is the folder that holds FERPlus as released, OUT any folder:

    python scripts/compare_fusion.py train  --data FERPLUS --out OUT
    python scripts/compare_fusion.py report --data FERPLUS --out OUT

`train` gives `poster_tiny`, `poster_tiny_baseline` and `poster_tiny_image` the same images, epochs and seeds, by the
recipe `tiny`; the first two share the landmark stream of poster_tiny's weights, frozen. It goes on where it stopped.
`report` measures the best epoch of each run on test: accuracy, mean class accuracy, every class, McNemar's test, the
confusion matrices side by side. And it asks each fused model about valid with the landmark maps of *other* images: a
model that reads its landmark stream is then right less often.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import torch
from torch import Tensor, nn

import poster_zoo
from poster_zoo import plots
from poster_zoo.data.datasets import FaceDataset, open_dataset
from poster_zoo.evaluate import Answers, answer_dataset, compare
from poster_zoo.labels import FERPLUS
from poster_zoo.predict import Predictor
from poster_zoo.train import RECIPES, train, with_settings
from poster_zoo.train.prepare import build_model, open_faces

MODELS = ("poster_tiny", "poster_tiny_baseline", "poster_tiny_image")
_COMPARED = ("both_right", "only_first_right", "only_second_right", "both_wrong", "accuracy_difference", "p_value")


class ForeignLandmarks(nn.Module):
    """A two-stream model that reads each image beside the landmark maps of the next image in the batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.pretrained_cfg = model.pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of (B, 3, 112, 112) images."""
        x = self.model.resize(x)
        foreign = [maps.roll(1, dims=0) for maps in self.model.landmark_stream.forward_maps(x)]
        tokens = self.model.fuse(self.model.image_stream.forward_stages(x), foreign)
        logits: Tensor = self.model.forward_head(tokens)
        return logits


def run_folder(out: Path, model: str, seed: int) -> Path:
    """Return where the run of a model with a seed lies."""
    return out / f"{model}-{seed}"


def train_one(name: str, seed: int, data: str, epochs: int, out: Path, settings: Mapping[str, Any]) -> None:
    """Train one model with one seed, or go on with its training."""
    recipe = with_settings(RECIPES["tiny"], {"epochs": epochs, "seed": seed, "soft_targets": True, **settings})
    model = build_model(name, recipe)  # which takes the landmark stream from poster_tiny's weights
    faces = open_faces([data], recipe, FERPLUS)
    train(model, recipe, faces.data, faces.valid, run_folder(out, name, seed), resume=True, label_names=FERPLUS)


def measure(model: Any, dataset: FaceDataset) -> Answers:
    """Return a model's answers about a dataset."""
    return answer_dataset(Predictor(model, batch_size=64), dataset)


def report(data: str, seeds: Sequence[int], out: Path) -> dict[str, Any]:
    """Measure all runs and return what they come to."""
    found: dict[str, Any] = {"models": {}, "pairs": []}
    answers: dict[tuple[str, int], Answers] = {}
    test, valid = (open_dataset(data, split, FERPLUS) for split in ("test", "valid"))
    for name in MODELS:
        rows: list[dict[str, Any]] = []
        for seed in seeds:
            model: Any = poster_zoo.create_model(f"local-dir:{run_folder(out, name, seed) / 'best'}").eval()
            answers[name, seed] = measure(model, test)
            row: dict[str, Any] = {"seed": seed, "test": answers[name, seed].evaluation.to_dict()}
            if hasattr(model, "landmark_stream"):
                row["valid_accuracy"] = measure(model, valid).evaluation.accuracy
                row["valid_accuracy_with_foreign_landmarks"] = measure(
                    ForeignLandmarks(model), valid
                ).evaluation.accuracy
            rows.append(row)
        found["models"][name] = {
            "accuracy": fmean(row["test"]["accuracy"] for row in rows),
            "mean_class_accuracy": fmean(row["test"]["mean_class_accuracy"] for row in rows),
            "runs": rows,
        }
    for (first, second), seed in ((pair, seed) for pair in combinations(MODELS, 2) for seed in seeds):
        compared = compare(answers[first, seed], answers[second, seed])
        plots.comparison(compared, (first, second), out=out / f"{first}_{second}_{seed}.png")
        counts = {name: getattr(compared, name) for name in _COMPARED}
        found["pairs"].append({"first": first, "second": second, "seed": seed, **counts})
    return found


def tell(found: Mapping[str, Any]) -> None:
    """Print the tables."""
    for name, model in found["models"].items():
        click.echo(f"{name}: accuracy {model['accuracy']:.4f}, mean class accuracy {model['mean_class_accuracy']:.4f}")
        for run in model["runs"]:
            scores = run["test"]
            recalls = ", ".join(
                f"{label} {'–' if one['recall'] is None else format(one['recall'], '.3f')}"
                for label, one in scores["per_class"].items()
            )
            click.echo(
                f"  seed {run['seed']}: {scores['accuracy']:.4f}, {scores['mean_class_accuracy']:.4f}; {recalls}"
            )
            if "valid_accuracy" in run:
                click.echo(
                    f"  on valid {run['valid_accuracy']:.4f}; with the landmarks of other images "
                    f"{run['valid_accuracy_with_foreign_landmarks']:.4f}"
                )
    for pair in found["pairs"]:
        click.echo(
            f"{pair['first']} less {pair['second']}, seed {pair['seed']}: {pair['accuracy_difference']:+.4f}, "
            f"McNemar p = {pair['p_value']:.3g}"
        )


@click.command()
@click.argument("stage", type=click.Choice(["train", "report"]))
@click.option("--data", type=click.Path(exists=True, file_okay=False), required=True, help="Folder of FERPlus.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and the report.")
@click.option("--epochs", default=12, show_default=True)
@click.option("--seeds", default=2, show_default=True, help="How many.")
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Change a field of the recipe.")
def main(stage: str, data: str, out: Path, epochs: int, seeds: int, settings: tuple[str, ...]) -> None:
    """Train the three models, or measure them. The file's first lines say more."""
    torch.set_flush_denormal(True)
    spec = f"ferplus:{data}"
    if stage == "train":
        changes = dict(change.split("=", 1) for change in settings)
        for seed in range(seeds):
            for name in MODELS:
                train_one(name, seed, spec, epochs, out, changes)
        return
    found = report(spec, range(seeds), out)
    (out / "report.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    tell(found)


if __name__ == "__main__":
    main()
