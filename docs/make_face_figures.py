"""Draw the figures of the pages on photographs and on explanations into docs/pages/figures.

    python docs/make_face_figures.py

The photographs are in the public domain: `examples/face.png`, and two that scikit-image and matplotlib carry.
"""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

from matplotlib import cbook
from PIL import Image

from poster_zoo import Predictor, plots
from poster_zoo.explain import Explainer

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "pages" / "figures"


def photographs() -> None:
    """Two photographs, answered as by `poster-zoo predict --plot`."""
    with tempfile.TemporaryDirectory() as folder:
        astronaut, hopper = Path(folder) / "astronaut.png", Path(folder) / "hopper.png"
        Image.fromarray(importlib.import_module("skimage.data").astronaut()).save(astronaut)
        Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)).save(hopper)
        images = [astronaut, hopper]
        out = FIGURES / "faces.png"
        plots.photographs(images, list(Predictor(faces="auto").stream_images(images)), out=out)
    shrink(out, 1000)


def explanation() -> None:
    """The face of the examples, as by `poster-zoo explain --faces none --label fear --plot`."""
    face, explainer = ROOT / "examples" / "face.png", Explainer()
    out = FIGURES / "explain_face.png"
    plots.explanations(face, [explainer(face), explainer(face, "fear")], out=out)
    shrink(out, 1500)


def shrink(file: Path, width: int) -> None:
    """Make a picture as wide as a page shows it, in all its colours."""
    with Image.open(file) as image:
        small = image.convert("RGB").resize(
            (width, round(image.height * width / image.width)), Image.Resampling.LANCZOS
        )
    small.save(file, optimize=True)


if __name__ == "__main__":
    photographs()
    explanation()
