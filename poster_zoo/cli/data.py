"""`poster-zoo data`: what is in collections of faces, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.options import examples, json_option
from poster_zoo.cli.output import note, print_json, print_table
from poster_zoo.errors import printable

if TYPE_CHECKING:
    from poster_zoo.data.check import Report


@click.command(
    "data",
    epilog=examples("poster-zoo data rafdb:RAF-DB", "poster-zoo data folder:faces --split train --skip-bad --json"),
)
@click.argument("places", metavar="NAME:PATH...", nargs=-1)
@click.option("--data", "more", metavar="NAME:PATH", multiple=True, help="A collection, as for train and eval.")
@click.option("--split", "splits", metavar="SPLIT", multiple=True, help="Only train, valid or test.  [default: all]")
@click.option("--label", "labels", metavar="NAME", multiple=True, help="A class that is no expression, but is meant.")
@click.option("--skip-bad", is_flag=True, help="Count what is left without the bad images, and call that well.")
@json_option("Print one JSON object: ok, splits (counts, faults, images left), in_several_splits.")
@click.pass_context
def command(
    ctx: click.Context,
    places: tuple[str, ...],
    more: tuple[str, ...],
    splits: tuple[str, ...],
    labels: tuple[str, ...],
    skip_bad: bool,
    as_json: bool,
) -> None:
    """Count the images of a collection and find what is wrong with them.

    NAME says what lies at PATH: rafdb, affectnet7, affectnet8, ferplus, caers, folder, csv, or hf (PATH may be an id on
    the Hub). Several collections are checked together.

    Every image is read. Missing and unreadable files and labels out of range are counted and the first ten named; the
    exit status is then 1, unless --skip-bad leaves them out. Pictures that are in several splits are named too:
    --skip-bad keeps them in the last one alone, so that nothing is trained on what is tested.
    """
    from poster_zoo.data.check import check_dataset, without_bad
    from poster_zoo.data.datasets import available_splits, open_dataset

    if not (specs := (*places, *more)):
        raise click.UsageError("Name a collection: NAME:PATH.")
    opened = [(spec, open_dataset(spec, split, labels)) for spec in specs for split in splits or available_splits(spec)]
    # A collection with one part alone is that part, whichever splits are asked for.
    opened = list({(spec, dataset.split): (spec, dataset) for spec, dataset in opened}.values())
    datasets = [dataset for _, dataset in opened]
    report = check_dataset(datasets)
    left = [len(without_bad(dataset, report)) for dataset in datasets]
    if as_json:
        print_json(_facts([spec for spec, _ in opened], report, left))
    else:
        _print([spec for spec, _ in opened], report, left if skip_bad else None)
    if not report.ok and not skip_bad:
        note("Mend these images and labels, or leave them out: --skip-bad.")
        ctx.exit(1)


def _facts(specs: Sequence[str], report: Report, left: Sequence[int]) -> dict[str, Any]:
    facts = report.to_dict()
    for spec, count, split in zip(specs, left, facts["splits"], strict=True):
        split |= {"data": spec, "left": count}
    return facts


def _print(specs: Sequence[str], report: Report, left: Sequence[int] | None) -> None:
    """Print a table a collection, then what is wrong; `left` is how many images of each split stay, if some go."""
    numbered = list(enumerate(zip(specs, report.splits, strict=True)))
    for spec, group in groupby(numbered, key=lambda numbered: numbered[1][0]):
        places, parts = zip(*((place, part) for place, (_, part) in group), strict=True)
        rows = [("class", *(part.split for part in parts))]
        rows += [(name, *(str(part.counts[name]) for part in parts)) for name in parts[0].counts]
        rows.append(("images", *(str(part.images) for part in parts)))
        if parts[0].persons is not None:
            rows.append(("persons", *(str(part.persons) for part in parts)))
        if left is not None:
            rows.append(("images left", *(str(left[place]) for place in places)))
        widest = max(len(last) for *_, last in rows)  # a table's last column is not padded by itself
        click.echo(printable(spec))
        print_table([(*first, last.rjust(widest)) for *first, last in rows], right=range(1, len(parts)))
        click.echo()
    if report.ok:
        click.echo("Every image can be read, and every label is one of the classes.")
    for line in report.faults() + report.warnings():
        click.echo(printable(line))
