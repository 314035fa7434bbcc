"""`poster-zoo export`: a model as a file for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from poster_zoo.cli.inputs import find_images
from poster_zoo.cli.models import load_model
from poster_zoo.cli.options import checkpoint_option, examples, json_option
from poster_zoo.cli.output import note, print_json
from poster_zoo.errors import counted, printable

if TYPE_CHECKING:
    from poster_zoo.export import Exported


@click.command(
    "export",
    epilog=examples(
        "poster-zoo export poster_tiny --format torchscript",
        "poster-zoo export poster_tiny --format torchscript --dtype float16 --check examples --json",
    ),
)
@click.argument("model")
@click.option(
    "-f",
    "--format",
    default="onnx",
    show_default=True,
    metavar="FORMAT",
    help="onnx (needs poster-zoo[export]), torchscript, or pt2, the archive of torch.export.",
)
@click.option("--out", type=click.Path(), metavar="FILE", help="File to write.  [default: MODEL.onnx, .pt or .pt2]")
@checkpoint_option
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    metavar="TYPE",
    help="What to compute in: float32 or float16. Images and answers are float32 all the same.",
)
@click.option("--int8", is_flag=True, help="Multiply with 8-bit integers in the linear layers.")
@click.option(
    "--check",
    "faces",
    multiple=True,
    type=click.Path(),
    metavar="IMAGE_OR_FOLDER",
    help="Faces to compare the answers on; may be given several times.  [default: examples/face.png in a checkout, "
    "else images that are made up]",
)
@click.option(
    "--pretrained/--no-pretrained", default=True, help="Whether to load weights; without, the numbers are random."
)
@json_option("Print one JSON object: out, format, size, change and metadata.")
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    format: str,
    out: str | None,
    checkpoint: str | None,
    dtype: str,
    int8: bool,
    faces: tuple[str, ...],
    pretrained: bool,
    as_json: bool,
) -> None:
    """Write MODEL as a file that other programs run, and check what it answers.

    MODEL is a name of `poster-zoo list`, hf-hub:OWNER/NAME or local-dir:FOLDER. The file takes any number of images
    at a time. It holds how they are to be prepared and what the classes are called.

    Before it gets its name the file is read back, by ONNX Runtime or torch, and compared with the model on faces.
    How much its answers differ is printed, and recorded in the file.
    """
    if checkpoint and not pretrained:
        raise click.UsageError("--checkpoint and --no-pretrained exclude each other.")
    images = find_images(faces) if faces else []

    from poster_zoo.export import export

    network = load_model(ctx, model, checkpoint)
    exported = export(network, out, format=format, dtype=dtype, int8=int8, faces=images, pretrained=pretrained)
    if not exported.change.faces:
        note("No face was at hand: the check used made-up images. --check FACES measures on yours.")
    if as_json:
        print_json(exported.to_dict())
    else:
        _tell(exported)


def _tell(exported: Exported) -> None:
    metadata, change = exported.metadata, exported.change
    click.echo(
        f"{metadata.model} as {exported.format}, in {metadata.precision}: {metadata.output} of any number of "
        f"{metadata.colours} images of {metadata.size[0]} × {metadata.size[1]} pixels."
    )
    text = f"its answers on {counted(change.images, 'image')} differ from the model's by at most {change.output:.1e}"
    if change.probability is not None:
        labels = f"{change.labels} of {counted(change.images, 'label')} changed"
        text += f", the probabilities by {change.probability:.1e}; {labels}"
    click.echo(f"Checked: read back, {text}.")
    click.echo(f"Wrote {printable(str(exported.out))}, {exported.size / 1e6:.1f} MB")
