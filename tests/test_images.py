"""Images as they come: upright RGB or one clear sentence; and what becomes of them before a model sees them."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import ExifTags, Image, features
from PIL.PngImagePlugin import PngInfo
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform as timm_transform
from torch import nn

from poster_zoo.data import create_transform, list_images, read_image
from poster_zoo.data.transforms import split_transform
from poster_zoo.errors import ImageError, OptionError, UnknownArgumentError

Array = np.ndarray[Any, Any]


def colours(height: int = 24, width: int = 32) -> Array:
    """Return a picture whose corners differ, smooth enough to survive JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + y) * 2], axis=2).astype(np.uint8)


def encoded(image: Image.Image | Array, kind: str, **options: Any) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: Any) -> Array:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(source: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "0…1"))
    return message


def test_the_photograph_in_the_examples_is_read_from_path_text_bytes_and_file(root: Path) -> None:
    path = root / "examples" / "face.png"
    with Image.open(path) as image:
        expected = np.asarray(image)
    with path.open("rb") as file:
        for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), file):
            assert np.array_equal(pixels(source), expected)


# What EXIF's numbers mean: the stored rows and columns of an upright picture `a`.
STORED: dict[int, Callable[[Array], Array]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {})])
@pytest.mark.parametrize("orientation", STORED)
def test_stored_rotation_is_applied_once(kind: str, options: dict[str, Any], orientation: int) -> None:
    upright = colours()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(np.ascontiguousarray(STORED[orientation](upright)), kind, exif=exif, **options)
    read = read_image(data)
    assert np.abs(np.asarray(read).astype(int) - upright).max() <= (24 if kind == "JPEG" else 0)
    assert np.array_equal(pixels(read), np.asarray(read))
    assert np.array_equal(pixels(Image.open(io.BytesIO(data))), np.asarray(read))


def test_rotation_stored_as_xmp_is_applied() -> None:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="3"/>')
    assert np.array_equal(pixels(encoded(colours()[::-1, ::-1], "PNG", pnginfo=info)), colours())


def test_damaged_exif_leaves_sound_pixels_as_they_are() -> None:
    data = encoded(colours(), "WEBP", lossless=True, exif=b"Exif\0\0MM\0\x2bdamaged")
    assert np.array_equal(pixels(data), colours())


def test_an_open_pil_image_keeps_its_own_rotation_and_mode() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(io.BytesIO(encoded(Image.fromarray(colours()).convert("L"), "PNG", exif=exif))) as image:
        read_image(image)
        assert image.mode == "L"
        assert image.getexif()[ExifTags.Base.Orientation] == 6


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind: str) -> None:
    grey = np.array([[0, 128, 129, 257, 255, 32768, 40000, 65535]], dtype=np.uint16)
    # An old PIL reads 16-bit PPM and does not write it.
    data = b"P5 8 1 65535\n" + grey.astype(">u2").tobytes() if kind == "PPM" else encoded(grey, kind)
    expected = np.round(grey / 65535 * 255)
    assert np.array_equal(pixels(data), np.stack([expected] * 3, axis=2))


def test_big_endian_sixteen_bit_grey_is_read_alike() -> None:
    image = Image.new("I;16B", (2, 1), 32896)
    assert np.array_equal(pixels(image), np.full((1, 2, 3), 128))


def test_thirty_two_bit_integers_beyond_sixteen_bits_are_refused() -> None:
    assert "65536" in refusal(Image.fromarray(np.array([[0, 65536]], dtype=np.int32)))


