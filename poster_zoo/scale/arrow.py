"""Answers as pyarrow's columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poster_zoo.errors import MissingExtraError
from poster_zoo.predict import Prediction

__all__ = ["answer_columns", "pyarrow", "utf8"]


def pyarrow() -> Any:
    """Import pyarrow.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            'Parquet needs pyarrow, which is not installed: pip install pyarrow, or "poster-zoo[ray]".'
        ) from error
    return pyarrow


def answer_columns(predictions: Sequence[Prediction], labels: Sequence[str]) -> dict[str, Any]:
    """Return the answers as columns whose types do not depend on what the answers are."""
    arrow = pyarrow()
    number = arrow.float32()
    probabilities = arrow.struct([(label, number) for label in labels])
    # Lists of any length, as Parquet has no others.
    face = arrow.struct([("box", arrow.list_(number)), ("points", arrow.list_(arrow.list_(number))), ("score", number)])
    return {
        "label": arrow.array([prediction.label for prediction in predictions], arrow.string()),
        "score": arrow.array([prediction.score for prediction in predictions], arrow.float32()),
        "probabilities": arrow.array([prediction.probabilities or None for prediction in predictions], probabilities),
        "face": arrow.array([prediction.face and prediction.face.to_dict() for prediction in predictions], face),
        "error": arrow.array([utf8(prediction.error) for prediction in predictions], arrow.string()),
    }


def utf8(text: str | None) -> str | None:
    """Return text that Parquet takes: file names may hold bytes that are no UTF-8, which become escapes."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
