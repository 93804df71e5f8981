"""What torch hands to its communication library, counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operation -> its kind, and the argument that is its payload.
KINDS = {
    torch.ops.c10d.broadcast_.default: ("broadcast", 0),
    torch.ops.c10d.allreduce_.default: ("all_reduce", 0),
    torch.ops.c10d._allgather_base_.default: ("all_gather", 0),
    torch.ops.c10d._reduce_scatter_base_.default: ("reduce_scatter", 1),
    torch.ops._c10d_functional.all_reduce.default: ("all_reduce", 0),
}
SILENT = ("wait_tensor", "_wrap_tensor_autograd")


class Collectives(TorchDispatchMode):
    """Within it, every collective operation is noted: how often each kind moved how many bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and func.overloadpacket.__name__ not in SILENT:
            # Another operation than those known is an error: it would go uncounted.
            kind, place = KINDS[func]
            tensors = [value for value in tree_leaves(args[place]) if isinstance(value, Tensor)]
            self.seen[kind, sum(value.nbytes for value in tensors)] += 1
        return func(*args, **(kwargs or {}))
