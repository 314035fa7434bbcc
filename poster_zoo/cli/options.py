"""Options that several commands share, and how the end of a command's help is written."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = [
    "Seconds",
    "batch_size_option",
    "checkpoint_option",
    "device_option",
    "examples",
    "faces_option",
    "json_option",
    "model_option",
    "plot_option",
]

F = TypeVar("F", bound=Callable[..., Any])


class Seconds(click.FloatRange):
    """A number of seconds: neither "inf" nor "nan", which are numbers to Python."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or refuse it."""
        seconds: float = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is no number of seconds.", param, ctx)
        return seconds


model_option = click.option(
    "-m",
    "--model",
    default="poster_tiny",
    show_default=True,
    metavar="MODEL",
    help="A name of `poster-zoo list`, hf-hub:OWNER/NAME or local-dir:FOLDER.",
)
checkpoint_option = click.option(
    "--checkpoint",
    type=click.Path(),
    metavar="FILE",
    help="Weights to use: an authors' checkpoint as published, a safetensors file or a folder. The authors' files say "
    "which model they are, except where several have the same tensors: then --model does.",
)
device_option = click.option(
    "--device", metavar="DEVICE", help="cpu, cuda, cuda:1, mps …  [default: a GPU where there is one]"
)
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, help="Images at a time."
)
plot_option = click.option(
    "--plot", type=click.Path(), metavar="FILE", help="Draw a picture: .png, .svg or .pdf. Needs poster-zoo[plot]."
)


def json_option(text: str) -> Callable[[F], F]:
    """Return the option `--json`, whose help says what is printed."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def faces_option(text: str, default: str | None = None) -> Callable[[F], F]:
    """Return the option `--faces`, whose help says what becomes of the faces of an image."""
    return click.option(
        "--faces", type=click.Choice(["auto", "none"]), default=default, show_default=default is not None, help=text
    )


def examples(*commands: str) -> str:
    """Return the end of a command's help: commands to paste, each on a line that click leaves alone."""
    return "\n".join(["\b", "Examples:", *(f"  {command}" for command in commands)])
