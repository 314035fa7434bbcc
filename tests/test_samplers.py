"""Class-balanced sampling: what is drawn, by one process and by several, and how an epoch is taken up again."""

from __future__ import annotations

import multiprocessing
import multiprocessing.queues
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributed
from torch.utils.data import DataLoader, WeightedRandomSampler

from poster_zoo.data.datasets import NO_LABEL
from poster_zoo.data.samplers import BalancedSampler, draw_balanced
from poster_zoo.errors import LabelError, OptionError

LABELS = np.random.default_rng(0).permutation([0] * 70 + [1] * 25 + [4] * 5).tolist()

FEW = [0, 1, 1, 1, 1, 1, 1]


def draw(balance: float, count: int = 30_000) -> list[int]:
    return draw_balanced(LABELS, count, torch.Generator().manual_seed(0), balance)


@pytest.mark.parametrize("balance", [1.0, 0.5, 0.0])
def test_classes_come_as_often_as_their_weights_say(balance: float) -> None:
    counts = Counter(LABELS[i] for i in draw(balance))
    weights = {label: size * size**-balance for label, size in Counter(LABELS).items()}
    expected = [30_000 * weights[label] / sum(weights.values()) for label in weights]
    assert stats.chisquare([counts[label] for label in weights], expected).pvalue > 0.001


def test_the_images_of_a_class_come_equally_often() -> None:
    drawn = Counter(draw(1.0))
    for label in set(LABELS):
        images = [i for i, other in enumerate(LABELS) if other == label]
        assert stats.chisquare([drawn[i] for i in images]).pvalue > 0.001


def test_it_is_what_torchs_weighted_sampler_draws_in_the_long_run() -> None:
    # The authors' sampler gives each image the weight 1 / (images of its class) and hands these to torch.
    sizes = Counter(LABELS)
    weights = [1 / sizes[label] for label in LABELS]
    theirs = Counter(WeightedRandomSampler(weights, 30_000, generator=torch.Generator().manual_seed(0)))
    ours = Counter(draw(1.0))
    table = [[counts[i] for i in range(len(LABELS))] for counts in (ours, theirs)]
    assert stats.chi2_contingency(table).pvalue > 0.001


def test_images_without_a_label_are_never_drawn() -> None:
    drawn = draw_balanced([NO_LABEL, 1, NO_LABEL, 0], 200, torch.Generator().manual_seed(0))
    assert set(drawn) == {1, 3}
    with pytest.raises(LabelError, match="no labelled images"):
        draw_balanced([NO_LABEL], 1, torch.Generator())


def test_the_seed_and_the_epoch_decide() -> None:
    def drawn(seed: int, epoch: int) -> list[int]:
        sampler = BalancedSampler(LABELS, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert drawn(3, 5) == drawn(3, 5)
    draws = [drawn(0, 0), drawn(0, 1), drawn(1, 0), drawn(1, 1)]
    assert len({tuple(one) for one in draws}) == 4
    assert len(draws[0]) == len(LABELS)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(BalancedSampler(LABELS))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_one_draw(processes: int) -> None:
    shares = [list(BalancedSampler(LABELS, num_replicas=processes, rank=rank)) for rank in range(processes)]
    assert len({len(share) for share in shares}) == 1  # a longer share would wait for the others for ever
    together = [image for step in zip(*shares, strict=True) for image in step]
    alone = list(BalancedSampler(LABELS, num_samples=len(together)))
    assert together == alone
    assert len(LABELS) <= len(together) < len(LABELS) + processes


def test_a_step_of_several_processes_has_the_images_of_a_step_of_one() -> None:
    alone = list(DataLoader(LABELS, batch_size=10, sampler=BalancedSampler(range(100), balance=0)))  # type: ignore[arg-type]
    shares = [
        DataLoader(LABELS, batch_size=5, sampler=BalancedSampler(range(100), balance=0, num_replicas=2, rank=rank))  # type: ignore[arg-type]
        for rank in (0, 1)
    ]
    for whole, *halves in zip(alone, *shares, strict=True):
        assert sorted(torch.cat(halves).tolist()) == sorted(whole.tolist())


def in_a_process(rank: int, meeting: str, answers: multiprocessing.queues.Queue[list[int]]) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    sampler = BalancedSampler(FEW)
    sampler.set_epoch(4)
    answers.put([sampler.rank, sampler.num_replicas, *sampler])
    distributed.destroy_process_group()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked here")
def test_two_real_processes_find_their_shares_by_themselves(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")  # another Python would import torch first
    answers = context.Queue()
    processes = [context.Process(target=in_a_process, args=(i, str(tmp_path / "meet"), answers)) for i in (0, 1)]
    for process in processes:
        process.start()
    shares = sorted(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    alone = BalancedSampler(FEW, num_samples=8)
    alone.set_epoch(4)
    common = list(alone)
    assert shares == [[0, 2, *common[0::2]], [1, 2, *common[1::2]]]


@pytest.mark.parametrize("taken", [0, 1, 37, 100])
def test_an_epoch_is_taken_up_where_it_stopped(taken: int) -> None:
    sampler = BalancedSampler(LABELS, seed=1)
    sampler.set_epoch(2)
    whole = list(sampler)
    first = list(islice(iter(sampler), taken))
    state = sampler.state_dict()
    again = BalancedSampler(LABELS, seed=1)
    again.load_state_dict(state)
    rest = list(again)
    if taken < len(whole):
        assert first + rest == whole
    assert list(again) == whole  # the next time it is a whole epoch


def test_what_a_loader_has_drawn_ahead_is_not_lost() -> None:
    sampler = BalancedSampler(LABELS)
    loader = DataLoader(list(range(100)), batch_size=8, sampler=sampler, num_workers=1)  # type: ignore[arg-type]
    batches = iter(loader)
    seen = [image for _ in range(3) for image in next(batches).tolist()]
    state = sampler.state_dict(taken=len(seen))
    assert sampler.state_dict()["taken"] > len(seen)  # the worker is ahead
    again = BalancedSampler(LABELS)
    again.load_state_dict(state)
    assert seen + list(again) == list(BalancedSampler(LABELS))


def test_a_state_of_another_draw_is_refused() -> None:
    state = BalancedSampler(LABELS, seed=1).state_dict()
    with pytest.raises(OptionError, match="seed was 1 and is 2"):
        BalancedSampler(LABELS, seed=2).load_state_dict(state)
    with pytest.raises(OptionError, match="num_replicas was 1 and is 2"):
        BalancedSampler(LABELS, seed=1, num_replicas=2).load_state_dict(state)


def test_a_process_beyond_the_last_is_refused() -> None:
    with pytest.raises(OptionError, match="Process 2 is none of 2"):
        BalancedSampler(LABELS, num_replicas=2, rank=2)
