"""Train poster_tiny, from nothing to a measured weights file, on two CPU cores or on one GPU.

Four commands, in this order (the first two may run side by side); DATA is the folder that holds `ferplus/` and
`faces/`, OUT and CACHE any folders:

    python scripts/train_poster_tiny.py landmarks  --data DATA --cache CACHE --out OUT
    python scripts/train_poster_tiny.py image      --data DATA --cache CACHE --out OUT
    python scripts/train_poster_tiny.py expression --data DATA --cache CACHE --out OUT
    python scripts/train_poster_tiny.py test       --data DATA --cache CACHE --out OUT

`landmarks` fits the landmark stream to 68 points a face. `image` teaches the image stream expressions under a plain
linear head and at half the side, for a quarter of the cost. `expression` takes both, freezes the landmark stream and
trains the whole model at full size on vote distributions (FERPlus) and labels (faces), chooses the epoch on validation
faces and writes OUT/poster_tiny.safetensors in half precision. `test` opens the test splits, which nothing before it
reads, and writes OUT/report.json. FERPlus as released holds some pictures in train and test: the report also has the
scores without them. An interrupted `image` or `expression` goes on where it stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import json
import math
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from poster_zoo import __version__
from poster_zoo.labels import FERPLUS, RAFDB, match_labels
from poster_zoo.models.ir50 import IRTrunk
from poster_zoo.models.mobilefacenet import MobileFaceNet
from poster_zoo.models.poster import poster_tiny
from poster_zoo.weights.entry import FACE_112

SIZE = FACE_112.size[0]
FERPLUS_MAJORITY = {  # images with a majority, a class: what the reference protocol must leave
    "train": (8733, 7284, 3136, 3022, 2098, 116, 536, 120),
    "valid": (1180, 862, 411, 348, 289, 25, 60, 16),
    "test": (1083, 892, 394, 382, 269, 16, 86, 15),
}
# Where each of the 68 points (300-W order) goes when left and right are exchanged.
MIRROR = [
    *range(16, -1, -1),  # jaw
    *range(26, 16, -1),  # brows
    *range(27, 31),  # bridge of the nose
    *range(35, 30, -1),  # nostrils
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),  # eyes
    *range(54, 47, -1),  # outer lips, above
    *range(59, 54, -1),  # outer lips, below
    *range(64, 59, -1),  # inner lips, above
    *range(67, 64, -1),  # inner lips, below
]
LEFT_EYE, RIGHT_EYE = 36, 45  # outer corners: their distance is the unit of the landmark error


@dataclass(frozen=True)
class Recipe:
    """What one of the three trainings does; `--set` changes any field."""

    epochs: int
    lr: float
    faces_an_epoch: int = 16_384  # drawn with replacement
    stop_after: int = 0  # an epoch after which to stop before the schedule is through, 0 for none
    small_epochs: int = 0  # of these, how many at half the side, before those at full size
    rarity: float = 0.5  # faces are drawn with weights ∝ 1 / frequency of their class to this power
    photographs: float = 1.0  # how often faces of the second collection are drawn, beside their number
    augmentation: float = 1.0  # strength of what is done to the faces: 1 all of it, 0 mirroring alone
    batch_size: int = 64
    weight_decay: float = 0.05
    warmup: float = 0.08  # part of all steps
    clip: float = 2.0  # largest norm of the gradient
    ema: float = 0.9985
    mixup: float = 0.0  # parameter of the Beta distribution, 0 for none
    drop_rate: float = 0.1
    drop_path_rate: float = 0.0
    compile: bool = True  # a third faster for the whole model
    seed: int = 0


# ---------------------------------------------------------------------------------------------------------------
# Data: each collection is decoded once, into arrays that stay in memory.


@dataclass
class Collection:
    """One split of one collection of faces.

    Attributes:
        images: (N, H, W, C) uint8, as on disk: 48 x 48 x 1 (FERPlus) or 100 x 100 x 3 (faces).
        labels: (N,) positions in FERPLUS, or -1 where the protocol leaves the image out.
        targets: (N, 8) probabilities.
        points: (N, 68, 2) x, y in 0…1 of the image.
        seen: (N,) whether the points may be believed.
    """

    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    points: np.ndarray
    seen: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Collection:
        """Return the images that `rows`, positions or truth values, picks."""
        return Collection(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def read_points(lines: Iterator[str], names: list[str], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (N, 68, 2) points of `names` in 0…1, and whether the net that found them believed in a face."""
    rows = {row[0]: row[1:] for row in csv.reader(lines)}
    table = np.array([rows[name] for name in names], dtype=np.float32)
    return table[:, 1:].reshape(-1, 68, 2) / side, table[:, 0] >= 0.5


