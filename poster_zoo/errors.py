"""Exceptions of poster_zoo.

Each derives from `PosterZooError` and from the built-in that a caller would expect. A message says what was
asked, what is wrong and what to do next; the command line prints it as it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

__all__ = [
    "ClusterError",
    "DatasetError",
    "ExportError",
    "FaultyDataError",
    "ImageError",
    "InputShapeError",
    "LabelError",
    "MissingExtraError",
    "MissingImageError",
    "OptionError",
    "OutputError",
    "PosterZooError",
    "PublishError",
    "TrainingError",
    "UnknownArgumentError",
    "UnknownModelError",
    "VideoError",
    "WeightsError",
    "WeightsMismatchError",
    "WeightsNotFoundError",
    "counted",
    "nearest",
    "printable",
]


class PosterZooError(Exception):
    """Base of every error that poster_zoo raises on purpose.

    Attributes:
        said: Whether another process is known to raise the same, and to say it where this one would.
    """

    said: bool = False


class UnknownModelError(PosterZooError, ValueError):
    """A model name that is not in the registry."""


class UnknownArgumentError(PosterZooError, TypeError):
    """A keyword that the model's constructor does not take."""


class OptionError(PosterZooError, ValueError):
    """A value that an option does not take."""


class DatasetError(OptionError, FileNotFoundError):
    """A place that does not hold the collection of faces that was named."""


class FaultyDataError(PosterZooError, ValueError):
    """A collection with images or labels that cannot be used."""


class OutputError(PosterZooError, ValueError):
    """A file that cannot be written where it was asked for."""


class ExportError(PosterZooError, RuntimeError):
    """A file that does not answer as the model it was made of."""


class MissingExtraError(PosterZooError, ImportError):
    """A feature whose optional packages are not installed."""


class ClusterError(PosterZooError, RuntimeError):
    """Work that several processes or machines could not finish together."""


class InputShapeError(PosterZooError, ValueError):
    """A tensor or an input size that the architecture cannot take."""


class LabelError(PosterZooError, ValueError):
    """A label name, number or label file that does not fit the model or the data."""


class ImageError(PosterZooError, ValueError):
    """A file, byte string or array that does not hold an image we can read."""


class VideoError(PosterZooError, ValueError):
    """A file that does not hold a video we can read, or a camera that cannot be used."""


class MissingImageError(ImageError, FileNotFoundError):
    """An image that a list names and that is not there."""


class WeightsError(PosterZooError, ValueError):
    """A weights file that cannot be read or used."""


class WeightsMismatchError(WeightsError):
    """Weights whose tensors do not fit the model."""


class WeightsNotFoundError(PosterZooError, FileNotFoundError):
    """No weights for this model, anywhere they were looked for."""


class TrainingError(PosterZooError, RuntimeError):
    """A training that cannot go on: its loss is no number, or its disk is full."""


class PublishError(PosterZooError, OSError):
    """Weights that the Hub did not take."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'a' or 'b'?" for the names in `known` that look like `name`, or an empty string."""
    choices: Sequence[str] = list(known)
    near = difflib.get_close_matches(name, choices, n=2)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def printable(text: str) -> str:
    """Return `text` on one line, with control characters and undecodable bytes written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number and what it counts, as "1 image" or "1,200 images".

    Args:
        number: How many.
        noun: What one of them is called, and what goes on with it: "label has".
        plural: The same for none and for several; by default `noun` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"
