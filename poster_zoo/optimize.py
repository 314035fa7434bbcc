"""A model made ready to answer: the same numbers, closer to what the arithmetic costs.

`optimize` replaces the parts of a model by forms that only answer. Each computes what the part computes, with fewer
passes over memory:

* a BatchNorm that follows a convolution becomes part of its weights,
* the BatchNorm before the first convolution of an IR block becomes part of its weights as well. That convolution pads
  with zeros *after* the norm, so its outermost row and column see no shift: there the constant is another one,
* convolution weights are laid out once as oneDNN wants them, and a shortcut is added by the convolution itself,
* in the pyramid both streams go through one batched product, LayerNorm's affine part is in the weights that follow
  it, and the token mixes are plain products of matrices,
* in the last pyramid block only what the class token needs is computed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise, product
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from poster_zoo.digest import keep_digest, weights_digest
from poster_zoo.errors import OptionError
from poster_zoo.models.centerface import Heads, InvertedResidual, Neck
from poster_zoo.models.ir50 import IRBlock
from poster_zoo.models.mobilefacenet import Bottleneck, ConvBnAct
from poster_zoo.models.poster import PATCHES, CrossFusionBlock, Poster, Pyramid, PyramidBlock
from poster_zoo.models.poster_v2 import WindowCrossAttention

__all__ = ["can_optimize", "optimize"]

Model = TypeVar("Model", bound=nn.Module)


def optimize(model: Model, *, compile: bool = False, dtype: torch.dtype | None = None, inplace: bool = False) -> Model:
    """Return `model` in a form that answers faster and can no longer be trained or saved.

    Logits, features and landmarks stay what they were, up to rounding (below 1e-4 in float32, probabilities below
    1e-5). Parts that are not the zoo's own stay as they are, and so do those with hooks, or with a layer inside that
    another package has put there; the whole is put into eval mode and into the `channels_last` memory format.

    Args:
        model: A model of the zoo, or any other; it stays as it was unless `inplace`.
        compile: Also compile it, by `torch.compile` with inductor's freezing: the first answer for a batch size of 1,
            and the first for another one, take a minute or so. Weights must not be changed afterwards, and calls must
            be under `torch.inference_mode()` or `torch.no_grad()`.
        dtype: The type to compute in, such as torch.bfloat16; None for the model's own. bfloat16 changes the answers,
            and is faster only where the processor multiplies it.
        inplace: Take the model itself, not a copy.

    Raises:
        OptionError: `dtype` is no floating type, or the model has parameters on the meta device.
    """
    if dtype is not None and not dtype.is_floating_point:
        raise OptionError(f"dtype={dtype} was asked for; a model computes in a floating type, such as torch.bfloat16.")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise OptionError("The model is on the meta device and has no numbers; load its weights before optimizing it.")
    model = model if inplace else copy.deepcopy(model)
    if not getattr(model, "is_optimized", False):
        keep_digest(model, weights_digest(model, dtype))
        model.eval().requires_grad_(False)
        for name, child in model.named_children():
            setattr(model, name, _answering(child))
        _fold_sequences(model)
        if type(model) is Poster and isinstance(model.fusion, FastPyramid):
            model.__class__ = cast("Any", _FastPoster)
    model.to(dtype=dtype).to(memory_format=torch.channels_last)
    model.is_optimized = True  # type: ignore[assignment]
    if compile:
        model.compile(dynamic=None, options={"freezing": True})
    return model


def can_optimize(model: nn.Module) -> bool:
    """Return whether `optimize` has a faster form for any part of `model`."""
    return not getattr(model, "is_optimized", False) and any(_form(module) for module in model.modules())


def _form(module: nn.Module) -> Callable[[Any], nn.Module] | None:
    form = _FORMS.get(type(module))
    return form if form is not None and all(map(_is_plain, module.modules())) else None


def _is_plain(module: nn.Module) -> bool:
    """Whether a module does what its class says: not where it has hooks, or is quantized, adapted or parametrized.

    Nor where a layer in it is set, or was exchanged for one that computes, otherwise than in the zoo.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or not type(module).__module__.startswith(_PLAIN):
        return False
    if isinstance(module, (nn.Linear, nn.LayerNorm)):
        return module.bias is not None
    if isinstance(module, nn.BatchNorm2d):
        return module.affine and module.track_running_stats
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return module.padding_mode == "zeros"
    if isinstance(module, ConvBnAct):
        return _are(nn.Conv2d, module.conv) and _are(nn.BatchNorm2d, module.bn)
    if isinstance(module, Bottleneck):
        parts = (module.expand, module.depthwise, module.project)
        return _are(ConvBnAct, *parts) and _are(nn.Identity, module.project.act)
    if isinstance(module, IRBlock):
        if not (_are(nn.Conv2d, module.conv1, module.conv2) and _are(nn.BatchNorm2d, module.bn1, module.bn2)):
            return False
        conv = module.conv1
        return (conv.kernel_size, conv.padding, conv.dilation, conv.groups) == ((3, 3), (1, 1), (1, 1), 1)
    if isinstance(module, CrossFusionBlock):
        branches = (module.image, module.landmark)
        norms_of = [norm for branch in branches for norm in (branch.norm1, branch.norm2)]
        layers = [layer for b in branches for layer in (b.attn.kv, b.attn.proj, b.mlp.fc1, b.mlp.fc2)]
        same_eps = len({norm.eps for norm in norms_of}) == 1
        return _are(nn.LayerNorm, *norms_of) and _are(nn.Linear, *layers) and same_eps
    return True


