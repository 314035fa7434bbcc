"""Sharpness-aware minimisation, by itself and in the trainer's step: as the authors' loop, and as arithmetic says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from training_faces import SIDE, small_model

import poster_zoo
from poster_zoo.models._builder import ENTRIES
from poster_zoo.train import SAM, ExpressionLoss, Recipe, make_accelerator
from poster_zoo.train.step import NotFinite, Step
from poster_zoo.weights.upstream import LAYOUTS, rename

# Three steps of the authors' loop on POSTER small, seeded weights: SAM (rho 0.05) over Adam (lr 4e-5), a batch of
# RandomState(1).standard_normal((4, 3, 224, 224)), drop path off, the landmark stream held still.
AUTHORS_LABELS = [0, 2, 6, 5]
AUTHORS_STEPS = [
    {"loss": 6.270208358764648, "loss_at_perturbed_weights": 9.197017669677734, "grad_norm": 55.98073196411133},
    {"loss": 2.2174460887908936, "loss_at_perturbed_weights": 3.413626194000244, "grad_norm": 16.76740837097168},
    {"loss": 1.7105183601379395, "loss_at_perturbed_weights": 1.838105320930481, "grad_norm": 1.5972063541412354},
]
PLAIN = Recipe(smoothed=0.0, transform="plain", optimizer="momentum", lr=0.1, drop_path_rate=0.0)


class Recorded(ExpressionLoss):
    """A loss that remembers the mean of each batch."""

    seen: list[float]

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        losses = super().__call__(logits, targets)
        self.seen.append(float(losses.detach().mean()))
        return losses


def changed(recipe: Recipe, **fields: Any) -> Recipe:
    return Recipe(**recipe.to_dict() | fields)


def step_of(model: Any, recipe: Recipe, loss: ExpressionLoss | None = None) -> Step:
    optimizer = create_optimizer_v2(model, opt=recipe.optimizer, lr=recipe.lr, momentum=0.0)
    return Step(model, optimizer, recipe, loss or ExpressionLoss.of(recipe), make_accelerator("cpu"))


def batch(images: int = 6, side: int = SIDE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, side, side, generator=generator), torch.arange(images) % 3


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


# --- SAM by itself


def bowl(start: list[float], curvature: list[float]) -> tuple[nn.Parameter, Any]:
    """Weights w and the loss ½ wᵀ diag(c) w, whose gradient is c·w."""
    w = nn.Parameter(torch.tensor(start, dtype=torch.double))
    c = torch.tensor(curvature, dtype=torch.double)
    return w, lambda: 0.5 * (c * w * w).sum()


@pytest.mark.parametrize("adaptive", [False, True], ids=["SAM", "ASAM"])
def test_the_gradient_is_the_one_at_the_worst_weights_nearby(adaptive: bool) -> None:
    w, loss = bowl([3.0, -2.0], [1.0, 5.0])
    sam = SAM(torch.optim.SGD([w], lr=1.0), rho=0.3, adaptive=adaptive)
    loss().backward()
    norm = sam.climb()

    start, gradient = np.array([3.0, -2.0]), np.array([3.0, -10.0])
    # Foret et al., equation 2; Kwon et al., equation 8, with the weights' own size as scale.
    scale = np.abs(start) if adaptive else np.ones(2)
    expected = start + 0.3 * scale**2 * gradient / np.linalg.norm(scale * gradient)
    assert norm == pytest.approx(np.linalg.norm(gradient))
    np.testing.assert_allclose(w.detach(), expected, rtol=1e-12)

    assert w.grad is None
    loss().backward()
    sam.descend()
    np.testing.assert_allclose(w.detach(), start, rtol=1e-15)
    np.testing.assert_allclose(w.grad, [1.0, 5.0] * expected, rtol=1e-12)


def test_a_scaled_gradient_climbs_to_the_same_place() -> None:
    places = []
    for scale in (1.0, 1024.0):
        w, loss = bowl([3.0, -2.0], [1.0, 5.0])
        sam = SAM(torch.optim.SGD([w], lr=1.0))
        (loss() * scale).backward()
        sam.climb()
        places.append(w.detach().clone())
    torch.testing.assert_close(*places, rtol=1e-12, atol=0)


def test_an_infinite_gradient_moves_nothing_and_stays() -> None:
    w, loss = bowl([3.0, -2.0], [1.0, math.inf])
    sam = SAM(torch.optim.SGD([w], lr=1.0))
    loss().backward()
    assert sam.climb() == math.inf
    assert w.tolist() == [3.0, -2.0]
    assert w.grad is not None


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lamb", "nadamw", "lookahead_adam"])
def test_any_optimizer_steps_down_that_gradient(name: str) -> None:
    at_worst, by_hand = ([nn.Parameter(torch.tensor([3.0, -2.0]))] for _ in range(2))
    sam = SAM(create_optimizer_v2(at_worst, opt=name, lr=0.1), rho=0.3)
    plain = create_optimizer_v2(by_hand, opt=name, lr=0.1)
    c = torch.tensor([1.0, 5.0])
    for _ in range(3):
        (0.5 * c * at_worst[0] ** 2).sum().backward()
        sam.climb()
        (0.5 * c * at_worst[0] ** 2).sum().backward()
        sam.descend()
        sam.optimizer.step()
        sam.optimizer.zero_grad()

        w = by_hand[0].detach()
        by_hand[0].grad = c * (w + 0.3 * c * w / (c * w).norm())
        plain.step()
    torch.testing.assert_close(at_worst[0], by_hand[0])


# --- the authors' loop


def test_three_steps_are_the_authors() -> None:
    model = poster_zoo.create_model("poster_small")
    tensors = checkpoints.tensors("poster_rafdb_small")
    used = rename(LAYOUTS[ENTRIES["poster_small"].upstream_layout or ""], tensors).used
    model.load_state_dict({ours: tensors[theirs] for theirs, ours in used.items()})
    model.train()
    images = torch.from_numpy(np.random.RandomState(1).standard_normal((4, 3, 224, 224)).astype(np.float32))
    recipe = Recipe(drop_path_rate=0.0)  # all else is the authors' for RAF-DB
    loss = Recorded.of(recipe)
    object.__setattr__(loss, "seen", [])
    step = step_of(model, recipe, loss)
    for expected in AUTHORS_STEPS:
        outcome = step(images, torch.tensor(AUTHORS_LABELS), 4)
        assert outcome.loss == pytest.approx(expected["loss"], abs=1e-3)
        assert loss.seen[-1] == pytest.approx(expected["loss_at_perturbed_weights"], abs=1e-3)
        assert outcome.norm == pytest.approx(expected["grad_norm"], rel=0.01)


def test_the_authors_numbers_here_are_those_of_the_reference(shared: Path) -> None:
    reference = json.loads((shared / "parity" / "golden" / "sam_steps.json").read_text())
    assert (reference["labels"], reference["steps"]) == (AUTHORS_LABELS, AUTHORS_STEPS)


# --- the trainer's step


def gradient_of(model: nn.Module, images: Tensor, targets: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(model(images), targets)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_a_step_without_sam_is_plain_descent() -> None:
    model, reference = small_model().train(), small_model().train()
    images, targets = batch()
    gradient = gradient_of(reference, images, targets)
    outcome = step_of(model, changed(PLAIN, rho=0.0))(images, targets, len(images))
    for weight, before, slope in zip(model.parameters(), reference.parameters(), gradient, strict=True):
        torch.testing.assert_close(weight, before - 0.1 * slope)
    assert outcome.norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in gradient)), rel=1e-5)


def test_clipping_shortens_the_gradient_that_the_optimizer_gets() -> None:
    model = small_model().train()
    before = weights(model)
    images, targets = batch()
    step_of(model, changed(PLAIN, clip=0.05, lr=1.0))(images, targets, len(images))
    assert float((weights(model) - before).norm()) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("images", [6, 7], ids=["even pieces", "uneven pieces"])
def test_pieces_make_the_step_of_the_whole_batch(images: int) -> None:
    whole, pieces = (freeze_batch_norm_2d(small_model().train()) for _ in range(2))
    x, y = batch(images)
    outcomes = [
        step_of(model, changed(PLAIN, accumulate=accumulate))(x, y, images)
        for model, accumulate in ((whole, 1), (pieces, 3))
    ]
    torch.testing.assert_close(weights(pieces), weights(whole), rtol=1e-5, atol=1e-6)
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-6)
    assert outcomes[0].right == outcomes[1].right


def running_mean_after(images: Tensor, moves: int) -> Tensor:
    """The stem's running mean after so many moves by torch's rule, from the images themselves."""
    stem = small_model().trunk.stem
    mean = stem.conv(images).mean((0, 2, 3)).detach()
    return mean * (1 - (1 - stem.bn.momentum) ** moves)  # it starts at 0


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("exact_upstream", "moves"), [(False, 1), (True, 2)])
def test_batchnorm_statistics_move_in_the_first_pass_alone(accumulate: int, exact_upstream: bool, moves: int) -> None:
    model = small_model().train()
    images, targets = batch()
    # rho is so small that both passes see the same statistics.
    recipe = changed(PLAIN, accumulate=accumulate, exact_upstream=exact_upstream, rho=1e-6)
    step_of(model, recipe)(images, targets, len(images))
    norm = model.trunk.stem.bn
    torch.testing.assert_close(norm.running_mean, running_mean_after(images, moves), rtol=1e-4, atol=1e-6)
    assert norm.num_batches_tracked == moves


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    states = []
    for checkpointing in (False, True):
        model = small_model().train()
        model.set_grad_checkpointing(checkpointing)
        images, targets = batch()
        step_of(model, PLAIN)(images, targets, len(images))
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, msg=name)


def test_the_frozen_landmark_stream_runs_once_a_step_and_stays_as_it_is() -> None:
    torch.manual_seed(0)
    model: Any = poster_zoo.create_model("poster_tiny").train()
    runs = []
    model.landmark_stream.stem.register_forward_hook(lambda *_: runs.append(1))
    before = {name: tensor.clone() for name, tensor in model.landmark_stream.state_dict().items()}
    images, targets = batch(2, side=112)
    step_of(model, changed(PLAIN, lr=1e-3))(images, targets, 2)
    assert len(runs) == 1
    after = model.landmark_stream.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    # And the answer is that of the whole model.
    model.eval()
    with torch.no_grad():
        network = step_of(model, PLAIN).network
        torch.testing.assert_close(network(images, network.frozen_maps(images)), model(images))


def test_a_landmark_stream_that_learns_runs_in_both_passes() -> None:
    torch.manual_seed(0)
    model: Any = poster_zoo.create_model("poster_tiny", freeze_landmarks=False).train()
    runs = []
    model.landmark_stream.stem.register_forward_hook(lambda *_: runs.append(1))
    before = model.landmark_stream.stem[0].conv.weight.clone()
    step_of(model, changed(PLAIN, lr=1e-3))(*batch(2, side=112), 2)
    assert len(runs) == 2
    assert not torch.equal(model.landmark_stream.stem[0].conv.weight, before)


# --- mixed precision


def test_bf16_comes_near_single_precision() -> None:
    steps = []
    for precision in ("fp32", "bf16"):
        model = small_model().train()
        before = weights(model)
        images, targets = batch()
        outcome = step_of(model, changed(PLAIN, precision=precision))(images, targets, len(images))
        steps.append((outcome.loss, weights(model) - before))
    assert steps[1][0] == pytest.approx(steps[0][0], rel=0.02)
    assert float(F.cosine_similarity(steps[0][1], steps[1][1], dim=0)) > 0.98
    assert steps[1][0] != steps[0][0]


def test_fp16_with_its_scaler_comes_near_single_precision() -> None:
    model, reference = small_model().train(), small_model().train()
    before = weights(model)
    images, targets = batch()
    step, plain = step_of(model, changed(PLAIN, precision="fp16")), step_of(reference, PLAIN)
    assert step.scaler.get_scale() == 2**16
    ours, theirs = step(images, targets, len(images)), plain(images, targets, len(images))
    assert ours.norm == pytest.approx(theirs.norm, rel=0.02)
    moved = weights(model) - before
    assert float(F.cosine_similarity(moved, weights(reference) - before, dim=0)) > 0.99
    assert float(moved.norm()) == pytest.approx(float((weights(reference) - before).norm()), rel=0.02)


def test_fp16_skips_a_step_whose_gradient_overflows_and_halves_its_scale() -> None:
    model = small_model().train()
    step = step_of(model, changed(PLAIN, precision="fp16"))
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # beyond what half precision holds
    before = weights(model)
    outcome = step(*batch(), 6)
    assert outcome.norm is None
    assert torch.equal(weights(model), before)
    assert step.scaler.get_scale() == 2.0**39
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("rho", [0.0, 0.05])
def test_a_loss_that_is_no_number_stops_before_the_weights_move(rho: float) -> None:
    model = small_model().train()
    before = weights(model)
    images, targets = batch()
    images[0] = math.nan
    with pytest.raises(NotFinite, match="loss is nan"):
        step_of(model, changed(PLAIN, rho=rho))(images, targets, len(images))
    assert torch.equal(weights(model), before)


def test_compiled_it_takes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # The stand-in backend runs what was traced, without a compiler.
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend="eager", **options))
    results = []
    for compiled in (False, True):
        model = small_model().train()
        step_of(model, changed(PLAIN, compile=compiled))(*batch(), 6)
        results.append(weights(model))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
