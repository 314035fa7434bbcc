"""Pictures of answers: labelled faces, photographs, confusion matrices, sureness, curves, landmarks, explanations.

Needs the extra `plot` (matplotlib). A picture is written in the format of its suffix, beside its place first and then
renamed, so that no half-drawn file is left behind. Figures of a measurement also leave what they show as a table of the
same name, `.csv`. Colours are those of Okabe and Ito, which colour-blind readers tell apart, and nothing is said by
colour alone; heat that is laid over a picture or over time has a scale beside it.
"""

from __future__ import annotations

import csv
import math
import textwrap
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from poster_zoo.data.images import read_image
from poster_zoo.draw import annotate
from poster_zoo.errors import ImageError, MissingExtraError, OptionError, OutputError, counted, printable
from poster_zoo.extras import installed
from poster_zoo.files import check_place, whole_file
from poster_zoo.labels import canonical_label
from poster_zoo.predict import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from poster_zoo.evaluate import Answers, Calibration, Comparison, Evaluation
    from poster_zoo.explain import Explanation

__all__ = [
    "FORMATS",
    "LANDMARK_GROUPS",
    "MISTAKES_LIMIT",
    "PHOTOGRAPHS_LIMIT",
    "SHEET_LIMIT",
    "TIMELINE_LIMIT",
    "calibration",
    "check_output",
    "comparison",
    "confusion_matrix",
    "contact_sheet",
    "curves",
    "explanations",
    "landmarks",
    "mistakes",
    "photographs",
    "timeline",
]

FORMATS = (".png", ".svg", ".pdf")
SHEET_LIMIT = 120
PHOTOGRAPHS_LIMIT = 24
MISTAKES_LIMIT = 40
TIMELINE_LIMIT = 12

# The 68 points of 300-W: name, first and one past the last point, and whether the line closes.
LANDMARK_GROUPS = (
    ("jaw", 0, 17, False),
    ("right eyebrow", 17, 22, False),
    ("left eyebrow", 22, 27, False),
    ("nose bridge", 27, 31, False),
    ("nostrils", 31, 36, False),
    ("right eye", 36, 42, True),
    ("left eye", 42, 48, True),
    ("outer lips", 48, 60, True),
    ("inner lips", 60, 68, True),
)

RIGHT, WRONG = "\N{CHECK MARK}", "\N{BALLOT X}"

_BLUE, _VERMILLION, _SKY, _GREEN, _PURPLE = "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#CC79A7"
_GREY = "#666666"
_HEAT = "viridis"  # of timelines and of maps laid over faces: even steps, for colour-blind readers too
_DPI = 150
_HEAT_LABEL = "share of the true class"

# The sheet of faces, in inches.
_FACE, _MARGIN, _TITLE_HEIGHT = 1.5, 0.2, 0.4
_TILE_WIDTH, _TILE_HEIGHT = _FACE + _MARGIN, _FACE + 0.65
_MIN_COLUMNS = 2
# Photographs: the longer side in pixels, of several; of one alone at least and at most, and where faces would be small.
_ONE_OF_SEVERAL, _ALONE, _CROWD = 750, (900, 1500), 3000
_FEW, _FACE_OF_FEW, _FACE_OF_MANY = 24, 160, 90  # faces, and their width: with room for bars, and for names
_TEXT = 15


def check_output(out: str | Path) -> Path:
    """Return where a picture can be written, or say why not, before anything long begins.

    Raises:
        OutputError: a format that is not drawn, a folder that does not exist or may not be written to, or a folder
            where the file should go.
        MissingExtraError: matplotlib is not installed.
    """
    path = Path(out)
    check_place("picture", path)
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"A picture cannot be written as {str(path)!r}; end its name in {', '.join(FORMATS)}.")
    if not installed("matplotlib"):
        raise MissingExtraError('Drawing needs matplotlib, which is not installed: pip install "poster-zoo[plot]".')
    return path


