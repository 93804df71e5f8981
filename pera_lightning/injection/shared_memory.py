"""Which tensors of a model lie over the same memory: one parameter of two modules, or two that are views of one."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pera_lightning.injection.targets.names import clean_name

MAX_WORK: Any = 10_000  # numpy's annotation knows of its two special values only
"""Of numpy, for two views that are strided; what it cannot tell in that is taken for shared."""


class _Block(NamedTuple):
    """Where a tensor is: addresses, from its first byte to behind its last, in one of the spaces that have some."""

    space: Hashable
    start: int
    end: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    size: int

    @property
    def whole(self) -> bool:
        """Whether every byte in between is the tensor's own."""
        return self.end - self.start == self.size * torch.Size(self.shape).numel()

    @property
    def __array_interface__(self) -> dict[str, Any]:
        # numpy only computes with the addresses, which may be of another device.
        return {
            "version": 3,
            "data": (self.start, True),
            "shape": self.shape,
            "strides": self.strides,
            "typestr": f"|V{self.size}",
        }


class _Held(NamedTuple):
    """A tensor that a module has registered."""

    owner: str
    module: nn.Module
    tensor: Tensor
    blocks: list[_Block]


class SharedMemory:
    """The parameters and buffers of a model, by the memory that they lie over, as it is now.

    Parts of one tensor that have no element in common (slices of a fused weight) share none. Tensors on the meta device
    have no addresses: they share what is a view of the same one.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._held = [
            _Held(name, module, tensor, list(_blocks(tensor)))
            for name, module in model.named_modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]
        # Those that are near in memory, by the id of each.
        self._clusters: defaultdict[int, list[list[_Held]]] = defaultdict(list)
        for cluster in _clusters(self._held):
            for key in {id(held.tensor) for held in cluster}:
                self._clusters[key].append(cluster)

    def owners(self, tensor: Tensor, *, besides: Collection[nn.Module] = ()) -> list[str]:
        """Clean names of the modules that hold memory of a tensor.

        Args:
            tensor: One of the model's, or one that may become one of its.
            besides: Modules that may hold the tensor itself.
        """
        expected = {id(part) for part in besides}
        found = (one for one in self._sharing(tensor) if one.tensor is not tensor or id(one.module) not in expected)
        return list(dict.fromkeys(clean_name(one.owner) or "the model itself" for one in found))

    def is_outside(self, tensor: Tensor, modules: Collection[nn.Module]) -> bool:
        """Whether a module other than these holds memory of a tensor."""
        inside = {id(module) for module in modules}
        return any(id(one.module) not in inside for one in self._sharing(tensor))

    def reaches(self, tensor: Tensor, ids: Collection[int]) -> bool:
        """Whether a tensor is, or shares memory with, one of some of the model's tensors, given by their ids."""
        return any(id(one.tensor) in ids for one in self._sharing(tensor))

    def has_views(self, tensor: Tensor) -> bool:
        """Whether another tensor of the model holds memory of this one: a second parameter, or a buffer."""
        return any(one.tensor is not tensor for one in self._sharing(tensor))

    def _sharing(self, tensor: Tensor) -> Iterator[_Held]:
        """What holds a tensor or memory of it, itself among them."""
        own = list(_blocks(tensor))
        known = self._clusters.get(id(tensor))
        near = self._held if known is None else (one for cluster in known for one in cluster)
        for one in {id(one): one for one in near}.values():
            if one.tensor is tensor or any(_have_common(*pair) for pair in itertools.product(own, one.blocks)):
                yield one


def _blocks(tensor: Any) -> Iterator[_Block]:
    if not isinstance(tensor, Tensor):  # a mesh of devices, in a DTensor
        return
    if hasattr(tensor, "__tensor_flatten__"):  # DTensor, and what quantisation libraries make
        for name in tensor.__tensor_flatten__()[0]:
            yield from _blocks(getattr(tensor, name))
        return
    # What FSDP1 makes of many parameters is beside them, not a second use of them.
    is_flat = getattr(tensor, "_is_flat_param", False)
    if nn.parameter.is_lazy(tensor) or is_flat or tensor.layout != torch.strided or not tensor.numel():
        return
    storage, size = tensor.untyped_storage(), tensor.element_size()
    is_fake = type(tensor).__module__.startswith("torch._subclasses")
    address = 0 if tensor.is_meta or is_fake else storage.data_ptr()
    # Without an address a storage has a space of its own. Not from 0, which numpy takes for no memory.
    space = tensor.device if address else (tensor.device, storage._cdata)
    start = int((address or size) + tensor.storage_offset() * size)
    strides = tuple(int(step * size) for step in tensor.stride())
    end = int(start + sum((count - 1) * step for count, step in zip(tensor.shape, strides, strict=True)) + size)
    yield _Block(space, start, end, tuple(tensor.shape), strides, size)


def _clusters(all_held: Iterable[_Held]) -> Iterator[list[_Held]]:
    """Those whose ranges of memory overlap, one after the other, together."""
    placed: dict[Hashable, list[tuple[int, int, int, _Held]]] = {}
    for number, held in enumerate(all_held):
        for block in held.blocks:
            placed.setdefault(block.space, []).append((block.start, block.end, number, held))
    for blocks in placed.values():
        blocks.sort(key=lambda entry: entry[:3])
        cluster: list[_Held] = []
        reach = 0
        for start, end, _, held in blocks:
            if start >= reach and cluster:
                yield cluster
                cluster = []
            cluster.append(held)
            reach = max(reach, end)
        yield cluster


def _have_common(a: _Block, b: _Block) -> bool:
    if a.space != b.space or a.start >= b.end or b.start >= a.end:
        return False
    if a.whole and b.whole:
        return True
    import numpy as np

    try:
        return bool(np.shares_memory(np.asarray(a), np.asarray(b), max_work=MAX_WORK))
    except np.exceptions.TooHardError:
        return True