def read_ferplus(folder: Path, split: str) -> Collection:
    """Read one split of FERPlus by the majority protocol: votes of one are dropped, more than half of the rest wins."""
    with zipfile.ZipFile(folder / f"FER2013{split.capitalize()}.zip") as archive:
        table = io.TextIOWrapper(archive.open(f"FER2013{split.capitalize()}/label.csv"))
        rows = list(csv.reader(table))
        files = [archive.read(f"FER2013{split.capitalize()}/{row[0]}") for row in rows]
    images = np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("L")) for file in files])[..., None]

    votes = np.array([row[2:12] for row in rows], dtype=np.float32)  # eight expressions, unknown, not a face
    votes[votes <= 1] = 0
    winner = votes.argmax(1)
    has_majority = (votes.max(1) > votes.sum(1) / 2) & (winner < len(FERPLUS))
    labels = np.where(has_majority, winner, -1)
    targets = votes[:, : len(FERPLUS)] / votes[:, : len(FERPLUS)].sum(1, keepdims=True).clip(1)

    counts = tuple(np.bincount(labels[has_majority], minlength=len(FERPLUS)).tolist())
    if counts != FERPLUS_MAJORITY[split]:
        raise click.ClickException(f"FERPlus {split}: {counts} images a class instead of {FERPLUS_MAJORITY[split]}.")
    with gzip.open(folder / "landmarks.csv.gz", "rt") as lines:
        points, seen = read_points(lines, [row[0] for row in rows], side=48)
    return Collection(images, labels, targets, points, seen)


def read_faces(folder: Path, split: str, smoothing: float = 0.15) -> Collection:
    """Read one split of the faces; a tenth of the training persons are the validation split.

    The labels are one student's opinion each, hence the generous label smoothing.
    """
    with (folder / "persons.csv").open() as lines:
        person = {row[0]: int(row[1], 16) for row in list(csv.reader(lines))[1:]}
    listed = [line.split() for line in (folder / "EmoLabel/list_patition_label.txt").read_text().splitlines()]
    rows = [(name, int(number)) for name, number in listed if face_split(name, person[name]) == split]
    files = [folder / "Image/aligned" / name.replace(".jpg", "_aligned.jpg") for name, _ in rows]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])

    position = match_labels(RAFDB, FERPLUS)
    labels = np.array([position[number - 1] for _, number in rows])
    targets = np.eye(len(FERPLUS), dtype=np.float32)[labels] * (1 - smoothing) + smoothing / len(FERPLUS)
    with (folder / "landmarks.csv").open() as lines:
        points, seen = read_points(lines, [name for name, _ in rows], side=100)
    return Collection(images, labels, targets, points, seen)


def face_split(name: str, person: int) -> str:
    """Return the split of a face: "test" as released, else by the person, so that nobody is in two."""
    if name.startswith("test"):
        return "test"
    return "valid" if person % 10 == 0 else "train"


def load(data: Path, cache: Path, split: str) -> dict[str, Collection]:
    """Return both collections' `split`, decoded, from `cache` where they were decoded before."""
    collections = {}
    for name, read in (("ferplus", read_ferplus), ("faces", read_faces)):
        file = cache / f"{name}-{split}.npz"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".part.npz")
            np.savez(partial, **vars(read(data / name, split)))
            partial.replace(file)
        with np.load(file) as arrays:
            collections[name] = Collection(**arrays)
    return collections


def product_pixels(images: np.ndarray) -> Tensor:
    """Resize as the released transform does (PIL, bilinear, antialiased) and return (N, 3, 112, 112) uint8."""
    squeezed = images[..., 0] if images.shape[-1] == 1 else images
    pictures = [Image.fromarray(image).convert("RGB") for image in squeezed]
    resized = [image.resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in pictures]
    return torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2).contiguous()


def normalise(pixels: Tensor) -> Tensor:
    """Turn RGB in 0…1 into the model's input."""
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (FACE_112.mean, FACE_112.std))
    return (pixels - mean) / std


# ---------------------------------------------------------------------------------------------------------------
# Augmentation, on whole batches. FERPlus is grey, small and loosely cut, the faces are sharp and aligned: each is
# shown now and then as the other, so that the model bears photographs between the two.


