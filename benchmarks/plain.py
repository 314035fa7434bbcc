"""POSTER step by step, as one would write it from the paper: the side that the benchmarks have to beat.

No fused attention, no shared work between the streams, no memory format, nothing left out: both streams resize the
image for themselves, a stride-2 shortcut is a 1 × 1 max pool, the landmark stream computes the points that nobody
asks for, and every block normalises its tokens once for each branch. It takes its numbers from a model of the zoo, and
the first thing a benchmark does is to compare the answers of the two.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poster_zoo.models.ir50 import IRBlock
from poster_zoo.models.poster import CrossFusionBlock, FusionBranch, Poster, PyramidBlock


class PlainPoster(nn.Module):
    """POSTER as its equations are written, with the numbers of `model`, which it shares."""

    def __init__(self, model: Poster) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, classes) of images (B, 3, 224, 224)."""
        model = self.model
        image_map = self._image_map(F.interpolate(images, size=model.stream_size))
        landmark_map = self._landmark_map(F.interpolate(images, size=model.stream_size))
        image, landmark = model.tokens(image_map, landmark_map)

        image = torch.cat((image.mean(1, keepdim=True), image), dim=1) + model.fusion.pos_embed
        landmark = torch.cat((landmark.mean(1, keepdim=True), landmark), dim=1)
        large = torch.cat((image, landmark), dim=1)
        medium, small = model.fusion.down_medium(large), model.fusion.down_small(large)
        for block in model.fusion.blocks:
            large, medium, small = pyramid_block(block, large, medium, small)
        logits: Tensor = model.head(model.pre_head(model.fusion.norm(large)[:, 0]))
        return logits

    def _image_map(self, face: Tensor) -> Tensor:
        x = self.model.image_stream.stem(face)
        for stage in self.model.image_stream.stages:
            for block in stage.children():
                x = ir_block(cast("IRBlock", block), x)
        return x

    def _landmark_map(self, face: Tensor) -> Tensor:
        stream = self.model.landmark_stream
        maps: list[Tensor] = stream.forward_maps(face)
        stream.forward_head(maps[-1])
        return maps[-1]


def ir_block(block: IRBlock, x: Tensor) -> Tensor:
    """BN → convolution → PReLU → convolution → BN, beside a shortcut."""
    y = block.bn2(block.conv2(block.act(block.conv1(block.bn1(x)))))
    shortcut: Tensor = block.downsample(x)
    return y + F.max_pool2d(shortcut, 1, block.shortcut_step)


def pyramid_block(block: PyramidBlock, large: Tensor, medium: Tensor, small: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One cross-fusion block a level, then the smaller levels are added upwards."""
    large, medium, small = (
        cross_fusion(block.large, large),
        cross_fusion(block.medium, medium),
        cross_fusion(block.small, small),
    )
    medium = medium + block.up_small(small)
    large = large + block.up_medium(medium)
    return large, medium, small


def cross_fusion(block: CrossFusionBlock, x: Tensor) -> Tensor:
    """Both streams' tokens, each asked by the other's."""
    half = x.shape[1] // 2
    by_image, by_landmark = block.image.norm1(x), block.landmark.norm1(x)
    image = ask(block.image, x[:, :half], by_image[:, :half], by_image[:, half:])
    landmark = ask(block.landmark, x[:, half:], by_landmark[:, half:], by_landmark[:, :half])
    mixed: Tensor = block.mix(torch.cat((image, landmark), dim=1))
    return mixed


def ask(branch: FusionBranch, own: Tensor, keys: Tensor, queries: Tensor) -> Tensor:
    """Attention of another stream's tokens to this one's, then an MLP."""
    batch, tokens, dim = own.shape
    heads = branch.attn.num_heads
    kv = branch.attn.kv(keys).reshape(batch, tokens, 2, heads, dim // heads).permute(2, 0, 3, 1, 4)
    key, value = kv[0], kv[1]
    query = queries.reshape(batch, tokens, heads, dim // heads).permute(0, 2, 1, 3)
    weights = (query @ key.transpose(-2, -1)) * (dim // heads) ** -0.5
    asked = (weights.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, dim)
    own = own + branch.attn.proj(asked)
    return own + branch.mlp(branch.norm2(own))
