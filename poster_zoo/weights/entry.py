"""What there is to know about a set of weights: one frozen entry beside each factory.

Transforms, label names, model cards, `poster-zoo info`, tables in the docs and error messages are all read from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "FACE_112",
    "FACE_224",
    "FIVE_POINTS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Metric",
    "Points",
    "Preprocessing",
    "Weights",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """How an upright RGB image becomes a model's input.

    Attributes:
        size: Height and width in pixels. The image is resized to exactly that, its aspect ratio is not kept.
        mean: A channel's mean, in 0…1, in the order R, G, B.
        std: A channel's standard deviation, likewise.
        interpolation: Name of the (antialiased) PIL filter.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: str = "bilinear"

    def folded_from_bgr(self) -> Preprocessing:
        """Return the same preprocessing for a model whose stem was turned from BGR to RGB input.

        Upstream applied mean and std by position, so after the fold they belong to the reversed channels.
        """
        return Preprocessing(self.size, self.mean[::-1], self.std[::-1], self.interpolation)


FACE_224 = Preprocessing()
FACE_112 = Preprocessing(size=(112, 112))

Points: TypeAlias = tuple[tuple[float, float], ...]
"""Places in a picture, x and y each, as fractions of its width and height."""

FIVE_POINTS: Points = ((0.3419, 0.4066), (0.6565, 0.4048), (0.5003, 0.5855), (0.3710, 0.7697), (0.6315, 0.7682))
"""Where eyes, nose and corners of the mouth stand in our crops, from left to right in the picture.

They are ArcFace's places (Deng et al., CVPR 2019, arXiv:1801.07698) moved up by 0.055 of the side: chins show.
"""


@dataclass(frozen=True)
class Metric:
    """One number about a set of weights.

    Attributes:
        dataset: The data and its split, "RAF-DB test".
        name: The quantity, "accuracy".
        published: The value that the authors print, or None.
        measured: The value that we measured with `command`, or None where it was not measured.
        command: The command that measures it.
    """

    dataset: str
    name: str
    published: float | None = None
    measured: float | None = None
    command: str | None = None


@dataclass(frozen=True)
class Weights:
    """A set of weights, or the place where one would go.

    Attributes:
        hub_id: Repository on the Hub, "owner/name"; None where no weights are foreseen.
        revision: Commit of that repository (40 hexadecimal digits), or None for its newest.
        sha256: Of the safetensors file, or None where no file has been published yet.
        bundled: Name of the safetensors file inside the package, or None.
        preprocessing: How images become input.
        alignment: Where eyes, nose and corners of the mouth stand in the crops that it was trained on; None where
            nobody says.
        task: What it does, in the Hub's words, where that is neither to classify images nor to give features.
        label_names: Class names in the order of the logits; empty for a model that gives no classes.
        num_outputs: Width of the last layer where it is no class head (landmarks); None otherwise.
        license: SPDX identifier of the weights' licence, or "unknown".
        datasets: The data they were trained on: ids on the Hub, "owner/name", or the usual names in lower case for what
            is not there, which is most of the field's.
        description: One sentence.
        origin_url: Where the weights or their authors' code come from.
        paper_name: Title of the paper.
        paper_ids: Such as "arXiv:2204.04083".
        upstream_file: The file that the authors publish, as they call it.
        upstream_layout: The names that authors' files of this model have, a key of `upstream.LAYOUTS`.
        upstream_bgr: Whether the authors trained it on images in the order blue, green, red.
        tag: Provenance, the part of a timm name after the dot.
        first_conv: Names of the layers that see the image.
        classifier: Name of the layer that gives the logits.
        pool_size: Height and width of the map that the head pools, None where the head takes tokens.
        fixed_input_size: Whether other input sizes are refused.
        parameters: How many the model has, landmark stream included; None where they have to be counted.
        recipe: What trains such a model, a name of `poster_zoo.train.RECIPES`; None for one that is not trained here.
        metrics: What is known about quality.
        notes: Facts that a user must know.
    """

    preprocessing: Preprocessing
    alignment: Points | None = None
    task: str | None = None
    label_names: tuple[str, ...] = ()
    tag: str = ""
    hub_id: str | None = None
    revision: str | None = None
    sha256: str | None = None
    bundled: str | None = None
    num_outputs: int | None = None
    license: str = "unknown"
    datasets: tuple[str, ...] = ()
    description: str = ""
    origin_url: str | None = None
    paper_name: str | None = None
    paper_ids: tuple[str, ...] = ()
    upstream_file: str | None = None
    upstream_layout: str | None = None
    upstream_bgr: bool = False
    first_conv: tuple[str, ...] = ()
    classifier: str | None = None
    pool_size: tuple[int, int] | None = None
    fixed_input_size: bool = True
    parameters: int | None = None
    recipe: str | None = None
    metrics: tuple[Metric, ...] = field(default_factory=tuple)
    notes: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of outputs: the label names' where there are any."""
        return len(self.label_names) or self.num_outputs or 0

    @property
    def detects(self) -> bool:
        """Whether it finds faces in pictures of any size, rather than answering about one."""
        return self.task == "object-detection"

    @property
    def answers(self) -> str:
        """What the last layer gives, in a few words."""
        if self.detects:
            return "faces"
        if self.label_names:
            return f"{len(self.label_names)} classes"
        return f"{self.num_outputs} numbers" if self.num_outputs else "embedding"

    @property
    def shown_size(self) -> str:
        """Height and width of the input, for people."""
        return "any size" if self.detects else " × ".join(map(str, self.preprocessing.size))

    def to_cfg(self) -> dict[str, Any]:
        """Return the entry in the words of timm's `pretrained_cfg`."""
        cfg: dict[str, Any] = {
            "input_size": (3, *self.preprocessing.size),
            "fixed_input_size": self.fixed_input_size,
            "interpolation": self.preprocessing.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "mean": self.preprocessing.mean,
            "std": self.preprocessing.std,
            "num_classes": self.num_classes,
            "pool_size": self.pool_size,
            "first_conv": self.first_conv[0] if len(self.first_conv) == 1 else self.first_conv or None,
            "classifier": self.classifier,
            "license": self.license,
            "description": self.description,
            "origin_url": self.origin_url,
            "paper_name": self.paper_name,
            "paper_ids": self.paper_ids or None,
        }
        if self.label_names:
            cfg["label_names"] = self.label_names
        if self.hub_id:
            cfg["hf_hub_id"] = f"{self.hub_id}@{self.revision}" if self.revision else self.hub_id
        return cfg
