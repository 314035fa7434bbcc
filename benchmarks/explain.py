"""Does a map of where a model looked mark what the answer depends on? Blank what it marks, and see.

    python benchmarks/explain.py --data ferplus:FERPlus --data rafdb:faces --plot docs/pages/figures/explain_drop.svg

For each face the fifth of the picture that a map marks most is blanked with the picture's mean colour, and beside it a
random fifth: the same shape at four random places, moved over the picture's edges. Printed is how far the probability
of the answer falls for the one and for the other, in the mean over the faces, the difference with its 95 % bootstrap
interval, and for which part of the faces it falls further for the marked fifth.

`--all` compares other ways of making the map. Choose by it on one part of the data, and report on another.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerGradCam
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from poster_zoo.data.datasets import open_dataset
from poster_zoo.data.transforms import split_transform
from poster_zoo.explain import SHARE, Explainer, Map, blank, class_token_attention, fuse, marked
from poster_zoo.models.poster import CrossAttention
from poster_zoo.predict import Predictor

Numbers = NDArray[np.float64]
Masks = NDArray[np.bool_]  # (faces, H, W)
Way = Callable[[Explainer, Tensor, str], Map]

PLACES = 4  # of each shape, at random
NOISY, NOISE = 8, 12.0  # copies of the picture for SmoothGrad, and the deviation of their noise in 0…255
STEPS = 12  # of integrated gradients
BLUR = 7.0  # pixels: a single one tells nothing


@click.command()
@click.option("--data", "specs", multiple=True, required=True, metavar="NAME:PATH", help="Labelled faces.")
@click.option("--split", default="test", show_default=True)
@click.option("--faces", default=200, show_default=True, help="How many of each collection, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--model", default="poster_tiny", show_default=True)
@click.option("--all", "everything", is_flag=True, help="Also other ways of making the map.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw the figure there.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write the drops of every face there.")
def main(
    specs: tuple[str, ...],
    split: str,
    faces: int,
    seed: int,
    model: str,
    everything: bool,
    plot: str | None,
    json_file: str | None,
) -> None:
    """Blank what the maps mark on faces, and what chance does."""
    explainer, rng = Explainer(model), np.random.default_rng(seed)
    bench = Bench(explainer, [image for spec in specs for image in draw(explainer, spec, split, faces, rng)])
    masks = {f"the package's {name}": mask for name, mask in bench.own_masks().items()}
    masks |= controls(next(iter(masks.values())), rng)
    if everything:
        masks |= {name: bench.masks(way) for name, way in other_ways().items()}
    results: dict[str, Drops] = {}
    for name, mask in masks.items():
        results[name] = bench.measure(mask, rng)
        click.echo(f"{name:44}  {results[name]}")
        if len(specs) > 1:
            for i, spec in enumerate(specs):
                part = slice(i * faces, (i + 1) * faces)
                click.echo(f"  {spec.partition(':')[0]:42}  {results[name][part]}")
    if json_file:
        content = {
            name: {"marked": drops.marked.tolist(), "moved": drops.moved.tolist()} for name, drops in results.items()
        }
        Path(json_file).write_text(json.dumps(content) + "\n")
    if plot:
        draw_figure(results, Path(plot))


def draw(explainer: Explainer, spec: str, split: str, faces: int, rng: np.random.Generator) -> list[Tensor]:
    """Return random faces as bytes, of the model's size."""
    dataset = open_dataset(spec, split)
    resize, _ = split_transform(explainer.predictor.model)
    return [resize(dataset.image(int(i))) for i in rng.choice(len(dataset), faces, replace=False)]


@dataclass(frozen=True)
class Drops:
    """How far each face's probability falls: the marked fifth blanked, and the same shape elsewhere."""

    marked: Numbers
    moved: Numbers

    def __getitem__(self, faces: slice) -> Drops:
        return Drops(self.marked[faces], self.moved[faces])

    def __str__(self) -> str:
        more = self.marked - self.moved
        rows = np.random.default_rng(0).integers(len(more), size=(2000, len(more)))
        low, high = np.quantile(more[rows].mean(1), (0.025, 0.975))
        return (
            f"marked {self.marked.mean():5.3f}  random {self.moved.mean():5.3f}  difference {more.mean():6.3f} "
            f"({low:6.3f} … {high:6.3f})  further on {(more > 0).mean():5.3f} of {len(more)} faces"
        )


