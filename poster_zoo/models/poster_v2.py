"""POSTER++ (POSTER v2): window cross-attention between the two streams at three scales, then a small ViT.

Mao, Xu, Yin, Chang, Nie and Huang, "POSTER++: A simpler and stronger facial expression recognition network", 2023,
arXiv:2301.12149. What the released weights depend on, and what is not built because the release never runs it:

* queries are the landmark stream's raw maps, without projection; keys and values come from the normalised image maps,
* the residual is added to the *normalised* image features, scaled by LayerScale,
* each attention window covers its whole map (28, 14 and 7 wide), so there is one window a level,
* of the release's 747 tensors the ViT's own patch embedding, spare linear layers and token mixes, and an embedding
  head in the image stream are never used.
"""

from typing import Any

import torch
from timm.layers import DropPath
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from poster_zoo.labels import AFFECTNET7, AFFECTNET8, CAERS, RAFDB
from poster_zoo.models._builder import build_model, register_weights
from poster_zoo.models.ir50 import IRTrunk
from poster_zoo.models.layers import EncoderBlock, Gate, Mlp, drop_path_rates, linear, new_head, to_tokens
from poster_zoo.models.mobilefacenet import MobileFaceNet
from poster_zoo.models.poster import TwoStreams
from poster_zoo.weights.entry import FACE_224, Metric, Weights

__all__ = [
    "PosterV2",
    "WindowCrossAttention",
    "poster_v2",
    "poster_v2_affectnet7",
    "poster_v2_affectnet8",
    "poster_v2_caers",
    "poster_v2_rafdb",
]


class WindowCrossAttention(nn.Module):
    """Attention over one square window: queries as given, keys and values from `x`, with a relative position bias."""

    def __init__(self, dim: int, num_heads: int, window: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.window = window
        self.kv = linear(dim, 2 * dim, **dd)
        self.proj = linear(dim, dim, **dd)
        # One bias a head for each of the (2w - 1)² offsets between two positions, row offset first.
        self.position_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads, **dd))
        nn.init.normal_(self.position_bias, std=0.02)

    def relative_bias(self) -> Tensor:
        """Return the bias between any two positions, (1, heads, w², w²)."""
        w = self.window
        side = 2 * w - 1
        table = self.position_bias.transpose(0, 1).reshape(1, self.num_heads, side, side)
        # Entry (i, j) belongs to offset (i - j) + w - 1: for each query row, w rows of the table in reverse.
        rows = table.unfold(2, w, 1).flip(4)  # (1, heads, query row, columns, key row)
        both = rows.unfold(3, w, 1).flip(5)  # (1, heads, query row, query column, key row, key column)
        return both.reshape(1, self.num_heads, w * w, w * w)

    def forward(self, x: Tensor, queries: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        kv = self.kv(x).reshape(batch, tokens, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)  # each (B, heads, N, head_dim)
        q = queries.reshape(batch, tokens, self.num_heads, self.head_dim).transpose(1, 2)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.relative_bias())
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class FusionLevel(nn.Module):
    """One scale: halve the image map, let the landmark map ask it, then an MLP; both steps added through LayerScale."""

    def __init__(
        self, dim: int, num_heads: int, window: int, drop_path: float, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.window = window
        self.down = nn.Conv2d(dim, dim, 3, 2, 1, **dd)
        self.norm1 = nn.LayerNorm(dim, **dd)
        self.attn = WindowCrossAttention(dim, num_heads, window, **dd)
        self.gamma1 = nn.Parameter(torch.full((dim,), 1e-5, **dd))
        self.norm2 = nn.LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, 4 * dim, **dd)
        self.gamma2 = nn.Parameter(torch.full((dim,), 1e-5, **dd))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, image: Tensor, landmark: Tensor) -> Tensor:
        """Fuse maps (B, C, 2w, 2w) and (B, C, w, w) into (B, C, w, w)."""
        x = self.norm1(to_tokens(self.down(image)))
        x = x + self.drop_path(self.gamma1 * self.attn(x, to_tokens(landmark)))
        x = x + self.drop_path(self.gamma2 * self.mlp(self.norm2(x)))
        return x.transpose(1, 2).unflatten(2, (self.window, self.window))


