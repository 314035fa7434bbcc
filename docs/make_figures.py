"""Draw the figures of the page on the method into docs/pages/figures.

    python docs/make_figures.py

Colours are Okabe and Ito's, which colour-blind readers tell apart; no figure says anything by colour alone.
"""

from __future__ import annotations

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
        self, x: float, y: float, width: float, text: str, look: tuple[str, str], height: float = 4, dashed: bool = False
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

    def text(self, x: float, y: float, text: str, align: str = "center", faint: bool = False, size: float = 8.5) -> None:
        """Write words around the point (x, y), or beside it."""
        self.axes.text(
            x, y, text, ha=align, va="center", fontsize=size, color=FAINT if faint else TEXT, linespacing=1.35, zorder=5
        )

    def arrow(self, *points: Point, colour: str = "#333333") -> None:
        """Draw a line through points that ends in an arrow head."""
        xs, ys = zip(*points, strict=True)
        self.axes.plot(xs[:-1], ys[:-1], color=colour, linewidth=1.2, zorder=2, solid_joinstyle="round")
        self.axes.annotate(
            "",
            points[-1],
            points[-2],
            arrowprops={
                "arrowstyle": "-|>,head_width=0.22,head_length=0.45",
                "color": colour,
                "linewidth": 1.2,
                "shrinkA": 0,
                "shrinkB": 0,
            },
            zorder=4,
        )

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
    d = Drawing(78, 74)
    image, landmark, middle, width = 20, 58, 39, 30
    d.box(middle, 70.5, 30, "RGB face, 3 × 224 × 224", PLAIN)
    d.box(middle, 64.5, 30, "resize by nearest neighbour, 3 × 112 × 112", PLAIN)
    d.arrow((middle, 68.5), (middle, 66.5))
    columns = {
        image: (
            IMAGE,
            "image stream: IR-50",
            ("stem and stage 1: 64 × 56 × 56", "stage 2: 128 × 28 × 28", "stage 3: 256 × 14 × 14"),
            "49 tokens of 1024, linear to 512",
            "their mean first, + position: 50 × 512",
        ),
        landmark: (
            LANDMARK,
            "landmark stream: MobileFaceNet, frozen",
            ("stem and stage 1: 64 × 28 × 28", "stage 2: 128 × 14 × 14", "stage 3: 512 × 7 × 7"),
            "49 tokens of 512",
            "their mean first: 50 × 512",
        ),
    }
    d.dot(middle, 61)
    d.axes.plot((middle, middle), (62.5, 61), color="#333333", linewidth=1.2, zorder=2)
    for x, (look, title, stages, tokens, mean) in columns.items():
        d.arrow((middle, 61), (x, 61), (x, 56.5))
        d.text(x + (-1 if x < middle else 1), 58.6, title, "right" if x < middle else "left")
        texts = (*stages, tokens, mean)
        for i, text in enumerate(texts):
            y = 54.5 - 5.4 * i
            d.box(x, y, width, text, look)
            if i + 1 < len(texts):
                d.arrow((x, y - 2), (x, y - 3.4))
        d.arrow((x, 30.9), (x, 26), (middle + (-15 if x < middle else 15), 26))
    d.box(middle, 26, 30, "all tokens: 100 × 512", FUSION)
    d.box(middle, 19.6, 30, "pyramid cross-fusion, 8 blocks", FUSION, height=4.6)
    d.box(middle, 13.6, 30, "LayerNorm, token 0 (the image's mean)", PLAIN)
    d.box(middle, 8.2, 30, "gate:  x · σ(W₂ relu(W₁ x))", PLAIN)
    d.box(middle, 2.8, 30, "linear head: a logit a class", PLAIN)
    for top, bottom in ((24, 21.9), (17.3, 15.6), (11.6, 10.2), (6.2, 4.8)):
        d.arrow((middle, top), (middle, bottom))
    d.text(middle + 16, 19.6, "4 in “small”,\n6 in “base”", "left", faint=True)
    d.save("overview")


