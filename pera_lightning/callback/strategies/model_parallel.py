"""Adapters under Lightning's `ModelParallelStrategy`: FSDP2 and tensor parallelism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden

from pera_lightning.callback.guards import refuse_other_form
from pera_lightning.callback.resume.restored_state import name_checkpoint, stop_naming
from pera_lightning.callback.strategies.checkpoint_objects import plain_values_alone
from pera_lightning.checkpoint import Manifest, adapter_state_dict
from pera_lightning.checkpoint.adapter_mismatch import describe_mismatch, shapes
from pera_lightning.checkpoint.training.training_checkpoint import TrainingCheckpoint, read_checkpoint
from pera_lightning.errors import CheckpointError, InjectionError
from pera_lightning.functional.distributed import is_distributed
from pera_lightning.injection.sharding import shard_adapters, unsharded
from pera_lightning.storage.remote import Place, place


def shard_after_injection(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Shard the module with its adapters, or its adapters alone if it was sharded before they came.

    A module that shards itself does so in a method `shard_model()`, which is called here: base and adapters then share
    their groups. One that has called `fully_shard` in `configure_model` gets its adapters sharded beside it.

    Args:
        trainer: The Trainer; under other strategies nothing is done.
        pl_module: The module with the adapters.

    Raises:
        InjectionError: Afterwards some adapter would be trained by each process for itself.
    """
    if not isinstance(trainer.strategy, ModelParallelStrategy):
        return
    shard = getattr(pl_module, "shard_model", None)
    if shard is not None:
        if not is_overridden("configure_model", pl_module):
            # The strategy insists on the hook in which Lightning's users shard.
            pl_module.configure_model = _sharded_in_shard_model  # type: ignore[method-assign]
        shard()
    elif any(map(is_distributed, pl_module.parameters())):
        shard_adapters(pl_module)
    # Split over outputs and inputs alone, what is replicated computes and learns the same everywhere.
    data = trainer.strategy.device_mesh["data_parallel"]
    left = unsharded(pl_module, data) if data.size() > 1 else []
    if left:
        raise InjectionError(
            "Parts of the adapter are not sharded; each process would train its own.",
            got=f"{len(left)} parameters, e.g. {left[0]!r}, that no fully_shard covers",
            expected="a module that is sharded as a whole",
            fix="call fully_shard for its blocks and then for the whole, with mesh=self.device_mesh['data_parallel'], "
            "in a method shard_model() of your LightningModule; a model that fits on one GPU needs no sharding: use "
            "strategy 'ddp'",
        )


def _sharded_in_shard_model() -> None:
    """Stands for a `configure_model` that has nothing to do."""


def is_parallel(trainer: pl.Trainer) -> bool:
    """Whether the Trainer's strategy shards modules."""
    return isinstance(getattr(trainer, "strategy", None), ModelParallelStrategy)


def check_before_loading(trainer: pl.Trainer, pl_module: pl.LightningModule, present: Manifest) -> None:
    """Have the next checkpoint looked at before it is loaded; into a sharded module that goes past the module's hooks.

    What does not fit is refused in every process before any of them begins to load: they would wait for each other. The
    path is known only to the strategy, so a function is put in the way of its `load_checkpoint`, for one call.

    Args:
        trainer: The Trainer.
        pl_module: The module with its adapters.
        present: Of its adapter.

    Raises:
        InjectionError: The module is sharded, and the strategy is none that runs it so.
    """
    name_checkpoint(trainer)
    strategy, parallel = trainer.strategy, is_parallel(trainer)
    if not parallel and any(map(is_distributed, pl_module.parameters())):
        raise InjectionError(
            "The module is sharded over processes, by an earlier run.",
            got=f"strategy {type(strategy).__name__} with a sharded module",
            expected="ModelParallelStrategy, or a new module",
            fix="make the module anew and load the adapter folder of the earlier run into it",
        )
    # The one loads for itself, of the other another file takes care.
    if isinstance(strategy, DeepSpeedStrategy | FSDPStrategy):
        return

    def load_checkpoint(checkpoint_path: str | Path, **options: Any) -> dict[str, Any]:
        stop_checking(trainer)
        if not parallel:
            refuse_folder(place(checkpoint_path))
            with plain_values_alone(checkpoint_path, options):
                return strategy.load_checkpoint(checkpoint_path, **options)
        path = strategy.broadcast(checkpoint_path)
        held = fitting_checkpoint(path, pl_module, present)
        if trainer.state.fn == TrainerFn.FITTING:
            _refuse_unsharded(held)
        strict = pl_module.strict_loading
        # In a single file Lightning would look for every weight of the base.
        pl_module.strict_loading = strict and held.distributed
        try:
            with plain_values_alone(path, options):
                return strategy.load_checkpoint(checkpoint_path, **options)
        finally:
            pl_module.strict_loading = strict

    strategy.__dict__["load_checkpoint"] = load_checkpoint


def leave_loading_alone(trainer: pl.Trainer) -> None:
    """At the end of a run, take away all that `check_before_loading` put in the way."""
    stop_checking(trainer)
    stop_naming(trainer)


def stop_checking(trainer: pl.Trainer) -> None:
    """Take away what `check_before_loading` put in the way of the strategy, for one call."""
    trainer.strategy.__dict__.pop("load_checkpoint", None)


def fitting_checkpoint(path: str | Path, pl_module: pl.LightningModule, present: Manifest) -> TrainingCheckpoint:
    """Look into a checkpoint that is about to be loaded.

    Args:
        path: The file or folder.
        pl_module: The module with its adapters.
        present: Of its adapter.

    Raises:
        CheckpointError: It holds another adapter, or none.
    """
    held = read_checkpoint(path)
    if held.manifest is not None:
        refuse_other_form(held.manifest, present)
    mismatch = describe_mismatch(held.shapes, shapes(adapter_state_dict(pl_module)))
    if mismatch:
        raise CheckpointError(
            "The checkpoint does not fit the adapters of this run.",
            got=f"{path}: {mismatch}",
            expected="an adapter-only checkpoint of the same rank, order and targets",
            fix="use the options of the run that wrote it; weights of the plain model are loaded before the adapter is "
            "injected",
        )
    return held


def refuse_folder(path: Place) -> None:
    """Raise CheckpointError for a checkpoint that several processes wrote together."""
    # At a URL it would take the network to know; there are files alone.
    if isinstance(path, Path) and path.is_dir():
        raise CheckpointError(
            "The checkpoint is a folder, which this strategy cannot load.",
            got=f"{path}, as several processes write it together",
            expected="a .ckpt file",
            fix="go on with ModelParallelStrategy (devices=1 will do), or make an adapter of it: python -m "
            f"pera_lightning consolidate --checkpoint {path} --out FOLDER",
        )


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
