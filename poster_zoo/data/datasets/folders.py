"""Class folders, as torchvision's ImageFolder reads them: a folder a class, below a folder a split or not."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from poster_zoo.data.datasets.base import Benchmark, FaceDataset
from poster_zoo.data.datasets.files import Files
from poster_zoo.data.datasets.layout import ALL, choose_split, not_a, split_folders, subfolders
from poster_zoo.data.images import list_images
from poster_zoo.errors import DatasetError, LabelError
from poster_zoo.labels import CAERS as CAERS_LABELS
from poster_zoo.labels import canonical_label, match_labels

__all__ = ["CAERS", "ClassFolders", "class_folders", "folder_images", "folder_name"]


class ClassFolders(FaceDataset):
    """Images in a folder a class, those in folders `train`, `valid`, `test`, or not parted.

    The classes are the names of the folders, sorted, those of all splits; images may lie deeper in them.

    Args:
        root: The folder that holds the splits or the classes.
        split: Which split; images that are not parted are read whatever is asked for.

    Raises:
        DatasetError: There are no class folders.
        LabelError: Two folders mean the same class.
        OptionError: There is no such split.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        parts = class_folders(Path(root), "class folders", "a folder a class, with images,")
        names = _class_names(parts)
        split = choose_split(f"folder:{os.fspath(root)}", split, tuple(parts))
        folders = parts[split]
        places = dict(zip(folders, match_labels(tuple(folders), names), strict=True))
        images, labels = folder_images(folders, places)
        super().__init__(images, labels, names, name="folder", split=split)

    @staticmethod
    def splits(root: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return the splits that are there; "all" alone where the images are not parted."""
        return tuple(class_folders(Path(root), "class folders", "a folder a class, with images,"))


class CAERS(FaceDataset):
    """CAER-S: frames of television shows in a folder a class, below `train` and `test`.

    Args:
        root: The folder that holds `train` and `test`.
        split: Which split.

    Raises:
        DatasetError: The folder does not hold CAER-S.
        OptionError: There is no such split.
    """

    def __init__(self, root: str | os.PathLike[str], split: str = "train") -> None:
        parts = self._parts(Path(root))
        split = choose_split("CAER-S", split, tuple(parts))
        images, labels = folder_images(parts[split], {name: i for i, name in enumerate(CAERS_LABELS)})
        benchmark = Benchmark("CAER-S test", images=None) if split == "test" else None
        super().__init__(images, labels, CAERS_LABELS, name="caers", split=split, benchmark=benchmark)

    @classmethod
    def splits(cls, root: str | os.PathLike[str]) -> tuple[str, ...]:
        """Return the splits that are there."""
        return tuple(cls._parts(Path(root)))

    @staticmethod
    def _parts(root: Path) -> dict[str, dict[str, Path]]:
        looked_for = f"train/ and test/ with {', '.join(CAERS_LABELS)} in them"
        parts = class_folders(root, "CAER-S", looked_for)
        if any(name not in CAERS_LABELS for folders in parts.values() for name in folders):
            raise not_a("CAER-S", root, looked_for + ", and nothing else,")
        return parts


def class_folders(root: Path, collection: str, looked_for: str) -> dict[str, dict[str, Path]]:
    """Return the class folders of each split, by their names; the split is `ALL` where there are no split folders.

    Raises:
        DatasetError: There are none; `collection` and `looked_for` are for the message.
    """
    parts = {split: subfolders(folder) for split, folder in split_folders(root).items()} or {ALL: subfolders(root)}
    parts = {split: folders for split, folders in parts.items() if folders}
    if not parts:
        raise not_a(collection, root, looked_for)
    return parts


def folder_images(folders: Mapping[str, Path], places: Mapping[str, int]) -> tuple[Files, list[int]]:
    """Return the images of class folders and their labels, which are the places of the folders' names.

    Raises:
        DatasetError: There is no image.
    """
    found = {name: list_images(folder) for name, folder in folders.items()}
    if not any(found.values()):
        raise DatasetError(
            f"There are no images in the folders {', '.join(map(repr, map(str, folders.values())))}; "
            "give a place that holds some."
        )
    labels = [places[name] for name, images in found.items() for _ in images]
    return Files("", [str(image) for images in found.values() for image in images]), labels


def folder_name(label: str) -> str:
    """Return what a class's folder may be called, on any system, such that `class_folders` sees it."""
    return re.sub(r"[^\w .+-]", "_", label).strip("._ ") or "class"


def _class_names(parts: Mapping[str, Mapping[str, Path]]) -> tuple[str, ...]:
    """Return the classes of all splits, sorted, in the spelling of the first split that has them."""
    names: dict[str, str] = {}
    for folders in parts.values():
        spellings: dict[str, str] = {}
        for name, folder in folders.items():
            other = spellings.setdefault(canonical_label(name), name)
            if other != name:
                raise LabelError(
                    f"In {str(folder.parent)!r}, {other!r} and {name!r} are one class; make them one folder."
                )
        names = spellings | names
    return tuple(sorted(names.values()))