def test_float_tiff_is_read_in_zero_to_one_and_refused_beyond() -> None:
    floats = np.array([[0, 0.25, 0.5, 1]], dtype=np.float32)
    assert pixels(encoded(floats, "TIFF"))[0, :, 0].tolist() == [0, 64, 128, 255]
    assert "0…1" in refusal(encoded(floats * 255, "TIFF"))


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_black_and_white_and_palette_give_their_colours(mode: str) -> None:
    image = Image.new("P" if mode == "P" else mode, (4, 3), 1 if mode == "1" else 255)
    if mode == "P":
        image.putpalette([0, 0, 0] * 255 + [10, 200, 30])
    expected = (10, 200, 30) if mode == "P" else (255, 255, 255)
    assert pixels(encoded(image, "PNG"))[1, 2].tolist() == list(expected)


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0, :, :3] = 200, 0, 100
    rgba[0, :, 3] = 0, 51, 255
    over_white = [[255, 255, 255], [244, 204, 224], [200, 0, 100]]  # alpha · colour + (1 - alpha) · 255
    for source in (encoded(rgba, "PNG"), encoded(rgba, "WEBP", lossless=True, exact=True), rgba):
        assert np.abs(pixels(source)[0].astype(int) - over_white).max() <= 1
    grey = Image.fromarray(rgba).convert("LA")
    assert pixels(encoded(grey, "PNG"))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_colours_of_a_palette_are_laid_over_white(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image, kind, transparency=0))[0].tolist() == [[255, 255, 255], [0, 0, 255]]


