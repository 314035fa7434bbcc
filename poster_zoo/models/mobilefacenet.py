"""MobileFaceNet with a head of 68 facial landmarks: the frozen second stream of POSTER.

Chen et al., "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices", 2018,
arXiv:1804.07573; the released weights are those of a 68-point detector with the same layers (points in the order
of 300-W). The global depthwise convolution of the paper's section 3.2 turns the 512×7×7 map into 512 numbers.
"""

from typing import Any

from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn

from poster_zoo.models._builder import build_model, register_weights
from poster_zoo.models._features import IntermediatesMixin, StagesMixin
from poster_zoo.models.layers import check_input, check_option, drop_path_rates, forget_labels, to_pair
from poster_zoo.weights.entry import Preprocessing, Weights

__all__ = ["MobileFaceNet", "mobilefacenet"]


class ConvBnAct(nn.Module):
    """Convolution without bias, BatchNorm and, where wanted, PReLU."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        act: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = nn.Conv2d(in_chs, out_chs, kernel, stride, padding, groups=groups, bias=False, **dd)
        self.bn = nn.BatchNorm2d(out_chs, **dd)
        self.act = nn.PReLU(out_chs, **dd) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Inverted residual: 1×1 expansion, 3×3 depthwise convolution, linear 1×1 projection; added where sizes agree."""

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        stride: int = 1,
        drop_path: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.residual = stride == 1 and in_chs == out_chs
        self.expand = ConvBnAct(in_chs, mid_chs, 1, **dd)
        self.depthwise = ConvBnAct(mid_chs, mid_chs, 3, stride, 1, groups=mid_chs, **dd)
        self.project = ConvBnAct(mid_chs, out_chs, 1, act=False, **dd)
        self.drop_path = DropPath(drop_path) if self.residual and drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + self.drop_path(y) if self.residual else y


