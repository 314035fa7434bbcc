"""`poster-zoo explain`: where the model looked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from poster_zoo.cli.errors import WrongUse
from poster_zoo.cli.inputs import check_picture
from poster_zoo.cli.models import load_model, model_name, surest_face
from poster_zoo.cli.options import (
    checkpoint_option,
    device_option,
    examples,
    faces_option,
    json_option,
    model_option,
    plot_option,
)
from poster_zoo.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from poster_zoo.explain import Explanation


@click.command(
    "explain",
    epilog=examples(
        "poster-zoo explain examples/face.png --plot explained.png",
        "poster-zoo explain examples/face.png --label fear --json",
    ),
)
@click.argument("image", type=click.Path())
@click.option("--label", metavar="NAME", help="Also look for this class, whatever the answer is.")
@model_option
@checkpoint_option
@device_option
@plot_option
@faces_option(
    "auto: explain the surest face of a photograph, cut out and aligned. none: the image is such a crop.", "auto"
)
@json_option("Print one JSON object: source, model, face, and for each class its scores, evidence and attention.")
@click.pass_context
def command(
    ctx: click.Context,
    image: str,
    label: str | None,
    model: str,
    checkpoint: str | None,
    device: str | None,
    plot: str | None,
    faces: str,
    as_json: bool,
) -> None:
    """Show where the model looked on a face.

    The evidence for a class is Grad-CAM on the image stream: what in the picture raises the class's score. Beside it
    stands what becomes of the score where the fifth of the picture that it marks most is blanked, and where as much is
    blanked elsewhere. The attention is that of the class token in cross-fusion, whatever the class. Both are told as
    shares of the parts of the face.

    Of a photograph with several faces the surest is explained; maps and landmarks are those of its aligned crop. Where
    no face is found, the image is explained as a whole, and that is said. Needs poster-zoo[explain].
    """
    picture = check_picture(plot, [image])

    from poster_zoo.data.images import read_image
    from poster_zoo.explain import Explainer
    from poster_zoo.labels import canonical_label

    picked: Any = read_image(image)  # first: it is quick and tells of a wrong name before a model is built
    network = load_model(ctx, model, checkpoint)
    explainer = Explainer(network, device=device)
    known = explainer.predictor.labels
    if label is not None and canonical_label(label) not in map(canonical_label, known):
        raise WrongUse(f"{model_name(network)} has no class {label!r}; it knows {', '.join(known)}.")
    face = surest_face(picked, device) if faces == "auto" else None
    if face is not None:
        picked = explainer.predictor.crops(picked, [face])[0]
    explained = [explainer(picked, name=image)]
    if label is not None and canonical_label(label) != canonical_label(explained[0].answer):
        explained.append(explainer(picked, label, name=image))
    if as_json:
        both = [explanation.to_dict() for explanation in explained]
        place = face and face.to_dict()
        print_json({"source": image, "model": model_name(network), "face": place, "explanations": both})
    else:
        _print_scores(explained)
        _print_parts(explained)
    if picture is not None:
        from poster_zoo import plots

        plots.explanations(picked, explained, out=picture)
        note(f"Wrote {picture}")


def _print_scores(explained: Sequence[Explanation]) -> None:
    rows = [
        (one.label, *(f"{score:.4f}" for score in (one.score, one.score_without, one.score_elsewhere)))
        for one in explained
    ]
    print_table([("class", "score", "marked fifth blanked", "as much elsewhere"), *rows], right=[1, 2, 3])


def _print_parts(explained: Sequence[Explanation]) -> None:
    """Print how each map is spread over the face, where there are landmarks to tell."""
    maps = {f"evidence for {one.label}": one.grad_cam for one in explained}
    maps |= {f"attention, {name}": values for name, values in explained[0].attention.items()}
    spread = {name: explained[0].parts(values) for name, values in maps.items()}
    names = next((tuple(parts) for parts in spread.values() if parts), ())
    if names:
        click.echo()
        rows = [(name, *(f"{parts[part]:.2f}" for part in names)) for name, parts in spread.items() if parts]
        print_table([("share of", *names), *rows], right=range(1, len(names) + 1))
