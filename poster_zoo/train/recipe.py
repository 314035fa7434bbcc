"""Recipes: everything that decides how a model is trained, as one frozen dataclass; the published ones by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poster_zoo.data.transforms import TRAINING_TRANSFORMS
from poster_zoo.errors import OptionError, nearest
from poster_zoo.models._builder import ENTRIES, base_name

__all__ = ["RECIPES", "Recipe", "differences", "find_recipe", "recipe_for", "with_settings"]

_CHOICES = {
    "transform": tuple(TRAINING_TRANSFORMS),
    "schedule": ("exponential", "cosine"),
    "precision": ("fp32", "bf16", "fp16"),
    "select_on": ("valid", "test"),
    "select_by": ("accuracy", "mean_class_accuracy", "macro_f1"),
}
_AT_LEAST_ONE = ("epochs", "batch_size", "accumulate")
_UP_TO_ONE = ("smoothing", "layer_decay", "gamma", "drop_rate", "drop_path_rate", "ema", "valid_share", "balance")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. `Recipe()` is POSTER's for RAF-DB, as its authors' code has it.

    Attributes:
        epochs: How often the images are gone through.
        batch_size: Images a step, over all processes and pieces; the authors had 100 on each of two GPUs.
        accumulate: Pieces in which each process takes its share of a batch, for want of memory. BatchNorm sees one
            piece at a time.
        seed: Of everything random: new weights, order of the images, their changes, dropped paths.
        transform: What is done to training images, one of `poster_zoo.data.transforms.TRAINING_TRANSFORMS`.
        balance: 0: each image once an epoch. Otherwise images are drawn with replacement, with weights in proportion
            to 1 / (frequency of their class) to this power; at 1 all classes come equally often.
        soft_targets: Learn from the spread of the votes where the data has votes, instead of from labels.
        smoothing: Probability that label smoothing spreads over all classes.
        smoothed: Weight of the cross-entropy with label smoothing in the loss.
        plain: Weight of the cross-entropy without.
        class_weights: Weigh each class's images by 1 / their number.
        optimizer: A name of `timm.optim.list_optimizers()`.
        lr: Learning rate, at its highest.
        weight_decay: Of everything but biases, norms and what the model exempts.
        layer_decay: Learning rate of a layer as a multiple of the next one's; 1 for the same everywhere.
        rho: How far sharpness-aware minimisation looks; 0 for one pass a step and plain descent.
        adaptive: Measure rho in units of each weight (ASAM).
        exact_upstream: Let BatchNorm's statistics move in both passes of a step, as the authors' loop does.
        clip: Largest norm of the gradient; 0 for any.
        schedule: "exponential" (the rate falls by `gamma` an epoch) or "cosine" (to nothing).
        gamma: What the rate is multiplied by after each epoch of the exponential schedule; 1 holds it.
        warmup_epochs: Over how many epochs, parts of one too, the rate rises from nothing first.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth at the last block.
        ema: Decay a step of the moving average of the weights that is evaluated and kept; 0 for the weights
            themselves.
        patience: Epochs without a better one after which training ends; 0 for never.
        select_by: What the best epoch is best in: "accuracy", "mean_class_accuracy" or "macro_f1".
        select_on: Images by which the best epoch is chosen: "valid" (the collection's validation part, or else a part
            of train) or "test" (as the authors did; the numbers are then too good).
        valid_share: That part of train.
        precision: "fp32", "bf16" or "fp16" (with a gradient scaler): what matrix products are computed in.
        channels_last: Keep maps and convolutions' weights in that memory format.
        compile: Run the model through torch.compile.
        grad_checkpointing: Compute activations twice instead of keeping them.
        sync_batchnorm: On GPUs, normalise over all processes' images.
    """

    epochs: int = 300
    batch_size: int = 200
    accumulate: int = 1
    seed: int = 0
    transform: str = "authors"
    balance: float = 0.0
    soft_targets: bool = True
    smoothing: float = 0.2
    smoothed: float = 2.0
    plain: float = 1.0
    class_weights: bool = False
    optimizer: str = "adam"
    lr: float = 4e-5
    weight_decay: float = 0.0
    layer_decay: float = 1.0
    rho: float = 0.05
    adaptive: bool = False
    exact_upstream: bool = False
    clip: float = 0.0
    schedule: str = "exponential"
    gamma: float = 0.98
    warmup_epochs: float = 0.0
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    ema: float = 0.0
    patience: int = 0
    select_by: str = "accuracy"
    select_on: str = "valid"
    valid_share: float = 0.1
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    grad_checkpointing: bool = False
    sync_batchnorm: bool = False

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            OptionError: One of them; the message names the field.
        """
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise OptionError(
                    f"The recipe's {name} cannot be {getattr(self, name)!r}; choose one of {', '.join(choices)}."
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least, most = 1 if field.name in _AT_LEAST_ONE else 0, 1 if field.name in _UP_TO_ONE else float("inf")
            if not isinstance(value, str) and not least <= value <= most:
                limits = f"from {least} to {most:g}" if field.name in _UP_TO_ONE else f"at least {least}"
                raise OptionError(f"The recipe's {field.name} cannot be {value}; it is {limits}.")
        if self.smoothed + self.plain == 0:
            raise OptionError("The recipe's loss is nothing: both `smoothed` and `plain` are 0; give one a weight.")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return dataclasses.asdict(self)


_POSTER = Recipe()
# The authors' AffectNet training draws the classes evenly. POSTER's FERPlus settings are not published; RAF-DB's stand.
_AFFECTNET = dataclasses.replace(_POSTER, lr=2e-6, balance=1.0)
_POSTER_V2 = dataclasses.replace(
    _POSTER,
    epochs=200,
    batch_size=144,
    transform="authors_v2_rafdb",
    smoothing=0.0,
    smoothed=0.0,
    lr=3.5e-5,
    drop_path_rate=0.0,
)
_AFFECTNET_V2 = dataclasses.replace(_POSTER_V2, transform="authors_v2", balance=1.0, lr=1e-6)

RECIPES: dict[str, Recipe] = {
    "rafdb": _POSTER,
    "affectnet7": _AFFECTNET,
    "affectnet8": _AFFECTNET,
    "ferplus": _POSTER,
    "poster_v2_rafdb": _POSTER_V2,
    "poster_v2_affectnet7": _AFFECTNET_V2,
    "poster_v2_affectnet8": _AFFECTNET_V2,
    "poster_v2_caers": dataclasses.replace(_POSTER_V2, transform="authors_v2", lr=4e-5),
    # The study: label smoothing alone, and the stochastic depth that the paper prints (the authors' code has 0.1).
    "study": dataclasses.replace(_POSTER, batch_size=100, smoothed=1.0, plain=0.0, drop_path_rate=0.01),
    # Ours, for the small models, from nothing or from their weights.
    "tiny": Recipe(
        epochs=40,
        batch_size=64,
        transform="strong",
        balance=0.3,
        smoothing=0.0,
        smoothed=0.0,
        optimizer="adamw",
        lr=1e-3,
        weight_decay=0.05,
        rho=0.0,
        clip=2.0,
        schedule="cosine",
        warmup_epochs=3.0,
        drop_rate=0.1,
        drop_path_rate=0.0,
        ema=0.9985,
        channels_last=True,
    ),
}
"""Recipes by name."""


def recipe_for(model: str) -> Recipe:
    """Return the recipe for a model of the zoo, which its entry names; POSTER's for RAF-DB where none is named.

    Raises:
        UnknownModelError: The model has no weights of the tag in its name.
    """
    entry = ENTRIES.get(base_name(model))
    return RECIPES[(entry and entry.recipe) or "rafdb"]


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name, or from a file such as a run's recipe.json.

    Raises:
        OptionError: There is no such recipe, or the file holds none.
    """
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name).expanduser()
    if not path.is_file():
        raise OptionError(
            f"There is no recipe {name!r}.{nearest(name, RECIPES)} Name one of {', '.join(RECIPES)}, "
            "or a recipe.json that a run wrote."
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(f"The recipe {name!r} cannot be read as JSON: {error}.") from error
    if not isinstance(settings, dict):
        raise OptionError(f"The recipe {name!r} holds no settings; give a recipe.json that a run wrote.")
    return with_settings(Recipe(), settings)


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values in some fields.

    Args:
        recipe: The recipe.
        settings: Values by the fields' names, as they are or as they are typed: "0.1", "yes".

    Raises:
        OptionError: There is no such field, or the value is none for it.
    """
    known = recipe.to_dict()
    for name in settings:
        if name not in known:
            raise OptionError(
                f"A recipe has no field {name!r}.{nearest(name, known)} Its fields are {', '.join(known)}."
            )
    return dataclasses.replace(recipe, **{name: _read(name, value, known[name]) for name, value in settings.items()})


def _read(name: str, value: Any, example: Any) -> Any:
    """Return `value` as the type that the field has."""
    text = str(value).strip()
    try:
        if isinstance(example, bool):
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.casefold()]
        if isinstance(example, int):
            return int(text)
        return float(text) if isinstance(example, float) else text
    except (KeyError, ValueError):
        kind = {bool: "yes or no", int: "a whole number", float: "a number"}[type(example)]
        raise OptionError(f"The recipe's {name} cannot be {text!r}; it is {kind}, as {example}.") from None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return, for each name whose values differ, what it was and what it is now, as text."""
    names = dict.fromkeys((*before, *now))
    return [
        f"{name}: {_shown(before, name)} in the run, {_shown(now, name)} now"
        for name in names
        if before.get(name) != now.get(name)
    ]


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name], ensure_ascii=False) if name in values else "nothing"
