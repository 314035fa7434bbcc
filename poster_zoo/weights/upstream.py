"""How the authors' releases name their tensors, and what we call the same ones.

A rule is a pattern on the release's name and our name for it; tensors that the release saves but never runs are
dropped, each with the reason. A name that no rule knows is left over, and the conversion refuses the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["LAYOUTS", "Layout", "Renaming", "rename"]

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


class Renaming(NamedTuple):
    """What became of a file's names.

    Attributes:
        used: Our name of each tensor that is used, by the release's name.
        dropped: Why a tensor is not used, by the release's name.
        left_over: Names that no rule knows.
    """

    used: dict[str, str]
    dropped: dict[str, str]
    left_over: tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """One architecture's names in the authors' files.

    Attributes:
        name: What messages call it.
        rules: Release name → our name.
        drops: Release name → why it is not used.
    """

    name: str
    rules: tuple[Rule, ...]
    drops: tuple[tuple[str, str], ...] = ()


def rename(layout: Layout, names: Iterable[str]) -> Renaming:
    """Sort a release's names into used (with our names), dropped (with the reason) and left over."""
    renaming = Renaming({}, {}, ())
    left_over = []
    for name in names:
        if reason := next((reason for pattern, reason in layout.drops if re.match(pattern, name)), None):
            renaming.dropped[name] = reason
        elif ours := _renamed(layout.rules, name):
            renaming.used[name] = ours
        else:
            left_over.append(name)
    return renaming._replace(left_over=tuple(left_over))


def _renamed(rules: Iterable[Rule], name: str) -> str | None:
    for pattern, ours in rules:
        renamed, count = re.subn(pattern, ours, name, count=1)
        if count:
            return renamed
    return None


