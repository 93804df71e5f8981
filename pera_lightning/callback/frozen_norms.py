"""Running statistics of a frozen base."""

from __future__ import annotations

import lightning.pytorch as pl
from torch.nn.modules.batchnorm import _NormBase

from pera_lightning.injection import saved_modules


def stop_running_statistics(pl_module: pl.LightningModule) -> None:
    """Put the norms with running statistics in eval mode, but for those trained whole.

    The statistics belong to the frozen base: in train mode they would drift, and adapter-only checkpoints would not
    hold what they became.
    """
    trained_whole = {id(part) for _, saved in saved_modules(pl_module) for part in saved.modules()}
    for module in pl_module.modules():
        if isinstance(module, _NormBase) and id(module) not in trained_whole:
            module.eval()