def _are(kind: type[nn.Module], *modules: nn.Module) -> bool:
    return all(type(module) is kind for module in modules)


_PLAIN = ("poster_zoo.models.", "torch.nn.modules.", "timm.layers.")


def _answering(module: nn.Module) -> nn.Module:
    """Return the form of `module` that only answers; what has none keeps itself and changes its parts."""
    form = _form(module)
    if form is not None:
        return form(module)
    for name, child in module.named_children():
        setattr(module, name, _answering(child))
    _fold_sequences(module)
    return module


def _fold_sequences(module: nn.Module) -> None:
    """Fold each BatchNorm into the convolution just before it, in the sequences that are parts of a zoo's module."""
    if not type(module).__module__.startswith("poster_zoo.models."):
        return
    for sequence in module.children():
        if type(sequence) is nn.Sequential and all(map(_is_plain, sequence.modules())):
            _fold_sequence(sequence)


def _fold_sequence(sequence: nn.Sequential) -> None:
    for conv_name, bn_name in pairwise(list(sequence._modules)):
        conv, bn = sequence._modules[conv_name], sequence._modules[bn_name]
        if type(conv) is nn.Conv2d and type(bn) is nn.BatchNorm2d:
            setattr(sequence, conv_name, FastConv(*_folded(conv, bn), conv))
            setattr(sequence, bn_name, nn.Identity())
        elif type(conv) is nn.Conv2d and type(bn) is nn.ReLU:
            setattr(sequence, conv_name, _as_it_is(conv, relu=True))
            setattr(sequence, bn_name, nn.Identity())


# ---------------------------------------------------------------------------------------------------- convolutions


