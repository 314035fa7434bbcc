"""Bytes → upright RGB: the one place where images are read.

What is decided here, the same wherever an image comes in:

- Stored rotation (EXIF, or XMP) is applied; where that note is damaged and the pixels are not, it counts as absent.
- 16-bit grey is scaled by the range of its type (65535 is white), never clipped. Of 32-bit integers only those that
  fit in 16 bits are read, as such. Floats are 0…1.
- Transparency is laid over white, as a page shows it.
- Of an animated file the first frame is read; an open PIL image stands for the frame it is at.
- Embedded colour profiles are not applied: they were not for the images that the models learned from.
- A truncated image is refused, as half a face would still get an answer. (A program that sets PIL's
  `ImageFile.LOAD_TRUNCATED_IMAGES` switches that off.)
- An image of more than twice PIL's `Image.MAX_IMAGE_PIXELS`, by default 179 million pixels, is refused.
- Only the formats in `FORMATS` are tried: PIL knows others that start programs or that nobody photographs in.

PIL speaks of damaged files through `warnings` as well, which would print beside the one sentence of `ImageError`.
Changing the filters and putting them back is not safe where threads decode, so reading an image adds filters to the
process that ignore PIL's `UserWarning` and `DecompressionBombWarning`; a program's own filters go before them.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from poster_zoo.errors import ImageError

__all__ = [
    "BACKGROUND",
    "FORMATS",
    "ImageSource",
    "each_image",
    "image_suffixes",
    "is_many",
    "list_images",
    "read_image",
]

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | np.ndarray[Any, Any] | Tensor"
)
"""Whatever `read_image` takes."""

BACKGROUND = (255, 255, 255)
"""What transparent pixels are laid over, R, G, B."""

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "PPM", "WEBP", "TIFF", "JPEG2000", "AVIF", "HEIF")
"""What PIL calls the formats that are read. AVIF needs Pillow 11.3; HEIF needs `pillow-heif`, registered."""

_HAS_AVIF = importlib.util.find_spec("PIL.AvifImagePlugin") is not None

# What PIL's decoders raise for damaged files, found by flipping bits in files of each format and in PIL's sources.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    RuntimeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombWarning,  # and UserWarning: where a program turns warnings into errors
    UserWarning,
)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the number of its EXIF orientation."""

_EIGHT_BITS = np.rint(np.arange(65536) / 257).astype(np.uint8)
"""The 8-bit grey nearest to each 16-bit one; a table, as arithmetic would need four times the image's memory."""

_QUIET: tuple[tuple[type[Warning], str], ...] = (
    (UserWarning, r"PIL\."),
    (Image.DecompressionBombWarning, r"PIL\.Image"),
)
_URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)
_LONGEST_NAME = 200  # of a source in a message; a data: address can have megabytes

# PIL also logs; without a handler of its own, Python would print that to stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def read_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """Read one image, upright, as RGB.

    Args:
        source: A file's path, its bytes, a file opened for bytes, a PIL image, an array H×W×3 or H×W, or a tensor
            3×H×W or 1×H×W. Arrays and tensors hold RGB (or grey), as uint8 or as floats in 0…1, which are rounded to
            8 bits; a fourth channel is taken as alpha.
        name: What messages call the image; by default a path's own name, and "the image" for others.

    Returns:
        A new image of mode RGB that shares nothing with `source` and says nothing more of rotation.

    Raises:
        ImageError: It cannot be read; one sentence says which image, what is wrong and what to do.
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_file(source, name or _shown(source))
    name = name or "the image"
    if isinstance(source, Image.Image):
        with _damage_reported(name):
            return _upright_rgb(source, name)
    if isinstance(source, np.ndarray):
        return _from_array(source, name, "H×W×3 or H×W", source.shape)
    if isinstance(source, Tensor):
        values = source.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        if values.ndim == 3:
            values = values.permute(1, 2, 0)
        return _from_array(values.numpy(), name, "3×H×W or 1×H×W", tuple(source.shape))
    if hasattr(source, "read"):
        with _damage_reported(name):
            source = source.read()
        if isinstance(source, str):
            raise ImageError(f"{name} is a file opened as text; open it with mode 'rb'.")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(bytes(source)), name)
    raise ImageError(
        f"{name} is given as {type(source).__name__}, which is no image; "
        f"give a path, bytes, a PIL image, an array H×W×3 or a tensor 3×H×W."
    )