class MobileFaceNet(StagesMixin, IntermediatesMixin, nn.Module):
    """Landmark detector: 68 points, x then y a point, each in 0…1 of the crop.

    Args:
        num_classes: Numbers in the answer, two a point; 0 for the 512 features before them.
        in_chans: Channels of the images.
        img_size: Height and width of the images in pixels; the head is built for it.
        global_pool: "gdc" (global depthwise convolution) or "" (none: the answer is the last map).
        width: Factor on all channels; 1 is the release.
        out_chans: Channels of the last map; None for 512 times `width`.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0 at the first; blocks that change
            the size have nothing to skip to.
        device: Where to create the parameters.
        dtype: Of which type.
    """

    def __init__(
        self,
        num_classes: int = 136,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 112,
        global_pool: str = "gdc",
        width: float = 1.0,
        out_chans: int | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        c64, c128, c256, c512 = (int(c * width) for c in (64, 128, 256, 512))
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.img_size = to_pair(img_size)
        self.num_features = self.head_hidden_size = out_chans or c512
        self.stem = nn.Sequential(
            ConvBnAct(in_chans, c64, 3, 2, 1, **dd),
            ConvBnAct(c64, c64, 3, 1, 1, groups=c64, **dd),
        )
        depths = (5, 7, 3)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.Sequential()
        in_chs = c64
        # Channels of a stage's first expansion, of its others, and of its maps.
        for i, (first, rest, width_out) in enumerate(((c128, c128, c64), (c256, c256, c128), (c512, c256, c128))):
            blocks: list[nn.Module] = [Bottleneck(in_chs, first, width_out, 2, next(rates), **dd)]
            blocks += [Bottleneck(width_out, rest, width_out, 1, next(rates), **dd) for _ in range(depths[i] - 1)]
            in_chs = width_out
            if i == len(depths) - 1:
                blocks.append(ConvBnAct(in_chs, self.num_features, 1, **dd))
            self.stages.append(nn.Sequential(*blocks))
        self.feature_info = [
            {"num_chs": chs, "reduction": reduction, "module": f"stages.{i}"}
            for i, (chs, reduction) in enumerate(((c64, 4), (c128, 8), (self.num_features, 16)))
        ]
        self.global_pool = check_option("global_pool", global_pool, ("gdc", ""))
        self.pool: nn.Module = nn.Identity()
        if global_pool == "gdc":
            grid = tuple(-(-side // 16) for side in self.img_size)  # four strides of two, each rounding up
            self.pool = ConvBnAct(
                self.num_features, self.num_features, (grid[0], grid[1]), groups=self.num_features, act=False, **dd
            )
        self.head_drop = nn.Dropout(drop_rate)
        self.head, self.head_bn = self._make_head(num_classes, device, dtype)
        self.grad_checkpointing = False

    def _make_head(self, num_classes: int, device: Any, dtype: Any) -> tuple[nn.Module, nn.Module]:
        if num_classes == 0:
            return nn.Identity(), nn.Identity()
        head = nn.Linear(self.num_features, num_classes, bias=False, device=device, dtype=dtype)
        return head, nn.BatchNorm1d(num_classes, device=device, dtype=dtype)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that sort parameters into layers, stem first."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """Return the linear layer that gives the points."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last layer of `num_classes` numbers on the features, or none with 0."""
        if global_pool is not None:
            self.global_pool = check_option(
                "global_pool", global_pool, ("gdc", "") if self.global_pool == "gdc" else ("",)
            )
            if global_pool == "":
                self.pool = nn.Identity()
        like = next(self.parameters())
        forget_labels(self)
        self.num_classes = num_classes
        self.head, self.head_bn = self._make_head(num_classes, like.device, like.dtype)
        self.head_bn.train(self.training)
        self.head.train(self.training)

    def forward_maps(self, x: Tensor, last: int = -1) -> list[Tensor]:
        """Return the maps of the stages: 28, 14 and 7 pixels wide for 112-pixel images.

        Args:
            x: (B, C, H, W).
            last: The last stage that is wanted, or -1 for all.
        """
        return self.forward_stages(x, last)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, (B, 512, 7, 7) for (B, 3, 112, 112) input."""
        return self.forward_maps(check_input(x, self.in_chans, self.img_size[0], self.img_size[1]))[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the map (B, 512, 7, 7) into 512 features and, unless `pre_logits`, into the points (B, 136)."""
        x = self.pool(x)
        if self.global_pool == "gdc":
            x = x.flatten(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head_bn(self.head(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_landmarks(self, x: Tensor) -> Tensor:
        """Return the points (B, 136): x then y a point, in 0…1 of the image's width and height."""
        return self.forward(x)

    def _stage_maps(self, x: Tensor, last: int) -> list[Tensor]:
        return self.forward_maps(check_input(x, self.in_chans, self.img_size[0], self.img_size[1]), last)

    def _keep_stages(self, last: int, prune_norm: bool) -> None:
        self.stages = self.stages[: last + 1]


# The detector was trained on BGR scaled to 0…1; our files hold it turned to RGB, so mean 0 and std 1 are all.
_LANDMARKS_112 = Preprocessing(size=(112, 112), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

WEIGHTS = {
    "mobilefacenet": Weights(
        preprocessing=_LANDMARKS_112,
        tag="landmarks68",
        hub_id="poster-zoo/mobilefacenet",
        num_outputs=136,
        parameters=1_007_248,
        description="MobileFaceNet detector of 68 facial landmarks in the order of 300-W.",
        origin_url="https://github.com/cunjian/pytorch_face_landmark",
        upstream_file="mobilefacenet_model_best.pth.tar",
        upstream_layout="mobilefacenet",
        upstream_bgr=True,
        paper_name="MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification on Mobile Devices",
        paper_ids=("arXiv:1804.07573",),
        first_conv=("stem.0.conv",),
        classifier="head",
        pool_size=(7, 7),
        notes=(
            "Trained on crops that hold the face box enlarged 1.2 times.",
            "Its author states no licence.",
        ),
    ),
}
default_cfgs = register_weights(WEIGHTS)


@register_model
def mobilefacenet(pretrained: bool = False, **kwargs: Any) -> MobileFaceNet:
    """MobileFaceNet: 68 landmarks of a 112 × 112 RGB crop, x then y a point, in 0…1 of the crop."""
    return build_model(MobileFaceNet, "mobilefacenet", pretrained, kwargs)