class Bench:
    """Faces, the answer about each, and what blanking does to its probability."""

    def __init__(self, explainer: Explainer, images: Sequence[Tensor]) -> None:
        self.explainer, self.images = explainer, images
        self.predictor = Predictor(explainer.predictor.model, optimize=True, progress=False)
        answers = list(self.predictor.stream(list(images)))
        self.labels = [str(answer.label) for answer in answers]
        self.scores = np.array([answer.score for answer in answers], dtype=float)

    def own_masks(self) -> dict[str, Masks]:
        """Return what the maps of the package's own explanations mark."""
        found: dict[str, list[NDArray[np.bool_]]] = {}
        for image in tqdm(self.images, leave=False, disable=None):
            explanation = self.explainer(image)
            found.setdefault("evidence", []).append(marked(explanation.grad_cam))
            for name, values in explanation.attention.items():
                found.setdefault(f"attention, {name}", []).append(marked(enlarged(values, image)))
        return {name: np.stack(masks) for name, masks in found.items()}

    def masks(self, way: Way) -> Masks:
        """Return what another way of making the map marks."""
        pairs = zip(self.images, self.labels, strict=True)
        return np.stack(
            [
                marked(way(self.explainer, *pair))
                for pair in tqdm(pairs, total=len(self.images), leave=False, disable=None)
            ]
        )

    def measure(self, masks: Masks, rng: np.random.Generator) -> Drops:
        """Return how far the probability falls, by face."""
        moved = []
        for _ in range(PLACES):
            shifts = rng.integers(masks.shape[1:], size=(len(masks), 2))
            elsewhere = [np.roll(mask, tuple(shift), (0, 1)) for mask, shift in zip(masks, shifts, strict=True)]
            moved.append(self._fall(elsewhere))
        return Drops(self._fall(masks), np.mean(moved, axis=0))

    def _fall(self, masks: Sequence[NDArray[np.bool_]] | Masks) -> Numbers:
        blanked = [blank(image, mask) for image, mask in zip(self.images, masks, strict=True)]
        answers = zip(self.predictor.stream(blanked), self.labels, strict=True)
        return self.scores - np.array([answer.probabilities[label] for answer, label in answers])


