"""Training: recipes, sharpness-aware minimisation, and the loop that can be killed at any moment."""

from __future__ import annotations

from poster_zoo.train.loop import Training, label_names_of, train
from poster_zoo.train.losses import ExpressionLoss
from poster_zoo.train.processes import make_accelerator
from poster_zoo.train.recipe import RECIPES, Recipe, find_recipe, recipe_for, with_settings
from poster_zoo.train.sam import SAM

__all__ = [
    "RECIPES",
    "SAM",
    "ExpressionLoss",
    "Recipe",
    "Training",
    "find_recipe",
    "label_names_of",
    "make_accelerator",
    "recipe_for",
    "train",
    "with_settings",
]
