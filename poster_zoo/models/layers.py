"""Pieces that more than one architecture is built of."""

from typing import Any

import torch
from timm.layers import DropPath
from timm.models import register_notrace_function
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from poster_zoo.errors import InputShapeError, OptionError

__all__ = [
    "EncoderBlock",
    "Gate",
    "Mlp",
    "SelfAttention",
    "check_input",
    "check_option",
    "forget_labels",
    "init_weights",
    "input_channels",
    "linear",
    "new_head",
    "to_pair",
    "to_tokens",
]


def to_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) for a size given as one number or two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def check_input(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """Return `x` where it is (B, channels, height, width).

    Raises:
        InputShapeError: `x` has another shape.
    """
    # TorchScript cannot raise our own error class; a scripted model leaves the complaint to its first layer.
    if not torch.jit.is_scripting() and (x.dim() != 4 or x.shape[1:] != (channels, height, width)):
        raise InputShapeError(
            f"The model takes images of shape (B, {channels}, {height}, {width}), got {tuple(x.shape)}; "
            f"resize the images to {height} × {width}, or build the model with img_size= and in_chans= for yours."
        )
    return x


# Not as a decorator: it has no types, and an older TorchScript takes the comment that mypy then wants for its own.
register_notrace_function(check_input)


def input_channels(model: Any) -> int:
    """Return how many channels the images of a model have, of timm's models too: only newer ones say it."""
    said = getattr(model, "in_chans", None)
    if said is not None:
        return int(said)
    cfg = model.pretrained_cfg
    first = cfg.get("first_conv")
    layers = dict(model.named_modules())
    layer = layers.get(first if isinstance(first, str) or not first else first[0])
    return int(getattr(layer, "in_channels", cfg["input_size"][0]))


def check_option(name: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return `value` where it is one of `allowed`.

    Raises:
        OptionError: it is not.
    """
    if value not in allowed:
        raise OptionError(f"{name}={value!r} is not to be had here; choose one of {', '.join(map(repr, allowed))}.")
    return value


def new_head(model: nn.Module, num_features: int, num_classes: int) -> nn.Module:
    """Return a fresh classifier of the device, type and mode of `model`, or an identity for no classes."""
    if num_classes == 0:
        return nn.Identity()
    like = next(model.parameters())
    return linear(num_features, num_classes, device=like.device, dtype=like.dtype).train(model.training)


def forget_labels(model: Any) -> None:
    """Leave out the names of the classes of a head that is replaced: of a new one nobody knows them yet."""
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg:
        model.pretrained_cfg = {key: value for key, value in cfg.items() if key != "label_names"}
        model.default_cfg = model.pretrained_cfg  # its old name in timm


def to_tokens(x: Tensor) -> Tensor:
    """Turn a map (B, C, H, W) into one token a position, (B, H·W, C), row by row."""
    return x.flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.fc1 = linear(dim, hidden, device=device, dtype=dtype)
        self.fc2 = linear(hidden, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Gate(nn.Module):
    """Scale each feature by a number in 0…1 that all features decide on: x · σ(W₂ relu(W₁ x))."""

    def __init__(self, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.fc1 = linear(dim, dim, device=device, dtype=dtype)
        self.fc2 = linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(F.relu(self.fc1(x))).sigmoid()


class SelfAttention(nn.Module):
    """Multi-head self-attention with W_Q, W_K and W_V in one layer."""

    def __init__(self, dim: int, num_heads: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.qkv = linear(dim, 3 * dim, device=device, dtype=dtype)
        self.proj = linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # each (B, heads, N, head_dim)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, dim))


class EncoderBlock(nn.Module):
    """Pre-norm transformer encoder (Dosovitskiy et al., 2021): attention and MLP, each normalised first and added."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float = 0.0,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.attn = SelfAttention(dim, num_heads, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Return the rate of stochastic depth of each of `depth` blocks: 0 at the first, rising linearly to `last`.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, arXiv:1603.09382, section 3.
    """
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def default_device() -> torch.device:
    """Return where new tensors come to be; torch's own function did not see `with torch.device(...)` in release 2.6."""
    return torch.empty(0).device


def linear(in_features: int, out_features: int, *, device: Any = None, dtype: Any = None) -> nn.Linear:
    """Return a linear layer with the numbers of `init_weights`, drawn once: a new `nn.Linear` has others by then."""
    device = default_device() if device is None else device
    build: Any = skip_init  # it has no types
    layer: nn.Linear = build(nn.Linear, in_features, out_features, device=device, dtype=dtype)
    if not layer.weight.is_meta:
        init_weights(layer)
    return layer


def init_weights(module: nn.Module) -> None:
    """Draw linear weights from N(0, 0.02²) and zero their biases, as vision transformers do; other layers stay."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