def image_suffixes() -> set[str]:
    """Return the endings, in lower case and with the dot, of the files that are taken for images."""
    # MPO is what PIL calls a JPEG file that holds several pictures.
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the image files in a folder and its subfolders, in natural order ("2.png" before "10.png").

    An image is what bears the suffix of a format that is read; its content is not looked at. Names that begin with a
    dot are left out. Links are followed, each real folder once. A subfolder that may not be read stands in the list
    itself, so that whoever reads the list meets the error there and nothing is missed in silence.

    Raises:
        ImageError: There is no such folder, or it may not be read.
    """
    try:
        os.scandir(folder).close()
    except NotADirectoryError:
        raise ImageError(f"{_shown(folder)} is not a folder; give the folder that holds the images.") from None
    except (OSError, ValueError) as error:
        raise _cannot_open(folder, _shown(folder), error) from error
    suffixes = image_suffixes()
    folders = [Path(folder)]
    links: list[Path] = []
    found: list[tuple[_Natural, str, Path]] = []
    seen: set[str] = set()
    while folders or links:  # real folders first, so that a file is listed under its real place
        here = folders.pop() if folders else links.pop()
        if (real := os.path.realpath(here)) in seen:
            continue
        seen.add(real)
        order = [_natural(part) for part in here.parts]  # made once for all that lie there
        try:
            entries = list(os.scandir(here))
        except OSError:
            found.append((order, str(here), here))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                (links if entry.is_symlink() else folders).append(here / entry.name)
            elif os.path.splitext(entry.name)[1].lower() in suffixes:
                path = here / entry.name
                found.append(([*order, _natural(entry.name)], str(path), path))
    return [path for _, _, path in sorted(found)]


def is_many(inputs: Any) -> bool:
    """Return whether `inputs` are many images, a folder among them, rather than one."""
    if isinstance(inputs, (str, os.PathLike)):
        return os.path.isdir(inputs)
    if isinstance(inputs, (np.ndarray, Tensor)):
        return inputs.ndim == 4
    return (
        isinstance(inputs, Iterable)
        and not isinstance(inputs, (bytes, bytearray, memoryview, Image.Image))
        and not hasattr(inputs, "read")  # an open file is an iterable of lines
    )


def each_image(inputs: Any) -> Iterator[ImageSource]:
    """Yield the images one by one; in place of a folder those in it, or itself where that gives none."""
    if not is_many(inputs) or isinstance(inputs, (str, os.PathLike)):
        inputs = [inputs]
    for image in inputs:
        if isinstance(image, (str, os.PathLike)) and os.path.isdir(image):
            yield from _in_folder(image)
        else:
            yield image


def _in_folder(folder: str | os.PathLike[str]) -> Sequence[ImageSource]:
    try:
        return list_images(folder) or [folder]
    except ImageError:  # as reading the folder itself will say, in its place among the answers
        return [folder]


_Natural: TypeAlias = "list[list[str | int]]"


def _natural(name: str) -> list[str | int]:
    """Return what sorts numbers in names by their value; equal ones are told apart by their spelling."""
    # The pattern's group makes words and numbers alternate, words first, so that like is compared with like.
    return [int(word) if i % 2 else word for i, word in enumerate(re.split(r"(\d+)", name.casefold()))]


def _shown(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    return repr(text if len(text) <= _LONGEST_NAME else text[:_LONGEST_NAME] + "…")


def _cannot_open(path: str | os.PathLike[str], name: str, error: OSError | ValueError) -> ImageError:
    if _URL.match(os.fspath(path)) and not os.path.exists(path):
        return ImageError(f"{name} is a URL; download it first and give the file's path.")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError(f"{name} does not exist; check the path.")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ImageError(f"{name} cannot be opened: {reason}; check the path and its permissions.")


def _read_file(path: str | os.PathLike[str], name: str) -> Image.Image:
    try:
        kind = os.stat(path).st_mode
        if stat.S_ISDIR(kind):
            hint = "give one of the images in it" if list_images(path) else "there is no image file in it"
            raise ImageError(f"{name} is a folder, not an image; {hint}.")
        if not stat.S_ISREG(kind):  # a pipe or a device, whose end may never come
            raise ImageError(f"{name} is not a regular file; save the image to one and give its path.")
        with open(path, "rb") as file:
            return _decode(file, name)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise _cannot_open(path, name, error) from error


def _decode(file: IO[bytes], name: str) -> Image.Image:
    if not file.seek(0, os.SEEK_END):
        raise ImageError(f"{name} is empty (0 bytes); fetch or save it again.")
    with _damage_reported(name), Image.open(file, formats=_known_formats()) as image:
        return _upright_rgb(image, name)


def _known_formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this PIL can try; it raises for the name of a plugin that is not there."""
    absent = {"HEIF"} - set(Image.OPEN) | (set() if _HAS_AVIF else {"AVIF"})
    return tuple(kind for kind in FORMATS if kind not in absent)