def contact_sheet(
    images: Sequence[Any],
    predictions: Sequence[Prediction],
    true_labels: Sequence[str | None] | None = None,
    *,
    out: str | Path,
    total: int | None = None,
    title: str | None = None,
) -> None:
    """Draw a sheet of images with their predicted (and true) labels.

    A wrong answer has a thick dashed frame and a cross, a right one a tick, an unreadable image an empty tile with
    the reason.

    Args:
        images: Whatever `read_image` takes, one for each prediction; the first `SHEET_LIMIT` are drawn.
        predictions: The answers.
        true_labels: The true label of each image, or None where it is not known.
        out: The file to write.
        total: Number of images there are, where only some of them are given; the sheet says so.
        title: What stands above instead of the number of images.

    Raises:
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    out = check_output(out)
    truth = true_labels or [None] * len(predictions)
    shown = min(len(predictions), SHEET_LIMIT)
    columns = max(_MIN_COLUMNS, round(1.3 * shown**0.5))
    rows = -(-shown // columns)
    width, height = columns * _TILE_WIDTH + _MARGIN, _TITLE_HEIGHT + rows * _TILE_HEIGHT
    figure = _new_figure(width, height)
    title = title or _sheet_title(shown, total or len(predictions), truth)
    figure.text(_MARGIN / width, 1 - 0.2 / height, title, va="center", fontsize=9)
    for i in range(shown):
        row, column = divmod(i, columns)
        left = _MARGIN + column * _TILE_WIDTH
        bottom = height - _TITLE_HEIGHT - row * _TILE_HEIGHT - _FACE
        axes = figure.add_axes((left / width, bottom / height, _FACE / width, _FACE / height))
        _draw_tile(axes, images[i], predictions[i], truth[i])
    _save(figure, out)


def _sheet_title(shown: int, total: int, truth: Sequence[str | None]) -> str:
    images = counted(total, "image")
    count = images if shown == total else f"the first {shown} of {images}"
    marks = f": {RIGHT} right, {WRONG} wrong (dashed frame)" if any(truth) else ""
    return count[0].upper() + count[1:] + marks


def _draw_tile(axes: Axes, image: Any, prediction: Prediction, true_label: str | None) -> None:
    """Draw one face with its caption below, or an empty tile with the reason."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#bbbbbb")
    reason = prediction.error or _show_image(axes, image)
    if reason:
        _write_reason(axes, reason)
        answer = "no answer"
    else:
        answer = f"{_shorten(str(prediction.label), 16)} {prediction.score:.2f}"
    _caption(axes, 0, answer, fontsize=9, fontweight="bold")
    line = 1
    if true_label is not None and not reason:
        wrong = canonical_label(true_label) != canonical_label(str(prediction.label))
        _mark_truth(axes, true_label, wrong)
        line = 2
    _caption(axes, line, _shorten(Path(str(prediction.source)).name, 28), fontsize=6.5, color=_GREY)


def _write_reason(axes: Axes, reason: str) -> None:
    axes.set_facecolor("#eeeeee")
    axes.text(
        0.5, 0.5, textwrap.fill(printable(reason), 24, max_lines=7, placeholder=" …"),
        transform=axes.transAxes, ha="center", va="center", fontsize=6.5, color=_GREY, parse_math=False,
    )  # fmt: skip


def _show_image(axes: Axes, image: Any) -> str | None:
    """Show an image centred in a square tile; return the reason where it cannot be read."""
    try:
        face = read_image(image)
    except ImageError as error:
        return str(error)
    face.thumbnail((int(_FACE * _DPI), int(_FACE * _DPI)))
    axes.imshow(np.asarray(face), interpolation="bilinear")
    side = max(face.size)
    axes.set_xlim((face.width - side) / 2 - 0.5, (face.width + side) / 2 - 0.5)
    axes.set_ylim((face.height + side) / 2 - 0.5, (face.height - side) / 2 - 0.5)
    return None


def _mark_truth(axes: Axes, true_label: str, wrong: bool) -> None:
    text = f"{WRONG if wrong else RIGHT} true: {_shorten(true_label, 18)}"
    _caption(axes, 1, text, fontsize=8.5, color=_VERMILLION if wrong else _BLUE)
    if wrong:
        axes.spines[:].set(color=_VERMILLION, linewidth=3, linestyle=(0, (3, 2)), capstyle="butt")
    else:
        axes.spines[:].set(color=_BLUE, linewidth=1)


def _caption(axes: Axes, line: int, text: str, **style: Any) -> None:
    below = (1, -11 - 11 * line)
    axes.annotate(text, (0, 0), below, xycoords="axes fraction", textcoords="offset points", parse_math=False, **style)


