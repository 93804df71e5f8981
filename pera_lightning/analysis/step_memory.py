"""What a training step allocates, found out on the meta device: its own code runs, without memory and arithmetic."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ACCUMULATED = 64
"""Rows that flash attention's float32 sums of query gradients are rounded up to."""


class StepMemory(NamedTuple):
    """Bytes of one training step beyond the model, its gradients and the optimizer."""

    kept: int
    """What the backward pass needs, when the forward pass is over."""
    loss: int
    """The most that the loss adds to it while it is computed: the logits."""
    peaks: tuple[int, int, int]
    """The most that exists at one time: in the model's forward pass, in the loss, in the backward pass."""

    @property
    def peak(self) -> int:
        """The most that exists at one time."""
        return max(self.peaks)


def measure_step(
    model: nn.Module,
    body: Callable[[], Tensor],
    loss: Callable[[Tensor], Tensor],
    *,
    quantized: Collection[nn.Module] = (),
    packed: bool = True,
    checks_hold: bool = True,
) -> StepMemory:
    """Run forward and backward pass of a model on the meta device and add up what a GPU would allocate.

    Gradients count as there already, as they are where batches are accumulated.

    Args:
        model: On the meta device, in train mode; its trained parameters get empty gradients.
        body: Makes the batch and runs the model up to the loss's input.
        loss: The scalar loss of that input.
        quantized: Linear layers whose weights a GPU would hold quantised and unpack for every product.
        packed: They are quantised to 4 bits, not to 8.
        checks_hold: How a comparison of data turns out that the model asks for: True takes the way without an attention
            mask, where the model has one, and False the way of padded and packed rows.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    with gpu_kernels({id(layer.weight) for layer in quantized}, packed), _Allocations(checks_hold) as allocated:
        hidden = body()
        before, in_body = allocated.live, allocated.restart()
        result = loss(hidden)
        # Held by nobody in a real step either.
        del hidden
        kept, in_loss = allocated.live, allocated.restart()
        result.backward()
        del result
    return StepMemory(kept, in_loss - before, (in_body, in_loss, allocated.peak))


def measure_forward(
    run: Callable[[], object], *, quantized: Collection[nn.Module] = (), packed: bool = True, checks_hold: bool = True
) -> int:
    """The most bytes that a function without a backward pass takes at one time; see `measure_step`."""
    weights = {id(layer.weight) for layer in quantized}
    with torch.no_grad(), gpu_kernels(weights, packed), _Allocations(checks_hold) as allocated:
        run()
    return allocated.peak


class _Allocations(TorchDispatchMode):
    """Adds up the bytes of the storages made within it that are still alive."""

    def __init__(self, checks_hold: bool) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._checks_hold = checks_hold
        # By address. The references tell when a storage is gone, before another one can get its address.
        self._known: dict[int, weakref.ref[Any]] = {}

    def restart(self) -> int:
        """The peak up to now; a new one starts."""
        peak, self.peak = self.peak, self.live
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return self._checks_hold
        for value in args:
            if isinstance(value, Tensor):
                self._note(value, is_new=False)
        out = func(*args, **(kwargs or {}))
        for value in [out] if isinstance(out, Tensor) else tree_leaves(out):
            # Random numbers and their states live on the CPU.
            if isinstance(value, Tensor):
                self._note(value, is_new=value.is_meta)
        self.peak = max(self.peak, self.live)
        return out

    def _note(self, value: Tensor, is_new: bool) -> None:
        storage = value.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return
        size = storage.nbytes() if is_new else 0

        def forget(_: object) -> None:
            self.live -= size
            del self._known[address]

        self.live += size
        self._known[address] = weakref.ref(storage, forget)


@contextmanager
def gpu_kernels(quantized: Collection[int] = (), packed: bool = True) -> Iterator[None]:
    """Within it, attention and quantised layers allocate and keep what the fused kernels of a GPU do.

    On the meta device torch would take attention apart and keep its (T, T) matrices. A function mode would not do in
    the place of this exchange: it is off within `backward`, where checkpointed layers run once more.

    Args:
        quantized: Ids of the weights to treat as quantised.
        packed: They are quantised to 4 bits, not to 8.
    """
    attention, linear = F.scaled_dot_product_attention, F.linear

    def fused_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # No fused kernel takes float32 with fewer heads of keys than of queries.
        if query.dtype == torch.float32 and kwargs.get("enable_gqa"):
            return attention(query, key, value, *args, **kwargs)
        return _FusedAttention.apply(query, key, value, args[0] if args else kwargs.get("attn_mask"))

    def unpacking_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if id(weight) not in quantized:
            return linear(x, weight, bias)
        return (_FourBitProduct if packed else _Int8Product).apply(x, weight, bias)

    F.scaled_dot_product_attention, F.linear = fused_attention, unpacking_linear  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.linear = attention, linear


class _FusedAttention(torch.autograd.Function):
    """Keeps queries, keys, values, the output, a float32 per query and the mask as a bias; no (T, T) per head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        bias = None if mask is None else mask.to(query.dtype)
        out = torch.empty_like(query[..., :1].expand(*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32), bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *_ = ctx.saved_tensors
        *heads, length, width = query.shape
        sums = query.new_empty(*heads, -(-length // ACCUMULATED) * ACCUMULATED, width, dtype=torch.float32)
        # Per head of the queries, before they are added up per head of the keys.
        expanded = [query.new_empty(*heads, key.shape[-2], part.shape[-1]) for part in (key, value)]
        grads = [torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)]
        del sums, expanded
        return (*grads, None)


class _FourBitProduct(torch.autograd.Function):
    """bitsandbytes' 4-bit product: the weight is unpacked for the forward and again for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return torch.nn.functional.linear(x, torch.empty_like(weight), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ torch.empty_like(ctx.weight), None, None


class _Int8Product(torch.autograd.Function):
    """LLM.int8(): the input in 8 bits and a sum in 32 bits; the input stays, the weight is unpacked going back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.x, ctx.weight = x, weight
        half = x.to(torch.float16)
        rounded = half.to(torch.int8)
        del half
        sums = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=torch.int32)
        out = sums.to(x.dtype)
        del rounded, sums
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad @ torch.empty_like(ctx.weight), None, None
