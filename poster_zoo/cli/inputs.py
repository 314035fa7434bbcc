"""What the commands are given: images and folders of them, and where a picture is to go. Checked before long work."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from poster_zoo.cli.errors import WrongUse
from poster_zoo.cli.output import note
from poster_zoo.errors import counted

__all__ = ["check_picture", "find_images"]


def find_images(paths: Sequence[str]) -> list[str]:
    """Return the images that were given and those below the folders that were given, each once, as they were named.

    Raises:
        WrongUse: a folder without images, or nothing of all this exists. One missing file among others is no reason
            to stop: it fails as an unreadable image does.
    """
    if not any(os.path.lexists(path) for path in paths):
        raise WrongUse(f"There is no {' and no '.join(map(repr, paths[:3]))}; name images, or folders of images.")
    found = [image for path in paths for image in _images_at(path)]
    once: dict[str, str] = {}
    for image in found:
        once.setdefault(os.path.abspath(image), image)
    if twice := len(found) - len(once):
        note(f"{counted(twice, 'image was', 'images were')} given more than once and will be answered once.")
    return list(once.values())


def _images_at(path: str) -> Iterable[str]:
    if not os.path.isdir(path):
        return [path]
    from poster_zoo.data.images import list_images

    images = list_images(path)
    if not images:
        raise WrongUse(f"There are no images in the folder {path!r}; name a folder that holds some.")
    # As the folder was typed: pathlib would drop a leading "./".
    return [os.path.join(path, image.relative_to(path)) for image in images]


def check_picture(plot: str | None, images: Iterable[str], suffix: str = "") -> Path | None:
    """Return where a picture is to go, or None where none was asked for.

    Args:
        plot: The path that was typed, if any.
        images: The images of this run, which must not be overwritten.
        suffix: What to add to the name, before its ending.

    Raises:
        OutputError: a picture cannot go there.
        MissingExtraError: matplotlib is not installed.
        WrongUse: it is one of the images.
    """
    if plot is None:
        return None
    from poster_zoo.plots import check_output

    out = Path(plot)
    out = check_output(out.with_name(f"{out.stem}{suffix}{out.suffix}") if suffix else out)
    if os.path.realpath(out) in map(os.path.realpath, images):
        raise WrongUse(
            f"The picture {str(out)!r} would overwrite an image that it is drawn from; give it another name."
        )
    return out