def photographs(
    images: Sequence[Any], answers: Sequence[Sequence[Prediction]], *, out: str | Path, total: int | None = None
) -> None:
    """Draw the answers on the photographs: each face's box, its label and score, and its likeliest classes as bars.

    Bars that have no room beside their face stand in a margin, as far as they fit there; a name that has none is left
    out, and the line below the photograph says of how many faces. An image that could not be read is an empty tile
    with the reason.

    Args:
        images: Whatever `read_image` takes; the first `PHOTOGRAPHS_LIMIT` are drawn.
        answers: For each image its answers: one a face, or one for the whole image.
        out: The file to write.
        total: Number of images there are, where only some of them are given; the picture says so.

    Raises:
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    out = check_output(out)
    shown = min(len(images), PHOTOGRAPHS_LIMIT)
    tiles = [_photograph(images[i], answers[i], alone=shown == 1) for i in range(shown)]
    columns = math.ceil(shown**0.5)
    rows = [tiles[start : start + columns] for start in range(0, shown, columns)]
    below, title = 0.45, _TITLE_HEIGHT if shown > 1 or (total or 1) > 1 else _MARGIN
    heights = [max(tile.image.height for tile in row) / _DPI + below for row in rows]
    widths = [max(tile.image.width for tile in tiles[column::columns]) / _DPI for column in range(columns)]
    width, height = sum(widths) + (columns + 1) * _MARGIN, title + sum(heights)
    figure = _new_figure(width, height)
    if title == _TITLE_HEIGHT:
        text = _sheet_title(shown, total or len(images), [])
        figure.text(_MARGIN / width, 1 - 0.2 / height, text, va="center", fontsize=9)
    top = height - title
    for row, high in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            wide, tall = (side / _DPI for side in tile.image.size)
            left = _MARGIN + sum(widths[:column]) + column * _MARGIN
            axes = figure.add_axes((left / width, (top - tall) / height, wide / width, tall / height))
            _draw_photograph(axes, tile)
        top -= high
    _save(figure, out)


class _Photograph(NamedTuple):
    """A photograph with its answers drawn, its name, and what is said of it; or why it is empty."""

    image: Image.Image
    name: str
    said: str
    reason: str | None


def _photograph(image: Any, answers: Sequence[Prediction], alone: bool) -> _Photograph:
    """Return a photograph, as large as it is drawn."""
    name, reason = str(answers[0].source), answers[0].error
    picture = Image.new("RGB", (_ONE_OF_SEVERAL // 2, _ONE_OF_SEVERAL // 2))
    if reason is None:
        try:
            picture = read_image(image)
        except ImageError as error:
            reason = str(error)
    if reason is not None:
        return _Photograph(picture, name, "no answer", reason)
    scale = (_alone(picture.size, answers) if alone else _ONE_OF_SEVERAL) / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    drawing = annotate(picture, answers, text=_TEXT, scale=scale, margin=True)
    faces = sum(answer.face is not None for answer in answers)
    said = "no face found; the whole image was answered"
    if faces or not answers[0].sought:
        said = counted(faces, "face") if faces else ""
        if drawing.unnamed:
            said += f"; there is no room for the names of {drawing.unnamed:,}"
    return _Photograph(drawing.image, name, said, None)


def _alone(size: tuple[int, int], answers: Sequence[Prediction]) -> int:
    """Return how long the longer side of the only photograph is drawn."""
    side = min(max(*size, _ALONE[0]), _ALONE[1])
    faces = [answer.face.box[2] - answer.face.box[0] for answer in answers if answer.face is not None]
    if not faces:
        return side
    wanted = _FACE_OF_FEW if len(faces) <= _FEW else _FACE_OF_MANY
    return max(side, min(round(wanted / max(float(np.median(faces)), 1) * max(size)), _CROWD))


def _draw_photograph(axes: Axes, tile: _Photograph) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if tile.reason is None:
        axes.imshow(np.asarray(tile.image), aspect="auto", interpolation="antialiased")
    else:
        _write_reason(axes, tile.reason)
    longest = int(tile.image.width / _DPI * 16)  # characters of the name's size
    _caption(axes, 0, tile.said, fontsize=8, fontweight="bold")
    _caption(axes, 1, _shorten(Path(tile.name).name, max(longest, 12)), fontsize=6.5, color=_GREY)


def confusion_matrix(evaluation: Evaluation, *, out: str | Path, table: bool = False) -> None:
    """Draw a confusion matrix as a heat map: rows true classes, columns answers, rate and count in each cell.

    The row of a class without images is hatched and says so; it is not zero.

    Args:
        evaluation: What is drawn.
        out: The file to write.
        table: Also write the table; without it nothing else is touched where the picture goes.

    Raises:
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    out = check_output(out)
    side = _matrix_side(evaluation)
    figure = _new_figure(side + 2.6, side + 1.9, layout="constrained")
    axes = figure.add_subplot()
    heat = _draw_matrix(axes, evaluation)
    figure.colorbar(heat, ax=axes, shrink=0.7, label=_HEAT_LABEL)
    axes.set_title(_matrix_title(evaluation), fontsize=10, pad=10)
    _save(figure, out, bbox_inches="tight")
    if table:
        _write_table(out, _matrix_rows(evaluation))


