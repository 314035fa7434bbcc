"""`poster-zoo landmarks`: the 68 points of a face."""

from __future__ import annotations

import click

from poster_zoo.cli.inputs import check_picture
from poster_zoo.cli.options import device_option, examples, json_option, model_option, plot_option
from poster_zoo.cli.output import note, print_json, print_table


@click.command(
    "landmarks",
    epilog=examples(
        "poster-zoo landmarks examples/face.png --plot landmarks.png", "poster-zoo landmarks examples/face.png --json"
    ),
)
@click.argument("image", type=click.Path())
@model_option
@device_option
@plot_option
@json_option("Print one JSON object: source, model, landmarks as 68 pairs.")
def command(image: str, model: str, device: str | None, plot: str | None, as_json: bool) -> None:
    """Find the 68 points of a face.

    Prints x and y in pixels of the upright image, in the order of 300-W. The image is taken as a crop around one face.
    poster_tiny answers with its own landmark stream; any model with such a stream, and mobilefacenet, answers where
    its weights are on this machine.
    """
    picture = check_picture(plot, [image])

    from poster_zoo.data.images import read_image
    from poster_zoo.predict import Predictor

    # The image first: reading it is quick and tells of a wrong name before a model is built.
    face = read_image(image)
    points = Predictor(model, device=device, progress=False).landmarks(face)
    if as_json:
        print_json({"source": image, "model": model, "landmarks": points.tolist()})
    else:
        _print_points(points.tolist())
    if picture is not None:
        from poster_zoo import plots

        plots.landmarks(face, points, out=picture)
        note(f"Wrote {picture}")


def _print_points(points: list[list[float]]) -> None:
    from poster_zoo.plots import LANDMARK_GROUPS

    rows = [("point", "x", "y", "part")]
    for part, first, end, _ in LANDMARK_GROUPS:
        rows += [(str(i), f"{points[i][0]:.1f}", f"{points[i][1]:.1f}", part) for i in range(first, end)]
    print_table(rows, right=[0, 1, 2])