@contextmanager
def _damage_reported(name: str) -> Iterator[None]:
    """Turn whatever PIL raises for an image into one sentence."""
    for category, module in _QUIET:
        if ("ignore", None, category, re.compile(module), 0) not in warnings.filters:
            warnings.filterwarnings("ignore", category=category, module=module, append=True)
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is damaged or no image in a format that is read here ({', '.join(_known_formats())}); "
            f"convert it to PNG or JPEG."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} has more pixels than PIL's limit allows and may be a decompression bomb; make it smaller, "
            f"or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name} is damaged or cut short ({reason}); fetch or save it again.") from error


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    image.load()  # before the orientation: PIL turns a TIFF itself as it loads
    turn = _turn(image)
    rgb = _to_rgb(image, name)
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info = {}  # it would still tell of the rotation, and the next reader would turn the image again
    return rgb


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except _DAMAGE:
        return None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return a new RGB image; PIL's own conversion clips wide greys and lets hidden colours show."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_integers(np.asarray(image), name).convert("RGB")
    if image.mode == "F":
        return _from_array(np.asarray(image), name, "H×W", image.size[::-1])
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, BACKGROUND)
        canvas.paste(rgba, mask=rgba)
        return canvas
    return image.convert("RGB")


def _from_integers(grey: np.ndarray[Any, Any], name: str) -> Image.Image:
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError(
            f"{name} holds grey values from {grey.min()} to {grey.max()}, for which no white is agreed; "
            f"save it with 8 or 16 bits."
        )
    return Image.fromarray(_EIGHT_BITS[grey])


def _from_array(values: np.ndarray[Any, Any], name: str, layout: str, shape: tuple[int, ...]) -> Image.Image:
    """Return the image that an array H×W×C or H×W holds; `layout` and `shape` are for the message alone."""
    grey = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if 0 in grey.shape or not (grey.ndim == 2 or (grey.ndim == 3 and grey.shape[2] in (3, 4))):
        raise ImageError(f"{name} has the shape {shape}; one image is {layout}, channels in the order RGB.")
    if np.issubdtype(grey.dtype, np.floating):
        low, high = grey.min(), grey.max()
        # Resizing in floats overshoots by some last digits; anything more is another scale, or NaN.
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ImageError(f"{name} holds floats from {low:g} to {high:g}; they must be in 0…1.")
        grey = np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8)
    elif grey.dtype != np.uint8:
        raise ImageError(f"{name} is of type {grey.dtype}; give uint8 in 0…255 or floats in 0…1.")
    with _damage_reported(name):
        return _to_rgb(Image.fromarray(np.ascontiguousarray(grey)), name)