def comparison(compared: Comparison, names: tuple[str, str], *, out: str | Path) -> None:
    """Draw the confusion matrices of two models side by side, with McNemar's test below; and write the table.

    Args:
        compared: What is drawn.
        names: What the models are called.
        out: The file to write; the table goes beside it.

    Raises:
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    out = check_output(out)
    sides = list(zip(names, (compared.first, compared.second), strict=True))
    side = _matrix_side(compared.first)
    figure = _new_figure(2 * side + 3.2, side + 2.3, layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, (name, evaluation) in zip(both, sides, strict=True):
        heat = _draw_matrix(axes, evaluation)
        axes.set_title(f"{_shorten(name, 48)}\n{_matrix_title(evaluation)}", fontsize=10, pad=10, parse_math=False)
    both[1].set_ylabel("")
    figure.colorbar(heat, ax=both, shrink=0.7, label=_HEAT_LABEL)
    figure.supxlabel(_mcnemar_line(compared), fontsize=10)
    _save(figure, out, bbox_inches="tight")
    _write_table(out, [{"model": name} | row for name, evaluation in sides for row in _matrix_rows(evaluation)])


def _mcnemar_line(compared: Comparison) -> str:
    return (
        f"right by the left one alone: {compared.only_first_right:,}, by the right one alone: "
        f"{compared.only_second_right:,}; McNemar's exact test: p = {compared.p_value:.2g}"
    )


def _matrix_side(evaluation: Evaluation) -> float:
    return max(4.5, 0.72 * len(evaluation.labels))


def _draw_matrix(axes: Axes, evaluation: Evaluation) -> AxesImage:
    """Draw the heat map with its labels and numbers."""
    labels = [_shorten(label, 20) for label in evaluation.labels]
    counts = np.array(evaluation.confusion_matrix)
    rates = np.array(evaluation.confusion_rates, dtype=float)  # None becomes NaN, which is left blank
    heat = axes.imshow(rates, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", rotation_mode="anchor", parse_math=False)
    rows = [f"{label} ({count:,})" for label, count in zip(labels, counts.sum(axis=1), strict=True)]
    axes.set_yticks(range(len(labels)), rows, parse_math=False)
    axes.set(xlabel="answer", ylabel="true class (images)")
    axes.set_xticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(labels) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    for row in range(len(labels)):
        if np.isnan(rates[row]).any():
            _hatch_row(axes, row, len(labels))
        else:
            _write_row(axes, row, rates[row], counts[row])
    return heat


def _matrix_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the table of a confusion matrix: a row a cell, the rate empty for a class without images."""
    labels = evaluation.labels
    return [
        {
            "true": labels[row],
            "answer": labels[column],
            "images": evaluation.confusion_matrix[row][column],
            "rate": evaluation.confusion_rates[row][column],
        }
        for row in range(len(labels))
        for column in range(len(labels))
    ]


def _matrix_title(evaluation: Evaluation) -> str:
    present, classes = evaluation.classes_with_images, len(evaluation.labels)
    return (
        f"{counted(evaluation.images, 'image')}: accuracy {evaluation.accuracy:.3f}\n"
        f"mean class accuracy {evaluation.mean_class_accuracy:.3f} over "
        f"{classes if present == classes else f'the {present} of {classes}'} classes"
        f"{'' if present == classes else ' that have images'}"
    )


def _write_row(axes: Axes, row: int, rates: np.ndarray, counts: np.ndarray) -> None:
    for column, (rate, count) in enumerate(zip(rates, counts, strict=True)):
        color = "white" if rate > 0.55 else "black" if count else "#999999"
        axes.text(column, row - 0.12, f"{rate:.2f}", ha="center", va="center", fontsize=10, color=color)
        axes.text(column, row + 0.22, f"{count:,}", ha="center", va="center", fontsize=7, color=color)