def uniform(low: float, high: float, *shape: int) -> Tensor:
    """Return random numbers between `low` and `high`."""
    return torch.empty(shape).uniform_(low, high)


def random_affine(n: int, scale: tuple[float, float], flip: Tensor) -> Tensor:
    """Return (n, 2, 3) maps from output to input coordinates (-1…1): turn, zoom, stretch, shift, mirror.

    Args:
        n: How many.
        scale: Range of the side of the window that is cut out, in sides of the image.
        flip: (n,) whether left and right are exchanged.
    """
    angle = torch.randn(n).clamp(-2, 2) * math.radians(8)
    size, stretch = uniform(*scale, n), uniform(0.94, 1.06, n)
    cos, sin = size * angle.cos(), size * angle.sin()
    mirror = 1 - 2 * flip.float()
    row_x = torch.stack([cos * stretch * mirror, -sin, uniform(-0.12, 0.12, n)], 1)
    row_y = torch.stack([sin * mirror, cos / stretch, uniform(-0.12, 0.12, n)], 1)
    return torch.stack([row_x, row_y], 1)


def move_points(points: Tensor, affine: Tensor, flip: Tensor) -> Tensor:
    """Return where the (N, 68, 2) points (0…1) lie after `affine` (see `random_affine`) cut out its window."""
    centred = points * 2 - 1 - affine[:, None, :, 2]
    moved = (torch.linalg.solve(affine[:, :, :2], centred.transpose(1, 2)).transpose(1, 2) + 1) / 2
    return torch.where(flip[:, None, None], moved[:, MIRROR], moved)


def warp(images: Tensor, affine: Tensor, side: int) -> Tensor:
    """Cut the windows `affine` out of (N, C, H, W) and return them as (N, 3, side, side)."""
    grid = F.affine_grid(affine, [len(images), images.shape[1], side, side], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).expand(-1, 3, -1, -1)


def coarsen(images: Tensor) -> Tensor:
    """Throw detail away: shrink all to one random size."""
    side = int(torch.randint(32, 81, ()))
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def through_jpeg(pixels: Tensor) -> Tensor:
    """Return (N, 3, H, W) in 0…1 as a JPEG file of random quality gives it back."""
    quality = int(torch.randint(25, 90, ()))
    files = encode_jpeg(list((pixels * 255).round().clamp(0, 255).byte()), quality)
    return torch.stack([decode_jpeg(file, ImageReadMode.RGB) for file in files]).float() / 255


def photometric(pixels: Tensor) -> Tensor:
    """Change light, colour and noise of (N, 3, H, W) in 0…1, each image by itself."""
    n = len(pixels)
    grey = pixels.mean(1, keepdim=True)
    pixels = torch.where((torch.rand(n) < 0.3).view(n, 1, 1, 1), grey, pixels)
    pixels = pixels * uniform(0.9, 1.1, n, 3, 1, 1) ** (torch.rand(n) < 0.3).view(n, 1, 1, 1).float()
    mean = grey.mean((2, 3), keepdim=True)
    pixels = (pixels - mean) * uniform(0.6, 1.4, n, 1, 1, 1) + mean + uniform(-0.15, 0.15, n, 1, 1, 1)
    pixels = pixels.clamp(1e-3, 1) ** uniform(0.75, 1.35, n, 1, 1, 1)
    noise = torch.randn_like(grey) * uniform(-0.04, 0.04, n, 1, 1, 1).relu()
    return (pixels + noise).clamp(0, 1)


def erase(pixels: Tensor) -> Tensor:
    """Cover a rectangle in a third of the images with one shade."""
    n, side = len(pixels), pixels.shape[-1]
    steps = torch.arange(side) / side
    centre, half = uniform(0, 1, n, 2), uniform(0.05, 0.2, n, 2) * (torch.rand(n, 1) < 0.33)
    inside = (steps - centre[..., None]).abs() < half[..., None]  # (n, 2, side)
    hole = (inside[:, 1, :, None] & inside[:, 0, None, :])[:, None]
    return torch.where(hole, torch.rand(n, 1, 1, 1), pixels)


