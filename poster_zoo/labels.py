"""Names of expressions: the label sets of the datasets, and when two names mean the same class."""

from __future__ import annotations

from collections.abc import Sequence

from poster_zoo.errors import LabelError

__all__ = ["AFFECTNET7", "AFFECTNET8", "CAERS", "FERPLUS", "RAFDB", "canonical_label", "match_labels"]

# The order is the order of the numbers in each release, not the alphabet's: position i is class i.
RAFDB = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")
AFFECTNET7 = ("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger")
AFFECTNET8 = (*AFFECTNET7, "Contempt")
FERPLUS = ("Neutral", "Happiness", "Surprise", "Sadness", "Anger", "Disgust", "Fear", "Contempt")
CAERS = ("Anger", "Disgust", "Fear", "Happy", "Neutral", "Sad", "Surprise")

_SYNONYMS = {
    "happy": "happiness",
    "joy": "happiness",
    "sad": "sadness",
    "angry": "anger",
    "surprised": "surprise",
    "fearful": "fear",
    "afraid": "fear",
    "scared": "fear",
    "disgusted": "disgust",
    "contemptuous": "contempt",
}


def canonical_label(name: str) -> str:
    """Return the spelling under which equal expressions compare equal.

    Case and surrounding blanks do not count, and the adjective and the noun are one:
    `"Happy"`, `"happiness"` and `" HAPPY "` all give `"happiness"`. Other names come back in lower case.
    """
    folded = name.strip().casefold()
    return _SYNONYMS.get(folded, folded)


def match_labels(names: Sequence[str], known: Sequence[str]) -> list[int]:
    """Return, for each of `names`, the position of the same expression in `known`.

    Raises:
        LabelError: a name that means none of `known`, or two of `known` that mean the same.
    """
    position = {canonical_label(label): i for i, label in enumerate(known)}
    if len(position) != len(known):
        raise LabelError(
            f"The label names {', '.join(known)} hold the same expression twice; give each class one name."
        )
    missing = [name for name in names if canonical_label(name) not in position]
    if missing:
        raise LabelError(
            f"The labels {', '.join(missing)} are none of the known classes. "
            f"Labels asked for: {', '.join(names)}. Classes known: {', '.join(known)}."
        )
    return [position[canonical_label(name)] for name in names]
