"""The maps between a network's stages, once for all our architectures, and timm's way to ask for them."""

from typing import TYPE_CHECKING, Any

import torch
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from poster_zoo.models.layers import check_option

__all__ = ["IntermediatesMixin", "StagesMixin"]


class StagesMixin:
    """Gives a convolutional trunk its maps, and gradient checkpointing a stage.

    The trunk has `stem`, `stages` and `grad_checkpointing`, which begins as False.
    """

    if TYPE_CHECKING:  # TorchScript would want to compile the annotations
        stem: nn.Module
        stages: nn.Sequential
        grad_checkpointing: bool

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the stages' inputs for backward and compute the rest again."""
        self.grad_checkpointing = enable

    def forward_stages(self, x: Tensor, last: int = -1) -> list[Tensor]:
        """Return the maps after each stage, up to the stage `last` where that is not negative."""
        x = self.stem(x)
        maps: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            if last < 0 or i <= last:
                if self.grad_checkpointing and not torch.jit.is_scripting():
                    x = checkpoint(stage, x, use_reentrant=False)
                else:
                    x = stage(x)
                maps.append(x)
        return maps


class IntermediatesMixin:
    """Gives a model `forward_intermediates` and `prune_intermediate_layers`.

    The model has `feature_info` (one entry a stage), `_stage_maps(x, last)` (the maps of the stages 0…last),
    `_keep_stages(last, prune_norm)` and, where its features are more than the last map, `_features_from_maps`.
    """

    if TYPE_CHECKING:  # TorchScript would want to compile the annotation
        feature_info: list[dict[str, Any]]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the stage maps, and the features that `forward_features` gives.

        Args:
            x: Images, as for `forward`.
            indices: Which stages: None for all, a number for the last so many, or a list.
            norm: Accepted for timm's sake; there is no norm between these stages.
            stop_early: Compute nothing after the last stage asked for.
            output_fmt: "NCHW", the only one.
            intermediates_only: Return the list of maps alone.

        Returns:
            The maps (B, C, H, W) of the stages asked for; without `intermediates_only` a pair of the features and them.
        """
        check_option("output_fmt", output_fmt, ("NCHW",))
        take, last = feature_take_indices(len(self.feature_info), indices)
        stop = stop_early or intermediates_only
        maps = self._stage_maps(x, last if stop else -1)
        intermediates = [maps[i] for i in take]
        if intermediates_only:
            return intermediates
        whole = len(maps) == len(self.feature_info)
        return (self._features_from_maps(x, maps) if whole else maps[-1]), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what is not needed for the maps asked for, and return their indices."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        self._keep_stages(last, prune_norm)
        if prune_head:
            self._drop_head()
        return list(take)

    def _stage_maps(self, x: Tensor, last: int) -> list[Tensor]:
        raise NotImplementedError

    def _features_from_maps(self, x: Tensor, maps: list[Tensor]) -> Tensor:
        return maps[-1]

    def _keep_stages(self, last: int, prune_norm: bool) -> None:
        raise NotImplementedError

    def _drop_head(self) -> None:
        self.reset_classifier(0, "")  # type: ignore[attr-defined]