def augment(name: str, images: Tensor, points: Tensor, side: int, strength: float) -> tuple[Tensor, Tensor]:
    """Turn (N, H, W, C) uint8 of the collection `name` into (N, 3, side, side) in 0…1, and move the points along."""
    n = len(images)
    pixels = images.permute(0, 3, 1, 2).float() / 255
    flip = torch.rand(n) < 0.5
    upright = torch.eye(2, 3).repeat(n, 1, 1)
    upright[:, 0, 0] -= 2 * flip.float()
    affine = upright.lerp(random_affine(n, (0.78, 1.12) if name == "ferplus" else (0.85, 1.35), flip), strength)
    if name == "ferplus":
        pixels = warp(pixels, affine, side)
    else:
        half, part = (n + 1) // 2, n // 8
        shown = [warp(coarsen(pixels[:half]), affine[:half], side)]
        if half < n:
            shown.append(warp(pixels[half:], affine[half:], side))
        pixels = torch.cat(shown)
        if part:
            pixels = torch.cat([pixels[: n - part], through_jpeg(pixels[n - part :])])
    return pixels.lerp(erase(photometric(pixels)), strength), move_points(points, affine, flip)


def batches(
    data: dict[str, Collection], weights: Tensor, recipe: Recipe, side: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield an epoch of faces, drawn by `weights`: model input, targets, points.

    Args:
        data: The collections.
        weights: A face's weight, the collections one after the other.
        recipe: Says how many.
        side: Height and width of the input.
    """
    for _ in range(recipe.faces_an_epoch // recipe.batch_size):
        chosen = torch.multinomial(weights, recipe.batch_size, replacement=True)
        first, parts = 0, []
        for name, faces in data.items():
            rows = chosen[(chosen >= first) & (chosen < first + len(faces.labels))].numpy() - first
            first += len(faces.labels)
            images, points, targets = (torch.from_numpy(a[rows]) for a in (faces.images, faces.points, faces.targets))
            if len(rows):
                parts.append((*augment(name, images, points, side, recipe.augmentation), targets))
        pixels, points, targets = (torch.cat(part) for part in zip(*parts, strict=True))
        yield normalise(pixels).contiguous(memory_format=torch.channels_last), targets, points


# ---------------------------------------------------------------------------------------------------------------
# Training.

RECIPES = {
    "landmarks": Recipe(epochs=12, small_epochs=9, lr=3e-3, augmentation=0.6),
    "image": Recipe(epochs=34, small_epochs=34, lr=2e-3, rarity=0.35, photographs=0.5, augmentation=0.5),
    "expression": Recipe(epochs=9, lr=1e-3, rarity=0.3, photographs=0.5, augmentation=0.5),
}
HALF = SIZE // 2


def side_in(epoch: int, recipe: Recipe) -> int:
    """Return the side of the images in the `epoch`, the first being 1."""
    return HALF if epoch <= recipe.small_epochs else SIZE


class ImageStream(nn.Module):
    """The image stream under a head of its own: mean over positions, linear. Takes any size."""

    def __init__(self, stream: IRTrunk) -> None:
        """Take `stream` itself, no copy."""
        super().__init__()
        self.stream = stream
        self.head = nn.Linear(stream.widths[-1], len(FERPLUS))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, 8)."""
        logits: Tensor = self.head(self.stream(x).mean((2, 3)))
        return logits


class LandmarkStream(nn.Module):
    """The landmark stream, for any size: its last map is stretched to the 7 × 7 positions that its head expects."""

    def __init__(self, stream: MobileFaceNet) -> None:
        """Take `stream` itself, no copy."""
        super().__init__()
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        """Return the points (B, 136) in 0…1."""
        last = self.stream.forward_maps(x)[-1]
        return self.stream.forward_head(
            F.interpolate(last, size=(7, 7), mode="bilinear") if last.shape[-1] != 7 else last
        )


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Rise linearly, then fall along a cosine to nothing."""
    warmup = max(1, round(recipe.warmup * steps))
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW over what is trainable, without decay of biases and norms."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))


def update(optimizer: torch.optim.Optimizer, loss: Tensor, lr: float, clip: float) -> None:
    """Make one step down `loss`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()


class Log:
    """A CSV that grows by a line an epoch, and the same line on the terminal."""

    def __init__(self, file: Path, resumed: bool) -> None:
        """Append to `file` where training was `resumed`, else begin it anew."""
        self.file = file
        if not resumed:
            file.unlink(missing_ok=True)

    def __call__(self, **row: float) -> None:
        """Add one line."""
        is_new = not self.file.exists()
        with self.file.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(row)
            writer.writerow([f"{value:.6g}" for value in row.values()])
        click.echo("  ".join(f"{name} {value:.4g}" for name, value in row.items()))


def save_tensors(model: nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Write all of the model's tensors under their own names, floating ones as `dtype`."""
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in model.state_dict().items()}
    partial = file.with_suffix(".part")
    partial.write_bytes(save({name: t.cpu().contiguous() for name, t in state.items()}))
    partial.replace(file)


def train_landmarks(
    data: dict[str, Collection], valid: dict[str, Collection], out: Path, recipe: Recipe, device: torch.device
) -> None:
    """Fit poster_tiny's landmark stream to the points and write OUT/landmarks.safetensors."""
    stream = poster_tiny().landmark_stream.requires_grad_(True)
    net = LandmarkStream(stream).to(device).to(memory_format=torch.channels_last)
    forward = torch.compile(net, dynamic=False, disable=not recipe.compile)
    ema = ModelEmaV3(stream, decay=recipe.ema, use_warmup=True)
    optimizer = make_optimizer(net, recipe)
    data = {name: faces[faces.seen] for name, faces in data.items()}
    weights = torch.ones(sum(len(faces.seen) for faces in data.values()))
    steps = recipe.epochs * (recipe.faces_an_epoch // recipe.batch_size)
    log, step, start = Log(out / "landmarks.csv", resumed=False), 0, time.monotonic()

    for epoch in range(1, recipe.epochs + 1):
        net.train()
        total = 0.0
        for images, _, points in batches(data, weights, recipe, side_in(epoch, recipe)):
            found = forward(images.to(device))
            # In pixels of the input: below one pixel, where the teacher itself errs, large errors come first.
            loss = F.smooth_l1_loss(found * SIZE, points.flatten(1).to(device) * SIZE, beta=1.0)
            update(optimizer, loss, learning_rate(step, steps, recipe), recipe.clip)
            step += 1
            ema.update(stream, step=step)
            total += loss.item()
            if step % 50 == 0:
                click.echo(f"  step {step} of {steps}, loss {loss.item():.3f}, {time.monotonic() - start:.0f} s")
        net_now = LandmarkStream(ema.module)
        errors = {
            f"{name}_nme": landmark_error(net_now, faces, device, side_in(epoch, recipe))
            for name, faces in valid.items()
        }
        log(epoch=epoch, train_loss=total * recipe.epochs / steps, **errors, seconds=time.monotonic() - start)
        save_tensors(ema.module, out / "landmarks.safetensors", torch.float32)


def train_image(
    data: dict[str, Collection], valid: dict[str, Collection], out: Path, recipe: Recipe, device: torch.device
) -> None:
    """Train the image stream alone and write OUT/image.safetensors."""
    model = ImageStream(poster_tiny().image_stream)
    train_classifier("image", model, data, valid, out, recipe, device, torch.float32)


def train_expression(
    data: dict[str, Collection], valid: dict[str, Collection], out: Path, recipe: Recipe, device: torch.device
) -> None:
    """Train all but the landmark stream and write OUT/poster_tiny.safetensors."""
    model = poster_tiny(drop_rate=recipe.drop_rate, drop_path_rate=recipe.drop_path_rate)
    model.landmark_stream.load_state_dict(load_file(out / "landmarks.safetensors"))
    trained = load_file(out / "image.safetensors")
    stream = {name.removeprefix("stream."): t for name, t in trained.items() if name.startswith("stream.")}
    model.image_stream.load_state_dict(stream)
    train_classifier("poster_tiny", model, data, valid, out, recipe, device, torch.half)


def train_classifier(
    name: str,
    model: nn.Module,
    data: dict[str, Collection],
    valid: dict[str, Collection],
    out: Path,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Train `model` on the expressions and write the best epoch's moving average to OUT/name.safetensors."""
    model.to(device).to(memory_format=torch.channels_last)
    forward = torch.compile(model, dynamic=False, disable=not recipe.compile)
    ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True)
    optimizer = make_optimizer(model, recipe)

    data = {key: faces[faces.labels >= 0] for key, faces in data.items()}
    valid = {key: faces[faces.labels >= 0] for key, faces in valid.items()}
    pixels = {key: product_pixels(faces.images) for key, faces in valid.items()}
    labels = torch.from_numpy(np.concatenate([faces.labels for faces in data.values()]))
    weights = labels.bincount(minlength=len(FERPLUS)).clamp(min=1).float().pow(-recipe.rarity)[labels]
    weights[len(data["ferplus"].labels) :] *= recipe.photographs
    steps_an_epoch = recipe.faces_an_epoch // recipe.batch_size
    steps = recipe.epochs * steps_an_epoch

    last, first_epoch, best = out / f"{name}.last.pt", 1, 0.0
    if last.exists():
        state = torch.load(last, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        ema.module.load_state_dict(state["ema"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        first_epoch, best = state["epoch"] + 1, state["best"]
    log, start = Log(out / f"{name}.csv", resumed=last.exists()), time.monotonic()

    for epoch in range(first_epoch, (recipe.stop_after or recipe.epochs) + 1):
        model.train()
        total, side = 0.0, side_in(epoch, recipe)
        first_step = (epoch - 1) * steps_an_epoch
        for step, (images, targets, _) in enumerate(batches(data, weights, recipe, side), first_step):
            images, targets = mix(images.to(device), targets.to(device), recipe.mixup)
            loss = F.cross_entropy(forward(images), targets)
            update(optimizer, loss, learning_rate(step, steps, recipe), recipe.clip)
            ema.update(model, step=step + 1)
            total += loss.item()
            if step % 50 == 0:
                click.echo(f"  step {step} of {steps}, loss {loss.item():.3f}, {time.monotonic() - start:.0f} s")

        row: dict[str, float] = {"epoch": epoch, "train_loss": total / steps_an_epoch}
        for key, faces in valid.items():
            scores = score(confusion(ema.module, pixels[key], faces.labels, device, side))
            row |= {f"{key}_accuracy": scores["accuracy"], f"{key}_mean_class": scores["mean_class_accuracy"]}
        log(**row, seconds=time.monotonic() - start)
        # Rare classes count: a third of the choice is FERPlus's mean class accuracy. The faces' rare ones are too few.
        chosen_by = (row["ferplus_accuracy"] + row["ferplus_mean_class"] + row["faces_accuracy"]) / 3
        if chosen_by > best:
            best = chosen_by
            save_tensors(ema.module, out / f"{name}.safetensors", dtype)
            torch.save(ema.module.state_dict(), out / f"{name}.best.pt")
        state = {
            "model": model.state_dict(),
            "ema": ema.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "epoch": epoch,
            "best": best,
        }
        torch.save(state, last.with_suffix(".part"))
        last.with_suffix(".part").replace(last)


def mix(images: Tensor, targets: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each face with another one of the batch (mixup)."""
    if alpha <= 0:
        return images, targets
    part = float(np.clip(torch.distributions.Beta(alpha, alpha).sample(), 0, 1))
    other = torch.randperm(len(images), device=images.device)
    return images.lerp(images[other], 1 - part), targets.lerp(targets[other], 1 - part)


# ---------------------------------------------------------------------------------------------------------------
# Measuring.


def in_parts(images: Tensor, size: int = 256) -> Iterator[Tensor]:
    """Yield `images` in batches, the last one perhaps smaller."""
    for begin in range(0, len(images), size):
        yield images[begin : begin + size]


def model_input(pixels: Tensor, side: int) -> Tensor:
    """Turn (N, 3, 112, 112) uint8 into the input of a model trained at `side`."""
    whole = normalise(pixels.float() / 255)
    return (whole if side == SIZE else F.avg_pool2d(whole, SIZE // side)).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def landmark_error(net: nn.Module, faces: Collection, device: torch.device, side: int = SIZE) -> float:
    """Return the mean distance of found to given points, in distances of the outer corners of the eyes."""
    faces = faces[faces.seen]
    net.eval()
    parts = in_parts(product_pixels(faces.images))
    found = torch.cat([net(model_input(part.to(device), side)).cpu() for part in parts]).view(-1, 68, 2)
    given = torch.from_numpy(faces.points)
    unit = (given[:, LEFT_EYE] - given[:, RIGHT_EYE]).norm(dim=-1)
    # A face turned fully aside has both corners in one place; its ratio would drown all others.
    return float(((found - given).norm(dim=-1).mean(1) / unit.clamp(min=0.1)).mean())


@torch.inference_mode()
def confusion(
    model: nn.Module, pixels: Tensor, labels: np.ndarray, device: torch.device, side: int = SIZE
) -> np.ndarray:
    """Return the (8, 8) counts: row is the true class, column the answer. One view of each image."""
    model.eval()
    answers = torch.cat([model(model_input(part.to(device), side)).argmax(1).cpu() for part in in_parts(pixels)])
    table = np.zeros((len(FERPLUS), len(FERPLUS)), dtype=np.int64)
    np.add.at(table, (labels, answers.numpy()), 1)
    return table


def score(table: np.ndarray) -> dict[str, Any]:
    """Return what a confusion matrix says, beside always answering the commonest class."""
    images = table.sum(1)
    present = images > 0
    recall = table.diagonal()[present] / images[present]
    return {
        "images": int(images.sum()),
        "accuracy": float(table.trace() / images.sum()),
        "mean_class_accuracy": float(recall.mean()),
        "recall": {str(name): float(value) for name, value in zip(np.array(FERPLUS)[present], recall, strict=True)},
        "images_a_class": dict(zip(FERPLUS, images.tolist(), strict=True)),
        "always_commonest": {
            "class": FERPLUS[int(images.argmax())],
            "accuracy": float(images.max() / images.sum()),
            "mean_class_accuracy": float(1 / present.sum()),
        },
        "confusion": table.tolist(),
    }


def test_files(
    data: dict[str, Collection], train: dict[str, Collection], file: Path, best: Path, device: torch.device
) -> dict[str, Any]:
    """Measure a weights file on the test splits, and the float32 numbers it was written from where they are there.

    The scores "unseen" leave out the test images that are, pixel for pixel, also training images.
    """
    states = {"file": load_file(file)}
    if best.exists():
        states["float32"] = torch.load(best, map_location="cpu", weights_only=True)
    report: dict[str, Any] = {"labels": list(FERPLUS), "bytes": file.stat().st_size}
    for name, faces in data.items():
        rated = faces[faces.labels >= 0]
        pixels = product_pixels(rated.images)
        seen = {image.tobytes() for image in train[name].images}
        unseen = np.array([image.tobytes() not in seen for image in rated.images])
        for form, state in states.items():
            model = poster_tiny()
            model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in state.items()})
            model.to(device)
            table = confusion(model, pixels, rated.labels, device)
            report.setdefault(name, {})[form] = score(table)
            if form == "file" and not unseen.all():
                table = confusion(model, pixels[torch.from_numpy(unseen)], rated.labels[unseen], device)
                report[name]["unseen"] = score(table)
        report[name]["landmark_error"] = landmark_error(model.landmark_stream, faces, device)
    return report


# ---------------------------------------------------------------------------------------------------------------
# Commands.


@click.command()
@click.argument("stage", type=click.Choice([*RECIPES, "test"]))
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder that holds ferplus/ and faces/.",
)
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for the decoded images.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for weights, logs and the report.")
@click.option(
    "--weights",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Weights file that `test` measures.  [default: OUT/poster_tiny.safetensors]",
)
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a number of the recipe: lr=0.001.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=2, show_default=True, help="CPU threads.")
def main(
    stage: str,
    data: Path,
    cache: Path,
    out: Path,
    weights: Path | None,
    changes: tuple[str, ...],
    device: str,
    threads: int,
) -> None:
    """Train poster_tiny's parts, then the whole, then measure it. The file's first lines say more."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    target = torch.device(device)
    if stage == "test":
        file = weights or out / "poster_tiny.safetensors"
        splits = load(data, cache, "test"), load(data, cache, "train")
        report = test_files(*splits, file, file.with_suffix(".best.pt"), target)
        (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        click.echo(json.dumps(report, indent=2))
        return
    recipe = changed(RECIPES[stage], changes)
    click.echo(f"poster_zoo {__version__}, torch {torch.__version__}, {recipe}")
    torch.manual_seed(recipe.seed)
    train = {"landmarks": train_landmarks, "image": train_image, "expression": train_expression}[stage]
    train(load(data, cache, "train"), load(data, cache, "valid"), out, recipe, target)


def changed(recipe: Recipe, changes: tuple[str, ...]) -> Recipe:
    """Return `recipe` with the fields that `changes` ("name=value") names replaced."""
    known = dataclasses.asdict(recipe)
    for name, _, value in (change.partition("=") for change in changes):
        if name not in known:
            raise click.BadParameter(f"{name!r} is not in the recipe; its fields are {', '.join(known)}.")
        known[name] = value == "True" if isinstance(known[name], bool) else type(known[name])(value)
    return Recipe(**known)


if __name__ == "__main__":
    main()
