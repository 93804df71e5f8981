"""Whether FSDP1 has taken the shapes of a module's weights."""

from __future__ import annotations

from torch import nn

ROOT = "_pera_fsdp_root"
"""On a module: what Lightning wrapped it in, which its own modules do not lead to."""


def is_flattened(module: nn.Module) -> bool:
    """Whether weights of the module lie in flat parameters of `FullyShardedDataParallel`."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return ROOT in vars(module) or any(isinstance(part, FullyShardedDataParallel) for part in module.modules())
