"""A step of SAM beside the authors' loop, and the memory that gradient checkpointing saves.

    python benchmarks/training.py --batch 8 --json training.json

Both sides start from the same weights and see the same images in the same order; their losses are printed beside each
other. The authors' loop is the plain form of POSTER, with both passes through the landmark stream, SAM parameter by
parameter, and Adam. (Their landmark stream normalises by each batch; here it stands still on both sides, as the paper
says, or the losses could not be compared.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
import torch
from plain import PlainPoster
from torch import Tensor, nn
from torch.nn import functional as F

import poster_zoo
from poster_zoo import bench
from poster_zoo.train import ExpressionLoss, Recipe
from poster_zoo.train.processes import make_accelerator
from poster_zoo.train.step import Step, make_optimizer, on_device

LR, RHO = 4e-5, 0.05


class AuthorsSam:
    """SAM as the authors' loop has it: parameter by parameter, each with a copy of its move."""

    def __init__(self, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        self.parameters = parameters
        self.optimizer = optimizer
        self.moves: dict[nn.Parameter, Tensor] = {}

    @torch.no_grad()
    def first_step(self) -> None:
        """Move each weight uphill."""
        pairs = [(p, p.grad) for p in self.parameters if p.grad is not None]
        norm = torch.norm(torch.stack([torch.norm(gradient) for _, gradient in pairs]))
        for p, gradient in pairs:
            self.moves[p] = gradient * (RHO / (norm + 1e-12))
            p.add_(self.moves[p])
        self.optimizer.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Move each weight back, and down the gradient found there."""
        for p, move in self.moves.items():
            p.sub_(move)
        self.optimizer.step()
        self.optimizer.zero_grad()


def authors_step(model: Any, images: Tensor, targets: Tensor, sam: bool) -> Callable[[], float]:
    """Return what makes one step of the authors' loop and returns its loss."""
    network = PlainPoster(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, LR)
    climber = AuthorsSam(parameters, optimizer)

    def step() -> float:
        loss = F.cross_entropy(network(images), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        if sam:
            climber.first_step()
            F.cross_entropy(network(images), targets).backward()  # type: ignore[no-untyped-call]
            climber.second_step()
        else:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    return step


def our_step(model: Any, images: Tensor, targets: Tensor, sam: bool, **settings: Any) -> Callable[[], float]:
    """Return what makes one step of `poster-zoo train` and returns its loss."""
    recipe = Recipe(smoothed=0.0, lr=LR, rho=RHO if sam else 0.0, drop_path_rate=0.0, **settings)
    accelerator = make_accelerator("cpu")
    model = on_device(model, recipe, accelerator)
    step = Step(model, make_optimizer(model, recipe), recipe, ExpressionLoss.of(recipe), accelerator)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    return lambda: step(images, targets, len(images)).loss


def recorded(step: Callable[[], float], losses: list[float]) -> Callable[[], object]:
    """Return the same step, which notes its loss."""
    return lambda: losses.append(step())


@click.command()
@click.option("--model", "name", default="poster_rafdb", show_default=True, help="A POSTER of the zoo.")
@click.option("--batch", default=8, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", type=click.Choice(["SAM", "plain"]), help="One kind of step.")
@click.option("--compile", "compiled", is_flag=True, help="Also our step compiled.")
@click.option("--bfloat16", is_flag=True, help="Also our step under autocast to bfloat16.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), help="Write all numbers there.")
def main(
    name: str,
    batch: int,
    rounds: int,
    threads: int,
    only: str | None,
    compiled: bool,
    bfloat16: bool,
    json_file: str | None,
) -> None:
    """Time steps of training, plain and with SAM."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    start: Any = poster_zoo.create_model(name).train()
    images = torch.randn(batch, start.in_chans, *start.img_size)
    targets = torch.arange(batch) % start.num_classes
    ours: dict[str, dict[str, Any]] = {"fp32": {}, "channels_last": {"channels_last": True}}
    if compiled:
        ours["compiled"] = {"compile": True}
    if bfloat16:
        ours["bf16"] = {"precision": "bf16", "channels_last": True}
    ceiling = bench.measure_ceiling(torch.device("cpu"), torch.float32)
    click.echo(f"ceiling: {ceiling.convolution / 1e9:.0f} and {ceiling.matmul / 1e9:.0f} GFLOP/s")
    reports: dict[str, Any] = {}
    for kind, sam in (("SAM", True), ("plain", False)):
        if only not in (kind, None):
            continue
        sides = {"authors": authors_step(copy.deepcopy(start), images, targets, sam)}
        for side, settings in ours.items():
            sides[side] = our_step(copy.deepcopy(start), images, targets, sam, **settings)
        losses: dict[str, list[float]] = {side: [] for side in sides}
        timings = bench.take_turns({side: recorded(call, losses[side]) for side, call in sides.items()}, rounds)
        # After the timings, whose losses begin with the first step.
        bound = ceiling.seconds(bench.count_flops_of(sides["authors"]))
        click.echo(f"{kind:6} {'ceiling':14} {bound:7.3f} s would be what the authors' operations take")
        for side, timing in timings.items():
            click.echo(
                f"{kind:6} {side:14} {timing.median:7.3f} s a step  {batch / timing.median:6.2f} images/s  "
                f"{timings['authors'].median / timing.median:5.2f} x the authors'  "
                f"losses {', '.join(f'{loss:.5f}' for loss in losses[side][:3])}"
            )
        reports[kind] = {side: {**asdict(timing), "losses": losses[side]} for side, timing in timings.items()}
        reports[kind]["authors' operations at the ceiling"] = bound
    memory = {str(on): saved_for_backward(copy.deepcopy(start), images, on) for on in (False, True)}
    click.echo(
        f"activations of the pyramid: {memory['False'] / 1e6:.0f} MB, with checkpointing {memory['True'] / 1e6:.0f} MB"
    )
    if json_file:
        bench.write_report(
            json_file,
            torch.device("cpu"),
            model=name,
            batch=batch,
            ceiling=ceiling,
            steps=reports,
            activations_of_the_pyramid=memory,
        )


def saved_for_backward(model: Any, images: Tensor, checkpointing: bool) -> int:
    """Return the bytes that the pyramid keeps for backward."""
    model.set_grad_checkpointing(checkpointing)
    with torch.no_grad():
        face = model.resize(images)
        tokens = model.tokens(model.image_stream(face), model.landmark_stream.forward_maps(face)[-1])
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused = model.fusion(*(t.requires_grad_() for t in tokens))
    size = sum(kept.values())
    del fused  # until here it has held what was kept
    return size


if __name__ == "__main__":
    main()
