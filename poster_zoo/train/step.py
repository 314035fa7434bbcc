"""One step of the optimizer: a batch in pieces, over processes, by one pass or by SAM's two."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.optim import create_optimizer_v2, list_optimizers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from poster_zoo.errors import OptionError, nearest
from poster_zoo.models.poster import TwoStreams
from poster_zoo.train.recipe import Recipe
from poster_zoo.train.sam import SAM

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["BatchNormStatistics", "Network", "NotFinite", "Outcome", "Step", "make_optimizer", "on_device"]

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def on_device(model: Any, recipe: Recipe, accelerator: Accelerator) -> Any:
    """Return the model where and as the recipe wants it.

    Raises:
        OptionError: The recipe wants of a CPU what only GPUs do.
    """
    if recipe.sync_batchnorm and accelerator.num_processes > 1:
        if accelerator.device.type == "cpu":
            raise OptionError("The recipe's sync_batchnorm needs GPUs; set it to no, or use --device cuda.")
        model = convert_sync_batchnorm(model)
    if recipe.grad_checkpointing:
        model.set_grad_checkpointing(True)
    layout = torch.channels_last if recipe.channels_last else torch.preserve_format
    return model.to(accelerator.device, memory_format=layout)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over the parameters of `model`.

    Raises:
        OptionError: There is none of that name, it cannot be had, or it needs gradients of gradients.
    """
    # torch's own make a step in one pass over the weights where they are asked to; timm's know no such thing.
    fused: Any = {"fused": True} if recipe.optimizer in ("adam", "adamw", "sgd", "momentum") else {}
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=recipe.optimizer,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            layer_decay=recipe.layer_decay if recipe.layer_decay < 1 else None,
            **fused,
        )
    except (ValueError, AssertionError, ImportError) as error:  # the last two: packages and devices it stands on
        names = map(str, list_optimizers()) if isinstance(error, ValueError) else ()
        raise OptionError(
            f"The optimizer {recipe.optimizer!r} cannot be had: {error}.{nearest(recipe.optimizer, names)}"
        ) from error
    if getattr(optimizer, "is_second_order", False):
        raise OptionError(
            f"The optimizer {recipe.optimizer!r} asks for gradients of gradients, which are not computed here; "
            "take another, adamw say."
        )
    return optimizer


class NotFinite(ArithmeticError):
    """A loss or a gradient that is infinite or no number; the weights are as they were before the step."""


class Network(nn.Module):
    """A model whose frozen landmark stream may be computed beforehand, once for both passes of a step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def frozen_maps(self, images: Tensor) -> list[Tensor] | None:
        """Return the maps of the landmark stream, or None where the model has none that is frozen."""
        model = self.model
        if not isinstance(model, TwoStreams) or not model.freeze_landmarks:
            return None
        with torch.no_grad():
            maps: list[Tensor] = model.landmark_stream.forward_maps(model.resize(images))
        return maps

    def forward(self, images: Tensor, landmark_maps: list[Tensor] | None = None) -> Tensor:
        """Return the logits; with `landmark_maps`, those are fused in place of the stream's own."""
        model = self.model
        if landmark_maps is None:
            return model(images)
        image_maps = model.image_stream.forward_stages(model.resize(images))
        return model.forward_head(model.fuse(image_maps, landmark_maps))


class BatchNormStatistics:
    """The running statistics of a model's BatchNorms: held still, or moved once for a batch in pieces.

    Left alone, they would move once a piece, in the order in which a process happens to see the pieces, each process
    would have its own, and gradient checkpointing, which runs forward again in backward, would move them twice. Here
    each piece starts from the same statistics, and what its forward comes to is averaged over all pieces.

    Args:
        model: The model.
        add_up: Returns the sum of a tensor over all processes.
    """

    def __init__(self, model: nn.Module, add_up: Callable[[Tensor], Tensor]) -> None:
        self.norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.add_up = add_up
        self._before: list[tuple[Tensor, Tensor]] = []
        self._means: list[tuple[Tensor, Tensor]] = []

    def _moving(self) -> list[_BatchNorm]:
        return [norm for norm in self.norms if norm.training]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the statistics still; batches are normalised by their own as before."""
        norms = self._moving()
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True

    def begin(self) -> None:
        """Remember the statistics, before the pieces of a batch."""
        norms: list[Any] = self._moving()
        statistics = [s for norm in norms for s in (norm.running_mean, norm.running_var)]
        self._before = [(s, s.clone()) for s in (*statistics, *(norm.num_batches_tracked for norm in norms))]
        self._means = [(s, torch.zeros_like(s)) for s in statistics]

    def rewind(self) -> None:
        """Go back to where they were, before the forward of a piece."""
        for now, before in self._before:
            now.copy_(before)

    def take(self, share: float) -> None:
        """Note where the forward of a piece has moved them; it holds that share of the batch's images."""
        for now, mean in self._means:
            mean.add_(now, alpha=share)

    def end(self) -> None:
        """Move them, once, to the mean over all pieces of all processes."""
        self.rewind()
        if not self._means:
            return
        means = [mean for _, mean in self._means]
        summed = torch.split(self.add_up(torch.cat(means)), [len(mean) for mean in means])
        for (now, _), mean in zip(self._means, summed, strict=True):
            now.copy_(mean)
        for counter, _ in self._before[len(means) :]:
            counter.add_(1)


@dataclass(frozen=True)
class _Piece:
    images: Tensor
    targets: Tensor
    landmark_maps: list[Tensor] | None
    share: float  # of the batch's images, those of all processes


