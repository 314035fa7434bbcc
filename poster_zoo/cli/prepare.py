"""`poster-zoo prepare`: labelled photographs become aligned crops to train on."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import click

from poster_zoo.cli.options import device_option, examples, json_option
from poster_zoo.cli.output import earlier, note, print_json, print_table
from poster_zoo.errors import counted

if TYPE_CHECKING:
    from poster_zoo.faces.prepare import Prepared, Several


@click.command(
    "prepare",
    epilog=examples(
        "poster-zoo prepare photos aligned",
        "poster-zoo prepare csv:photos.csv aligned-largest --several largest --json",
    ),
)
@click.argument("place", metavar="DIR", type=click.Path())
@click.argument("out", metavar="OUT", type=click.Path(file_okay=False))
@click.option(
    "--several",
    type=click.Choice(["front", "largest", "skip"]),
    default="front",
    show_default=True,
    help="Whose label it is where a photograph has several faces. front: the largest one's, if no other has half its "
    "area; else the photograph is skipped. largest: always the largest one's. skip: nobody's.",
)
@click.option(
    "--size", type=click.IntRange(min=8), default=112, show_default=True, help="Height and width of the crops, pixels."
)
@device_option
@json_option("Print one JSON object: folder, photographs, crops, labels, skipped.")
@click.pass_context
def command(
    ctx: click.Context, place: str, out: str, several: str, size: int, device: str | None, as_json: bool
) -> None:
    """Cut the faces out of labelled photographs, aligned as the models of the zoo expect them.

    DIR holds a folder a class, below train, valid and test or not; or is a CSV of files and labels; or NAME:PATH as for
    data, train and eval. OUT then is a collection for train: --data folder:OUT, or csv:OUT/faces.csv, which also says
    where each crop comes from.

    A photograph that cannot be read, on which no face is found or whose label stands for no class is skipped;
    OUT/skipped.csv names each with the reason. Stopped at any moment, the same command goes on; photographs that were
    added since are done too.
    """
    from poster_zoo.faces import prepare_faces

    prepared = prepare_faces(place, out, several=cast("Several", several), size=size, device=device)
    if as_json:
        print_json(prepared.to_dict())
    else:
        _print(prepared)
    crops, photographs = sum(prepared.crops.values()), sum(prepared.photographs.values())
    before = earlier(prepared.before, photographs)
    note(f"{out} holds the crops of {crops:,} of {counted(photographs, 'photograph')}{before}.")
    if prepared.skipped:
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in prepared.skipped.most_common())
        note(f"Skipped: {reasons}; {out}/skipped.csv has the names.")
    ctx.exit(0 if crops else 1)


def _print(prepared: Prepared) -> None:
    rows = [("class", "photographs", "crops")]
    counts = sorted(prepared.photographs.items())
    rows += [(label or "(no label)", str(count), str(prepared.crops[label])) for label, count in counts]
    print_table(rows, right=[1, 2])
