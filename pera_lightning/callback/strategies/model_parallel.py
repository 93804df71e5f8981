"""Adapters under Lightning's `ModelParallelStrategy`, and so under `FSDP2Strategy` of `models/parallel/fsdp2.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from pera_lightning.callback.strategies.fitting_checkpoint import fitting_checkpoint
from pera_lightning.callback.strategies.strategy import RunStrategy
from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.training.training_checkpoint import TrainingCheckpoint
from pera_lightning.errors import CheckpointError, InjectionError
from pera_lightning.functional.distributed import is_distributed
from pera_lightning.injection.sharding import shard_adapters, unsharded
from pera_lightning.storage.recognition.no_checkpoint import refuse_other_folders
from pera_lightning.storage.remote import place


class ModelParallelRun(RunStrategy):
    """See `RunStrategy`."""

    writes_to_urls = False
    takes_adapter_folders = False

    @override
    def shard(self, pl_module: pl.LightningModule) -> None:
        """Shard the module with its adapters, or its adapters alone if it was sharded before they came.

        A module that shards itself does so in a method `shard_model()`, which is called here: base and adapters then
        share their groups. One that has called `fully_shard` in `configure_model` gets its adapters sharded beside it.
        """
        shard = getattr(pl_module, "shard_model", None)
        if shard is not None:
            if not is_overridden("configure_model", pl_module):
                # The strategy insists on the hook in which Lightning's users shard.
                pl_module.configure_model = _sharded_in_shard_model  # type: ignore[method-assign]
            shard()
        elif any(map(is_distributed, pl_module.parameters())):
            shard_adapters(pl_module)
        # Split over outputs and inputs alone, what is replicated computes and learns the same everywhere.
        data = self.strategy.device_mesh["data_parallel"]
        left = unsharded(pl_module, data) if data.size() > 1 else []
        if left:
            raise InjectionError(
                "Parts of the adapter are not sharded; each process would train its own.",
                got=f"{len(left)} parameters, e.g. {left[0]!r}, that no fully_shard covers",
                expected="a module that is sharded as a whole",
                fix="call fully_shard for its blocks and then for the whole, with "
                "mesh=self.device_mesh['data_parallel'], in a method shard_model() of your LightningModule; a model "
                "that fits on one GPU needs no sharding: use strategy 'ddp'",
            )

    @override
    def refuse_sharded(self, pl_module: pl.LightningModule) -> None:
        """It is what this strategy runs."""

    @override
    def load_checkpoint(
        self, pl_module: pl.LightningModule, present: Manifest, path: str | Path, options: dict[str, Any]
    ) -> dict[str, Any]:
        agreed = self.strategy.broadcast(path)
        refuse_other_folders(place(agreed))
        held = fitting_checkpoint(agreed, pl_module, present)
        if self.trainer.state.fn == TrainerFn.FITTING:
            _refuse_unsharded(held)
        strict = pl_module.strict_loading
        # In a single file Lightning would look for every weight of the base.
        pl_module.strict_loading = strict and held.distributed
        try:
            return self.load_plain_values(agreed, options)
        finally:
            pl_module.strict_loading = strict


def _sharded_in_shard_model() -> None:
    """Stands for a `configure_model` that has nothing to do."""


def _refuse_unsharded(held: TrainingCheckpoint) -> None:
    if not held.distributed and not held.sharded:
        raise CheckpointError(
            "The checkpoint was written without ModelParallelStrategy; Lightning would give the optimizer's moments to "
            "other parameters.",
            got=f"{held.path}, written under another strategy",
            expected="a checkpoint of ModelParallelStrategy",
            fix="go on under the strategy that wrote it; or begin a fit from its adapter (consolidate, then "
            "load_adapter before the fit)",
        )
