"""Draw the figures of the page on the method into docs/pages/figures.

    .venv/bin/python docs/make_figures.py

Colours are Okabe and Ito's, which colour-blind readers tell apart; no figure says anything by colour alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch

OUT = Path(__file__).resolve().parent / "pages" / "figures"

# Fill and edge of a box.
IMAGE = ("#d3e8f6", "#0072b2")
LANDMARK = ("#fbe7c2", "#a86b00")
FUSION = ("#cfeee2", "#00795a")
PLAIN = ("#f2f2f2", "#555555")
TEXT, FAINT = "#111111", "#555555"

Point = tuple[float, float]


class Drawing:
    """Boxes, arrows and words on a white sheet whose unit is a tenth of an inch."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width / 10, height / 10), facecolor="white")
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1), frameon=False, xticks=[], yticks=[])
        self.axes.set(xlim=(0, width), ylim=(0, height))

    def box(
        self,
        x: float,
        y: float,
        width: float,
        text: str,
        look: tuple[str, str],
        height: float = 4,
        dashed: bool = False,
    ) -> None:
        """Draw a box around the point (x, y) with one or two lines of text."""
        fill, edge = look
        self.axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=0.6",
                facecolor=fill,
                edgecolor=edge,
                linewidth=1.2,
                linestyle="--" if dashed else "-",
                zorder=3,
            )
        )
        self.text(x, y, text)

    def text(
        self, x: float, y: float, text: str, align: str = "center", faint: bool = False, size: float = 8.5
    ) -> None:
        """Write words around the point (x, y), or beside it."""
        self.axes.text(
            x, y, text, ha=align, va="center", fontsize=size, color=FAINT if faint else TEXT, linespacing=1.35, zorder=5
        )

    def arrow(self, *points: Point, colour: str = "#333333") -> None:
        """Draw a line through points that ends in an arrow head."""
        (x0, y0), (x1, y1) = points[-2:]
        part = 0.9 / math.hypot(x1 - x0, y1 - y0)  # of the last stretch, for the head
        neck = (x1 - part * (x1 - x0), y1 - part * (y1 - y0))
        xs, ys = zip(*points[:-1], neck, strict=True)
        self.axes.plot(xs, ys, color=colour, linewidth=1.2, zorder=2, solid_joinstyle="miter")
        head = {"arrowstyle": "-|>,head_width=0.22,head_length=0.45", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", points[-1], neck, arrowprops=head | {"color": colour}, zorder=4)

    def plus(self, x: float, y: float) -> None:
        """Draw a sum."""
        self.axes.add_patch(Circle((x, y), 1.1, facecolor="white", edgecolor="#333333", linewidth=1.2, zorder=4))
        self.text(x, y, "+", size=10)

    def dot(self, x: float, y: float) -> None:
        """Mark that a line forks here."""
        self.axes.add_patch(Circle((x, y), 0.32, color="#333333", zorder=4))

    def save(self, name: str) -> None:
        """Write the drawing; the same code gives the same file."""
        OUT.mkdir(parents=True, exist_ok=True)
        with mpl.rc_context({"svg.hashsalt": name}):
            self.figure.savefig(OUT / f"{name}.svg", metadata={"Date": None, "Creator": None})


def overview() -> None:
    """POSTER from the face to the logits."""
    d = Drawing(78, 75)
    middle, width = 39, 30
    d.box(middle, 72, width, "RGB face, 3 × 224 × 224", PLAIN)
    d.box(middle, 66, width, "nearest neighbour: 3 × 112 × 112", PLAIN)
    d.arrow((middle, 70), (middle, 68))
    d.dot(middle, 62.2)
    streams = (
        (
            (20, IMAGE, "image stream:\nIR-50", "right", -1),
            ("stem and stage 1: 64 × 56 × 56", "stage 2: 128 × 28 × 28", "stage 3: 256 × 14 × 14"),
            ("49 tokens of 1024, linear to 512", "their mean first, + position: 50 × 512"),
        ),
        (
            (58, LANDMARK, "landmark stream:\nMobileFaceNet, frozen", "left", 1),
            ("stem and stage 1: 64 × 28 × 28", "stage 2: 128 × 14 × 14", "stage 3: 512 × 7 × 7"),
            ("49 tokens of 512", "their mean first: 50 × 512"),
        ),
    )
    for (x, look, title, align, side), stages, tokens in streams:
        d.arrow((middle, 64), (middle, 62.2), (x, 62.2), (x, 56.5))
        d.text(x + side, 59.3, title, align)
        texts = stages + tokens
        for i, text in enumerate(texts):
            y = 54.5 - 5.4 * i
            d.box(x, y, width, text, look)
            if i + 1 < len(texts):
                d.arrow((x, y - 2), (x, y - 3.4))
        d.arrow((x, 30.9), (x, 26), (middle + 15 * side, 26))
    d.box(middle, 26, width, "all tokens: 100 × 512", FUSION)
    d.box(middle, 19.6, width, "pyramid cross-fusion, 8 blocks", FUSION, height=4.6)
    d.text(middle + 16, 19.6, "4 in “small”,\n6 in “base”", "left", faint=True)
    d.box(middle, 13.6, width, "LayerNorm, token 0 (the image’s mean)", PLAIN)
    d.box(middle, 8.2, width, "gate:  x · σ(W₂ relu(W₁ x))", PLAIN)
    d.box(middle, 2.8, width, "linear head: a logit a class", PLAIN)
    for top, bottom in ((24, 21.9), (17.3, 15.6), (11.6, 10.2), (6.2, 4.8)):
        d.arrow((middle, top), (middle, bottom))
    d.save("overview")


def cross_fusion() -> None:
    """One cross-fusion block: each stream's keys and values, asked by the other stream's tokens."""
    d = Drawing(78, 74)
    middle = 39
    streams = ((19, IMAGE, "image", "landmark", -1), (59, LANDMARK, "landmark", "image", 1))
    d.box(middle, 71, 26, "100 tokens come in", FUSION)
    for x, look, name, other, side in streams:
        inner, outer, skip = x - 8 * side, x + 8 * side, x + 17 * side
        d.arrow((middle + 13 * side, 71), (x, 71), (x, 66.4))
        d.text(x, 65, f"X: 50 {name} tokens", size=9)
        # The own tokens, for keys and values; the other stream's are drawn below.
        d.arrow((x, 63.6), (x, 62.4), (outer, 62.4), (outer, 59))
        d.dot(x, 62.4)
        d.box(outer, 57, 14, "LayerNorm", look)
        d.arrow((outer, 55), (outer, 52.4))
        d.box(outer, 49.9, 14, "linear: K and V\nof the own tokens", look, height=5)
        d.arrow((outer, 47.4), (outer, 44.4))
        d.box(inner, 57, 13, "LayerNorm\n(the same one)", look, height=4.6)
        d.arrow((inner, 54.7), (inner, 44.4))
        d.text(inner - side, 49.6, f"Q: the {other}\ntokens, without\na projection", "left" if side < 0 else "right")
        d.box(x, 42, 30, "softmax(Q Kᵀ / √d) V,  8 heads", look, height=4.8)
        d.arrow((x, 39.6), (x, 37.8))
        d.box(x, 35.8, 30, "linear", look)
        d.arrow((x, 33.8), (x, 32.3))
        d.plus(x, 31.2)
        d.arrow((x, 62.4), (skip, 62.4), (skip, 31.2), (x + 1.1 * side, 31.2))
        d.arrow((x, 30.1), (x, 26.3))
        d.dot(x, 28.4)
        d.box(x, 24.2, 30, "LayerNorm → linear → GELU → linear", look)
        d.arrow((x, 22.2), (x, 20.7))
        d.plus(x, 19.6)
        d.arrow((x, 28.4), (skip, 28.4), (skip, 19.6), (x + 1.1 * side, 19.6))
        d.arrow((x, 18.5), (x, 13.5), (middle + 13 * side, 13.5))
    (image, (_, image_edge), *_), (landmark, (_, landmark_edge), *_) = streams
    d.arrow((image, 62.4), (landmark - 8, 62.4), (landmark - 8, 59.3), colour=image_edge)
    d.arrow((landmark, 62.4), (landmark, 60.9), (image + 8, 60.9), (image + 8, 59.3), colour=landmark_edge)
    d.box(middle, 13.5, 26, "100 tokens", FUSION)
    d.arrow((middle, 11.5), (middle, 8.6))
    mix = "mix: each token a learned sum of all 100\n(released for RAF-DB, not for AffectNet)"
    d.box(middle, 6, 50, mix, FUSION, 5, dashed=True)
    d.arrow((middle, 3.5), (middle, 0.8))
    d.save("cross_fusion")


def pyramid() -> None:
    """The three levels, and what a block adds upwards."""
    d = Drawing(84, 43)
    rows = {"large": (34, 512), "medium": (21, 256), "small": (8, 128)}
    x_in, x_fuse, x_sum, x_dots, x_last = 11.5, 32, 46, 58, 66
    for level, (y, features) in rows.items():
        d.box(x_in, y, 13, f"{level}\n100 × {features}", PLAIN, height=5.4)
        d.arrow((x_in + 6.5, y), (x_fuse - 7.5, y))
        d.box(x_fuse, y, 15, f"cross-fusion,\n{features} wide", FUSION, height=5.4)
        if level == "small":
            d.arrow((x_fuse + 7.5, y), (x_dots - 2, y))
            d.dot(x_sum, y)
        else:
            d.arrow((x_fuse + 7.5, y), (x_sum - 1.1, y))
            d.plus(x_sum, y)
            d.arrow((x_sum + 1.1, y), (x_dots - 2, y))
        d.text(x_dots, y, "…", size=13)
        d.arrow((x_dots + 2, y), (x_last - 4.5, y))
    d.arrow((x_in, 31.3), (x_in, 23.7))
    d.text(x_in + 1, 27.5, "convolution,\n2 features to 1", "left", size=8)
    d.arrow((x_in - 6.5, 34), (2.2, 34), (2.2, 8), (x_in - 6.5, 8))
    d.text(3.2, 14.5, "convolution,\n4 features to 1", "left", size=8)
    for start, end in ((8, 19.9), (22.1, 32.9)):
        d.arrow((x_sum, start), (x_sum, end))
        d.text(x_sum + 0.8, (start + end) / 2, "widen,\n1 to 2", "left", size=8)
    d.axes.add_patch(
        FancyBboxPatch(
            (23, 3), 30.5, 36, boxstyle="round,pad=0,rounding_size=1", fill=False, edgecolor="#888888", linestyle=":"
        )
    )
    d.text(38.2, 40.6, "block 1", faint=True)
    d.box(x_last, 21, 9, "block 8,\nthe same\nagain", FUSION, height=33)
    d.arrow((x_last + 4.5, 34), (73, 34))
    d.box(78, 34, 10, "LayerNorm,\ntoken 0", PLAIN, height=5.4)
    d.text(71.5, 14, "medium and\nsmall reach\nthe answer\nonly through\nthe sums", "left", faint=True, size=8)
    d.save("pyramid")


if __name__ == "__main__":
    overview()
    cross_fusion()
    pyramid()