def test_half_transparent_palette_and_colour_key_are_laid_over_white() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([255, 0, 0])
    assert pixels(encoded(image, "PNG", transparency=b"\x33"))[0, 0].tolist() == [255, 204, 204]
    keyed = encoded(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert pixels(keyed)[0, 0].tolist() == [255, 255, 255]


def test_cmyk_gives_the_colours_of_its_inks() -> None:
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 51))
    assert pixels(encoded(inks, "TIFF"))[0, 0].tolist() == [0, 204, 204]
    jpeg = encoded(inks, "JPEG", quality=100)
    assert b"Adobe" in jpeg  # written inverted, as Adobe does
    assert np.abs(pixels(jpeg)[0, 0].astype(int) - [0, 204, 204]).max() <= 2


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_the_first_frame_of_an_animation_is_read(kind: str, options: dict[str, Any]) -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    data = encoded(first, kind, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2  # type: ignore[attr-defined]
    assert pixels(data)[4, 4].tolist() == [255, 0, 0]


def test_one_pixel_is_an_image() -> None:
    assert pixels(encoded(np.full((1, 1, 3), 7, np.uint8), "PNG")).tolist() == [[[7, 7, 7]]]


FILES = {
    "png": lambda: encoded(colours(), "PNG"),
    "grey16.png": lambda: encoded(colours()[..., 0].astype(np.uint16) * 257, "PNG"),
    "palette.png": lambda: encoded(Image.fromarray(colours()).quantize(16), "PNG", transparency=b"\0\x80"),
    "jpg": lambda: encoded(colours(), "JPEG", exif=_camera()),
    "progressive.jpg": lambda: encoded(colours(), "JPEG", progressive=True),
    "cmyk.jpg": lambda: encoded(Image.fromarray(colours()).convert("CMYK"), "JPEG"),
    "gif": lambda: encoded(Image.fromarray(colours()).quantize(16), "GIF"),
    "webp": lambda: encoded(colours(), "WEBP", exif=_camera()),
    "bmp": lambda: encoded(colours(), "BMP"),
    "tif": lambda: encoded(colours(), "TIFF", exif=_camera()),
    "deflate.tif": lambda: encoded(colours(), "TIFF", compression="tiff_adobe_deflate"),
    "ppm": lambda: encoded(colours(), "PPM"),
}


def _camera() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "a camera"
    exif[ExifTags.Base.Orientation] = 1
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2024:02:29 12:00:00"
    return exif


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{name}"
    data = FILES[name]()
    path.write_bytes(data[: len(data) * 6 // 10])
    assert f"cut.{name}' is damaged" in refusal(path)


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_give_an_image_or_an_image_error_and_nothing_else(name: str) -> None:
    data = FILES[name]()
    random_numbers = random.Random(name)
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(random_numbers.choice((1, 2, 8))):
            damaged[random_numbers.randrange(len(damaged) if random_numbers.random() < 0.5 else 64)] = (
                random_numbers.randrange(256)
            )
        if random_numbers.random() < 0.2:
            del damaged[random_numbers.randrange(len(damaged)) :]
        try:
            outcomes.add(read_image(bytes(damaged)).mode)
        except ImageError:
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


@pytest.mark.skipif("avif" not in features.get_supported(), reason="this Pillow reads no AVIF")
def test_avif_is_read() -> None:
    assert np.abs(pixels(encoded(colours(), "AVIF", quality=100)).astype(int) - colours()).max() <= 16


def test_nothing_is_refused_as_empty() -> None:
    assert "empty (0 bytes)" in refusal(b"")


def test_text_is_refused_as_no_image(tmp_path: Path) -> None:
    path = tmp_path / "letter.jpg"
    path.write_text("Dear Sir or Madam")
    message = refusal(path)
    assert "letter.jpg" in message
    assert "no image" in message
    assert "JPEG" in message


def test_formats_that_start_programs_are_not_tried() -> None:
    assert "no image in a format" in refusal(encoded(colours(), "EPS"))


def test_a_folder_is_refused_and_says_whether_it_holds_images(tmp_path: Path) -> None:
    assert "is a folder, not an image; there is no image file in it" in refusal(tmp_path)
    (tmp_path / "a.png").touch()
    assert "is a folder, not an image; give one of the images in it" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_missing_file_is_named(tmp_path: Path, kind: Callable[[Path], Any]) -> None:
    assert "nobody.png' does not exist" in refusal(kind(tmp_path / "nobody.png"))
    (tmp_path / "file").touch()
    assert "does not exist" in refusal(kind(tmp_path / "file" / "nobody.png"))


@pytest.mark.parametrize(
    "url", ["https://example.org/face.png", Path("http://example.org/face.png"), "data:image/png,x"]
)
def test_a_url_is_recognised(url: str | Path) -> None:
    assert "is a URL; download it first" in refusal(url)


@pytest.mark.parametrize("path", ["a\0b.png", "x" * 100_000 + ".png"])
def test_a_path_that_no_file_can_have_is_refused_in_a_short_sentence(path: str) -> None:
    message = refusal(path)
    assert "cannot be opened" in message
    assert len(message) < 400


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "is not a regular file" in refusal(tmp_path / "pipe.png")


def test_a_decompression_bomb_is_refused() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    side = (30_000).to_bytes(4, "big")
    header = chunk(b"IHDR", side + side + bytes([1, 0, 0, 0, 0]))
    rows = chunk(b"IDAT", zlib.compress(bytes(30_000 * (30_000 // 8 + 1)), 1))
    assert "decompression bomb" in refusal(b"\x89PNG\r\n\x1a\n" + header + rows + chunk(b"IEND", b""))


def test_the_limit_of_pixels_is_twice_pils(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert pixels(encoded(colours(10, 10), "PNG")).shape == (10, 10, 3)
    assert "decompression bomb" in refusal(encoded(colours(10, 11), "PNG"))


def test_nothing_is_printed_about_damaged_and_large_images(tmp_path: Path) -> None:
    five_tags_announced = b"Exif\0\0II*\0\x08\0\0\0\x05\0"
    (tmp_path / "exif.jpg").write_bytes(encoded(colours(), "JPEG", exif=five_tags_announced))
    (tmp_path / "cut.tif").write_bytes(FILES["tif"]()[:-40])
    program = (
        "import sys\n"
        "from PIL import Image\n"
        "from poster_zoo.data import list_images, read_image\n"
        "from poster_zoo.errors import ImageError\n"
        "Image.MAX_IMAGE_PIXELS = 500\n"
        "for path in list_images(sys.argv[1]):\n"
        "    try:\n"
        "        print(read_image(path).size)\n"
        "    except ImageError:\n"
        "        print('refused')\n"
    )
    # An old timm uses what a new torch means to drop, and torch says so on import.
    command = [sys.executable, "-W", "ignore::FutureWarning", "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused", "(32, 24)"]
    assert done.stderr == ""


def test_arrays_and_tensors_of_bytes_are_taken_as_they_are() -> None:
    rgb = colours()
    grey = np.stack([rgb[..., 0]] * 3, axis=2)
    turned = np.ascontiguousarray(rgb[::-1])[::-1]  # a view with negative strides
    for source in (rgb, turned, torch.from_numpy(rgb).permute(2, 0, 1)):
        assert np.array_equal(pixels(source), rgb)
    tensor = torch.from_numpy(rgb[..., 0].copy())
    for source in (rgb[..., 0], rgb[..., :1], tensor, tensor[None]):
        assert np.array_equal(pixels(source), grey)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floats_are_zero_to_one_and_rounded(dtype: torch.dtype) -> None:
    image = torch.tensor([0, 0.25, 0.5, 1], dtype=dtype).expand(3, 2, 4)
    assert pixels(image)[0, :, 0].tolist() == [0, 64, 128, 255]


def test_bytes_divided_by_255_come_back() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(pixels(torch.from_numpy(values)[None] / 255)[..., 0], values)
    assert np.array_equal(pixels(values / 255)[..., 0], values)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((3, 24, 32), np.uint8), "shape (3, 24, 32); one image is H×W×3"),
        (torch.zeros(24, 32, 3), "shape (24, 32, 3); one image is 3×H×W"),
        (torch.zeros(2, 3, 24, 32), "shape (2, 3, 24, 32)"),
        (np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)"),
        (np.zeros(5, np.uint8), "shape (5,)"),
        (np.zeros((4, 4, 3), np.int64), "type int64"),
        (torch.zeros(3, 4, 4, dtype=torch.bool), "type bool"),
        (np.full((4, 4, 3), 200.0), "0…1"),
        (torch.full((3, 4, 4), float("nan")), "0…1"),
        (torch.full((3, 4, 4), -1.0), "0…1"),
        (None, "given as NoneType"),
        (17, "given as int"),
        (io.StringIO("text"), "opened as text"),
    ],
)
def test_what_is_no_image_in_memory_is_refused(source: Any, words: str) -> None:
    assert words in refusal(source)


def test_a_closed_image_is_refused_by_the_name_it_was_given() -> None:
    image = Image.open(io.BytesIO(encoded(colours(), "PNG")))
    image.close()
    with pytest.raises(ImageError, match="image 3"):
        read_image(image, name="image 3")


def test_a_folder_is_listed_in_natural_order_without_hidden_and_other_files(tmp_path: Path) -> None:
    names = ["10.png", "2.png", "b/face10.JPG", "b/face9.jpeg", "B1.webp", "a1.tif", "a01.bmp", "2", "10/1.gif"]
    ignored = [".hidden.png", "notes.txt", ".git/a.png", "b/.x/a.png", "png"]
    for name in [*names, *ignored]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_dir():
            path.touch()
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == [
        "2.png",
        "10/1.gif",
        "10.png",
        "a01.bmp",
        "a1.tif",
        "b/face9.jpeg",
        "b/face10.JPG",
        "B1.webp",
    ]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "faces" / "z").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("faces/z/1.png", "elsewhere/2.png"):
        (tmp_path / name).touch()
    (tmp_path / "faces" / "up").symlink_to(tmp_path / "faces")
    (tmp_path / "faces" / "a").symlink_to("z")
    (tmp_path / "faces" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "faces" / "self.png").symlink_to("self.png")
    (tmp_path / "faces" / "gone.png").symlink_to("nowhere.png")
    listed = [str(path.relative_to(tmp_path / "faces")) for path in list_images(tmp_path / "faces")]
    assert listed == ["gone.png", "linked/2.png", "self.png", "z/1.png"]
    assert "does not exist" in refusal(tmp_path / "faces" / "gone.png")
    assert "cannot be opened" in refusal(tmp_path / "faces" / "self.png")


def test_a_subfolder_that_may_not_be_read_is_listed_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "1.png").touch()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # root, who runs many test machines, may read everything
    assert list_images(tmp_path) == [tmp_path / "1.png", tmp_path / "closed"]
    assert "closed' cannot be opened: Permission denied" in refusal(tmp_path / "closed")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, words in (("nowhere", "does not exist"), ("file", "is not a folder")):
        with pytest.raises(ImageError, match=words):
            list_images(tmp_path / name)


# What becomes of an image before a model sees it.

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 1.0)


def entry(size: tuple[int, int] = (112, 112), channels: int = 3) -> dict[str, Any]:
    return {
        "input_size": (channels, *size),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "squash",
        "mean": MEAN,
        "std": STD,
    }


def by_hand(image: Image.Image, size: tuple[int, int], mean: Any = MEAN, std: Any = STD) -> torch.Tensor:
    """Resize by PIL, divide by 255, normalise, in float32."""
    resized = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    values = torch.from_numpy(resized.reshape(*size, -1).copy()).permute(2, 0, 1).float() / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize("size", [(112, 112), (224, 224), (96, 160), (160, 96)])
@pytest.mark.parametrize("source", [(24, 32), (100, 100), (112, 112), (301, 97)])
def test_evaluation_is_pils_resize_bit_for_bit(size: tuple[int, int], source: tuple[int, int]) -> None:
    image = Image.fromarray(colours(*source))
    result = create_transform(entry(size))(image)
    assert result.dtype == torch.float32
    assert torch.equal(result, by_hand(image, size))


def test_evaluation_is_what_timm_makes_of_the_models_entry() -> None:
    model = timm.create_model("test_resnet", pretrained_cfg_overlay=entry((64, 80)))
    theirs = timm_transform(**resolve_model_data_config(model))  # type: ignore[no-untyped-call]
    image = Image.fromarray(colours(50, 70))
    assert torch.equal(create_transform(model)(image), theirs(image))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_two_steps_give_what_the_whole_gives_bit_for_bit(channels: int) -> None:
    resize, normalise = split_transform(entry((96, 160), channels))
    images = [Image.fromarray(colours(24, 32)), Image.fromarray(colours(301, 97))]
    batch = torch.stack([resize(image) for image in images])
    assert batch.dtype == torch.uint8
    assert torch.equal(normalise(batch), torch.stack([create_transform(entry((96, 160), channels))(i) for i in images]))


def test_a_model_of_one_channel_gets_grey() -> None:
    image = Image.fromarray(colours(60, 50))
    expected = by_hand(image.convert("L"), (40, 48), (sum(MEAN) / 3,), (sum(STD) / 3,))
    assert torch.allclose(create_transform(entry((40, 48), channels=1))(image), expected, rtol=0, atol=1e-6)
    assert create_transform(entry((40, 48), channels=1), is_training=True)(image).shape == (1, 40, 48)


def test_a_models_own_size_and_channels_count_before_its_entrys() -> None:
    model = nn.Identity()
    model.pretrained_cfg, model.img_size, model.in_chans = entry(), (30, 40), 1  # type: ignore[assignment]
    assert create_transform(model)(Image.fromarray(colours())).shape == (1, 30, 40)


def test_training_without_chance_is_evaluation_and_a_sure_flip_mirrors_it() -> None:
    image = Image.fromarray(colours(50, 50))
    still: dict[str, Any] = {"scale": (1, 1), "ratio": (1, 1), "color_jitter": None, "re_prob": 0}
    assert torch.equal(create_transform(entry(), True, hflip=0, **still)(image), by_hand(image, (112, 112)))
    mirrored = create_transform(entry(), True, hflip=1, **still)(image)
    assert torch.equal(mirrored, by_hand(image, (112, 112)).flip(2))


def test_training_varies_the_image_and_keeps_its_shape() -> None:
    transform = create_transform(entry(), is_training=True)
    image = Image.fromarray(colours(50, 50))
    first, second = transform(image), transform(image)
    assert first.shape == second.shape == (3, 112, 112)
    assert not torch.equal(first, second)


def test_a_misspelt_keyword_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownArgumentError, match="Did you mean 'interpolation'"):
        create_transform(entry(), interpolatoin="bicubic")


def test_a_model_that_says_nothing_of_its_input_is_refused() -> None:
    with pytest.raises(OptionError, match="pretrained_cfg"):
        create_transform(nn.Identity())


def test_a_model_of_four_channels_is_refused() -> None:
    with pytest.raises(OptionError, match="4 input channels"):
        create_transform(entry(channels=4))
