"""What is wrong with a collection, found before the first step: files, labels, images that are in several splits.

Every image is decoded, for that alone tells whether it can be: a file can be cut short and still begin well. Images
are compared by their pixels, as they reach a model (upright, RGB), which costs little once they are decoded: so a copy
that was packed again without loss, or only bears another name or another note inside, is found, and a hash of the
file's bytes would miss it. A copy that was scaled, mirrored or compressed again is another image.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from poster_zoo.data.datasets import NO_LABEL, FaceDataset
from poster_zoo.data.datasets.splits import SPLITS
from poster_zoo.errors import FaultyDataError, ImageError, MissingImageError, counted
from poster_zoo.progress import progress_bar

__all__ = ["NAMED", "Copies", "Fault", "Report", "SplitReport", "check_dataset", "without_bad"]

NAMED = 10
"""How many faults of a kind are named; all are counted."""

_AT_ONCE = 1024  # images that are handed to the threads together


@dataclass(frozen=True)
class Fault:
    """One image that cannot be used: its name, and why in one sentence."""

    source: str
    reason: str


@dataclass(frozen=True)
class Copies:
    """One picture that is in several splits: each of its images as (split, name)."""

    places: tuple[tuple[str, str], ...]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, in the order train, valid, test; others before."""
        return tuple(sorted({split for split, _ in self.places}, key=_rank))

    @property
    def kept_in(self) -> str:
        """The split that keeps it, the last, so that nothing is trained or chosen on what is tested."""
        return self.splits[-1]


@dataclass(frozen=True)
class SplitReport:
    """What is in one split.

    Attributes:
        collection: The collection's name.
        split: The split's.
        images: How many images there are, the faulty ones too.
        counts: How many of them each class has.
        persons: How many persons are known to be on them; None where persons are not known.
        missing: Images whose file is not there.
        unreadable: Images that cannot be decoded.
        out_of_range: Images whose label, as it is written, stands for no class.
    """

    collection: str
    split: str
    images: int
    counts: Mapping[str, int]
    persons: int | None
    missing: tuple[Fault, ...]
    unreadable: tuple[Fault, ...]
    out_of_range: tuple[Fault, ...]

    @property
    def kinds(self) -> dict[str, tuple[Fault, ...]]:
        """The faults by what is wrong, in words."""
        return {
            "missing": self.missing,
            "unreadable": self.unreadable,
            "with a label out of range": self.out_of_range,
        }