def cross_fusion() -> None:
    """One cross-fusion block: each stream's keys and values, asked by the other stream's tokens."""
    d = Drawing(78, 72)
    image, landmark, middle = 19, 59, 39
    d.box(middle, 68.5, 26, "100 tokens come in", FUSION)
    for x, look, name, other in ((image, IMAGE, "image", "landmark"), (landmark, LANDMARK, "landmark", "image")):
        left = x < middle
        inner, outer = (x + 8, x - 8) if left else (x - 8, x + 8)
        residual = x - 17 if left else x + 17
        d.arrow((middle + (-13 if left else 13), 68.5), (x, 68.5), (x, 64))
        d.text(x, 62.6, f"X: 50 {name} tokens", size=9)
        d.axes.plot((x, x), (61.2, 60), color="#333333", linewidth=1.2, zorder=2)
        # own tokens to keys and values; the other stream's come over the middle as queries
        d.arrow((x, 60), (outer, 60), (outer, 57))
        d.box(outer, 55, 14, "LayerNorm", look)
        d.arrow((outer, 53), (outer, 50.4))
        d.box(outer, 47.9, 14, "linear: K and V\nof the own tokens", look, height=5)
        d.box(inner, 55, 13, "LayerNorm\n(the same one)", look, height=4.6)
        d.arrow((inner, 52.7), (inner, 42.4))
        d.text(inner + (1 if left else -1), 47.6, f"Q: the {other}\ntokens as\nthey are", "left" if left else "right")
        d.arrow((outer, 45.4), (outer, 42.4))
        d.box(x, 40, 30, "softmax(Q Kᵀ / √d) V,  8 heads", look, height=4.8)
        d.arrow((x, 37.6), (x, 35.8))
        d.box(x, 33.8, 30, "linear", look)
        d.arrow((x, 31.8), (x, 30.3))
        d.plus(x, 29.2)
        d.arrow((x, 60), (residual, 60), (residual, 29.2), (x + (-1.1 if left else 1.1), 29.2))
        d.arrow((x, 28.1), (x, 24.3))
        d.dot(x, 26.4)
        d.box(x, 22.2, 30, "LayerNorm → linear → GELU → linear", look)
        d.arrow((x, 20.2), (x, 18.7))
        d.plus(x, 17.6)
        d.arrow((x, 26.4), (residual, 26.4), (residual, 17.6), (x + (-1.1 if left else 1.1), 17.6))
        d.arrow((x, 16.5), (x, 11.5), (middle + (-13 if left else 13), 11.5))
        d.dot(x, 60)
    for start, end, colour in ((image, landmark - 8, IMAGE[1]), (landmark, image + 8, LANDMARK[1])):
        y = 60 if start == image else 58.8
        d.arrow((start, 60), (start, y), (end, y), (end, 57.3), colour=colour)
    d.box(middle, 11.5, 26, "100 tokens", FUSION)
    d.arrow((middle, 9.5), (middle, 6.2))
    d.box(middle, 3.6, 50, "mix: each token a learned sum of all 100\n(released for RAF-DB, absent for AffectNet)", FUSION, 5, True)
    d.save("cross_fusion")


def pyramid() -> None:
    """The three levels, and what a block adds upwards."""
    d = Drawing(78, 42)
    rows = {"large": (34, "100 × 512"), "medium": (22, "100 × 256"), "small": (10, "100 × 128")}
    x_in, x_fuse, x_sum, x_dots, x_last, x_end = 9, 27, 42, 50.5, 58, 71
    for level, (y, size) in rows.items():
        d.box(x_in, y, 14, f"{level}\n{size}", PLAIN, height=5.4)
        d.arrow((x_in + 7, y), (x_fuse - 8, y))
        d.box(x_fuse, y, 16, f"cross-fusion,\n{size.split()[-1]} wide", FUSION, height=5.4)
        d.text(x_dots, y, "…", size=13)
        d.box(x_last, y, 9, "block\n8", FUSION, height=5.4)
    d.arrow((x_in, 31.3), (x_in, 24.7))
    d.text(x_in + 1, 28, "convolve, 2 in 1", "left", size=8)
    d.arrow((x_in - 6, 31.3), (x_in - 6, 12.7))
    d.text(x_in - 5, 16, "convolve, 4 in 1", "left", size=8)
    for level, below in (("large", "medium"), ("medium", "small")):
        y, y_below = rows[level][0], rows[below][0]
        d.arrow((x_fuse + 8, y), (x_sum - 1.1, y))
        d.plus(x_sum, y)
        d.arrow((x_sum + 1.1, y), (x_dots - 2, y))
        end = x_sum if below == "medium" else x_sum
        d.arrow((end, y_below + (1.1 if below == "medium" else 0)), (end, y - 1.1))
        d.text(x_sum + 1, (y + y_below) / 2, "widen,\n1 to 2", "left", size=8)
        d.arrow((x_dots + 2, y), (x_last - 4.5, y))
    d.arrow((x_fuse + 8, 10), (x_dots - 2, 10))
    d.dot(x_sum, 10)
    d.arrow((x_dots + 2, 10), (x_last - 4.5, 10))
    d.axes.add_patch(
        FancyBboxPatch(
            (17.8, 5), 28.6, 34.4, boxstyle="round,pad=0,rounding_size=1", fill=False, edgecolor="#888888", linestyle=":"
        )
    )
    d.text(32, 40.8, "block 1", faint=True)
    d.arrow((x_last + 4.5, 34), (x_end - 5.5, 34))
    d.box(x_end, 34, 11, "LayerNorm,\ntoken 0", PLAIN, height=5.4)
    d.text(x_end, 16, "medium and small\nend here: they\nreach the answer\nthrough the sums", faint=True, size=8)
    d.save("pyramid")


if __name__ == "__main__":
    overview()
    cross_fusion()
    pyramid()
