"""Bytes that a training step moves between GPUs, counted from the shapes of a model's parameters.

A step is one forward and one backward pass. Nothing is said about time: what overlaps and how long a message takes is
left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from benchmarks.model_shapes import ModelShapes, Unit, padded_bytes

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "broadcast"]
What = Literal["parameters", "gradients", "activations", "buffers"]


class Collective(NamedTuple):
    """One collective operation, or several of the same kind over the same processes.

    Attributes:
        kind: The operation.
        what: What it moves.
        ranks: Processes that take part.
        payload: Bytes: the input of an all-reduce or reduce-scatter, the output of an all-gather.
        trained: The part of the payload that belongs to trained parameters or their gradients.
    """

    kind: Kind
    what: What
    ranks: int
    payload: int
    trained: int = 0

    @property
    def sent(self) -> float:
        """Bytes that each process sends, by the ring algorithm."""
        return self.payload * self._share

    @property
    def sent_trained(self) -> float:
        """The part of it that belongs to trained parameters."""
        return self.trained * self._share

    @property
    def _share(self) -> float:
        # A broadcast passes every process but the last one.
        part = 1 if self.kind == "broadcast" and self.ranks > 1 else (self.ranks - 1) / self.ranks
        return 2 * part if self.kind == "all_reduce" else part


def ddp_traffic(shapes: ModelShapes, ranks: int) -> list[Collective]:
    """Collectives of a step of DistributedDataParallel: the gradients, and the buffers before the forward pass.

    Args:
        shapes: The model.
        ranks: Data-parallel processes.
    """
    gradients = sum(value.nbytes for unit in shapes.units for value in unit.trained)
    return _real(
        [
            Collective("broadcast", "buffers", ranks, shapes.buffers),
            Collective("all_reduce", "gradients", ranks, gradients, gradients),
        ]
    )


def fsdp2_traffic(shapes: ModelShapes, ranks: int) -> list[Collective]:
    """Collectives of a step of FSDP2: `fully_shard` on each block and then on the model.

    Blocks are gathered for the forward and again for the backward pass, the rest once. Every parameter is padded to a
    multiple of `ranks` in the dimension that is sharded (`shard_placement`); the padding travels too.

    Args:
        shapes: The model; with tensor parallelism what one of its processes holds: `shapes.split(...)`.
        ranks: Data-parallel processes.
    """
    gathers = [(shapes.root, 1), *((block, 2) for block in shapes.blocks)]
    collectives = [_gather(unit, ranks) for unit, times in gathers for _ in range(times)]
    for unit in shapes.units:
        gradients = padded_bytes(unit.trained, ranks)
        collectives.append(Collective("reduce_scatter", "gradients", ranks, gradients, gradients))
    return _real(collectives)


def tensor_parallel_traffic(
    shapes: ModelShapes, ranks: int, tokens: int, itemsize: int = 2, *, checkpointing: bool = False
) -> list[Collective]:
    """Collectives of a step of tensor parallelism by torch's ColwiseParallel and RowwiseParallel.

    Forward: the outputs of each row-wise layer. Backward: the gradient of the input of each column-wise layer, by
    itself even where several share the input, and the gradients of the factors that every process has whole: A and h of
    column-wise layers, B and h of row-wise ones.

    Args:
        shapes: The model before it is split.
        ranks: Tensor-parallel processes.
        tokens: Of the batch of one data-parallel process.
        itemsize: Bytes of an entry of the activations.
        checkpointing: Whether blocks are computed again in the backward pass: up to their last layer, so that all
            row-wise layers but the last one sum up their outputs again.
    """
    return _real(
        collective
        for block in shapes.blocks
        for collective in _block_tensor_parallel(block, ranks, tokens * itemsize, checkpointing)
    )


def payload(collectives: Iterable[Collective], kind: Kind) -> int:
    """Payload bytes of all collectives of a kind."""
    return sum(collective.payload for collective in collectives if collective.kind == kind)


def _gather(unit: Unit, ranks: int) -> Collective:
    return Collective(
        "all_gather", "parameters", ranks, padded_bytes(unit.parameters, ranks), padded_bytes(unit.trained, ranks)
    )


def _block_tensor_parallel(block: Unit, ranks: int, per_feature: int, checkpointing: bool) -> Iterator[Collective]:
    outputs = [*block.row_outputs, *(block.row_outputs[:-1] if checkpointing else ())]
    for features in (*outputs, *block.column_inputs):
        yield Collective("all_reduce", "activations", ranks, features * per_feature)
    for value in block.trained:
        if value.summed:
            yield Collective("all_reduce", "gradients", ranks, value.nbytes, value.nbytes)


def _real(collectives: Iterable[Collective]) -> list[Collective]:
    """Without those that move nothing."""
    return [collective for collective in collectives if collective.ranks > 1 and collective.payload]
