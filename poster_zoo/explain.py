"""Where a model looked: the evidence in the picture for a class, and where its class token attended.

Two views of one answer, which are not the same:

* `grad_cam` says what in the picture speaks for a class, and against it. At each stage of the image stream the gradient
  of the class's logit is multiplied with the stage's map, position by position, and summed over channels: HiResCAM
  (Draelos and Carin, 2020, arXiv:2011.08891), the form of Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391) that does
  not average the gradients over the picture first. The stages are added, each as a density over the picture, so that
  the fine grid of the first and the wide view of the last both count.
* `attention` says from which positions the class token took what it knows, whatever the class: the softmax weights of
  cross-fusion, which no gradient corrects.

How much the marked part matters is measured for each picture: blanked, and beside it as much blanked elsewhere. The
page on explanations has the same for hundreds of faces, and for other ways of making the map.

Needs the extra `explain` (captum).

>>> from poster_zoo.explain import explain
>>> explanation = explain("poster_tiny", "examples/face.png")
>>> explanation.label, explanation.grad_cam.shape
('Happiness', (112, 112))
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from poster_zoo.data.images import ImageSource, each_image, is_many, read_image
from poster_zoo.data.transforms import split_transform
from poster_zoo.errors import MissingExtraError, OptionError, WeightsError
from poster_zoo.extras import installed
from poster_zoo.labels import match_labels
from poster_zoo.models._builder import ENTRIES
from poster_zoo.models.poster import CrossAttention, Poster
from poster_zoo.models.poster_v2 import PosterV2
from poster_zoo.predict import Prediction, Predictor

__all__ = [
    "PARTS",
    "SHARE",
    "Explainer",
    "Explanation",
    "Map",
    "blank",
    "class_token_attention",
    "explain",
    "fuse",
    "marked",
]

Map: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
"""A grid that covers the whole picture evenly, rows from above."""

SHARE = 0.2
"""The part of a picture that counts as marked."""

PARTS = {"jaw": (0, 17), "eyebrows": (17, 27), "nose": (27, 36), "eyes": (36, 48), "mouth": (48, 68)}
"""Parts of a face: the first of their points in the order of 300-W, and one past the last."""

_REACH = 0.125  # of the jaw's width; what is farther from every point belongs to no part
_GRID = 7  # rows and columns of a map in JSON
_THIRDS = [(i, j) for i in range(3) for j in range(3) if (i, j) != (0, 0)]


@dataclass(frozen=True, eq=False)
class Explanation:
    """Where a model looked on one picture.

    Attributes:
        source: Which image: its path as it was given, or "image N" for one in memory.
        answer: The likeliest class.
        label: The class that the evidence is about.
        score: Its probability, in 0…1.
        score_without: Its probability after the fifth of the picture that `grad_cam` marks most was blanked with the
            picture's mean colour.
        score_elsewhere: The same with as much blanked elsewhere: the same shape, moved over the picture's edges by one
            and two thirds of its height and width; the mean of those eight.
        grad_cam: (H, W) evidence for the class, as fine as the model's input, which for models of the zoo is the whole
            picture; negative where it speaks against. Its largest magnitude is 1.
        attention: The class token's attention by name, (7, 7) each, the mean over heads and levels: for POSTER "image",
            from the image stream's tokens (not in the authors' networks, whose image tokens are no positions), and
            "landmark", from the landmark stream's; for POSTER++ "fused", from those of all three scales. What a map
            lacks to 1 fell on the class token itself, or on a stream's mean token. Empty for a model without a class
            token.
        landmarks: (68, 2) x and y in pixels of the upright image, or None where the model finds none.
        size: Width and height of the upright image.
    """

    source: str
    answer: str
    label: str
    score: float
    score_without: float
    score_elsewhere: float
    grad_cam: Map
    attention: Mapping[str, Map]
    landmarks: Map | None
    size: tuple[int, int]

    def parts(self, values: Map) -> dict[str, float]:
        """Return how the positive values of a map are spread over the parts of the face; they add up to 1.

        A position belongs to the part whose landmark is nearest, or to "elsewhere" (cheeks, forehead, background)
        where none is within an eighth of the jaw's width. Empty without landmarks, or where nothing is positive.
        """
        fine = _resized(torch.from_numpy(values), self.grad_cam.shape).clamp(min=0).numpy()
        if self.landmarks is None or not fine.sum():
            return {}
        height, width = fine.shape
        y, x = np.mgrid[:height, :width] + 0.5
        places = np.stack((x * self.size[0] / width, y * self.size[1] / height), axis=-1)
        distances = np.stack(
            [
                np.linalg.norm(places[:, :, None] - self.landmarks[slice(*points)], axis=-1).min(-1)
                for points in PARTS.values()
            ]
        )
        near = distances.min(0) <= _REACH * np.linalg.norm(self.landmarks[16] - self.landmarks[0])
        nearest = np.where(near, distances.argmin(0), len(PARTS))
        return {part: float(fine[nearest == i].sum() / fine.sum()) for i, part in enumerate((*PARTS, "elsewhere"))}

    def peak(self, values: Map) -> tuple[float, float]:
        """Return x and y, in pixels of the upright image, of the middle of the cell with a map's largest value."""
        row, column = np.unravel_index(values.argmax(), values.shape)
        height, width = values.shape
        return (float(column) + 0.5) / width * self.size[0], (float(row) + 0.5) / height * self.size[1]

    def to_dict(self) -> dict[str, Any]:
        """Return everything but `size`, ready for JSON: of a map its peak, its parts and 7 × 7 means."""
        return {
            "source": self.source,
            "answer": self.answer,
            "label": self.label,
            "score": self.score,
            "score_without": self.score_without,
            "score_elsewhere": self.score_elsewhere,
            "grad_cam": self._summary(self.grad_cam),
            "attention": {name: self._summary(values) for name, values in self.attention.items()},
            "landmarks": None if self.landmarks is None else np.round(self.landmarks.astype(float), 2).tolist(),
        }

    def _summary(self, values: Map) -> dict[str, Any]:
        grid = F.adaptive_avg_pool2d(torch.from_numpy(values)[None], _GRID)[0]
        return {
            "peak": [round(value, 2) for value in self.peak(values)],
            "parts": {part: round(share, 4) for part, share in self.parts(values).items()},
            "grid": [[round(value, 4) for value in row] for row in grid.tolist()],
        }