def _hatch_row(axes: Axes, row: int, columns: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(
        Rectangle((-0.5, row - 0.5), columns, 1, facecolor="#f4f4f4", edgecolor="#b0b0b0", hatch="////", linewidth=0)
    )
    box = {"facecolor": "white", "edgecolor": "none", "pad": 3}
    axes.text((columns - 1) / 2, row, "no images", ha="center", va="center", fontsize=10, color=_GREY, bbox=box)


def mistakes(answers: Answers, *, out: str | Path) -> None:
    """Draw the wrong answers that were given with most confidence; the table holds every wrong answer, surest first.

    Args:
        answers: What a model answered about a dataset.
        out: The file to write; the table goes beside it.

    Raises:
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    out = check_output(out)
    wrong = answers.mistakes()
    rows = [
        {
            "source": answers.dataset.source(answers.places[i]),
            "true": answers.labels[answers.true[i]],
            "answer": answers.labels[answers.predicted[i]],
            "score": float(answers.scores[i]),
        }
        for i in wrong
    ]
    shown = rows[:MISTAKES_LIMIT]
    contact_sheet(
        [answers.dataset.read(answers.places[i]) for i in wrong[:MISTAKES_LIMIT]],
        [Prediction(row["source"], row["answer"], row["score"], {}) for row in shown],
        [row["true"] for row in shown],
        out=out,
        title=_mistakes_title(len(shown), len(rows), len(answers.places)),
    )
    _write_table(out, rows, columns=("source", "true", "answer", "score"))


def _mistakes_title(shown: int, wrong: int, images: int) -> str:
    if not wrong:
        return f"No mistake in {counted(images, 'image')}"
    if shown < wrong:
        return f"The {shown} most confident of {wrong:,} mistakes in {counted(images, 'image')}"
    return f"All mistakes in {counted(images, 'image')} ({wrong}), most confident first"


def calibration(evaluation: Evaluation, *, out: str | Path) -> None:
    """Draw how often answers are right beside how sure they are, by score and by class; and write the table.

    Args:
        evaluation: What is drawn; it must know the scores of the answers.
        out: The file to write; the table goes beside it.

    Raises:
        OptionError: The evaluation knows no scores.
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    out = check_output(out)
    if evaluation.calibration is None:
        raise OptionError("Without the scores of the answers there is no calibration; give them to `evaluate`.")
    known = evaluation.calibration
    figure = _new_figure(11, max(4.6, 0.5 * len(known.by_class)), layout="constrained")
    by_score, by_class = figure.subplots(1, 2)
    _draw_bins(by_score, known)
    by_score.set_title(f"expected calibration error {evaluation.expected_calibration_error:.3f}", fontsize=10)
    _draw_sureness(by_class, known)
    _save(figure, out, bbox_inches="tight")
    parts = [*((f"score {group.low:.4f} to {group.high:.4f}", group) for group in known.bins), *known.by_class.items()]
    _write_table(
        out,
        [
            {"part": part, "answers": group.answers, "mean_score": group.mean_score, "accuracy": group.accuracy}
            for part, group in parts
        ],
    )


def _draw_bins(axes: Axes, known: Calibration) -> None:
    """Draw a bar a bin: how often its answers are right, its width their scores; each says how many answers it has."""
    axes.plot((0, 1), (0, 1), color="black", linewidth=1, linestyle="--", label="as often right as sure")
    used = [group for group in known.bins if group.answers]
    axes.bar(
        [group.low for group in used],
        [group.accuracy or 0 for group in used],
        [group.high - group.low for group in used],
        align="edge", color=_SKY, edgecolor=_BLUE, label="share that is right (number of answers)",
    )  # fmt: skip
    for group in used:
        axes.annotate(
            f"{group.answers:,}", ((group.low + group.high) / 2, group.accuracy or 0), (0, 3),
            textcoords="offset points", ha="center", fontsize=7,
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1.08), xlabel="score of the answer", ylabel="share of these answers that is right")
    _legend_below(axes)