class MultiScaleFusion(nn.Module):
    """Three levels of window cross-attention, their maps as 49 tokens each, and a ViT over them."""

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path_rate: float,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        rates = drop_path_rates(drop_path_rate, 3 + depth)  # over the three levels, then over the blocks
        sizes = ((64, 2, 28), (128, 4, 14), (256, 8, 7))  # width, heads, window
        self.levels = nn.ModuleList(FusionLevel(*size, rate, **dd) for size, rate in zip(sizes, rates[:3], strict=True))
        self.last_landmark_conv = nn.Conv2d(512, 256, 3, padding=1, **dd)
        self.embed_large = nn.Sequential(
            nn.Conv2d(64, embed_dim, 3, 2, 1, **dd), nn.Conv2d(embed_dim, embed_dim, 3, 2, 1, **dd)
        )
        self.embed_medium = nn.Conv2d(128, embed_dim, 3, 2, 1, **dd)
        self.embed_small = nn.Conv2d(256, embed_dim, 1, **dd)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim, **dd))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + 3 * 49, embed_dim, **dd))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(EncoderBlock(embed_dim, num_heads, 4.0, rate, **dd) for rate in rates[3:])
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6, **dd)
        self.grad_checkpointing = False

    def forward(self, image_maps: list[Tensor], landmark_maps: list[Tensor]) -> Tensor:
        landmarks = [landmark_maps[0], landmark_maps[1], self.last_landmark_conv(landmark_maps[2])]
        fused: list[Tensor] = []
        for i, level in enumerate(self.levels):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                fused.append(checkpoint(level, image_maps[i], landmarks[i], use_reentrant=False))
            else:
                fused.append(level(image_maps[i], landmarks[i]))
        maps = [self.embed_large(fused[0]), self.embed_medium(fused[1]), self.embed_small(fused[2])]
        tokens = [self.cls_token.expand(image_maps[0].shape[0], -1, -1)] + [to_tokens(m) for m in maps]
        x = torch.cat(tokens, dim=1) + self.pos_embed
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.norm(x)


class PosterV2(TwoStreams):
    """POSTER++: streams of POSTER, all three image stages fused with the landmark maps of the same size.

    Args:
        num_classes: Classes, or 0 for the gated features (B, 768).
        in_chans: Channels of the images.
        img_size: Height and width of the images in pixels; both streams see them at 112 × 112.
        global_pool: "token" (the class token, the release's), "avg" (mean over all tokens) or "" (none).
        embed_dim: Features a token of the ViT.
        depth: Blocks of the ViT.
        num_heads: Attention heads of the ViT.
        drop_rate: Dropout before the head.
        drop_path_rate: Stochastic depth at the last block.
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
        embed_dim: int = 768,
        depth: int = 2,
        num_heads: int = 8,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        freeze_landmarks: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        streams = IRTrunk(in_chans, **dd), MobileFaceNet(in_chans=in_chans, **dd)
        super().__init__(*streams, num_classes, in_chans, img_size, global_pool, embed_dim, drop_rate)
        self.fusion = MultiScaleFusion(embed_dim, depth, num_heads, drop_path_rate, **dd)
        self.pre_head = Gate(embed_dim, **dd)
        self.head = new_head(self, embed_dim, num_classes)
        self.freeze_landmark_stream(freeze_landmarks)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay should leave alone."""
        biases = {f"fusion.levels.{i}.attn.position_bias" for i in range(3)}
        return {"fusion.pos_embed", "fusion.cls_token", *biases}

    def fuse(self, image_maps: list[Tensor], landmark_maps: list[Tensor]) -> Tensor:
        """Return the ViT's tokens (B, 148, D): the class token, then 49 a level."""
        return self.fusion(image_maps, landmark_maps)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool the tokens (B, N, D), gate them and, unless `pre_logits`, classify."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            x = x.mean(1)
        x = self.head_drop(self.pre_head(x))
        return x if pre_logits else self.head(x)


