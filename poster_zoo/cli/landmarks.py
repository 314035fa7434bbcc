"""`poster-zoo landmarks`: the 68 points of a face."""

from __future__ import annotations

from collections.abc import Sequence

import click

from poster_zoo.cli.inputs import check_picture
from poster_zoo.cli.models import surest_face
from poster_zoo.cli.options import device_option, examples, faces_option, json_option, model_option, plot_option
from poster_zoo.cli.output import note, print_json, print_table


@click.command(
    "landmarks",
    epilog=examples(
        "poster-zoo landmarks examples/face.png --plot landmarks.png",
        "poster-zoo landmarks examples/face.png --faces none --json",
    ),
)
@click.argument("image", type=click.Path())
@model_option
@device_option
@faces_option("auto: take the surest face of a photograph. none: the image is the aligned crop of a face.", "auto")
@plot_option
@json_option("Print one JSON object: source, model, face, landmarks as 68 pairs.")
def command(image: str, model: str, device: str | None, faces: str, plot: str | None, as_json: bool) -> None:
    """Find the 68 points of a face.

    Prints x and y in pixels of the upright image, in the order of 300-W. Of a photograph the surest face is taken;
    where none is found, the whole image is, and that is said. poster_tiny answers with its own landmark stream; any
    model with such a stream, and mobilefacenet, answers where its weights are on this machine.
    """
    picture = check_picture(plot, [image])

    from poster_zoo.data.images import read_image
    from poster_zoo.predict import Predictor

    # The image first: reading it is quick and tells of a wrong name before a model is built.
    upright = read_image(image)
    predictor = Predictor(model, device=device, progress=False)
    face = surest_face(upright, device) if faces == "auto" else None
    points = predictor.landmarks(upright, face)
    if as_json:
        place = face and face.to_dict()
        print_json({"source": image, "model": model, "face": place, "landmarks": points.tolist()})
    else:
        _print_points(points.tolist())
    if picture is not None:
        from poster_zoo import plots

        left, upper, right, lower = (0, 0, *upright.size) if face is None else _around(face.box, upright.size)
        plots.landmarks(upright.crop((left, upper, right, lower)), points - (left, upper), out=picture)
        note(f"Wrote {picture}")


def _around(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part of a picture that a face is in the middle of, with a third of its size on each side."""
    left, upper, right, lower = box
    wide, high = (right - left) / 3, (lower - upper) / 3
    x0, y0 = max(0, int(left - wide)), max(0, int(upper - high))
    return x0, y0, max(x0 + 1, min(size[0], int(right + wide))), max(y0 + 1, min(size[1], int(lower + high)))


def _print_points(points: list[list[float]]) -> None:
    from poster_zoo.plots import LANDMARK_GROUPS

    rows = [("point", "x", "y", "part")]
    for part, first, end, _ in LANDMARK_GROUPS:
        rows += [(str(i), f"{points[i][0]:.1f}", f"{points[i][1]:.1f}", part) for i in range(first, end)]
    print_table(rows, right=[0, 1, 2])