def _draw_sureness(axes: Axes, known: Calibration) -> None:
    """Draw for each class how sure its answers are and how often right, a line between the two."""
    labels = [f"{_shorten(label, 20)} ({group.answers:,})" for label, group in known.by_class.items()]
    axes.set_yticks(range(len(labels)), labels, parse_math=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(labels) - 0.4, -0.6), ylabel="answer (how often)")
    axes.grid(axis="x", color="#dddddd")
    axes.set_axisbelow(True)
    groups = known.by_class.values()
    for row, group in enumerate(groups):
        if not group.answers:
            axes.text(0.5, row, "never the answer", ha="center", va="center", fontsize=9, color=_GREY)
    rows = np.arange(len(labels))
    # None becomes NaN, which is not drawn.
    scores = np.array([group.mean_score for group in groups], dtype=float)
    right = np.array([group.accuracy for group in groups], dtype=float)
    axes.hlines(rows, right, scores, color=_GREY, linewidth=2, zorder=1)
    axes.scatter(right, rows, s=60, color=_BLUE, marker="s", label="share that is right")
    axes.scatter(scores, rows, s=60, facecolors="white", edgecolors=_VERMILLION, linewidths=2, label="mean score")
    axes.set_title("by the class that was answered", fontsize=10)
    _legend_below(axes)


def _legend_below(axes: Axes) -> None:
    """Put the legend where no number can make a bar or a mark stand behind it."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=8, ncols=2, frameon=False)


def curves(rows: Sequence[Mapping[str, Any]], *, out: str | Path) -> None:
    """Draw how loss and accuracy went from epoch to epoch; and write the table.

    Args:
        rows: An epoch each: `epoch`, and numbers such as `train_loss`, `valid_loss`, `train_accuracy`,
            `valid_accuracy`, `valid_mean_class_accuracy`. What ends in `loss` is drawn in one panel, what ends in
            `accuracy` in the other; what an epoch lacks, or is None, is left out.
        out: The file to write; the table goes beside it and holds all that the rows do.

    Raises:
        OptionError: There is no row with a loss or an accuracy.
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    out = check_output(out)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    drawn = [key for key in columns if any(row.get(key) is not None for row in rows)]
    panels = [[key for key in drawn if key.endswith(kind)] for kind in ("accuracy", "loss")]
    panels = [keys for keys in panels if keys]
    if not panels:
        raise OptionError("There are no epochs to draw: no row holds a loss or an accuracy.")
    figure = _new_figure(5.5 * len(panels), 4.2, layout="constrained")
    for axes, keys in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw_curves(axes, rows, keys)
    _save(figure, out, bbox_inches="tight")
    _write_table(out, rows, columns)


_CURVES = ((_BLUE, "--", "o"), (_VERMILLION, "-", "s"), (_GREEN, "-.", "^"), (_PURPLE, ":", "D"))