def _weights(
    name: str,
    labels: tuple[str, ...],
    tag: str = "",
    recipe: str = "poster_v2_rafdb",
    dataset: str = "raf-db",
    **facts: Any,
) -> Weights:
    return Weights(
        preprocessing=FACE_224,
        label_names=labels,
        tag=tag,
        hub_id=f"poster-zoo/{name}",
        upstream_layout="poster_v2",
        origin_url="https://github.com/Talented-Q/POSTER_V2",
        paper_name="POSTER++: A simpler and stronger facial expression recognition network",
        paper_ids=("arXiv:2301.12149",),
        first_conv=("image_stream.stem.conv", "landmark_stream.stem.0.conv"),
        classifier="head",
        recipe=recipe,
        datasets=(dataset,),
        **facts,
    )


WEIGHTS = {
    "poster_v2": _weights(
        "poster_v2_rafdb",
        RAFDB,
        "mao_rafdb",
        parameters=43_849_957,
        description="POSTER++, the network of the paper, with its RAF-DB weights.",
        upstream_file="raf-db-model_best.pth",
        metrics=(Metric("RAF-DB test", "accuracy", published=0.9221),),
    ),
    "poster_v2_rafdb": _weights(
        "poster_v2_rafdb",
        RAFDB,
        "mao_rafdb",
        parameters=43_849_957,
        description="POSTER++ for the seven classes of RAF-DB.",
        upstream_file="raf-db-model_best.pth",
        metrics=(Metric("RAF-DB test", "accuracy", published=0.9221),),
    ),
    "poster_v2_affectnet7": _weights(
        "poster_v2_affectnet7",
        AFFECTNET7,
        "mao_affectnet7",
        recipe="poster_v2_affectnet7",
        dataset="affectnet",
        parameters=43_849_957,
        description="POSTER++ for seven classes of AffectNet.",
        upstream_file="affectnet-7-model_best.pth",
        metrics=(Metric("AffectNet-7 validation", "accuracy", published=0.6749),),
    ),
    "poster_v2_affectnet8": _weights(
        "poster_v2_affectnet8",
        AFFECTNET8,
        "mao_affectnet8",
        recipe="poster_v2_affectnet8",
        dataset="affectnet",
        parameters=43_850_726,
        description="POSTER++ for eight classes of AffectNet.",
        upstream_file="affectnet-8-model_best.pth",
        metrics=(Metric("AffectNet-8 validation", "accuracy", published=0.6377),),
    ),
    "poster_v2_caers": _weights(
        "poster_v2_caers",
        CAERS,
        "mao_caers",
        recipe="poster_v2_caers",
        dataset="caer-s",
        parameters=43_849_957,
        description="POSTER++ for the seven classes of CAER-S.",
        upstream_file="caer-s-model_best.pth",
        metrics=(Metric("CAER-S test", "accuracy", published=0.9300),),
    ),
}
default_cfgs = register_weights(WEIGHTS)


@register_model
def poster_v2(pretrained: bool = False, **kwargs: Any) -> PosterV2:
    """POSTER++ of the paper, 224 × 224 RGB faces; pretrained: the RAF-DB weights."""
    return build_model(PosterV2, "poster_v2", pretrained, kwargs)


@register_model
def poster_v2_rafdb(pretrained: bool = False, **kwargs: Any) -> PosterV2:
    """POSTER++ with the seven classes of RAF-DB, 224 × 224 RGB faces."""
    return build_model(PosterV2, "poster_v2_rafdb", pretrained, kwargs)


@register_model
def poster_v2_affectnet7(pretrained: bool = False, **kwargs: Any) -> PosterV2:
    """POSTER++ with seven classes of AffectNet, 224 × 224 RGB faces."""
    return build_model(PosterV2, "poster_v2_affectnet7", pretrained, kwargs)


@register_model
def poster_v2_affectnet8(pretrained: bool = False, **kwargs: Any) -> PosterV2:
    """POSTER++ with eight classes of AffectNet, 224 × 224 RGB faces."""
    return build_model(PosterV2, "poster_v2_affectnet8", pretrained, kwargs)


@register_model
def poster_v2_caers(pretrained: bool = False, **kwargs: Any) -> PosterV2:
    """POSTER++ with the seven classes of CAER-S, 224 × 224 RGB faces."""
    return build_model(PosterV2, "poster_v2_caers", pretrained, kwargs)