@dataclass(frozen=True)
class Outcome:
    """What a step found, over all processes and at the weights before it.

    Attributes:
        loss: Mean of the images' losses.
        right: How many images were answered rightly.
        norm: Of the gradient, that of SAM's first pass; None where a gradient scaler skipped the step.
    """

    loss: float
    right: int
    norm: float | None


def _go_on(which_pass: int, piece: int) -> None:
    """Leave the generators as they are."""


class Step:
    """Makes steps of an optimizer.

    The gradient is that of the mean loss over the batch, however it is cut: uneven pieces weigh as many images as they
    have. SAM climbs by the whole batch's gradient, which all processes share, and all share the second one too.

    Args:
        model: The model, on its device.
        optimizer: The optimizer over its parameters.
        recipe: The recipe.
        loss: Gives each image's loss (B,) from logits and targets.
        accelerator: The processes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        loss: Callable[[Tensor, Tensor], Tensor],
        accelerator: Accelerator,
    ) -> None:
        self.recipe = recipe
        self.loss = loss
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.network = Network(model)
        if accelerator.ddp_handler is not None and isinstance(model, TwoStreams) and not model.freeze_landmarks:
            # The landmark stream's own points are not computed here, so that its last layers get no gradient.
            accelerator.ddp_handler.find_unused_parameters = True
        self.wrapped = accelerator.prepare_model(self.network)
        compiled: Any = partial(torch.compile, dynamic=False, disable=not recipe.compile)
        self.forward, self.frozen_maps = compiled(self.wrapped), compiled(self.network.frozen_maps)
        self.sam = SAM(optimizer, recipe.rho, recipe.adaptive) if recipe.rho else None
        device = accelerator.device.type
        # accelerate settles the precision once a process, and leaves fp16 out on a CPU; torch's own parts do neither.
        self.autocast = torch.autocast(device, _PRECISIONS[recipe.precision], enabled=recipe.precision != "fp32")
        self.scaler = torch.amp.GradScaler(device, enabled=recipe.precision == "fp16")
        self.statistics = BatchNormStatistics(model, self._add_up)

    def __call__(
        self, images: Tensor, targets: Tensor, batch_images: int, seed: Callable[[int, int], object] = _go_on
    ) -> Outcome:
        """Make one step.

        Args:
            images: (B, C, H, W), this process's share of the batch.
            targets: (B,) or (B, classes).
            batch_images: Images of the whole batch.
            seed: Called with the pass (0, 1) and the piece, counted over all processes, before each is computed:
                what is dropped then does not depend on which process has the piece.

        Raises:
            NotFinite: The loss or the gradient is no number.
        """
        pieces = self._cut(images, targets, batch_images)
        loss, right = self._descent(pieces, partial(seed, 0), moves_statistics=True)
        if not math.isfinite(loss):
            raise NotFinite(f"The loss is {loss}")
        scale, norm = self.scaler.get_scale(), None
        if self.sam is not None:
            norm = self.sam.climb()
            if math.isfinite(norm):
                self._descent(pieces, partial(seed, 1), moves_statistics=self.recipe.exact_upstream)
                self.sam.descend()
        last = self._update()
        norm = last if norm is None else norm / scale
        return Outcome(loss, right, norm if math.isfinite(last) else None)

    def _cut(self, images: Tensor, targets: Tensor, batch_images: int) -> Sequence[_Piece]:
        parts = zip(
            images.tensor_split(self.recipe.accumulate), targets.tensor_split(self.recipe.accumulate), strict=True
        )
        pieces = []
        for part, part_targets in parts:
            with self.autocast:
                maps = self.frozen_maps(part)
            pieces.append(_Piece(part, part_targets, maps, len(part) / batch_images))
        return pieces

    def _descent(
        self, pieces: Sequence[_Piece], seed: Callable[[int], object], moves_statistics: bool
    ) -> tuple[float, int]:
        """Leave the gradient of the whole batch's mean loss; return that loss and how many answers are right."""
        total = torch.zeros(2, device=self.accelerator.device)
        if moves_statistics:
            self.statistics.begin()
        with nullcontext() if moves_statistics else self.statistics.held():
            for i, piece in enumerate(pieces):
                seed(self.accelerator.process_index * self.recipe.accumulate + i)
                if moves_statistics:
                    self.statistics.rewind()
                # Processes add up their gradients once, with the last piece.
                alone = i < len(pieces) - 1
                with self.accelerator.no_sync(self.wrapped) if alone else nullcontext():
                    with self.autocast:
                        logits = self.forward(piece.images, piece.landmark_maps).float()
                    if moves_statistics:
                        self.statistics.take(piece.share)
                    mean = self.loss(logits, piece.targets).mean() * piece.share
                    # Wrapped for several processes, gradients are averaged over them; the sum is wanted.
                    torch.autograd.backward(self.scaler.scale(mean * self.accelerator.num_processes))
                true = piece.targets if piece.targets.ndim == 1 else piece.targets.argmax(1)
                total += torch.stack((mean.detach(), (logits.argmax(1) == true).sum()))
        if moves_statistics:
            self.statistics.end()
        loss, right = self._add_up(total).tolist()
        return loss, round(right)

    def _update(self) -> float:
        """Clip the gradient, let the optimizer step, clear the gradient; return its norm before clipping."""
        self.scaler.unscale_(self.optimizer)
        weights = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = nn.utils.get_total_norm([p.grad for p in weights])
        norm = float(total)
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            raise NotFinite(f"The gradient's norm is {norm}")
        if self.recipe.clip:
            nn.utils.clip_grads_with_norm_(weights, self.recipe.clip, total)
        self.scaler.step(self.optimizer)  # makes no step where it finds the gradient infinite
        self.scaler.update()
        self.optimizer.zero_grad()
        return norm

    def _add_up(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum")
