"""IR-50: the face-recognition backbone of ArcFace, and the three-stage trunk that POSTER reads images with.

Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019, arXiv:1801.07698
(the "improved residual" network of its section 3.1; pre-activation after He et al., arXiv:1603.05027).

What differs from an ordinary ResNet-50, and the released weights depend on:

* a block is BN → 3×3 conv → PReLU → 3×3 conv (stride) → BN; nothing follows the sum,
* a block that keeps its width takes every stride-th pixel as its shortcut (the release writes a 1×1 max pool),
* the embedding is BN → flatten → linear → BN of the last 512×7×7 map, so its size is bound to the input's.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from poster_zoo.models._builder import build_model, register_weights
from poster_zoo.models._features import IntermediatesMixin, StagesMixin
from poster_zoo.models.layers import check_input, check_option, drop_path_rates, forget_labels, new_head, to_pair
from poster_zoo.weights.entry import Preprocessing, Weights

__all__ = ["IRBlock", "IRNet", "IRTrunk", "ir50"]


class IRBlock(nn.Module):
    """Residual block: BN → 3×3 conv → PReLU → 3×3 conv (stride) → BN, beside a shortcut."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        drop_path: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(in_chs, **dd)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, padding=1, bias=False, **dd)
        self.act = nn.PReLU(out_chs, **dd)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn2 = nn.BatchNorm2d(out_chs, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.downsample: nn.Module
        if in_chs == out_chs:
            self.downsample = nn.Identity()
        else:
            self.downsample = nn.Sequential()
            self.downsample.add_module("conv", nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=False, **dd))
            self.downsample.add_module("bn", nn.BatchNorm2d(out_chs, **dd))
        self.shortcut_step = stride if in_chs == out_chs else 1

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.downsample(x)
        if self.shortcut_step > 1:
            shortcut = shortcut[:, :, :: self.shortcut_step, :: self.shortcut_step]
        return self.drop_path(self.bn2(self.conv2(self.act(self.conv1(self.bn1(x)))))) + shortcut


class IRTrunk(StagesMixin, nn.Module):
    """Stem and stages of an IR network; each stage starts with a stride of two.

    Args:
        in_chans: Channels of the image.
        stem_width: Channels of the stem.
        stem_stride: Stride of the stem: 1 in IR-50, 2 in our small networks.
        widths: Channels of each stage.
        depths: Blocks of each stage.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0 at the first.
        device: Where to create the parameters.
        dtype: Of which type.
    """

    def __init__(
        self,
        in_chans: int = 3,
        stem_width: int = 64,
        stem_stride: int = 1,
        widths: Sequence[int] = (64, 128, 256),
        depths: Sequence[int] = (3, 4, 14),
        drop_path_rate: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(in_chans, stem_width, 3, stem_stride, padding=1, bias=False, **dd))
        self.stem.add_module("bn", nn.BatchNorm2d(stem_width, **dd))
        self.stem.add_module("act", nn.PReLU(stem_width, **dd))
        self.stages = nn.Sequential()
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        in_chs = stem_width
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [
                IRBlock(in_chs if j == 0 else width, width, 2 if j == 0 else 1, next(rates), **dd) for j in range(depth)
            ]
            self.stages.add_module(str(i), nn.Sequential(*blocks))
            in_chs = width
        self.widths = tuple(widths)
        self.reductions = tuple(stem_stride * 2 ** (i + 1) for i in range(len(self.widths)))
        self.grad_checkpointing = False

    def feature_info(self, name: str, input_reduction: int = 1) -> list[dict[str, Any]]:
        """Return timm's description of the stages' maps, for a trunk that is the module `name` of a model.

        Args:
            name: Of the trunk in the model.
            input_reduction: How much smaller the trunk's input is than the model's.
        """
        return [
            {"num_chs": width, "reduction": reduction * input_reduction, "module": f"{name}.stages.{i}"}
            for i, (width, reduction) in enumerate(zip(self.widths, self.reductions, strict=True))
        ]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_stages(x)[-1]

    def keep_stages(self, last: int) -> None:
        """Drop every stage after `last`."""
        self.stages = self.stages[: last + 1]