class FastConv(nn.Module):
    """A convolution with given weights, laid out once as oneDNN computes on them.

    Without that the layout is made anew for each image, which for a single one costs as much as the arithmetic.

    Args:
        weight: As of `nn.Conv2d`.
        bias: (C,).
        like: Whose stride, padding, dilation and groups to take.
        relu: Whether a ReLU follows.
        slope: The weight of a PReLU that follows, or None; a module of its own would cost a small model time.
    """

    weight: Tensor
    bias: Tensor
    slope: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None, like: nn.Conv2d, relu: bool = False, slope: Tensor | None = None
    ) -> None:
        super().__init__()
        self.relu = relu
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("slope", slope)
        self.geometry = (_pair(like.padding), _pair(like.stride), _pair(like.dilation), like.groups)
        self.pointwise = weight.shape[2:] == (1, 1) and self.geometry == ([0, 0], [1, 1], [1, 1], 1)
        self._packed: tuple[tuple[Any, ...], Tensor] | None = None

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """Convolve `x`, and add `shortcut`, whose memory may be taken for the sum."""
        y = self._convolved(x, shortcut)
        return y if self.slope is None else torch.prelu(y, self.slope)

    def _convolved(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        if torch.compiler.is_compiling() or not _onednn_computes(x, self.weight):
            y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            y = y if shortcut is None else y + shortcut
            return F.relu(y) if self.relu else y
        if self.pointwise and x.shape[0] * x.shape[2] * x.shape[3] <= _FEW_POSITIONS:
            return self._product(x, shortcut)
        packed = self._packed_for(x)
        if shortcut is None:
            after = "relu" if self.relu else "none"
            return cast("Tensor", _CONV(x, packed, self.bias, padding, stride, dilation, groups, after, [], ""))
        return cast(
            "Tensor",
            _CONV_ADD(
                shortcut, x, packed, self.bias, padding, stride, dilation, groups, "add", 1.0, self._after_sum, [], None
            ),
        )

    def _product(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        """Convolve by one pixel as a product of matrices."""
        batch, channels, height, width = x.shape
        rows, weight = x.permute(0, 2, 3, 1).reshape(-1, channels), self.weight.flatten(1).t()
        if shortcut is not None:
            y = shortcut.permute(0, 2, 3, 1).reshape(-1, weight.shape[1]).addmm_(rows, weight)
            y = y if self.bias is None else y.add_(self.bias)
        else:
            y = rows @ weight if self.bias is None else torch.addmm(self.bias, rows, weight)
        y = y.relu_() if self.relu else y
        return y.view(batch, height, width, -1).permute(0, 3, 1, 2)

    @property
    def _after_sum(self) -> str | None:
        return "relu" if self.relu else None

    def _packed_for(self, x: Tensor) -> Tensor:
        version = 0 if self.weight.is_inference() else self.weight._version
        key = (self.weight.data_ptr(), self.weight.dtype, version)
        if self._packed is None or self._packed[0] != key:
            plain = self.weight.contiguous().to_mkldnn()
            self._packed = key, _PACK(plain, *self.geometry, list(x.shape))
        return self._packed[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the packed weights, which can neither be copied nor pickled."""
        return self.__dict__ | {"_packed": None}


# Up to so many positions, those of all images, a product of matrices is faster than oneDNN's 1 × 1 convolution.
_FEW_POSITIONS = 1024


def _pair(size: Any) -> list[int]:
    return [int(size)] * 2 if isinstance(size, int) else [int(side) for side in size]


# Inductor compiles convolutions to these; a build of torch without oneDNN has none of them.
_ONEDNN: bool = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
_CONV: Callable[..., Any] = torch.ops.mkldnn._convolution_pointwise if _ONEDNN else F.conv2d
_CONV_ADD: Callable[..., Any] = torch.ops.mkldnn._convolution_pointwise_.binary if _ONEDNN else F.conv2d
_PACK: Callable[..., Any] = torch._C._nn.mkldnn_reorder_conv2d_weight if _ONEDNN else F.conv2d


def _onednn_computes(x: Tensor, weight: Tensor) -> bool:
    return (
        _ONEDNN
        and bool(torch.backends.mkldnn.enabled)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.jit.is_tracing()  # type: ignore[no-untyped-call]
        and not torch.is_autocast_enabled("cpu")
    )


def _exact(tensor: Tensor) -> Tensor:
    """Return a weight in float64, on the CPU: not every device has that type."""
    return tensor.detach().to("cpu", torch.float64)


def _scale_and_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what `bn` in eval mode multiplies with and adds, a channel, in float64."""
    mean, var = _exact(cast("Tensor", bn.running_mean)), _exact(cast("Tensor", bn.running_var))
    scale = _exact(bn.weight) / (var + bn.eps).sqrt()
    return scale, _exact(bn.bias) - mean * scale


def _folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weights and bias that do what `conv` and then `bn` do."""
    scale, shift = _scale_and_shift(bn)
    if conv.bias is not None:
        shift = shift + _exact(conv.bias) * scale
    weight = conv.weight.detach()
    return (_exact(weight) * scale[:, None, None, None]).to(weight), shift.to(weight)


def _fold_conv_bn_act(module: ConvBnAct) -> nn.Module:
    slope = module.act.weight.detach() if type(module.act) is nn.PReLU else None
    conv = FastConv(*_folded(module.conv, module.bn), module.conv, slope=slope)
    return conv if slope is not None or isinstance(module.act, nn.Identity) else nn.Sequential(conv, module.act)


class FastBottleneck(nn.Module):
    """An inverted residual whose last convolution adds the shortcut."""

    def __init__(self, expand: nn.Module, depthwise: nn.Module, project: FastConv, residual: bool) -> None:
        super().__init__()
        self.expand, self.depthwise, self.project = expand, depthwise, project
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        # Where there is a sum, the block's input is needed by nobody else.
        return cast("Tensor", self.project(self.depthwise(self.expand(x)), x if self.residual else None))


def _fast_bottleneck(block: Bottleneck) -> FastBottleneck:
    expand, depthwise, project = map(_fold_conv_bn_act, (block.expand, block.depthwise, block.project))
    return FastBottleneck(expand, depthwise, cast("FastConv", project), block.residual)


class FastIRBlock(nn.Module):
    """An IR block as two convolutions: the first norm is in the first one, the second in the second one."""

    edges: Tensor
    corners: Tensor

    def __init__(self, block: IRBlock) -> None:
        super().__init__()
        scale, shift = _scale_and_shift(block.bn1)
        kernel = _exact(block.conv1.weight)  # (out, in, 3, 3)
        # What each of the nine taps adds to the output by the norm's shift, (out, 3, 3). A tap that falls on the
        # padding adds nothing: it is taken off again at the edges, and at the corners given back once.
        taps = torch.einsum("oihw,i->ohw", kernel, shift)
        like = block.conv1.weight.detach()
        weight, bias = (kernel * scale[:, None, None]).to(like), taps.sum((1, 2)).to(like)
        self.conv1 = FastConv(weight, bias, block.conv1)
        top, bottom, left, right = taps[:, 0].sum(1), taps[:, 2].sum(1), taps[:, :, 0].sum(1), taps[:, :, 2].sum(1)
        self.register_buffer("edges", torch.stack([top, bottom, left, right]).to(like))
        self.register_buffer("corners", taps[:, ::2, ::2].to(like)[None])
        self.act = block.act
        self.conv2 = FastConv(*_folded(block.conv2, block.bn2), block.conv2)
        if isinstance(block.downsample, nn.Sequential):
            _fold_sequence(block.downsample)
        self.downsample = block.downsample
        self.step = block.shortcut_step

    def forward(self, x: Tensor) -> Tensor:
        y = self._take_off_padding(self.conv1(x))
        shortcut: Tensor = self.downsample(x)
        if self.step > 1:
            shortcut = shortcut[:, :, :: self.step, :: self.step].contiguous(memory_format=torch.channels_last)
        # An identity's shortcut is the block's input, which nobody needs any more.
        return cast("Tensor", self.conv2(self.act(y), shortcut))

    def _take_off_padding(self, y: Tensor) -> Tensor:
        top, bottom, left, right = self.edges.unsqueeze(-1)
        y[:, :, 0] -= top
        y[:, :, -1] -= bottom
        y[:, :, :, 0] -= left
        y[:, :, :, -1] -= right
        if min(y.shape[2:]) > 1:
            y[:, :, :: y.shape[2] - 1, :: y.shape[3] - 1] += self.corners
        else:  # two corners or all four are one pixel
            for row, column in product((0, -1), repeat=2):
                y[:, :, row, column] += self.corners[:, :, row, column]
        return y


# ------------------------------------------------------------------------------------------------------- CenterFace


def _as_it_is(conv: nn.Conv2d, relu: bool = False) -> FastConv:
    bias = None if conv.bias is None else conv.bias.detach()
    return FastConv(conv.weight.detach(), bias, conv, relu)


def _fast_inverted_residual(block: InvertedResidual) -> FastBottleneck:
    expand, depthwise = (_as_it_is(conv, relu=True) for conv in (block.expand, block.depthwise))
    return FastBottleneck(expand, depthwise, _as_it_is(block.project), block.residual)


class FastNeck(nn.Module):
    """CenterFace's neck with its norms in the transposed convolutions."""

    def __init__(self, neck: Neck) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_as_it_is(cast("nn.Conv2d", conv), relu=True) for conv in neck.lateral)
        self.widen = nn.ModuleList(_folded_transposed(*cast("nn.Sequential", part)[:2]) for part in neck.widen)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return (B, C, H/4, W/4) of the trunk's maps, coarsest first."""
        x: Tensor = self.lateral[0](maps[0])
        for i, widen in enumerate(self.widen, 1):
            x = widen(x).relu_().add_(self.lateral[i](maps[i]))
        return x


def _folded_transposed(conv: nn.ConvTranspose2d, bn: nn.BatchNorm2d) -> nn.ConvTranspose2d:
    scale, shift = _scale_and_shift(bn)
    folded = copy.deepcopy(conv)
    folded.weight = nn.Parameter((_exact(conv.weight) * scale[:, None, None]).to(conv.weight), False)
    folded.bias = nn.Parameter(shift.to(conv.weight), False)
    return folded


class FastHeads(nn.Module):
    """CenterFace's four heads as one convolution."""

    def __init__(self, heads: Heads) -> None:
        super().__init__()
        parts = [heads.heat, heads.size, heads.offset, heads.points]
        self.mix = _as_it_is(heads.mix, relu=True)
        weight, bias = (torch.cat([getattr(part, name).detach() for part in parts]) for name in ("weight", "bias"))
        self.all = FastConv(weight, bias, heads.heat)
        self.widths = [part.out_channels for part in parts]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return heat, size, offset and points, as `Heads` does."""
        heat, size, offset, points = self.all(self.mix(x)).split(self.widths, 1)
        return heat.sigmoid(), size, offset, points


# --------------------------------------------------------------------------------------------------------- pyramid


class FastFusionBlock(nn.Module):
    """A cross-fusion block on tokens of shape (100, B, D), the image's before the landmarks', both at once.

    Weights have the streams as their first dimension. The affine part of each LayerNorm is in the product after it.

    Args:
        block: The block.
        up: The transposed convolution whose answer is added to the block's; its bias is added here already.
    """

    bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor
    mix_weight: Tensor
    mix_bias: Tensor

    def __init__(self, block: CrossFusionBlock, up: nn.ConvTranspose1d | None = None) -> None:
        super().__init__()
        branches = (block.image, block.landmark)
        self.num_heads = block.image.attn.num_heads
        self.eps = block.image.norm1.eps
        pairs = {
            "query": (_stacked([b.norm1.weight for b in branches]), _stacked([b.norm1.bias for b in branches])),
            "kv": _by_head(*_after_norm([(b.norm1, b.attn.kv) for b in branches]), self.num_heads),
            "proj": _transposed([b.attn.proj for b in branches]),
            "fc1": _after_norm([(b.norm2, b.mlp.fc1) for b in branches]),
            "fc2": _transposed([b.mlp.fc2 for b in branches]),
        }
        for name, (weight, bias) in pairs.items():
            # Large matrices are multiplied faster where each output's numbers lie together.
            by_output = weight.mT.contiguous().mT if weight[0].numel() >= 512 * 1024 else weight.contiguous()
            self.register_buffer(f"{name}_weight", by_output)
            self.register_buffer(f"{name}_bias", bias)
        self.mixes = isinstance(block.mix, nn.Conv1d)
        if isinstance(block.mix, nn.Conv1d):
            self.register_buffer("mix_weight", block.mix.weight.detach()[:, :, 0].clone())
            self.register_buffer("mix_bias", cast("Tensor", block.mix.bias).detach().clone())
        # All that is added to the last product's tokens, mixed as they are.
        mix_weight, mix_bias = self.mixing()
        added = mix_weight @ self.last_biases() + mix_bias[:, None]
        if up is not None:
            added = added + _exact(cast("Tensor", up.bias))[:, None]
        self.register_buffer("bias", added[:, None].to(self.fc2_bias))

    def mixing(self) -> tuple[Tensor, Tensor]:
        """Return the weights (100, 100) and biases (100,) of the block's mix of tokens, in float64 on the CPU."""
        if self.mixes:
            return _exact(self.mix_weight), _exact(self.mix_bias)
        tokens = 2 * (PATCHES + 1)
        return torch.eye(tokens, dtype=torch.float64, device="cpu"), torch.zeros(
            tokens, dtype=torch.float64, device="cpu"
        )

    def last_biases(self) -> Tensor:
        """Return what the last product adds to each token, (100, D), in float64 on the CPU."""
        return _exact(self.fc2_bias).expand(-1, PATCHES + 1, -1).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's tokens, (100, B, D) as they came."""
        y = _add_product(*self._activations(x), self.fc2_weight).view(x.shape)
        if self.mixes:
            y = torch.mm(self.mix_weight, y.flatten(1)).view(x.shape)
        return y.add_(self.bias)

    def sums(self, x: Tensor, shares: Tensor) -> Tensor:
        """Return sums of the block's tokens before they are mixed, (R, B, D), with the shares (R, 100) of each token.

        The last product's bias is not in them: what it comes to is the same for all images, and known beforehand.

        What follows the MLP's activation is linear, so the activations are summed before the last product.
        """
        _, batch, dim = x.shape
        if len(shares) == 1 and not self.mixes:  # the class token itself, which asks the landmarks' tokens alone
            own, hidden = self._activations(x, 1, 1)
            return _add_product(own, hidden, self.fc2_weight[:1])
        own, hidden = self._activations(x)
        by_stream = shares.view(len(shares), 2, -1).transpose(0, 1)  # (2, R, 50)
        summed = torch.bmm(by_stream, hidden.view(2, -1, batch * hidden.shape[2])).view(2, -1, hidden.shape[2])
        of_streams = torch.bmm(summed, self.fc2_weight).view(2, -1, batch, dim)
        return torch.mm(shares, own.view(-1, batch * dim)).view(-1, batch, dim) + of_streams.sum(0)

    def _activations(self, x: Tensor, streams: int = 2, tokens: int | None = None) -> tuple[Tensor, Tensor]:
        """Let the first `streams` ask each other, for the first `tokens` of each.

        Returns:
            (streams, tokens · B, D), what they are after it, and the activations (streams, tokens · B, …) of the MLP.
        """
        _, batch, dim = x.shape
        halves = x.view(2, -1, batch, dim)  # (2, 50, B, D)
        normed = F.layer_norm(halves, (dim,), eps=self.eps)
        own, others, keys = halves, normed.flip(0), normed
        if streams == 1:
            own, others, keys = own[:1, :tokens], others[:1, :tokens], keys[:1]
        own, others, keys = (t.reshape(streams, -1, dim) for t in (own, others, keys))
        query, kv, proj, fc1 = (self._layer(name, streams) for name in ("query", "kv", "proj", "fc1"))

        # A bias that is added afterwards costs less than one that is spread out for `baddbmm` first.
        asked = self._attend(torch.addcmul(query[1], others, query[0]), torch.bmm(keys, kv[0]).add_(kv[1]), batch)
        own = _add_product(own + proj[1], asked, proj[0])
        return own, F.gelu(torch.bmm(F.layer_norm(own, (dim,), eps=self.eps), fc1[0]).add_(fc1[1]))

    def _layer(self, name: str, streams: int) -> tuple[Tensor, Tensor]:
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return (weight, bias) if streams == 2 else (weight[:streams], bias[:streams])

    def _attend(self, queries: Tensor, kv: Tensor, batch: int) -> Tensor:
        """Return (streams, N · B, D) for queries of that shape, and keys and values (streams, 50 · B, 2 D)."""
        streams, _, dim = queries.shape
        heads = batch * self.num_heads  # of all images: no tensor has to be laid out anew
        width = dim // self.num_heads
        q = queries.view(streams, -1, heads, width).transpose(1, 2)
        k, v = kv.view(streams, -1, heads, 2, width).permute(3, 0, 2, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(queries.shape)


def _add_product(into: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Return `into` plus the products of matrices, in its own memory where nothing else needs that."""
    product = torch.bmm(x, weight)
    return into + product if into.requires_grad and torch.is_grad_enabled() else into.add_(product)


def _stacked(tensors: list[Tensor]) -> Tensor:
    """Return the vectors of both streams, (2, 1, D)."""
    return torch.stack(tensors).detach()[:, None]


def _transposed(layers: list[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Return the weights (2, in, out) and biases (2, 1, out) of both streams."""
    return torch.stack([layer.weight.t() for layer in layers]).detach(), _stacked([layer.bias for layer in layers])


def _after_norm(layers: list[tuple[nn.LayerNorm, nn.Linear]]) -> tuple[Tensor, Tensor]:
    """As `_transposed`, with the affine part of the norm before each layer taken in."""
    weights = [_exact(norm.weight)[:, None] * _exact(layer.weight).t() for norm, layer in layers]
    biases = [_exact(layer.bias) + _exact(layer.weight) @ _exact(norm.bias) for norm, layer in layers]
    like = layers[0][1].weight.detach()
    return torch.stack(weights).to(like), _stacked(biases).to(like)


def _by_head(weight: Tensor, bias: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return keys' and values' weights in another order of outputs: each head's keys, then its values."""
    order = torch.arange(weight.shape[-1], device=weight.device).view(2, heads, -1).transpose(0, 1).flatten()
    return weight[..., order], bias[..., order]


class Upsample(nn.Module):
    """Add a level to the next larger one: a transposed convolution over tokens as one product; its bias is not here."""

    weight: Tensor

    def __init__(self, conv: nn.ConvTranspose1d) -> None:
        super().__init__()
        weight = conv.weight.detach().permute(1, 2, 0).flatten(0, 1)
        self.register_buffer("weight", weight.contiguous())  # (100 · 2, 100)

    def forward(self, large: Tensor, small: Tensor) -> Tensor:
        """Add the stretched `small` (100, B, D / 2) to `large`, and return it."""
        tokens, batch, dim = large.shape
        stretched = torch.mm(self.weight, small.flatten(1)).view(tokens, 2, batch, dim // 2)
        large.view(tokens, batch, -1, 2).add_(stretched.permute(0, 2, 3, 1))
        return large


class FastPyramid(nn.Module):
    """The pyramid on tokens of shape (100, B, D): both streams' tokens are then one matrix each, without copies."""

    pos_embed: Tensor

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.register_buffer("pos_embed", pyramid.pos_embed.detach().clone())
        self.down_medium, self.down_small = pyramid.down_medium, pyramid.down_small
        blocks = cast("list[PyramidBlock]", list(pyramid.blocks))
        self.large = nn.ModuleList(FastFusionBlock(block.large, block.up_medium) for block in blocks)
        self.medium = nn.ModuleList(FastFusionBlock(block.medium, block.up_small) for block in blocks)
        self.small = nn.ModuleList(FastFusionBlock(block.small) for block in blocks)
        self.up_medium = nn.ModuleList(Upsample(block.up_medium) for block in blocks)
        self.up_small = nn.ModuleList(Upsample(block.up_small) for block in blocks)
        self.norm = pyramid.norm
        sums = zip(("large", "medium", "small"), self._levels(), self._last_sums(blocks[-1]), strict=True)
        for name, level, (shares, bias) in sums:
            bias = shares @ cast("FastFusionBlock", level[-1]).last_biases() + bias[:, None]
            self.register_buffer(f"{name}_shares", shares.to(self.pos_embed))
            self.register_buffer(f"{name}_bias", bias[:, None].to(self.pos_embed))

    def _last_sums(self, block: PyramidBlock) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield for each level which sums of its last block's tokens the class token is made of, and their biases.

        All that follows in the last block is linear: the mixes, and the transposed convolutions upwards, whose even
        and odd features come from different sums. So the large level gives one sum, the medium two, the small four.
        """
        large, medium, small = (cast("FastFusionBlock", level[-1]).mixing() for level in self._levels())
        up_medium, up_small = _exact(block.up_medium.weight), _exact(block.up_small.weight)  # (100 in, 100 out, 2)
        bias_medium, bias_small = (_exact(cast("Tensor", up.bias)) for up in (block.up_medium, block.up_small))
        from_medium = up_medium[:, 0].t()
        from_small = torch.einsum("rt,stk->rks", from_medium, up_small).flatten(0, 1)
        yield large[0][:1], large[1][:1] + bias_medium[:1]
        yield from_medium @ medium[0], from_medium @ (medium[1] + bias_small)
        yield from_small @ small[0], from_small @ small[1]

    def _levels(self) -> tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList]:
        return self.large, self.medium, self.small

    def class_token(self, image: Tensor, landmark: Tensor) -> Tensor:
        """Return the first of the fused tokens alone, (B, 1, D)."""
        levels = self._enter(image, landmark)
        for i in range(len(self.large) - 1):
            levels = self._block(i, *levels)
        batch = len(image)
        parts = zip(self._levels(), levels, ("large", "medium", "small"), strict=True)
        large, medium, small = (
            cast("FastFusionBlock", blocks[-1]).sums(x, getattr(self, f"{name}_shares")) + getattr(self, f"{name}_bias")
            for blocks, x, name in parts
        )
        medium = medium + small.view(2, 2, batch, -1).permute(0, 2, 3, 1).reshape(medium.shape)
        large = large + medium.view(1, 2, batch, -1).permute(0, 2, 3, 1).reshape(large.shape)
        token: Tensor = self.norm(large).transpose(0, 1)
        return token

    def forward(self, image: Tensor, landmark: Tensor) -> Tensor:
        """Fuse two streams of tokens, (B, 49, D) each, into (B, 100, D): a mean and the tokens of each stream."""
        levels = self._enter(image, landmark)
        for i in range(len(self.large)):
            levels = self._block(i, *levels)
        fused: Tensor = self.norm(levels[0]).transpose(0, 1)
        return fused

    def _enter(self, image: Tensor, landmark: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        image = torch.cat((image.mean(1, keepdim=True), image), dim=1) + self.pos_embed
        landmark = torch.cat((landmark.mean(1, keepdim=True), landmark), dim=1)
        tokens = torch.cat((image, landmark), dim=1)
        # The convolutions want the batch first, the products the tokens.
        large, medium, small = (
            level.transpose(0, 1).contiguous() for level in (tokens, self.down_medium(tokens), self.down_small(tokens))
        )
        return large, medium, small

    def _block(self, i: int, large: Tensor, medium: Tensor, small: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        large, medium, small = self.large[i](large), self.medium[i](medium), self.small[i](small)
        medium = self.up_small[i](medium, small)
        return self.up_medium[i](large, medium), medium, small


class _FastPoster(Poster):
    """POSTER with a `FastPyramid`."""

    def forward(self, x: Tensor) -> Tensor:
        if self.global_pool != "token" or self.fusion is None:
            return super().forward(x)
        x = self.resize(x)
        maps = self.image_stream.forward_stages(x)[-1], self.landmark_stream.forward_maps(x)[-1]
        return self.forward_head(self.fusion.class_token(*self.tokens(*maps)))


# ------------------------------------------------------------------------------------------------------- POSTER++


class FastWindowCrossAttention(WindowCrossAttention):
    """Window attention with its relative position bias laid out once."""

    bias: Tensor

    def __init__(self, attention: WindowCrossAttention) -> None:
        nn.Module.__init__(self)
        self.num_heads, self.head_dim, self.window = attention.num_heads, attention.head_dim, attention.window
        self.kv, self.proj = attention.kv, attention.proj
        self.register_buffer("bias", attention.relative_bias().detach().contiguous())

    def relative_bias(self) -> Tensor:
        """Return the bias between any two positions, (1, heads, w², w²)."""
        return self.bias


_FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    ConvBnAct: _fold_conv_bn_act,
    Bottleneck: _fast_bottleneck,
    Heads: FastHeads,
    InvertedResidual: _fast_inverted_residual,
    Neck: FastNeck,
    IRBlock: FastIRBlock,
    Pyramid: FastPyramid,
    WindowCrossAttention: FastWindowCrossAttention,
}
