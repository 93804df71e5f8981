"""Running statistics of a frozen base."""

from __future__ import annotations

from collections.abc import Iterator

import lightning.pytorch as pl
from torch.nn.modules.batchnorm import _NormBase

from pera_lightning.injection import saved_modules


def stop_running_statistics(pl_module: pl.LightningModule) -> None:
    """Put the norms with running statistics in eval mode, but for those trained whole.

    The statistics belong to the frozen base: in train mode they would drift, and adapter-only checkpoints would not
    hold what they became.
    """
    for _, norm in frozen_norms(pl_module):
        norm.eval()


def frozen_norms(pl_module: pl.LightningModule) -> Iterator[tuple[str, _NormBase]]:
    """Names and norms of the frozen base: batch norms, and what else keeps running statistics."""
    trained_whole = {id(part) for _, saved in saved_modules(pl_module) for part in saved.modules()}
    for name, module in pl_module.named_modules():
        if isinstance(module, _NormBase) and id(module) not in trained_whole:
            yield name, module