def _draw_curves(axes: Axes, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    """Draw a line a key, each of its own colour, dashes and mark; of accuracies the best valid epoch is marked."""
    from matplotlib.ticker import MaxNLocator

    for i, key in enumerate(keys):
        color, dashes, mark = _CURVES[i % len(_CURVES)]
        points = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
        axes.plot(
            *zip(*points, strict=True),
            color=color, linestyle=dashes, label=key.replace("_", " "),
            marker=mark, markersize=4, markevery=max(1, len(points) // 20),
        )  # fmt: skip
        if key == "valid_accuracy":
            best = max(points, key=lambda point: point[1])
            axes.axvline(best[0], color=_GREY, linewidth=0.8)
            axes.set_title(f"best valid accuracy {best[1]:.4f}, epoch {best[0]}", fontsize=10)
    epochs = [row["epoch"] for row in rows]
    axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="accuracy" if keys[0].endswith("accuracy") else "loss")
    axes.grid(color="#dddddd")
    axes.legend(fontsize=8)


def timeline(
    faces: Mapping[int, ArrayLike],
    labels: Sequence[str],
    width: float,
    *,
    out: str | Path,
    total: int | None = None,
    title: str | None = None,
) -> None:
    """Draw each face's expressions over time: a row for each class, the brighter the likelier.

    Args:
        faces: By each face's number its probabilities (intervals, classes), NaN where it is not seen. The
            `TIMELINE_LIMIT` that are seen longest are drawn, in the order of their numbers.
        labels: The classes.
        width: Seconds of an interval.
        out: The file to write.
        total: Number of faces there are, where only those that are seen longest are given; the picture says so.
        title: What stands above.

    Raises:
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    out = check_output(out)
    rows = {number: np.asarray(values, dtype=float) for number, values in faces.items()}
    longest = sorted(rows, key=lambda number: (-np.isfinite(rows[number][:, 0]).sum(), number))[:TIMELINE_LIMIT]
    shown = sorted(longest)
    height = 0.22 * len(labels) + 0.35
    figure = _new_figure(9, max(1, len(shown)) * height + 1, layout="constrained")
    total = total or len(rows)
    left_out = f": the {len(shown)} of {total} faces that are seen longest" if len(shown) < total else ""
    figure.suptitle(f"{_shorten(title or 'Expressions over time', 60)}{left_out}", fontsize=10, parse_math=False)
    if not shown:
        figure.text(0.5, 0.4, "no face was seen", ha="center", color=_GREY)
        _save(figure, out)
        return
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    heat = None
    for axes, number in zip(panels, shown, strict=True):
        values = rows[number].T
        axes.set_facecolor("#dddddd")  # where the face is not seen
        heat = axes.imshow(
            np.ma.masked_invalid(values), cmap=_HEAT, vmin=0, vmax=1, aspect="auto", interpolation="nearest",
            extent=(0, values.shape[1] * width, len(labels) - 0.5, -0.5),
        )  # fmt: skip
        axes.set_yticks(range(len(labels)), [_shorten(label, 16) for label in labels], fontsize=7, parse_math=False)
        axes.set_title(f"face {number}", fontsize=8, loc="left", pad=2)
        axes.tick_params(axis="x", labelsize=7)
    panels[-1].set_xlabel("seconds; grey where the face is not seen", fontsize=8)
    if heat is not None:
        figure.colorbar(heat, ax=list(panels), label="probability", pad=0.01, aspect=30)
    _save(figure, out)


def landmarks(image: Any, points: ArrayLike, *, out: str | Path) -> None:
    """Draw the 68 points on a face, joined as 300-W groups them.

    Args:
        image: Whatever `read_image` takes.
        points: (68, 2), x then y, in pixels of the upright image; 0 is its left or upper edge.
        out: The file to write.

    Raises:
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
        ImageError: the image cannot be read.
    """
    out = check_output(out)
    face = read_image(image)
    xy = np.asarray(points, dtype=float)
    scale = 6 / max(face.size)
    figure = _new_figure(max(face.width * scale, 0.5), max(face.height * scale, 0.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(np.asarray(face), interpolation="bicubic", aspect="auto", extent=(0, face.width, face.height, 0))
    axes.autoscale(False)  # points outside the image do not shrink it
    for _, first, end, closed in LANDMARK_GROUPS:
        line = [*range(first, end), first] if closed else range(first, end)
        axes.plot(*xy[line].T, color="black", linewidth=3.5, alpha=0.6, solid_capstyle="round")
        axes.plot(*xy[line].T, color=_SKY, linewidth=1.8, solid_capstyle="round")
    axes.scatter(xy[:, 0], xy[:, 1], s=16, color="white", edgecolors="black", linewidths=0.8, zorder=3)
    _save(figure, out)


def explanations(image: Any, explained: Sequence[Explanation], *, out: str | Path) -> None:
    """Draw where a model looked on a face: its landmarks, the evidence for each class, its attention.

    Evidence is drawn where it speaks for the class, and the fifth of the picture that it marks most is outlined.
    Attention is drawn on a scale that starts at zero, so that an even one looks even; all of it on the same scale.

    Args:
        image: Whatever `read_image` takes.
        explained: Explanations of the same answer about this image, one a class; the attention is the first one's.
        out: The file to write.

    Raises:
        OutputError: `out` cannot be written.
        MissingExtraError: matplotlib is not installed.
        ImageError: the image cannot be read.
    """
    out = check_output(out)
    face = read_image(image)
    first = explained[0]
    even = {name: values * values.size / values.sum() for name, values in first.attention.items()}
    most = max((float(values.max()) for values in even.values()), default=1.0)
    panels = 1 + len(explained) + len(even)
    tall = 2.7 * min(max(face.height / face.width, 0.5), 2)
    figure = _new_figure(2.7 * panels, tall + 1.1, layout="constrained")
    grid = figure.add_gridspec(2, panels, height_ratios=(tall, 0.1))
    one, *others = (figure.add_subplot(grid[0, i]) for i in range(panels))
    evidence, attention = others[: len(explained)], others[len(explained) :]
    _draw_under(one, face, first.landmarks, grey=False)
    one.set_title(f"answer: {_shorten(first.answer, 22)}\n", fontsize=9, parse_math=False)
    for axes, explanation in zip(evidence, explained, strict=True):
        _draw_under(axes, face, explanation.landmarks)
        heat = _draw_evidence(axes, explanation)
    scale = figure.add_subplot(grid[1, 1 : 1 + len(evidence)])
    _draw_scale(scale, heat, "evidence for the class, in parts of the largest")
    for axes, (name, values) in zip(attention, even.items(), strict=True):
        _draw_under(axes, face, first.landmarks)
        heat = _draw_heat(axes, first.size, values, most)
        title = f"attention: {name}\n{values.min():.1f} to {values.max():.1f} times an even share"
        axes.set_title(title, fontsize=9, parse_math=False)
    if attention:
        _draw_scale(figure.add_subplot(grid[1, 1 + len(evidence) :]), heat, "attention, in even shares")
    _save(figure, out, bbox_inches="tight")


def _draw_under(axes: Axes, face: Image.Image, points: ArrayLike | None, grey: bool = True) -> None:
    """Draw a face, faint and grey where heat comes over it, and its landmarks."""
    axes.set_axis_off()
    shown = face.convert("L").convert("RGB") if grey else face
    axes.imshow(np.asarray(shown), interpolation="bicubic", extent=(0, face.width, face.height, 0))
    axes.autoscale(False)
    if points is not None:
        x, y = np.asarray(points).T
        axes.scatter(x, y, s=5, color="white", edgecolors="black", linewidths=0.5, zorder=3)


def _draw_evidence(axes: Axes, explanation: Explanation) -> AxesImage:
    from poster_zoo.explain import marked

    values = explanation.grad_cam
    heat = _draw_heat(axes, explanation.size, values.clip(0), 1)
    (height, width), (across, down) = values.shape, explanation.size
    x, y = (np.arange(width) + 0.5) / width * across, (np.arange(height) + 0.5) / height * down
    axes.contour(x, y, marked(values), levels=[0.5], colors=["white"], linewidths=1.2)
    without, elsewhere = explanation.score_without, explanation.score_elsewhere
    axes.set_title(
        f"{_shorten(explanation.label, 16)} {explanation.score:.2f}\n"
        f"blanked: {without:.2f} outlined, {elsewhere:.2f} elsewhere",
        fontsize=9, parse_math=False,
    )  # fmt: skip
    return heat


def _draw_heat(axes: Axes, size: tuple[int, int], values: ArrayLike, most: float) -> AxesImage:
    """Lay a map of values in 0…`most` over a picture of this width and height, opaque where it is high."""
    return axes.imshow(
        np.asarray(values, dtype=float), cmap=_heat_colours(), vmin=0, vmax=most, interpolation="bilinear",
        extent=(0, size[0], size[1], 0),
    )  # fmt: skip


def _heat_colours() -> Colormap:
    """Return the colours of timelines, the clearer the lower: nothing is drawn at zero."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    levels = np.linspace(0, 1, 256)
    colours = colormaps[_HEAT](levels)
    colours[:, 3] = 0.8 * levels**0.5
    return ListedColormap(colours)


def _draw_scale(axes: Axes, heat: AxesImage, label: str) -> None:
    """Say which colour stands for how much, on grey as the faces are."""
    scale = heat.axes.figure.colorbar(heat, cax=axes, orientation="horizontal")
    axes.set_facecolor("#808080")
    axes.tick_params(labelsize=7)
    scale.set_label(label, fontsize=8)


def _new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """Return a figure of its own (inches), which is none of pyplot's: nothing global changes and nothing pops up."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout=layout)


def _save(figure: Figure, out: Path, **options: Any) -> None:
    """Write a figure."""
    with whole_file(out) as place, warnings.catch_warnings():
        # File names may be in a script that the font lacks; it draws boxes for them, which is enough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(place, format=out.suffix[1:].lower(), **options)


def _write_table(out: Path, rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> None:
    """Write beside the figure `out` what it shows, as CSV; what a row lacks, or is None, is empty."""
    # Surrogates stand for bytes of file names that are no UTF-8; they go out as they came in.
    with (
        whole_file(out.with_suffix(".csv")) as place,
        place.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        table = csv.DictWriter(file, list(columns or rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _shorten(text: str, width: int) -> str:
    """Return `text`, printable, with an ellipsis in its middle where it is longer than `width` characters."""
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - width // 2 - 1]}…{text[-(width // 2) :]}"
