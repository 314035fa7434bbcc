"""POSTER: a two-stream pyramid cross-fusion transformer for facial expression recognition.

Zheng, Mendieta and Chen, "POSTER: A Pyramid Cross-Fusion Transformer Network for Facial Expression Recognition",
ICCV Workshops 2023, arXiv:2204.04083. Where paper and released code differ, this follows the code, since the
weights do:

* both streams see the image resized to 112×112 by **nearest** neighbour,
* an image token of the release is not a position but 1/49 of the 256×14×14 map's memory, in NCHW order,
* a mean token is put first in each stream; the position embedding is added to the image tokens only,
* cross-fusion has **no query projection**: a stream's queries are the other stream's normalised tokens themselves,
* the two published forms differ by a learned mix of the tokens at the end of each block (RAF-DB has it, AffectNet not).

`PosterBaseline` is the plain encoder that the paper's section 3.1 starts from. The `poster_tiny` family is ours.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from poster_zoo.labels import AFFECTNET7, AFFECTNET8, FERPLUS, RAFDB
from poster_zoo.models._builder import build_model, load_weights, register_weights
from poster_zoo.models._features import IntermediatesMixin
from poster_zoo.models.ir50 import IRNet, IRTrunk
from poster_zoo.models.layers import (
    EncoderBlock,
    Gate,
    Mlp,
    check_input,
    check_option,
    drop_path_rates,
    forget_labels,
    linear,
    new_head,
    to_pair,
    to_tokens,
)
from poster_zoo.models.mobilefacenet import MobileFaceNet
from poster_zoo.weights.entry import FACE_112, FACE_224, FIVE_POINTS, Metric, Weights

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "CrossFusionBlock",
    "Poster",
    "PosterBaseline",
    "Pyramid",
    "TwoStreams",
    "poster",
    "poster_affectnet7",
    "poster_affectnet8",
    "poster_base",
    "poster_baseline",
    "poster_ferplus",
    "poster_rafdb",
    "poster_small",
    "poster_tiny",
    "poster_tiny_baseline",
    "poster_tiny_image",
]

STREAM_SIZE = 112  # pixels; both streams see the face at this height and width
PATCHES = 49  # tokens a stream brings: 7 × 7 of the landmark map


class CrossAttention(nn.Module):
    """Attention whose queries are given tokens, taken as they are; keys and values come from the branch's own."""

    def __init__(self, dim: int, num_heads: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.kv = linear(dim, 2 * dim, device=device, dtype=dtype)
        self.proj = linear(dim, dim, device=device, dtype=dtype)

    def forward(self, own: Tensor, queries: Tensor) -> Tensor:
        batch, tokens, dim = own.shape
        kv = self.kv(own).reshape(batch, tokens, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)  # each (B, heads, N, head_dim)
        q = queries.reshape(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class FusionBranch(nn.Module):
    """One stream's half of a cross-fusion block: its tokens, asked by the other stream's."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = CrossAttention(dim, num_heads, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        own = own + self.drop_path(self.attn(self.norm1(own), self.norm1(other)))
        return own + self.drop_path(self.mlp(self.norm2(own)))


class CrossFusionBlock(nn.Module):
    """Cross-fusion transformer encoder (section 3.2): both streams read each other's tokens as they came in.

    Args:
        dim: Features a token.
        num_heads: Attention heads.
        num_tokens: Tokens of both streams together.
        mlp_ratio: Hidden features of the MLP, as a multiple of `dim`.
        drop_path: Rate of stochastic depth.
        token_mixing: End with a learned mix of all tokens (a 1×1 convolution over tokens as channels).
        device: Where to create the parameters.
        dtype: Of which type.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_tokens: int,
        mlp_ratio: float = 2.0,
        drop_path: float = 0.0,
        token_mixing: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.image = FusionBranch(dim, num_heads, mlp_ratio, drop_path, **dd)
        self.landmark = FusionBranch(dim, num_heads, mlp_ratio, drop_path, **dd)
        self.mix = nn.Conv1d(num_tokens, num_tokens, 1, **dd) if token_mixing else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        image, landmark = x.chunk(2, dim=1)  # the first half of the tokens is the image's
        return self.mix(torch.cat((self.image(image, landmark), self.landmark(landmark, image)), dim=1))


class PyramidBlock(nn.Module):
    """One cross-fusion block a level, then the smaller levels are added upwards (section 3.3)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_tokens: int,
        mlp_ratio: float,
        drop_path: float,
        token_mixing: bool,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.large, self.medium, self.small = (
            CrossFusionBlock(width, num_heads, num_tokens, mlp_ratio, drop_path, token_mixing, **dd)
            for width in (dim, dim // 2, dim // 4)
        )
        self.up_medium = nn.ConvTranspose1d(num_tokens, num_tokens, 2, 2, **dd)
        self.up_small = nn.ConvTranspose1d(num_tokens, num_tokens, 2, 2, **dd)

    def forward(self, large: Tensor, medium: Tensor, small: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        large, medium, small = self.large(large), self.medium(medium), self.small(small)
        medium = medium + self.up_small(small)
        large = large + self.up_medium(medium)
        return large, medium, small


class Pyramid(nn.Module):
    """Cross-fusion at three levels of feature width (section 3.3).

    Args:
        dim: Features a token at the large level; half and a quarter of it at the others.
        depth: Pyramid blocks.
        num_heads: Attention heads, the same at every level.
        mlp_ratio: Hidden features of the MLPs, as a multiple of the level's width.
        drop_path_rate: Stochastic depth at the last block, rising linearly from 0 at the first.
        token_mixing: Whether blocks end with a learned mix of tokens.
        device: Where to create the parameters.
        dtype: Of which type.
    """

    def __init__(
        self,
        dim: int = 512,
        depth: int = 8,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        drop_path_rate: float = 0.0,
        token_mixing: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        num_tokens = 2 * (PATCHES + 1)
        self.pos_embed = nn.Parameter(torch.zeros(1, PATCHES + 1, dim, **dd))
        # Tokens are the channels of these convolutions; the features of each are shortened.
        self.down_medium = nn.Conv1d(num_tokens, num_tokens, 2, 2, **dd)
        self.down_small = nn.Conv1d(num_tokens, num_tokens, 4, 4, **dd)
        self.blocks = nn.ModuleList(
            PyramidBlock(dim, num_heads, num_tokens, mlp_ratio, rate, token_mixing, **dd)
            for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.grad_checkpointing = False

    def forward(self, image: Tensor, landmark: Tensor) -> Tensor:
        """Fuse two streams of tokens, (B, 49, D) each, into (B, 100, D): a mean and the tokens of each stream."""
        image = torch.cat((image.mean(1, keepdim=True), image), dim=1) + self.pos_embed
        landmark = torch.cat((landmark.mean(1, keepdim=True), landmark), dim=1)
        large = torch.cat((image, landmark), dim=1)
        medium, small = self.down_medium(large), self.down_small(large)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                large, medium, small = checkpoint(block, large, medium, small, use_reentrant=False)
            else:
                large, medium, small = block(large, medium, small)
        return self.norm(large)


class Tokens(nn.Module):
    """The last maps of the two streams as 49 tokens each, of the fusion's width.

    Args:
        image_dim: Numbers an image token has before projection.
        landmark_dim: Channels of the landmark map; projected where they are not `embed_dim` already.
        embed_dim: Features a token.
        from_memory: Take 1/49 of the image map's NCHW memory as a token, as the release does, instead of a position.
        device: Where to create the parameters.
        dtype: Of which type.
    """

    def __init__(
        self,
        image_dim: int,
        landmark_dim: int,
        embed_dim: int,
        from_memory: bool,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_patches = PATCHES
        self.from_memory = from_memory
        self.image_proj = linear(image_dim, embed_dim, **dd)
        self.landmark_proj: nn.Module = nn.Identity()
        if landmark_dim != embed_dim:
            self.landmark_proj = linear(landmark_dim, embed_dim, **dd)

    def forward(self, image_map: Tensor, landmark_map: Tensor) -> tuple[Tensor, Tensor]:
        if self.from_memory:
            # (B, 256, 14, 14) → (B, 49, 1024) in NCHW order, whatever memory format the map has.
            image = image_map.flatten(1).reshape(image_map.shape[0], self.num_patches, -1)
        else:
            image = to_tokens(image_map)
        return self.image_proj(image), self.landmark_proj(to_tokens(landmark_map))


class TwoStreams(IntermediatesMixin, nn.Module):
    """What the family shares: an image stream, a frozen landmark stream, and timm's manners.

    A subclass makes `self.fusion` and `self.head`, and says in `fuse` how the streams' maps become tokens and in
    `forward_head` how tokens become logits.
    """

    if TYPE_CHECKING:  # TorchScript would want to compile the annotations
        pools: tuple[str, ...]
        landmark_stream: Any  # None once pruned, as the next two
        tokens: Any
        fusion: Any
        pre_head: nn.Module
        head: nn.Module

    pools = ("token", "avg", "")

    def __init__(
        self,
        image_stream: IRTrunk,
        landmark_stream: MobileFaceNet,
        num_classes: int,
        in_chans: int,
        img_size: int | tuple[int, int],
        global_pool: str,
        num_features: int,
        drop_rate: float,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.img_size = to_pair(img_size)
        self.stream_size = STREAM_SIZE
        self.global_pool = check_option("global_pool", global_pool, self.pools)
        self.num_features = self.head_hidden_size = num_features
        self.image_stream = image_stream
        self.landmark_stream = landmark_stream
        self.tokens = None
        self.feature_info = image_stream.feature_info("image_stream", max(self.img_size[0] // STREAM_SIZE, 1))
        self.head_drop = nn.Dropout(drop_rate)
        self.freeze_landmarks = False

    def freeze_landmark_stream(self, frozen: bool = True) -> None:
        """Keep the landmark stream as it is in training, BatchNorm statistics included, or let it learn."""
        self.freeze_landmarks = frozen
        if self.landmark_stream is not None:
            self.landmark_stream.requires_grad_(not frozen)
            self.landmark_stream.train(self.training and not frozen)

    def load_streams(self, ir50: Mapping[str, Tensor], mobilefacenet: Mapping[str, Tensor]) -> None:
        """Start both streams from the weights of the networks they are.

        Both are taken in RGB order. (The authors' RAF-DB trainer feeds BGR to an IR-50 that was trained on RGB.)

        Args:
            ir50: Tensors of the zoo's `ir50`; its last stage and embedding are not needed.
            mobilefacenet: Tensors of the zoo's `mobilefacenet`.

        Raises:
            WeightsMismatchError: The streams are not those networks, as in the tiny family.
        """
        stages = {f"stages.{i}." for i in range(len(self.feature_info))} | {"stem."}
        trunk = {key.removeprefix("trunk."): t for key, t in ir50.items() if key.startswith("trunk.")}
        trunk = {key: t for key, t in trunk.items() if key.startswith(tuple(stages))}
        load_weights(self.image_stream, trunk, "stem.conv", name="the image stream")
        load_weights(self.landmark_stream, mobilefacenet, "stem.0.conv", name="the landmark stream")

    def train(self, mode: bool = True) -> "Self":
        """Set training mode; a frozen landmark stream stays in eval mode."""
        super().train(mode)
        if self.freeze_landmarks and self.landmark_stream is not None:
            self.landmark_stream.eval()
        return self

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the inputs of image stages and fusion blocks for backward, and compute the rest again."""
        self.image_stream.set_grad_checkpointing(enable)
        if self.fusion is not None:
            self.fusion.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns that sort parameters into layers: stem, image stages, tokens, fusion blocks."""
        return {
            "stem": r"^image_stream\.stem|^landmark_stream",
            "stages": r"^image_stream\.stages\.(\d+)" if coarse else r"^image_stream\.stages\.(\d+)\.(\d+)",
            "tokens": r"^tokens|^fusion\.(?!blocks|norm)",
            "blocks": [(r"^fusion\.blocks\.(\d+)", None), (r"^fusion\.norm|^pre_head", (99999,))],
        }

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay should leave alone."""
        return {"fusion.pos_embed"}

    def get_classifier(self) -> nn.Module:
        """Return the linear layer that gives the logits."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier on the features, or none with `num_classes=0`."""
        if global_pool is not None:
            self.global_pool = check_option("global_pool", global_pool, self.pools)
        forget_labels(self)
        self.num_classes = num_classes
        self.head = new_head(self, self.num_features, num_classes)

    def resize(self, x: Tensor) -> Tensor:
        """Check the images and bring them to the 112 × 112 that both streams see, by nearest neighbour."""
        x = check_input(x, self.in_chans, self.img_size[0], self.img_size[1])
        if self.img_size == (self.stream_size, self.stream_size):
            return x
        return F.interpolate(x, size=(self.stream_size, self.stream_size))

    def fuse(self, image_maps: list[Tensor], landmark_maps: list[Tensor]) -> Tensor:
        """Return the fused tokens (B, N, D) of both streams' stage maps."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn tokens (B, N, D) into features (B, D) and, unless `pre_logits`, into logits."""
        raise NotImplementedError

    def forward_landmarks(self, x: Tensor) -> Tensor:
        """Return the landmark stream's own answer (B, 136): x then y of 68 points, in 0…1 of the image."""
        return self.landmark_stream(self.resize(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the fused tokens (B, N, D), normalised."""
        x = self.resize(x)
        return self._fused(x, self.image_stream.forward_stages(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def _fused(self, x: Tensor, image_maps: list[Tensor]) -> Tensor:
        if self.fusion is None:  # pruned to the image stream
            return image_maps[-1]
        return self.fuse(image_maps, self.landmark_stream.forward_maps(x))

    def _stage_maps(self, x: Tensor, last: int) -> list[Tensor]:
        return self.image_stream.forward_stages(self.resize(x), last)

    def _features_from_maps(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        return self._fused(self.resize(x), maps)

    def _keep_stages(self, last: int, prune_norm: bool) -> None:
        self.image_stream.keep_stages(last)
        if prune_norm or last < len(self.feature_info) - 1:
            # Without the last stage there is nothing to fuse; for its map alone the fusion is not needed.
            self.tokens = self.fusion = self.landmark_stream = None
            self.pre_head = nn.Identity()


class Poster(TwoStreams):
    """POSTER (section 3): two streams, pyramid cross-fusion, gate, linear head.

    The landmark stream is frozen and stays in eval mode under `.train()`, as the paper says, unless
    `freeze_landmarks=False`; the release lets its BatchNorm statistics drift in training.

    Args:
        num_classes: Classes, or 0 for the gated features (B, 512).
        in_chans: Channels of the images.
        img_size: Height and width of the images in pixels; both streams see them at 112 × 112.
        global_pool: "token" (the image stream's mean token, the release's), "avg" (mean over all tokens) or "" (none).
        depth: Pyramid blocks: 4, 6 or 8 in the release.
        token_mixing: Whether blocks end with a learned mix of tokens (released for RAF-DB, not for AffectNet).
        tiny: Build the small streams of `poster_tiny`.
        embed_dim: Features a token at the large level.
        num_heads: Attention heads.
        mlp_ratio: Hidden features of the MLPs, as a multiple of the level's width.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth at the last pyramid block.
        freeze_landmarks: Keep the landmark stream as it is in training.
        device: Where to create the parameters.
        dtype: Of which type.
    """

    def __init__(
        self,
        num_classes: int = 7,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        global_pool: str = "token",
        depth: int = 8,
        token_mixing: bool = True,
        tiny: bool = False,
        embed_dim: int = 512,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        freeze_landmarks: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        streams = _streams(tiny, in_chans, dd)
        super().__init__(*streams, num_classes, in_chans, img_size, global_pool, embed_dim, drop_rate)
        self.tokens = _tokens(tiny, embed_dim, dd)
        self.fusion = Pyramid(embed_dim, depth, num_heads, mlp_ratio, drop_path_rate, token_mixing, **dd)
        self.pre_head = Gate(embed_dim, **dd)
        self.head = new_head(self, embed_dim, num_classes)
        self.freeze_landmark_stream(freeze_landmarks)

    def fuse(self, image_maps: list[Tensor], landmark_maps: list[Tensor]) -> Tensor:
        """Return the fused tokens (B, 100, D) of the streams' maps: 50 of the image, 50 of the landmarks."""
        image, landmark = self.tokens(image_maps[-1], landmark_maps[-1])
        return self.fusion(image, landmark)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the tokens (B, N, D), gate them and, unless `pre_logits`, classify."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x.mean(1)
        x = self.head_drop(self.pre_head(x))
        return x if pre_logits else self.head(x)


class PlainEncoder(nn.Module):
    """Standard encoders over the tokens of both streams together, 2P × D, with a learned position each."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path_rate: float,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.pos_embed = nn.Parameter(torch.zeros(1, 2 * PATCHES, dim, **dd))
        self.blocks = nn.ModuleList(
            EncoderBlock(dim, num_heads, mlp_ratio, rate, **dd) for rate in drop_path_rates(drop_path_rate, depth)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.grad_checkpointing = False

    def forward(self, image: Tensor, landmark: Tensor) -> Tensor:
        x = torch.cat((image, landmark), dim=1) + self.pos_embed
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)


class PosterBaseline(TwoStreams):
    """The paper's starting point: the same streams, their tokens concatenated, plain encoders, an MLP head.

    No pyramid and no exchange of keys: each token asks all tokens of both streams. The answer is read from the mean
    of the tokens.

    Args:
        num_classes: Classes, or 0 for the hidden features of the MLP head.
        in_chans: Channels of the images.
        img_size: Height and width of the images in pixels; both streams see them at 112 × 112.
        global_pool: "avg" (mean over all tokens) or "" (none).
        depth: Encoder blocks.
        tiny: Build the small streams of `poster_tiny`.
        embed_dim: Features a token.
        num_heads: Attention heads.
        mlp_ratio: Hidden features of the encoders' MLPs, as a multiple of `embed_dim`.
        drop_rate: Dropout before the last layer.
        drop_path_rate: Stochastic depth at the last block.
        freeze_landmarks: Keep the landmark stream as it is in training.
        device: Where to create the parameters.
        dtype: Of which type.
    """

    pools = ("avg", "")

    def __init__(
        self,
        num_classes: int = 7,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        global_pool: str = "avg",
        depth: int = 8,
        tiny: bool = False,
        embed_dim: int = 512,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        freeze_landmarks: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        streams = _streams(tiny, in_chans, dd)
        super().__init__(*streams, num_classes, in_chans, img_size, global_pool, embed_dim, drop_rate)
        self.tokens = _tokens(tiny, embed_dim, dd)
        self.fusion = PlainEncoder(embed_dim, depth, num_heads, mlp_ratio, drop_path_rate, **dd)
        self.pre_head = nn.Sequential(linear(embed_dim, embed_dim, **dd), nn.GELU())
        self.head = new_head(self, embed_dim, num_classes)
        self.freeze_landmark_stream(freeze_landmarks)

    def fuse(self, image_maps: list[Tensor], landmark_maps: list[Tensor]) -> Tensor:
        """Return the encoded tokens (B, 98, D) of the streams' maps: 49 of the image, 49 of the landmarks."""
        image, landmark = self.tokens(image_maps[-1], landmark_maps[-1])
        return self.fusion(image, landmark)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Average the tokens (B, N, D), pass the hidden layer and, unless `pre_logits`, classify."""
        if self.global_pool == "avg":
            x = x.mean(1)
        x = self.head_drop(self.pre_head(x))
        return x if pre_logits else self.head(x)


# The tiny family works on 56 × 56 maps after its stem: the small faces that it is trained on hold no more.
_TINY_IMAGE_STREAM: dict[str, Any] = {"stem_width": 32, "stem_stride": 2, "widths": (48, 96, 192)}
_TINY_DEPTHS = (2, 2, 2)
_TINY_LANDMARK_WIDTH = 0.5


def _streams(tiny: bool, in_chans: int, dd: dict[str, Any]) -> tuple[IRTrunk, MobileFaceNet]:
    if tiny:
        image_stream = IRTrunk(in_chans, depths=_TINY_DEPTHS, **_TINY_IMAGE_STREAM, **dd)
        return image_stream, MobileFaceNet(in_chans=in_chans, width=_TINY_LANDMARK_WIDTH, **dd)
    return IRTrunk(in_chans, **dd), MobileFaceNet(in_chans=in_chans, **dd)


def _tokens(tiny: bool, embed_dim: int, dd: dict[str, Any]) -> Tokens:
    if tiny:
        landmark_dim = int(512 * _TINY_LANDMARK_WIDTH)
        return Tokens(_TINY_IMAGE_STREAM["widths"][-1], landmark_dim, embed_dim, from_memory=False, **dd)
    return Tokens(1024, 512, embed_dim, from_memory=True, **dd)


# Sizes as the release names them, by their number of pyramid blocks; `poster` is its "large".
_SMALL: dict[str, Any] = {"depth": 4}
_BASE: dict[str, Any] = {"depth": 6}
_LARGE: dict[str, Any] = {"depth": 8}
_TINY: dict[str, Any] = {"tiny": True, "depth": 2, "embed_dim": 160, "num_heads": 4}


def _upstream_weights(
    name: str, labels: tuple[str, ...], tag: str = "", recipe: str = "rafdb", **facts: Any
) -> Weights:
    """Return what the authors' releases have in common."""
    bgr = labels == RAFDB  # the RAF-DB trainer fed BGR; our files hold the stems turned to RGB
    return Weights(
        preprocessing=FACE_224.folded_from_bgr() if bgr else FACE_224,
        label_names=labels,
        tag=tag,
        hub_id=f"poster-zoo/{name}",
        upstream_layout="poster",
        upstream_bgr=bgr,
        origin_url="https://github.com/zczcwh/POSTER",
        paper_name="POSTER: A Pyramid Cross-Fusion Transformer Network for Facial Expression Recognition",
        paper_ids=("arXiv:2204.04083",),
        first_conv=_STEMS,
        classifier="head",
        recipe=recipe,
        **{"datasets": ("raf-db",) if bgr else ("affectnet",)} | facts,
    )


_STEMS = ("image_stream.stem.conv", "landmark_stream.stem.0.conv")
_UNNAMED_FILE = "The authors' README does not name the AffectNet checkpoints; convert knows them by their tensors."
_RAFDB_METRICS = (
    Metric("RAF-DB test", "accuracy", published=0.9205),
    Metric("RAF-DB test", "mean class accuracy", published=0.8603),
)


_ON_FERPLUS = "poster-zoo eval --model poster_tiny --data ferplus:FERPLUS"
_ON_PHOTOGRAPHS = "poster-zoo eval --model poster_tiny --data rafdb:PHOTOGRAPHS"
_TINY_METRICS = (
    Metric("FERPlus test", "accuracy", measured=0.8381, command=_ON_FERPLUS),
    Metric("FERPlus test", "mean class accuracy", measured=0.6542, command=_ON_FERPLUS),
    Metric("photographs test", "accuracy", measured=0.8776, command=_ON_PHOTOGRAPHS),
    Metric("photographs test", "mean class accuracy", measured=0.4712, command=_ON_PHOTOGRAPHS),
)
_FERPLUS_NOTE = "The classes and their votes are FERPlus's: Barsoum et al., ICMI 2016 (arXiv:1608.01041)."
_PHOTOGRAPHS_NOTE = (
    "The photographs are faces of muxspace/facial_expressions, aligned, cut to 100 × 100, and parted by person in "
    "RAF-DB's layout. That folder is not published, so what was measured on it cannot be measured elsewhere."
)


def _our_weights(name: str, description: str, **facts: Any) -> Weights:
    """Return what the tiny family has in common."""
    return Weights(
        preprocessing=FACE_112,
        alignment=FIVE_POINTS,
        label_names=FERPLUS,
        description=description,
        license="apache-2.0",
        paper_name="POSTER: A Pyramid Cross-Fusion Transformer Network for Facial Expression Recognition",
        paper_ids=("arXiv:2204.04083",),
        classifier="head",
        recipe="tiny",
        **{"notes": (_FERPLUS_NOTE,)} | facts,
    )


WEIGHTS = {
    "poster_small": _upstream_weights(
        "poster_small", RAFDB, description="POSTER with 4 pyramid blocks.", parameters=39_381_007
    ),
    "poster_base": _upstream_weights(
        "poster_base", RAFDB, description="POSTER with 6 pyramid blocks.", parameters=49_191_639
    ),
    "poster": _upstream_weights(
        "poster_rafdb",
        RAFDB,
        "zheng_rafdb",
        parameters=59_002_271,
        description="POSTER (large, 8 pyramid blocks), the network of the paper, with its RAF-DB weights.",
        upstream_file="rafdb_best.pth",
        metrics=_RAFDB_METRICS,
    ),
    "poster_rafdb": _upstream_weights(
        "poster_rafdb",
        RAFDB,
        "zheng_rafdb",
        parameters=59_002_271,
        description="POSTER (large) for the seven classes of RAF-DB.",
        upstream_file="rafdb_best.pth",
        metrics=_RAFDB_METRICS,
    ),
    "poster_affectnet7": _upstream_weights(
        "poster_affectnet7",
        AFFECTNET7,
        "zheng_affectnet7",
        recipe="affectnet7",
        parameters=58_759_871,
        description="POSTER (large, without token mixing) for seven classes of AffectNet.",
        notes=(_UNNAMED_FILE,),
        metrics=(Metric("AffectNet-7 validation", "accuracy", published=0.6731),),
    ),
    "poster_affectnet8": _upstream_weights(
        "poster_affectnet8",
        AFFECTNET8,
        "zheng_affectnet8",
        recipe="affectnet8",
        parameters=58_760_384,
        description="POSTER (large, without token mixing) for eight classes of AffectNet.",
        notes=(_UNNAMED_FILE,),
        metrics=(Metric("AffectNet-8 validation", "accuracy", published=0.6334),),
    ),
    "poster_ferplus": _upstream_weights(
        "poster_ferplus",
        FERPLUS,
        datasets=(),
        recipe="ferplus",
        parameters=59_002_784,
        description="POSTER (large) for the eight classes of FERPlus; no weights are published.",
        metrics=(Metric("FERPlus test", "accuracy", published=0.9162),),
    ),
    "poster_baseline": Weights(
        preprocessing=FACE_224,
        label_names=RAFDB,
        parameters=36_283_735,
        description="The paper's baseline: POSTER's streams, tokens joined, eight plain encoders; no weights yet.",
        paper_name="POSTER: A Pyramid Cross-Fusion Transformer Network for Facial Expression Recognition",
        paper_ids=("arXiv:2204.04083",),
        first_conv=_STEMS,
        classifier="head",
        recipe="study",
    ),
    "poster_tiny": _our_weights(
        "poster_tiny",
        "A small POSTER for 112 × 112 faces, with FERPlus's eight classes; its weights come with the package.",
        tag="ferplus",
        hub_id="poster-zoo/poster_tiny",
        bundled="poster_tiny.safetensors",
        datasets=("ferplus", "muxspace-facial-expressions"),
        sha256="414abb2b9a8bb57cb4c4cfc63a92d78492a6fb88801f4e4b19f4681394124889",
        metrics=_TINY_METRICS,
        notes=(_FERPLUS_NOTE, _PHOTOGRAPHS_NOTE),
        parameters=3_133_896,
        first_conv=_STEMS,
    ),
    "poster_tiny_baseline": _our_weights(
        "poster_tiny_baseline",
        "poster_tiny's streams with plain encoders instead of cross-fusion, at the same cost.",
        parameters=2_375_736,
        first_conv=_STEMS,
    ),
    "poster_tiny_image": _our_weights(
        "poster_tiny_image",
        "poster_tiny's image stream alone, deeper so that it costs the same.",
        parameters=3_220_104,
        first_conv=("trunk.stem.conv",),
        pool_size=(7, 7),
    ),
}
default_cfgs = register_weights(WEIGHTS)


@register_model
def poster_small(pretrained: bool = False, **kwargs: Any) -> Poster:
    """POSTER with 4 pyramid blocks, 224 × 224 RGB faces."""
    return build_model(Poster, "poster_small", pretrained, kwargs, _SMALL)


@register_model
def poster_base(pretrained: bool = False, **kwargs: Any) -> Poster:
    """POSTER with 6 pyramid blocks, 224 × 224 RGB faces."""
    return build_model(Poster, "poster_base", pretrained, kwargs, _BASE)


@register_model
def poster(pretrained: bool = False, **kwargs: Any) -> Poster:
    """POSTER of the paper (large, 8 pyramid blocks), 224 × 224 RGB faces; pretrained: the RAF-DB weights."""
    return build_model(Poster, "poster", pretrained, kwargs, _LARGE)


@register_model
def poster_rafdb(pretrained: bool = False, **kwargs: Any) -> Poster:
    """POSTER (large) with the seven classes of RAF-DB, 224 × 224 RGB faces."""
    return build_model(Poster, "poster_rafdb", pretrained, kwargs, _LARGE)


@register_model
def poster_affectnet7(pretrained: bool = False, **kwargs: Any) -> Poster:
    """POSTER (large, without token mixing) with seven classes of AffectNet, 224 × 224 RGB faces."""
    return build_model(Poster, "poster_affectnet7", pretrained, kwargs, _LARGE | {"token_mixing": False})


@register_model
def poster_affectnet8(pretrained: bool = False, **kwargs: Any) -> Poster:
    """POSTER (large, without token mixing) with eight classes of AffectNet, 224 × 224 RGB faces."""
    return build_model(Poster, "poster_affectnet8", pretrained, kwargs, _LARGE | {"token_mixing": False})


@register_model
def poster_ferplus(pretrained: bool = False, **kwargs: Any) -> Poster:
    """POSTER (large) with the eight classes of FERPlus, 224 × 224 RGB faces."""
    return build_model(Poster, "poster_ferplus", pretrained, kwargs, _LARGE)


@register_model
def poster_baseline(pretrained: bool = False, **kwargs: Any) -> PosterBaseline:
    """The paper's baseline: both streams' tokens through eight plain encoders, 224 × 224 RGB faces."""
    return build_model(PosterBaseline, "poster_baseline", pretrained, kwargs)


@register_model
def poster_tiny(pretrained: bool = False, **kwargs: Any) -> Poster:
    """A small POSTER with the eight classes of FERPlus, 112 × 112 RGB faces; its weights come with the package."""
    return build_model(Poster, "poster_tiny", pretrained, kwargs, _TINY)


@register_model
def poster_tiny_baseline(pretrained: bool = False, **kwargs: Any) -> PosterBaseline:
    """The streams of `poster_tiny` with plain encoders, at the same cost, 112 × 112 RGB faces."""
    return build_model(PosterBaseline, "poster_tiny_baseline", pretrained, kwargs, _TINY)


@register_model
def poster_tiny_image(pretrained: bool = False, **kwargs: Any) -> IRNet:
    """The image stream of `poster_tiny` alone, deepened to the same cost, 112 × 112 RGB faces."""
    size = {**_TINY_IMAGE_STREAM, "depths": (2, 4, 4), "global_pool": "avg"}
    return build_model(IRNet, "poster_tiny_image", pretrained, kwargs, size)