def explain(
    model: str | nn.Module, images: ImageSource | Iterable[ImageSource], label: str | None = None, **options: Any
) -> Explanation | list[Explanation]:
    """Say where a model looked on one picture, or on each of many.

    Args:
        model: As for `Explainer`, which is what to keep for more than one call.
        images: One aligned crop of a face or many, in any form that `Predictor` takes.
        label: The class to look for, in any spelling that means one of the model's; None for the answer of each.
        **options: `device` and `labels`, as for `Explainer`.

    Returns:
        One explanation for one image, a list for many.

    Raises:
        PosterZooError: As for `Explainer` and its call.
    """
    explainer = Explainer(model, **options)
    explanations = (explainer(image, label, f"image {place}") for place, image in enumerate(each_image(images)))
    return list(explanations) if is_many(images) else next(explanations)


class Explainer:
    """Says where a model looked, on aligned crops of faces.

    Args:
        model: Name of a model, whose weights are loaded, or a model that says in `feature_info`, as timm's do, which
            modules make the maps of its image stream. It is put into eval mode and moved as `device` says.
        device: Where to compute; by default where a given model is, and for a name a CUDA GPU if there is one.
        labels: Class names in the order of the logits, for a model whose entry holds none.

    Raises:
        OptionError: The model has no classes, or no image stream to look into; or it is an optimized one.
        LabelError: The model has no label names, or not one for each of its outputs.
        MissingExtraError: captum is not installed.
    """

    def __init__(
        self,
        model: str | nn.Module = "poster_tiny",
        *,
        device: str | torch.device | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        if not installed("captum"):
            raise MissingExtraError(
                'Explanations need captum, which is not installed: pip install "poster-zoo[explain]".'
            )
        _refuse_what_has_no_classes(model)
        self.predictor = Predictor(model, device=device, labels=labels, optimize=False, progress=False)
        self._resize, self._normalise = split_transform(self.predictor.model)

    def __call__(self, image: ImageSource, label: str | None = None, name: str = "the image") -> Explanation:
        """Explain the answer about one image.

        Args:
            image: Whatever `read_image` takes.
            label: The class to look for, in any spelling that means one of the model's; None for the answer.
            name: What the explanation and messages call an image that is not given by its path.

        Raises:
            LabelError: The model has no class of this name.
            ImageError: The image cannot be read.
            WeightsError: The model's answer is not a number.
        """
        labels = self.predictor.labels
        wanted = None if label is None else labels[match_labels([label], labels)[0]]
        is_path = isinstance(image, (str, os.PathLike))
        upright = read_image(image, None if is_path else name)
        small = self._resize(upright)
        with _watched(self.predictor.model) as attention:
            answer = self._answers([small])[0]
        label = wanted or str(answer.label)
        evidence = fuse(self.stage_maps(small, label), small.shape[-2:])
        mark = marked(evidence)
        height, width = mark.shape
        moved = [np.roll(mark, (i * height // 3, j * width // 3), (0, 1)) for i, j in _THIRDS]
        scores = [other.probabilities[label] for other in self._answers([blank(small, m) for m in (mark, *moved)])]
        return Explanation(
            source=str(image) if is_path else name,
            answer=str(answer.label),
            label=label,
            score=answer.probabilities[label],
            score_without=scores[0],
            score_elsewhere=fmean(scores[1:]),
            grad_cam=evidence,
            attention={name: _mean_attention(rows) for name, rows in attention.items()},
            landmarks=self.predictor.landmarks(upright) if hasattr(self.predictor.model, "forward_landmarks") else None,
            size=upright.size,
        )

    def stage_maps(self, image: Tensor, label: str) -> list[Tensor]:
        """Return gradient times activation at each stage of the image stream, (C, h, w) each, for one class's logit.

        Args:
            image: (C, H, W) uint8, of the model's size.
            label: One of the model's labels.

        Raises:
            OptionError: The stages give no maps, as those of a transformer do not.
        """
        from captum.attr import LayerGradientXActivation

        model: Any = self.predictor.model
        stages = [model.get_submodule(stage["module"]) for stage in model.feature_info]
        # Whatever the caller's mode: gradients are asked for here.
        with torch.inference_mode(False), torch.enable_grad():
            target = self.predictor.labels.index(label)
            maps = LayerGradientXActivation(model, stages).attribute(self.prepare(image), target=target)
        if any(one.ndim != 4 for one in maps):
            raise OptionError(
                f"The stages of {type(model).__name__} give no maps (B, C, H, W) to lay over the picture."
            )
        return [one[0].detach().float().cpu() for one in maps]

    def prepare(self, image: Tensor) -> Tensor:
        """Return the model's input (1, C, H, W), which gathers gradients, of an image (C, H, W) of bytes."""
        return self._normalise(image[None].to(self.predictor.device)).to(self.predictor.dtype).requires_grad_()

    def _answers(self, images: Sequence[Tensor]) -> list[Prediction]:
        answers = list(self.predictor.stream(torch.stack(list(images))))
        if broken := next((answer.error for answer in answers if answer.error), None):
            raise WeightsError(broken)
        return answers


def marked(values: Map, share: float = SHARE) -> NDArray[np.bool_]:
    """Return which cells of a map are the `share` of it with the largest values."""
    mark = np.zeros(values.size, dtype=bool)
    mark[np.argsort(-values, axis=None, kind="stable")[: round(share * values.size)]] = True
    return mark.reshape(values.shape)


def blank(image: Tensor, mark: NDArray[np.bool_]) -> Tensor:
    """Return an image (C, H, W) of bytes with the marked pixels (H, W) in its mean colour."""
    mean = image.float().mean((1, 2), keepdim=True).round().to(image.dtype)
    return torch.where(torch.from_numpy(mark), mean, image)


def fuse(stages: Sequence[Tensor], size: Sequence[int]) -> Map:
    """Return the mean of maps of several stages, each as a density over the picture, scaled to a magnitude of 1.

    Args:
        stages: (C, h, w) each; channels are added up.
        size: Height and width of the result.
    """
    densities = [_resized(one.sum(0) * one[0].numel(), size) for one in stages]
    fused = torch.stack(densities).mean(0)
    return (fused / fused.abs().max().clamp(min=torch.finfo(fused.dtype).tiny)).numpy()


def _refuse_what_has_no_classes(model: str | nn.Module) -> None:
    """Raise where there is no answer to explain; by its name before the weights of a model are looked for."""
    if isinstance(model, str):
        entry = ENTRIES.get(model.partition(".")[0])
        nameless = entry is not None and not entry.label_names
    else:
        nameless = not getattr(model, "num_classes", 0)
    if nameless:
        raise OptionError(
            f"{_named(model)} names no expressions, so there is no answer to explain; take a model with classes and an "
            f"image stream, such as poster_tiny."
        )
    if getattr(model, "is_optimized", False):
        raise OptionError(f"{_named(model)} was made to answer only; explain the model that `optimize` was given.")
    if isinstance(model, nn.Module) and not getattr(model, "feature_info", None):
        raise OptionError(
            f"{_named(model)} does not say in `feature_info` which modules make the maps of its image stream."
        )


def _named(model: str | nn.Module) -> str:
    return model if isinstance(model, str) else type(model).__name__


def _resized(values: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(values[None, None], size=tuple(size), mode="bilinear", align_corners=False)[0, 0]


# ------------------------------------------------------------------------------------------------------- attention


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Give a dictionary that is filled, while the model answers one image, with its class token's attention.

    A list a name, an item a layer: (heads, tokens), rows that add up to 1. The layers themselves never make these
    numbers, so they are computed again from what comes in.
    """
    seen: dict[str, list[Tensor]] = {}
    hooks = []

    def note(rows: list[Tensor], layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows.append(class_token_attention(layer, inputs)[0])

    try:
        for name, layers in _attention_layers(model).items():
            hooks += [layer.register_forward_pre_hook(partial(note, seen.setdefault(name, []))) for layer in layers]
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _attention_layers(model: nn.Module) -> dict[str, list[nn.Module]]:
    """Return the last layers in which the class token attends, by what it attends to."""
    if getattr(model, "global_pool", None) != "token" or getattr(model, "fusion", None) is None:
        return {}
    if isinstance(model, PosterV2):
        return {"fused": [model.fusion.blocks[-1].attn]}
    if not isinstance(model, Poster):
        return {}
    block = model.fusion.blocks[-1]
    levels = [block.large, block.medium, block.small]
    layers = {} if model.tokens.from_memory else {"image": [level.image.attn for level in levels]}
    # Without token mixing, nothing reads the landmark tokens of the last large level.
    read = levels[1:] if isinstance(block.large.mix, nn.Identity) else levels
    return layers | {"landmark": [level.landmark.attn for level in read]}


def class_token_attention(layer: Any, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the softmax weights of the first query of a layer.

    Args:
        layer: `CrossAttention` of POSTER or `SelfAttention` of POSTER++'s ViT.
        inputs: What it is called with: tokens (B, N, D), for cross-attention those that give the keys and those that
            ask.

    Returns:
        (B, heads, N) in float32, adding up to 1 over the tokens.
    """
    projection = layer.kv if isinstance(layer, CrossAttention) else layer.qkv
    *asking, keys, _ = projection(inputs[0]).unflatten(-1, (-1, layer.num_heads, layer.head_dim)).unbind(2)
    first = asking[0][:, 0] if asking else inputs[1][:, 0].reshape(keys[:, 0].shape)
    products = torch.einsum("bhd,bnhd->bhn", first, keys)
    return (products.float() * layer.head_dim**-0.5).softmax(-1)


def _mean_attention(rows: Sequence[Tensor]) -> Map:
    """Return the attention on positions, (7, 7): the mean over layers and heads, scales added up."""
    mean = torch.stack([row.mean(0) for row in rows]).mean(0)[1:]  # the first is the class token or a mean token
    return mean.reshape(-1, _GRID, _GRID).sum(0).cpu().numpy()
