from __future__ import annotations

import random
from itertools import chain, pairwise

import pytest
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import DistributedSampler

from pera_lightning.data.reading.sampling import LengthGroupedSampler

LENGTHS = random.Random(0).choices(range(1, 1001), k=2003)


def batches(indices: list[int], size: int = 8) -> list[list[int]]:
    return [indices[start : start + size] for start in range(0, len(indices), size)]


def padding_share(parts: list[list[int]]) -> float:
    padded = sum(len(part) * max(LENGTHS[index] for index in part) for part in parts)
    return 1 - sum(LENGTHS[index] for part in parts for index in part) / padded


def test_every_example_comes_once_and_batches_have_similar_lengths() -> None:
    indices = list(LengthGroupedSampler(LENGTHS, 8, seed=0))
    assert sorted(indices) == list(range(len(LENGTHS)))
    shuffled = random.Random(0).sample(range(len(LENGTHS)), len(LENGTHS))
    assert padding_share(batches(indices)) < 0.03
    assert padding_share(batches(shuffled)) > 0.3


def test_batches_do_not_come_in_the_order_of_length() -> None:
    longest = [max(LENGTHS[index] for index in part) for part in batches(list(LengthGroupedSampler(LENGTHS, 8)))]
    neighbours = list(pairwise(longest))
    ascending = sum(first < second for first, second in neighbours) / len(neighbours)
    assert 0.4 < ascending < 0.6


def test_seed_and_epoch_decide_the_order() -> None:
    sampler = LengthGroupedSampler(LENGTHS, 8, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs[0] == epochs[2]
    assert epochs[0] != epochs[1]
    assert {frozenset(part) for part in batches(epochs[0])} != {frozenset(part) for part in batches(epochs[1])}
    assert list(LengthGroupedSampler(LENGTHS, 8, seed=3)) == epochs[0]
    assert list(LengthGroupedSampler(LENGTHS, 8, seed=4)) != epochs[0]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_examples_and_keep_the_grouping(processes: int) -> None:
    samplers = [
        LengthGroupedSampler(LENGTHS, 8, seed=0, num_replicas=processes, rank=rank) for rank in range(processes)
    ]
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = [list(sampler) for sampler in samplers]
        assert {len(share) for share in shares} == {len(samplers[0])}
        assert {index for share in shares for index in share} == set(range(len(LENGTHS)))
        assert sum(map(len, shares)) < len(LENGTHS) + processes
        for share in shares:
            assert padding_share(batches(share)) < 0.06
        # At each step all processes have batches of similar length, so that none waits.
        steps = [[*chain.from_iterable(parts)] for parts in zip(*map(batches, shares), strict=True)]
        assert padding_share(steps) < 0.06


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9])
def test_few_examples(count: int) -> None:
    assert sorted(LengthGroupedSampler(LENGTHS[:count], 8)) == list(range(count))


def test_lightnings_wrapper_would_undo_the_grouping_and_is_not_used() -> None:
    sampler = LengthGroupedSampler(LENGTHS, 8)
    # Lightning wraps samplers of the train loader with shuffle=True unless they are of this class.
    assert isinstance(sampler, DistributedSampler)
    wrapped = DistributedSamplerWrapper(sampler, num_replicas=2, rank=0, shuffle=True)
    assert padding_share(batches(list(wrapped))) > 0.3
