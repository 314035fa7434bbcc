"""`poster-zoo convert`: from an authors' checkpoint to safetensors that prove themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from poster_zoo.cli.errors import WrongUse
from poster_zoo.cli.options import examples, json_option
from poster_zoo.cli.output import note, print_json, print_table
from poster_zoo.errors import printable

if TYPE_CHECKING:
    from poster_zoo import Conversion


@click.command(
    "convert",
    epilog=examples(
        "poster-zoo convert rafdb_best.pth --install",
        "poster-zoo convert mobilefacenet_model_best.pth.tar --model mobilefacenet --out landmarks --json",
    ),
)
@click.argument("checkpoint", type=click.Path())
@click.option("-m", "--model", metavar="MODEL", help="Which model it is, where several have the same tensors.")
@click.option("--install", is_flag=True, help="Put it where pretrained=True finds it on this machine.")
@click.option("--out", type=click.Path(file_okay=False), metavar="DIR", help="Folder to write.  [default: ./MODEL]")
@click.option(
    "--check", "image", type=click.Path(), metavar="IMAGE", help="Print the logits that it gives for an image."
)
@json_option("Print one JSON object: model, out, tensors (used, dropped, left_over); with --check also logits.")
def command(
    checkpoint: str, model: str | None, install: bool, out: str | None, image: str | None, as_json: bool
) -> None:
    """Convert CHECKPOINT, a file that the authors publish, into safetensors, config.json and a model card.

    The release is recognised by its tensors. What its network never runs is dropped, stems trained on BGR are turned
    to RGB, and the result is compared with the checkpoint before it is kept. No code in the checkpoint is run.

    --check prints logits to compare with those of the authors' code for the same image.
    """
    if install and out:
        raise click.UsageError("--install and --out exclude each other.")
    import poster_zoo
    from poster_zoo.weights.convert import recognise

    face = poster_zoo.read_image(image) if image else None  # a wrong path is told before the work
    if image:
        _refuse_detector(recognise(checkpoint, model))
    conversion = poster_zoo.convert(checkpoint, model, out=out, install=install)
    logits = None
    if face is not None:
        import torch

        network = poster_zoo.from_pretrained(conversion.out).eval()
        with torch.inference_mode():
            logits = network(poster_zoo.create_transform(network)(face)[None])[0].tolist()
    if as_json:
        print_json(conversion.to_dict() | ({"logits": logits} if logits is not None else {}))
        return
    _tell(checkpoint, conversion)
    if logits is not None:
        labels = poster_zoo.model_info(conversion.model).weights.label_names or map(str, range(len(logits)))
        print_table(
            [("output", "value"), *((label, f"{value:.6f}") for label, value in zip(labels, logits, strict=True))]
        )


def _refuse_detector(name: str) -> None:
    import poster_zoo

    if poster_zoo.model_info(name).weights.detects:
        raise WrongUse(f"The file is of {name}, which finds faces and has no logits; convert it without --check.")


def _tell(checkpoint: str, conversion: Conversion) -> None:
    counts = conversion.to_dict()["tensors"]
    click.echo(
        f"{printable(Path(checkpoint).name)} holds {sum(counts.values())} tensors of {conversion.model}: "
        f"{counts['used']} used, {counts['dropped']} dropped, {counts['left_over']} left over."
    )
    for reason, count in Counter(conversion.dropped.values()).items():
        click.echo(f"  dropped {count}: {reason}")
    if conversion.placeholders:
        note(f"Not followed, as no code in a checkpoint is run: {printable(', '.join(conversion.placeholders))}.")
    click.echo(
        "Checked: every used tensor is the checkpoint's bit for bit, and the answers differ by at most "
        f"{conversion.largest_difference:.1e}."
    )
    click.echo(f"Wrote {printable(str(conversion.out))}")
