"""What strategies for several GPUs move and hold: the shapes of a model's parameters, block by block."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from pera_lightning.analysis.memory import quantized_bytes
from pera_lightning.base_layers import base_of
from pera_lightning.injection.sharding import shard_dimension

COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
"""Last part of the names of the layers that the usual tensor-parallel plan splits over their outputs."""
ROW = ("o_proj", "down_proj")
"""Of those that it splits over their inputs."""


class ParameterShape(NamedTuple):
    """One parameter.

    Attributes:
        shape: Its sizes.
        itemsize: Bytes of an entry.
        trained: Whether it has a gradient.
        split: The dimension that tensor parallelism splits, or None where each process has it whole.
        summed: Whether tensor-parallel processes, which have it whole, each compute a part of its gradient.
    """

    shape: tuple[int, ...]
    itemsize: int
    trained: bool = False
    split: int | None = None
    summed: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of all of it."""
        return math.prod(self.shape) * self.itemsize

    def sharded(self, ranks: int) -> int:
        """The dimension that FSDP2 shards over so many processes."""
        return shard_dimension(self.shape, ranks) if self.trained else 0


class Unit(NamedTuple):
    """What FSDP2 gathers at once: a block of the model, or all that is in no block.

    Attributes:
        parameters: Frozen and trained ones.
        whole: Bytes beside them that every process holds: buffers, and scales of quantised weights.
        column_inputs: Input features of each layer that tensor parallelism splits over its outputs.
        row_outputs: Output features of each layer that it splits over its inputs.
    """

    parameters: tuple[ParameterShape, ...]
    whole: int = 0
    column_inputs: tuple[int, ...] = ()
    row_outputs: tuple[int, ...] = ()

    @property
    def trained(self) -> tuple[ParameterShape, ...]:
        """The parameters with a gradient."""
        return tuple(value for value in self.parameters if value.trained)


class ModelShapes(NamedTuple):
    """A model as strategies see it.

    Attributes:
        root: What is in no block: embeddings, last norm, output head.
        blocks: The transformer blocks.
        buffers: Bytes of all buffers.
    """

    root: Unit
    blocks: tuple[Unit, ...]
    buffers: int = 0

    @property
    def units(self) -> tuple[Unit, ...]:
        """Root and blocks."""
        return (self.root, *self.blocks)

    def split(self, ranks: int) -> ModelShapes:
        """What the first of `ranks` tensor-parallel processes holds of it."""
        return self._replace(root=_split(self.root, ranks), blocks=tuple(_split(block, ranks) for block in self.blocks))


def padded_bytes(parameters: Iterable[ParameterShape], ranks: int) -> int:
    """Bytes of parameters that FSDP2 pads, each in the dimension that it shards, to a multiple of its processes."""
    return sum(shard_bytes(value, ranks) * ranks for value in parameters)


def shard_bytes(value: ParameterShape, ranks: int, rank: int | None = None) -> int:
    """Bytes of the part of a parameter that FSDP2 keeps on one process.

    Args:
        value: The parameter.
        ranks: Processes that share it.
        rank: Which of them, without padding: the last ones may have less, or nothing. None: with padding, alike on all.
    """
    sizes, dimension = list(value.shape), value.sharded(ranks)
    most = -(-sizes[dimension] // ranks)
    sizes[dimension] = most if rank is None else max(0, min(most, sizes[dimension] - rank * most))
    return math.prod(sizes) * value.itemsize


def shapes_of(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    *,
    quantized: Collection[nn.Module] = (),
    quantization: str | None = None,
    shards_packed: bool = True,
) -> ModelShapes:
    """Read the shapes off a model, with or without adapters, whole and on any device.

    Args:
        model: The model; on the meta device its dense weights stand for the quantised ones.
        blocks: Modules in it that are gathered one by one.
        quantized: Layers whose weights are quantised.
        quantization: "nf4", "nf4-dq", "fp4" or "int8"; None if nothing is.
        shards_packed: Whether the packed entries of a quantised weight are sharded as parameters are. Its scales never
            are.
    """
    reader = _Reader({id(layer.weight): quantization for layer in quantized}, shards_packed)
    units = [reader.unit(block) for block in blocks]
    # Last: what is left.
    root = reader.unit(model)
    return ModelShapes(root, tuple(units), sum(buffer.nbytes for buffer in model.buffers()))


class _Reader:
    """Reads modules one after another; what it has seen does not count again."""

    def __init__(self, quantized: dict[int, Any], shards_packed: bool) -> None:
        self._quantized = quantized
        self._shards_packed = shards_packed
        self._seen: set[int] = set()

    def unit(self, module: nn.Module) -> Unit:
        parameters: list[ParameterShape] = []
        whole, columns, rows = 0, [], []
        for layer, style in _layers(module):
            for name, value in layer.named_parameters(recurse=False):
                if self._is_new(value):
                    shape, beside = self._shape(name, value, style)
                    parameters += [] if shape is None else [shape]
                    whole += beside
            whole += sum(buffer.nbytes for buffer in layer.buffers(recurse=False) if self._is_new(buffer))
            base = base_of(layer)
            if base is not None and self._is_new(layer):
                whole += sum(scale.nbytes for scale in base.scales(layer))
                in_features, out_features = base.features(layer)
                columns += [in_features] if style == "column" else []
                rows += [out_features] if style == "row" else []
        return Unit(tuple(parameters), whole, tuple(columns), tuple(rows))

    def _is_new(self, thing: object) -> bool:
        new = id(thing) not in self._seen
        self._seen.add(id(thing))
        return new

    def _shape(self, name: str, value: Tensor, style: str | None) -> tuple[ParameterShape | None, int]:
        """The parameter, if it is sharded, and what is there beside it on every process."""
        if id(value) not in self._quantized:
            style = style if value.is_floating_point() else None
            split = _split_dimension(name, style, value.dim())
            summed = style is not None and split is None and name.startswith("pera_")
            return ParameterShape(tuple(value.shape), value.element_size(), value.requires_grad, split, summed), 0
        packed, scales = _packed(value, self._quantized[id(value)])
        return (packed, scales) if self._shards_packed else (None, scales + packed.nbytes)


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, str | None]]:
    """Every module within and its side in the usual tensor-parallel plan."""
    for full, layer in module.named_modules():
        name = full.removesuffix(".base_layer").rpartition(".")[2]
        yield layer, "column" if name in COLUMN else "row" if name in ROW else None


def _split_dimension(parameter: str, style: str | None, dimensions: int) -> int | None:
    if style == "column":
        return 0 if parameter in ("weight", "bias", "pera_B") else None
    if style == "row":
        return 1 if parameter in ("weight", "pera_A") and dimensions == 2 else None
    return None


def _packed(weight: Tensor, quantization: str) -> tuple[ParameterShape, int]:
    """The packed entries as bitsandbytes stores them, and the bytes of scales and tables."""
    entries = weight.numel()
    shape = tuple(weight.shape) if quantization == "int8" else (-(-entries // 2), 1)
    packed = ParameterShape(shape, 1)
    return packed, quantized_bytes(weight, quantization) - packed.nbytes


def _split(unit: Unit, ranks: int) -> Unit:
    return unit._replace(parameters=tuple(_local(value, ranks) for value in unit.parameters))


def _local(value: ParameterShape, ranks: int) -> ParameterShape:
    if value.split is None:
        return value
    sizes = list(value.shape)
    sizes[value.split] = -(-sizes[value.split] // ranks)
    return value._replace(shape=tuple(sizes))
