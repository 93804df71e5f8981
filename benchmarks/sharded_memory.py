"""Bytes that one GPU of several holds of a fit, counted from the shapes of a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.model_shapes import ModelShapes, ParameterShape, padded_bytes, shard_bytes
from pera_lightning.analysis.memory import HeldMemory


class ShardedMemory(NamedTuple):
    """Bytes of one process.

    Attributes:
        held: Throughout a fit: its shards, padding included, and two states of AdamW.
        root: Of FSDP2: what is in no block, gathered from the first to the last layer of a step.
        block: Of FSDP2: the largest block, gathered.
        copied: Of FSDP2: what torch copies once more of a gathered block: what is sharded over its columns.
        reducing: Gradients on their way: DDP's buckets; of FSDP2 those of a block, whole, and the buffer in which those
            of the block before were sent.
    """

    held: HeldMemory
    root: int
    block: int
    copied: int
    reducing: int

    def peak(self, activations: float) -> float:
        """The most bytes of a step, beside `held`, whose activations and other tensors take `activations` bytes.

        Going forward, FSDP2 has the parameters of a block, the buffer that they came in and that of the block before,
        which for the first one is the root's; what is sharded over its columns a third time. Going back, it has the
        parameters of a block, the buffer of the next one's and the gradients.
        """
        first = 2 * self.root + 2 * self.block + self.copied
        later = max(3 * self.block + self.copied, 2 * self.block + self.reducing)
        return max(first, self.root + later + activations)


def ddp_memory(shapes: ModelShapes) -> ShardedMemory:
    """One process of DistributedDataParallel: a whole model."""
    frozen = sum(value.nbytes for unit in shapes.units for value in unit.parameters if not value.trained)
    trained = sum(value.nbytes for unit in shapes.units for value in unit.trained)
    held = HeldMemory(frozen + _whole(shapes), trained, trained, 2 * trained)
    return ShardedMemory(held, 0, 0, 0, trained)


def fsdp2_memory(shapes: ModelShapes, ranks: int, rank: int = 0) -> ShardedMemory:
    """One process of FSDP2: `fully_shard` on each block and then on the model.

    Args:
        shapes: The model; with tensor parallelism what one of its processes holds: `shapes.split(...)`.
        ranks: Data-parallel processes. A single one gathers nothing.
        rank: Which of them. The first has the most: padding is no part of the optimizer's states.
    """
    frozen = [value for unit in shapes.units for value in unit.parameters if not value.trained]
    trained = [value for unit in shapes.units for value in unit.trained]
    shards = padded_bytes(trained, ranks) // ranks
    states = 2 * sum(shard_bytes(value, ranks, rank) for value in trained)
    held = HeldMemory(padded_bytes(frozen, ranks) // ranks + _whole(shapes), shards, shards, states)
    if ranks == 1:
        return ShardedMemory(held, 0, 0, 0, 0)
    reducing = max(_bytes(unit.trained) + padded_bytes(unit.trained, ranks) for unit in shapes.units)
    block = max(padded_bytes(unit.parameters, ranks) for unit in shapes.blocks)
    copied = max(_bytes(value for value in unit.trained if value.sharded(ranks)) for unit in shapes.blocks)
    return ShardedMemory(held, padded_bytes(shapes.root.parameters, ranks), block, copied, reducing)


def _bytes(parameters: Iterable[ParameterShape]) -> int:
    return sum(value.nbytes for value in parameters)


def _whole(shapes: ModelShapes) -> int:
    return sum(unit.whole for unit in shapes.units)
