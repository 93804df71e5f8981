"""Packing: several examples in one row, without attention from one to another."""

from __future__ import annotations

import bisect
import heapq
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pera_lightning.data.examples import ExampleDataset


def pack_examples(lengths: Sequence[int], pack_length: int, seed: int) -> list[list[int]]:
    """Distributes examples over packs: best-fit decreasing, the longest first, each where least room stays.

    Args:
        lengths: Tokens of every example, none above `pack_length`.
        pack_length: Most tokens of a pack.
        seed: Decides the order among examples of the same length.

    Returns:
        The indices of the examples of every pack; every example is in exactly one.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    order.sort(key=lambda index: lengths[index], reverse=True)
    packs: list[list[int]] = []
    # By the tokens left, the packs with so much room; `rooms` is sorted, no longer than a pack whatever the examples.
    open_packs, rooms = defaultdict[int, list[int]](list), list[int]()
    for index in order:
        fitting = bisect.bisect_left(rooms, lengths[index])
        if fitting < len(rooms):
            room = rooms[fitting]
            pack = heapq.heappop(open_packs[room])
            packs[pack].append(index)
            if not open_packs[room]:
                del rooms[fitting]
        else:
            room, pack = pack_length, len(packs)
            packs.append([index])
        left = room - lengths[index]
        if not open_packs[left]:
            bisect.insort(rooms, left)
        heapq.heappush(open_packs[left], pack)
    return packs


class PackedDataset(Dataset[list[dict[str, Tensor]]]):
    """Packs of examples; item: the list of a pack's examples.

    Args:
        examples: The examples.
        pack_length: Most tokens of a pack.
        seed: See `pack_examples`.
    """

    def __init__(self, examples: ExampleDataset, pack_length: int, seed: int) -> None:
        self._examples = examples
        self._packs = pack_examples(examples.lengths, pack_length, seed)

    def __len__(self) -> int:
        return len(self._packs)

    def __getitem__(self, index: int) -> list[dict[str, Tensor]]:
        return [self._examples[example] for example in self._packs[index]]
