"""Activation offloading: what a model's forward pass saves for the backward pass waits in CPU memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pera_lightning.errors import ConfigError
from pera_lightning.models.parallel.strategy_kind import kind_of
from pera_lightning.run_log.messages import rank_zero_warn

SMALLEST = 2**20
"""Bytes below which a tensor stays where it is: moving it costs more than its room is worth."""


class ActivationOffloading:
    """Has what a module's forward passes save wait in CPU memory, while it is in train mode.

    `torch.autograd.graph.save_on_cpu` would copy frozen weights as well, an output head of a GB among them, and an
    input that several layers share once for each of them. The loss stays out: what it saves is needed first.

    Args:
        smallest: Bytes below which a tensor stays where it is.
    """

    def __init__(self, smallest: int = SMALLEST) -> None:
        self.moved = 0
        """Bytes that the last forward pass in train mode left in CPU memory."""
        self._smallest = smallest
        self._current: _OffloadedTensors | None = None

    def attach(self, module: nn.Module) -> None:
        """Begin with the next forward pass of this module: the body of a model, without its output head."""
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end, always_call=True)

    def _begin(self, module: nn.Module, inputs: object) -> None:
        if module.training and torch.is_grad_enabled():
            self._current = _OffloadedTensors([*module.parameters(), *module.buffers()], self._smallest)
            self._current.__enter__()

    def _end(self, module: nn.Module, inputs: object, output: object) -> None:
        if self._current is not None:
            self._current.__exit__()
            self.moved, self._current = self._current.moved, None


def check_offloading(trainer: pl.Trainer) -> None:
    """Say that a CPU gains nothing.

    Raises:
        ConfigError: The strategy shards the weights; gathered for a layer, they could not be told from activations.
    """
    if kind_of(trainer.strategy).shards_base:
        raise ConfigError(
            "Activations cannot be offloaded where the weights are sharded.",
            got=f"activation_offloading=True under {type(trainer.strategy).__name__}",
            expected="a strategy under which every process holds the whole model",
            fix="set activation_offloading: false, or use --config configs/strategies/ddp.yaml",
        )
    if trainer.strategy.root_device.type == "cpu":
        rank_zero_warn("The model trains on the CPU, where activation_offloading only costs time.")


class _OffloadedTensors(saved_tensors_hooks):
    """One forward pass: storages are copied, each once, and every saved tensor becomes a view of such a copy.

    Args:
        held: Tensors that are on the device all the time, and stay there.
        smallest: As above.
    """

    def __init__(self, held: Iterable[Tensor], smallest: int) -> None:
        super().__init__(self._pack, _unpack)
        self.moved = 0
        self._held = {tensor.untyped_storage()._cdata for tensor in held}
        self._smallest = smallest
        # By address and version. The references tell when a storage is gone, before another gets its address.
        self._copies: dict[int, tuple[weakref.ref[Any], dict[int, _Copy]]] = {}

    def _pack(self, tensor: Tensor) -> _Left | _View:
        if not self._is_movable(tensor):
            # Not the tensor itself: an operation that saves its own output would then keep itself alive.
            return _Left(tensor.detach(), tensor._version)
        versions, storage = self._versions(tensor), tensor.untyped_storage()
        if tensor._version not in versions:
            versions[tensor._version] = _Copy(tensor)
            self.moved += storage.nbytes()
        copy = versions[tensor._version]
        copy.waiting += 1
        return _View(copy, tensor.dtype, int(tensor.storage_offset()), tensor.size(), tensor.stride())

    def _is_movable(self, tensor: Tensor) -> bool:
        # Subclasses may hold more than one storage.
        plain = type(tensor) is Tensor and tensor.layout == torch.strided and tensor.is_floating_point()
        if not plain or tensor.untyped_storage().nbytes() < self._smallest:
            return False
        # A leaf of the graph is held by what will add up its gradient.
        is_leaf = tensor.requires_grad and tensor.is_leaf
        return not is_leaf and tensor.untyped_storage()._cdata not in self._held

    def _versions(self, tensor: Tensor) -> dict[int, _Copy]:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._copies:
            self._copies[address] = (weakref.ref(storage, lambda _: self._copies.pop(address)), {})
        return self._copies[address][1]


class _Copy:
    """A storage's bytes in CPU memory.

    Copies run on the stream of the computation, which orders them: nothing waits but the GPU itself.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._device = tensor.device
        source = torch.empty(0, dtype=torch.uint8, device=self._device).set_(tensor.untyped_storage())
        self._size = source.numel()
        self._bytes: Tensor | None = None
        # There is nothing to copy on the meta device, where memory is only counted.
        if not source.is_meta:
            self._bytes = torch.empty(self._size, dtype=torch.uint8, pin_memory=source.is_cuda)
            self._bytes.copy_(source, non_blocking=True)
        self.waiting = 0
        """Saved tensors that have not been asked for."""
        self._back: Tensor | None = None

    def back(self) -> Tensor:
        """The bytes on the device again, where they stay until all who wait for them have come."""
        back = self._back
        if back is None:
            back = torch.empty(self._size, dtype=torch.uint8, device=self._device)
            if self._bytes is not None:
                back.copy_(self._bytes, non_blocking=True)
        self.waiting -= 1
        self._back = back if self.waiting > 0 else None
        return back


class _View(NamedTuple):
    """A saved tensor: where in a copy it lies."""

    copy: _Copy
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]


class _Left(NamedTuple):
    """A saved tensor that stays where it is."""

    tensor: Tensor
    version: int
    """When it was saved."""

    def checked(self) -> Tensor:
        """The tensor; torch's own error if it was changed meanwhile, which torch does not see behind hooks.

        Of a tensor that was moved the copy holds what was saved.
        """
        tensor, now = self.tensor, self.tensor._version
        if now != self.version:
            message = (
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{tensor.type()} {list(tensor.shape)}] is at version {now}; expected version {self.version} instead."
            )
            raise RuntimeError(message)
        return tensor


def _unpack(packed: _Left | _View) -> Tensor:
    if isinstance(packed, _Left):
        return packed.checked()
    back = packed.copy.back()
    empty = torch.empty(0, dtype=packed.dtype, device=back.device)
    return empty.set_(back.untyped_storage(), packed.offset, packed.size, packed.stride)