class IRNet(IntermediatesMixin, nn.Module):
    """The ArcFace IR network: its stages and a 512-d face embedding.

    With `num_classes=0`, the default, the answer is the embedding (B, 512), not normalised; a number of classes puts
    a linear classifier on it.

    Args:
        num_classes: Classes of the classifier, or 0 for the embedding.
        in_chans: Channels of the images.
        img_size: Height and width that the embedding's linear layer is built for, in pixels.
        global_pool: "embed" (BN → flatten → linear → BN, the release's), "avg" (mean over positions) or "" (none:
            the answer is the 512×7×7 map).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0 at the first.
        stem_width: Channels of the stem.
        stem_stride: Stride of the stem.
        widths: Channels of each stage.
        depths: Blocks of each stage; the default is IR-50's.
        device: Where to create the parameters.
        dtype: Of which type.
    """

    def __init__(
        self,
        num_classes: int = 0,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 112,
        global_pool: str = "embed",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        stem_width: int = 64,
        stem_stride: int = 1,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (3, 4, 14, 3),
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.img_size = to_pair(img_size)
        self.trunk = IRTrunk(in_chans, stem_width, stem_stride, widths, depths, drop_path_rate, **dd)
        self.feature_info = self.trunk.feature_info("trunk")
        width = self.trunk.widths[-1]
        self.num_features = self.head_hidden_size = width
        self.embed: nn.Module = nn.Identity()
        if global_pool == "embed":
            positions = prod(-(-side // self.trunk.reductions[-1]) for side in self.img_size)  # strides round up
            self.embed = nn.Sequential()
            self.embed.add_module("bn1", nn.BatchNorm2d(width, **dd))
            self.embed.add_module("flatten", nn.Flatten())
            self.embed.add_module("fc", nn.Linear(width * positions, width, **dd))
            self.embed.add_module("bn2", nn.BatchNorm1d(width, **dd))
        self.head_drop = nn.Dropout(drop_rate)
        self.head = new_head(self, width, num_classes)
        self.global_pool = check_option("global_pool", global_pool, ("embed", "avg", ""))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the stages' inputs for backward and compute the rest again."""
        self.trunk.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that sort parameters into layers, stem first."""
        return {
            "stem": r"^trunk\.stem",
            "blocks": r"^trunk\.stages\.(\d+)" if coarse else r"^trunk\.stages\.(\d+)\.(\d+)",
        }

    def get_classifier(self) -> nn.Module:
        """Return the classifier, an identity where the model gives embeddings."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier on the embedding, or none with `num_classes=0`."""
        if global_pool is not None:
            kept = ("embed", "avg", "") if self.global_pool == "embed" else ("avg", "")
            self.global_pool = check_option("global_pool", global_pool, kept)
            if global_pool != "embed":
                self.embed = nn.Identity()
        forget_labels(self)
        self.num_classes = num_classes
        self.head = new_head(self, self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last stage's map, (B, 512, 7, 7) for (B, 3, 112, 112) input."""
        return self.trunk(check_input(x, self.in_chans, self.img_size[0], self.img_size[1]))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the map (B, 512, 7, 7) into the embedding (B, 512) and, unless `pre_logits`, into logits."""
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        x = self.head_drop(self.embed(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def _stage_maps(self, x: Tensor, last: int) -> list[Tensor]:
        return self.trunk.forward_stages(check_input(x, self.in_chans, self.img_size[0], self.img_size[1]), last)

    def _keep_stages(self, last: int, prune_norm: bool) -> None:
        self.trunk.keep_stages(last)


_FACE_RECOGNITION_112 = Preprocessing(size=(112, 112), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

WEIGHTS = {
    "ir50": Weights(
        preprocessing=_FACE_RECOGNITION_112,
        tag="arcface",
        hub_id="poster-zoo/ir50",
        parameters=43_574_976,
        description="IR-50 face-recognition backbone with its 512-d embedding.",
        origin_url="https://github.com/zczcwh/POSTER",
        upstream_file="ir50.pth",
        upstream_layout="ir50",
        paper_name="ArcFace: Additive Angular Margin Loss for Deep Face Recognition",
        paper_ids=("arXiv:1801.07698",),
        first_conv=("trunk.stem.conv",),
        classifier="head",
        pool_size=(7, 7),
    ),
}
default_cfgs = register_weights(WEIGHTS)


@register_model
def ir50(pretrained: bool = False, **kwargs: Any) -> IRNet:
    """IR-50 of ArcFace: a 512-d face embedding of a 112 × 112 RGB crop, or its stage maps with `features_only=True`."""
    return build_model(IRNet, "ir50", pretrained, kwargs)
