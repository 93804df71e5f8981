"""Batches of examples of similar length, in a new order every epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DistributedSampler

# More of them means less padding and less randomness.
_BATCHES_SORTED_TOGETHER = 50


class LengthGroupedSampler(DistributedSampler[int]):
    """Orders examples so that each batch holds similar lengths, while batches come in random order.

    Every epoch the examples are shuffled and cut into groups of 50 batches; each group is
    sorted by length and cut into batches, and the batches of all groups are shuffled. Seed and epoch
    (`set_epoch`, which Lightning calls) decide the order.

    It is a `DistributedSampler`, so that Lightning leaves it as it is: the wrapper that Lightning would put
    around any other sampler shuffles single examples again and undoes the grouping. A batch here spans all
    processes; each takes every `num_replicas`-th example of it, and all have similar lengths at each step.

    Args:
        lengths: Tokens of every example.
        batch_size: Examples of a batch of one process.
        seed: Seed of the order.
        num_replicas: Number of processes.
        rank: Number of this process.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(lengths, num_replicas=num_replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        self._lengths = lengths
        self._batch = batch_size * num_replicas
        self._group = self._batch * _BATCHES_SORTED_TOGETHER

    def __iter__(self) -> Iterator[int]:
        indices = list(itertools.chain.from_iterable(self._shuffled_batches()))
        # As DistributedSampler does: some examples twice, so that all processes make as many steps.
        indices = list(itertools.islice(itertools.cycle(indices), self.total_size))
        return iter(indices[self.rank :: self.num_replicas])

    def _shuffled_batches(self) -> list[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), self._group):
            group = sorted(order[start : start + self._group], key=lambda index: self._lengths[index])
            batches += [group[at : at + self._batch] for at in range(0, len(group), self._batch)]
        # Only the last batch may be short; in any other place it would shift the bounds of those after it.
        last = batches.pop() if batches and len(batches[-1]) < self._batch else []
        shuffle = torch.randperm(len(batches), generator=generator).tolist()
        return [batches[index] for index in shuffle] + [last]