@dataclass(frozen=True)
class Report:
    """What was found.

    Images in several splits are no fault: published benchmarks have some, and their numbers are measured with them.

    Attributes:
        splits: What is in each dataset that was checked, in the order given.
        copies: Pictures that are in several splits.
    """

    splits: tuple[SplitReport, ...]
    copies: tuple[Copies, ...]

    @property
    def ok(self) -> bool:
        """Whether every image and every label can be used."""
        return not self.faulty

    @cached_property
    def faulty(self) -> frozenset[str]:
        """The names of all images that cannot be used."""
        kinds = (faults for part in self.splits for faults in part.kinds.values())
        return frozenset(fault.source for faults in kinds for fault in faults)

    @cached_property
    def kept_in(self) -> dict[str, str]:
        """For each image that is in several splits, by its name, the split that keeps it."""
        return {source: copies.kept_in for copies in self.copies for _, source in copies.places}

    def require(self) -> None:
        """Raise if an image or a label cannot be used.

        Raises:
            FaultyDataError: Names the first of each kind, counts all, and says how to go on.
        """
        if not self.ok:
            raise FaultyDataError("\n".join([*self.faults(), "Mend these, or leave such images out (--skip-bad)."]))

    def faults(self) -> list[str]:
        """Return what is wrong, a line each: how many images of a kind, then the first of them."""
        lines = []
        for part in self.splits:
            for kind, faults in part.kinds.items():
                if faults:
                    of = counted(part.images, "image")
                    lines.append(f"{part.collection} {part.split}: {len(faults):,} of {of} {kind}:")
                    lines += _first(fault.reason for fault in faults)
        return lines

    def warnings(self) -> list[str]:
        """Return what is in several splits, a line each: how many pictures in which, then the first of them."""
        if not self.copies:
            return []
        pairs = Counter(copies.splits for copies in self.copies)
        spread = ", ".join(f"{count} in {' and '.join(splits)}" for splits, count in sorted(pairs.items()))
        head = f"{counted(len(self.copies), 'picture is', 'pictures are')} in several splits ({spread}):"
        return [head, *_first(" = ".join(source for _, source in copies.places) for copies in self.copies)]

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON; faults and copies are counted, and the first of each are named."""
        return {
            "ok": self.ok,
            "splits": [
                {
                    "collection": part.collection,
                    "split": part.split,
                    "images": part.images,
                    "counts": dict(part.counts),
                    "persons": part.persons,
                    "missing": _counted(part.missing),
                    "unreadable": _counted(part.unreadable),
                    "labels_out_of_range": _counted(part.out_of_range),
                }
                for part in self.splits
            ],
            "in_several_splits": {
                "count": len(self.copies),
                "first": [[list(place) for place in copies.places] for copies in self.copies[:NAMED]],
            },
        }


def check_dataset(
    datasets: FaceDataset | Sequence[FaceDataset], progress: bool | None = None, num_workers: int | None = None
) -> Report:
    """Read every image of one or more datasets and report what is there and what is wrong.

    Args:
        datasets: One dataset, or all splits of the collections that go together, which tells of images in several.
        progress: Whether to draw a progress bar on stderr; by default where stderr is a terminal and it takes long.
        num_workers: Threads that decode; by default one a core, eight at most.
    """
    parts = [datasets] if isinstance(datasets, FaceDataset) else list(datasets)
    pictures: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
    splits = []
    with (
        ThreadPoolExecutor(num_workers or min(8, os.cpu_count() or 1), thread_name_prefix="poster_zoo") as pool,
        progress_bar(sum(map(len, parts)), progress, desc="checking", leave=False) as bar,
    ):
        for part in parts:
            missing: list[Fault] = []
            unreadable: list[Fault] = []
            for i, found in enumerate(_examined(part, pool)):
                bar.update()
                if isinstance(found, bytes):
                    pictures[found].append((part.split, part.source(i)))
                else:
                    kind = missing if isinstance(found, MissingImageError) else unreadable
                    kind.append(Fault(part.source(i), str(found)))
            splits.append(_report(part, missing, unreadable))
    copies = [Copies(tuple(places)) for places in pictures.values() if len({split for split, _ in places}) > 1]
    return Report(tuple(splits), tuple(copies))


def without_bad(dataset: FaceDataset, report: Report) -> FaceDataset:
    """Return the dataset without the images that `report` found unusable, and without those that another split keeps.

    Args:
        dataset: One of those that were checked, or a part of one.
        report: What `check_dataset` returned.
    """
    good = []
    for i in range(len(dataset)):
        source = dataset.source(i)
        if source not in report.faulty and report.kept_in.get(source, dataset.split) == dataset.split:
            good.append(i)
    return dataset.subset(good)


def _examined(dataset: FaceDataset, pool: ThreadPoolExecutor) -> Iterator[bytes | ImageError]:
    """Return, for each image in order, what its pixels are known by, or why it cannot be read."""
    for start in range(0, len(dataset), _AT_ONCE):
        rows = range(start, min(start + _AT_ONCE, len(dataset)))
        yield from pool.map(lambda row: _examine(dataset, row), rows)


def _examine(dataset: FaceDataset, row: int) -> bytes | ImageError:
    try:
        image = dataset.image(row)
    except ImageError as error:
        return error
    return hashlib.blake2b(image.tobytes(), digest_size=16, salt=b"%dx%d" % image.size).digest()


def _report(dataset: FaceDataset, missing: Sequence[Fault], unreadable: Sequence[Fault]) -> SplitReport:
    counts = Counter(dataset.labels)
    strange = (i for i, label in enumerate(dataset.labels) if label == NO_LABEL)
    return SplitReport(
        collection=dataset.name,
        split=dataset.split,
        images=len(dataset),
        counts={name: counts[i] for i, name in enumerate(dataset.label_names)},
        persons=None if dataset.persons is None else len(set(dataset.persons)),
        missing=tuple(missing),
        unreadable=tuple(unreadable),
        out_of_range=tuple(
            Fault(
                dataset.source(i),
                f"{dataset.source(i)!r} has the label {dataset.written_label(i)!r}, which stands for none of the "
                f"{len(dataset.label_names)} classes.",
            )
            for i in strange
        ),
    )


def _first(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in islice(lines, NAMED)]


def _counted(faults: Sequence[Fault]) -> dict[str, Any]:
    return {"count": len(faults), "first": [{"source": one.source, "reason": one.reason} for one in faults[:NAMED]]}


def _rank(split: str) -> int:
    """Return the place of a split in the order train, valid, test; whatever else comes before."""
    return SPLITS.index(split) if split in SPLITS else -1