def controls(ours: Masks, rng: np.random.Generator) -> dict[str, Masks]:
    """Return masks that know nothing of the face before them: chance is not all that a map has to beat."""
    height, width = ours.shape[1:]
    y, x = np.mgrid[:height, :width]
    disc = marked(-np.hypot(y / height - 0.53, x / width - 0.5).astype(np.float32))
    squares = np.zeros_like(ours)
    tall, wide = (round(SHARE**0.5 * side) for side in (height, width))
    for square in squares:
        top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
        square[top : top + tall, left : left + wide] = True
    return {
        "another face's evidence": np.roll(ours, len(ours) // 4 + 1, axis=0),
        "a disc in the middle": np.repeat(disc[None], len(ours), axis=0),
        "a square anywhere": squares,
    }


# ------------------------------------------------------------------------------------- other ways of making the map


def other_ways() -> dict[str, Way]:
    """Return ways by their names; each makes a map of a model, an image of bytes and a class."""
    found: dict[str, Way] = {}
    for i in range(3):
        found[f"evidence of stage {i + 1} alone"] = partial(one_stage, stage=i)
        found[f"Grad-CAM, mean gradients, stage {i + 1}"] = partial(grad_cam, stage=i)
    found["evidence, with the mirrored face's"] = mirrored
    found["evidence, mean over noise (SmoothGrad)"] = smoothed
    found["integrated gradients of pixels, blurred"] = integrated
    for stream in ("image", "landmark"):
        found[f"attention × its gradient, {stream}"] = partial(weighted_attention, stream=stream)
    return found


def one_stage(explainer: Explainer, image: Tensor, label: str, stage: int) -> Map:
    """Evidence of one stage of the image stream."""
    return fuse([explainer.stage_maps(image, label)[stage]], image.shape[-2:])


def grad_cam(explainer: Explainer, image: Tensor, label: str, stage: int) -> Map:
    """Grad-CAM as published: a channel's gradients are averaged over the picture first (captum's LayerGradCam)."""
    model: Any = explainer.predictor.model
    layer = model.get_submodule(model.feature_info[stage]["module"])
    target = explainer.predictor.labels.index(label)
    return enlarged(
        LayerGradCam(model, layer).attribute(explainer.prepare(image), target)[0, 0].detach().numpy(), image
    )


def mirrored(explainer: Explainer, image: Tensor, label: str) -> Map:
    """The mean of the evidence in a face and in its mirror image."""
    maps = [one.flip(-1) for one in explainer.stage_maps(image.flip(-1), label)]
    return fuse(explainer.stage_maps(image, label), image.shape[-2:]) + fuse(maps, image.shape[-2:])


def smoothed(explainer: Explainer, image: Tensor, label: str) -> Map:
    """The mean evidence of noisy copies (Smilkov et al., 2017, arXiv:1706.03825)."""
    generator = torch.Generator().manual_seed(0)
    noisy = [image + NOISE * torch.randn(image.shape, generator=generator) for _ in range(NOISY)]
    stages = zip(*(explainer.stage_maps(one.clamp(0, 255).byte(), label) for one in noisy), strict=True)
    return fuse([torch.stack(maps).mean(0) for maps in stages], image.shape[-2:])


def integrated(explainer: Explainer, image: Tensor, label: str) -> Map:
    """Integrated gradients (Sundararajan et al., 2017, arXiv:1703.01365) from the blank picture, then blurred."""
    empty = blank(image, np.ones(image.shape[-2:], dtype=bool))
    target = explainer.predictor.labels.index(label)
    pixels = IntegratedGradients(explainer.predictor.model).attribute(
        explainer.prepare(image), explainer.prepare(empty), target, n_steps=STEPS
    )
    blurred = gaussian_blur(pixels.detach().sum(1), 2 * round(3 * BLUR) + 1, BLUR)
    return blurred[0].numpy()


def weighted_attention(explainer: Explainer, image: Tensor, label: str, stream: str) -> Map:
    """The class token's last attention times its gradient (after Chefer et al., 2021, arXiv:2103.15679)."""
    model: Any = explainer.predictor.model
    block = model.fusion.blocks[-1]
    layers: list[CrossAttention] = [
        getattr(getattr(block, level), stream).attn for level in ("large", "medium", "small")
    ]
    weights: list[Tensor] = []
    values: list[Tensor] = []
    read: list[Tensor] = []

    def before(layer: CrossAttention, inputs: tuple[Tensor, Tensor]) -> None:
        weights.append(class_token_attention(layer, inputs)[0].detach())
        value = layer.kv(inputs[0]).chunk(2, dim=-1)[1][0].detach()
        values.append(value.reshape(len(value), layer.num_heads, layer.head_dim))

    hooks = [layer.register_forward_pre_hook(before) for layer in layers]
    hooks += [layer.proj.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])) for layer in layers]
    logit = model(explainer.prepare(image))[0, explainer.predictor.labels.index(label)]
    for hook in hooks:
        hook.remove()
    total = torch.zeros(len(values[0]))
    for weight, value, gradient in zip(weights, values, torch.autograd.grad(logit, read), strict=True):
        # A weight's gradient is that of what it makes, times the value that it weighs.
        of_weight = torch.einsum("hd,nhd->hn", gradient[0, 0].reshape(value.shape[1:]), value)
        total += (weight * of_weight).relu().mean(0)
    return enlarged(total[1:].reshape(7, 7).numpy(), image)


def enlarged(values: Map, image: Tensor) -> Map:
    """Return a map as fine as an image."""
    return fuse([torch.from_numpy(values)[None]], image.shape[-2:])


# ---------------------------------------------------------------------------------------------------------- figure


def draw_figure(results: Mapping[str, Drops], out: Path) -> None:
    """Draw the mean drop of each kind of mask beside its random one, and each face's two drops for the first kind."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained", facecolor="white")
    bars, dots = figure.subplots(1, 2, width_ratios=(1.3, 1))
    rows = np.arange(len(results))
    bars.barh(rows - 0.2, [drops.marked.mean() for drops in results.values()], 0.38, color="#0072B2", label="marked")
    bars.barh(
        rows + 0.2, [drops.moved.mean() for drops in results.values()], 0.38,
        color="white", edgecolor="#D55E00", hatch="////", label="the same shape elsewhere",
    )  # fmt: skip
    bars.set_yticks(rows, list(results))
    bars.invert_yaxis()
    bars.set_xlabel("mean fall of the answer's probability")
    bars.legend(loc="lower right", fontsize=8)
    name, first = next(iter(results.items()))
    dots.plot((-0.5, 1), (-0.5, 1), color="#666666", linewidth=1, linestyle="--")
    dots.scatter(first.moved, first.marked, s=10, color="#0072B2", alpha=0.5, linewidths=0)
    dots.set(xlabel="fall: the same shape elsewhere", ylabel="fall: marked", title=f"{name}, a point a face")
    dots.title.set_fontsize(10)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