def _under(prefix: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Return `rules` for a network that the release keeps under `prefix` and we under `ours`."""

    def placed(rule: Rule) -> Rule:
        pattern, replacement = rule
        if isinstance(replacement, str):
            return rf"^{re.escape(prefix)}{pattern[1:]}", ours + replacement
        return rf"^{re.escape(prefix)}{pattern[1:]}", lambda match: ours + replacement(match)

    return tuple(placed(rule) for rule in rules)


# ------------------------------------------------------------------------------------------------------------ streams

_TAIL = r"(weight|bias|running_mean|running_var|num_batches_tracked)$"
_IN_CONV_BLOCK = r"(conv|bn|prelu)\." + _TAIL


def _conv_block(match: re.Match[str], place: str) -> str:
    layer, tensor = match.groups()[-2:]
    return f"{place}.{'act' if layer == 'prelu' else layer}.{tensor}"


_BOTTLENECK = r"(?:(conv|conv_dw|project)\.)" + _IN_CONV_BLOCK
_BOTTLENECK_PARTS = {"conv": "expand", "conv_dw": "depthwise", "project": "project"}


def _bottleneck_rules(stage: int, first: str, rest: str) -> tuple[Rule, ...]:
    def in_first(match: re.Match[str]) -> str:
        return _conv_block(match, f"stages.{stage}.0.{_BOTTLENECK_PARTS[match[1]]}")

    def in_rest(match: re.Match[str]) -> str:
        return _conv_block(match, f"stages.{stage}.{int(match[1]) + 1}.{_BOTTLENECK_PARTS[match[2]]}")

    return (rf"^{first}\.{_BOTTLENECK}", in_first), (rf"^{rest}\.model\.(\d+)\.{_BOTTLENECK}", in_rest)


_MOBILEFACENET: tuple[Rule, ...] = (
    (rf"^conv1\.{_IN_CONV_BLOCK}", lambda m: _conv_block(m, "stem.0")),
    (rf"^conv2_dw\.{_IN_CONV_BLOCK}", lambda m: _conv_block(m, "stem.1")),
    *_bottleneck_rules(0, "conv_23", "conv_3"),
    *_bottleneck_rules(1, "conv_34", "conv_4"),
    *_bottleneck_rules(2, "conv_45", "conv_5"),
    (rf"^conv_6_sep\.{_IN_CONV_BLOCK}", lambda m: _conv_block(m, "stages.2.3")),
    (rf"^output_layer\.conv_6_dw\.{_IN_CONV_BLOCK}", lambda m: _conv_block(m, "pool")),
    (rf"^output_layer\.linear\.{_TAIL}", r"head.\1"),
    (rf"^output_layer\.bn\.{_TAIL}", r"head_bn.\1"),
)

_IR_BLOCK = ("bn1", "conv1", "act", "conv2", "bn2")
_IR_DEPTHS = (3, 4, 14, 3)


def _ir_tensor(stage: int, block: int, part: str, layer: str, tensor: str) -> str:
    ours = _IR_BLOCK[int(layer)] if part == "res_layer" else f"downsample.{('conv', 'bn')[int(layer)]}"
    return f"stages.{stage}.{block}.{ours}.{tensor}"


def _ir_numbered_through(match: re.Match[str]) -> str:
    """Name a block that the release counts through all stages."""
    block, stage = int(match[1]), 0
    while stage < len(_IR_DEPTHS) - 1 and block >= _IR_DEPTHS[stage]:
        block -= _IR_DEPTHS[stage]
        stage += 1
    return _ir_tensor(stage, block, match[2], match[3], match[4])


def _ir_numbered_by_stage(match: re.Match[str]) -> str:
    return _ir_tensor(int(match[1]) - 1, int(match[2]), match[3], match[4], match[5])


_IR_PART = rf"(res_layer|shortcut_layer)\.(\d)\.{_TAIL}"
_IR_STEM: Rule = (rf"^input_layer\.(\d)\.{_TAIL}", lambda m: f"stem.{('conv', 'bn', 'act')[int(m[1])]}.{m[2]}")
_IR_THROUGH: tuple[Rule, ...] = (_IR_STEM, (rf"^body\.(\d+)\.{_IR_PART}", _ir_numbered_through))
_IR_BY_STAGE: tuple[Rule, ...] = (_IR_STEM, (rf"^body(\d)\.(\d+)\.{_IR_PART}", _ir_numbered_by_stage))
_IR_EMBEDDING: Rule = (
    rf"^output_layer\.(\d)\.{_TAIL}",
    lambda m: f"embed.{ {'0': 'bn1', '3': 'fc', '4': 'bn2'}[m[1]] }.{m[2]}",
)

_NO_EMBEDDING = (r"^ir_back\.output_layer\.", "embedding head of the image stream, never run")

# --------------------------------------------------------------------------------------------------------- whole nets

_LEVELS = {"l": "large", "m": "medium", "s": "small"}
_FUSION_PARTS = {
    "norm1": "image.norm1",
    "norm2": "image.norm2",
    "norm3": "landmark.norm1",
    "norm4": "landmark.norm2",
    "attn_img": "image.attn",
    "attn_lm": "landmark.attn",
    "mlp1": "image.mlp",
    "mlp2": "landmark.mlp",
    "conv": "mix",
}


def _fusion_tensor(match: re.Match[str]) -> str:
    block, level, part, rest = match.groups()
    return f"fusion.blocks.{block}.{_LEVELS[level]}.{_FUSION_PARTS[part]}.{rest}"


_POSTER_RULES: tuple[Rule, ...] = (
    *_under("face_landback.", "landmark_stream.", _MOBILEFACENET),
    *_under("ir_back.", "image_stream.", _IR_THROUGH),
    (r"^ir_layer\.", "tokens.image_proj."),
    (r"^pyramid_fuse\.(pos_embed)$", r"fusion.\1"),
    (r"^pyramid_fuse\.downsample_([ms])\.", lambda m: f"fusion.down_{_LEVELS[m[1]]}."),
    (
        r"^pyramid_fuse\.blocks\.(\d+)\.block_([lms])\.(norm\d|attn_img|attn_lm|mlp\d|conv)\.(.+)$",
        _fusion_tensor,
    ),
    (r"^pyramid_fuse\.blocks\.(\d+)\.upsample_([ms])\.", lambda m: f"fusion.blocks.{m[1]}.up_{_LEVELS[m[2]]}."),
    (r"^pyramid_fuse\.norm\.", "fusion.norm."),
    (r"^se_block\.linear([12])\.", r"pre_head.fc\1."),
    (r"^head\.linear\.", "head."),
)

_V2_RULES: tuple[Rule, ...] = (
    *_under("face_landback.", "landmark_stream.", _MOBILEFACENET),
    *_under("ir_back.", "image_stream.", _IR_BY_STAGE),
    (r"^conv([123])\.", lambda m: f"fusion.levels.{int(m[1]) - 1}.down."),
    (r"^window([123])\.norm\.", lambda m: f"fusion.levels.{int(m[1]) - 1}.norm1."),
    (r"^attn([123])\.relative_position_bias_table$", lambda m: f"fusion.levels.{int(m[1]) - 1}.attn.position_bias"),
    (r"^attn([123])\.qkv\.", lambda m: f"fusion.levels.{int(m[1]) - 1}.attn.kv."),
    (r"^attn([123])\.proj\.", lambda m: f"fusion.levels.{int(m[1]) - 1}.attn.proj."),
    (r"^ffn([123])\.(gamma[12])$", lambda m: f"fusion.levels.{int(m[1]) - 1}.{m[2]}"),
    (r"^ffn([123])\.norm\.", lambda m: f"fusion.levels.{int(m[1]) - 1}.norm2."),
    (r"^ffn([123])\.mlp\.", lambda m: f"fusion.levels.{int(m[1]) - 1}.mlp."),
    (r"^last_face_conv\.", "fusion.last_landmark_conv."),
    (r"^embed_q\.([01])\.", r"fusion.embed_large.\1."),
    (r"^embed_k\.0\.", "fusion.embed_medium."),
    (r"^embed_v\.proj\.", "fusion.embed_small."),
    (r"^VIT\.(cls_token|pos_embed)$", r"fusion.\1"),
    (r"^VIT\.(blocks\.\d+\.(?:norm1|norm2|attn|mlp)|norm)\.", r"fusion.\1."),
    (r"^VIT\.se_block\.linear([12])\.", r"pre_head.fc\1."),
    (r"^VIT\.head\.linear\.", "head."),
)

# CenterFace is released as an ONNX graph, in which the convolutions that took a norm in have no names but numbers, four
# apart: in the graph's order those of the trunk, the neck's lateral ones from the top down, and the heads' common one.
_CENTERFACE_STEM = ("stem.0", "stem.2", "stem.4")
_CENTERFACE_BLOCK = ("expand", "depthwise", "project")
_CENTERFACE_DEPTHS = (2, 3, 7, 4)
_CENTERFACE_FOLDED = (
    *_CENTERFACE_STEM,
    *(
        f"stages.{stage}.{block}.{part}"
        for stage, depth in enumerate(_CENTERFACE_DEPTHS)
        for block in range(depth)
        for part in _CENTERFACE_BLOCK
    ),
    *(f"neck.lateral.{level}" for level in range(4)),
    "head.mix",
)
_CENTERFACE_NUMBERS = {
    f"{542 + 4 * i + step}": f"{layer}.{tensor}"
    for i, layer in enumerate(_CENTERFACE_FOLDED)
    for step, tensor in ((0, "weight"), (2, "bias"))
}
_CENTERFACE_HEADS = {"pos": "heat", "reg": "size", "off": "offset", "lm": "points"}
_CENTERFACE_RULES: tuple[Rule, ...] = (
    (rf"^({'|'.join(_CENTERFACE_NUMBERS)})$", lambda m: _CENTERFACE_NUMBERS[m[1]]),
    # The release counts its levels from the bottom up.
    (r"^neck\.deconv_layers\.([012])\.conv\.", lambda m: f"neck.widen.{2 - int(m[1])}.0."),
    (r"^neck\.deconv_layers\.([012])\.bn\.", lambda m: f"neck.widen.{2 - int(m[1])}.1."),
    (r"^head\.(pos|reg|off|lm)_conv\.", lambda m: f"head.{_CENTERFACE_HEADS[m[1]]}."),
)

LAYOUTS = {
    "poster": Layout(
        "POSTER", _POSTER_RULES, drops=(_NO_EMBEDDING, (r"^pyramid_fuse\.cls_token$", "class token, never used"))
    ),
    "poster_v2": Layout(
        "POSTER++",
        _V2_RULES,
        drops=(
            _NO_EMBEDDING,
            (r"^VIT\.(patch_embed|eca_block|CON1|IRLinear[12])\.", "spare layer of the ViT, never run"),
            (r"^VIT\.blocks\.\d+\.conv\.", "token mix of the ViT's blocks, never run"),
            (r"^attn[123]\.relative_position_index$", "index, computed anew"),
        ),
    ),
    "ir50": Layout("IR-50", (*_under("", "trunk.", _IR_THROUGH), _IR_EMBEDDING)),
    "mobilefacenet": Layout("MobileFaceNet", _MOBILEFACENET),
    "centerface": Layout(
        "CenterFace",
        _CENTERFACE_RULES,
        drops=((r"^(backbone|neck\.lateral_layers|head\.feat_bn)\.", "counter of a norm that a convolution took in"),),
    ),
}
