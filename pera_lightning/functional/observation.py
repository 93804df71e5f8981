"""Whether somebody looks on at what torch does here, to whom plain tensors and kernels would be hidden."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def is_observed(*tensors: Tensor | None) -> bool:
    """Whether a dispatch mode or a subclass of tensor is to see what is started."""
    if torch._C._len_torch_dispatch_stack() > 0:
        return True
    for tensor in tensors:  # noqa: SIM110 (any() takes three times as long, and this runs at every call)
        if tensor is not None and type(tensor) not in _PLAIN:
            return True
    return False


def is_faked() -> bool:
    """Whether a FakeTensorMode stands for memory and devices."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return False
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def is_transformed() -> bool:
    """Whether a transform of torch.func or a tracer is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None or torch.jit.is_tracing()
