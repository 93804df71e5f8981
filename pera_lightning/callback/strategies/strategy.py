"""What `PeraCallback` asks of the strategy of a run, and the answers of those that leave modules whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from pera_lightning.callback.guards import refuse_unknown_origin
from pera_lightning.callback.strategies.adapter_checkpoint import adapter_checkpoint, is_adapter_folder
from pera_lightning.callback.strategies.checkpoint_contents import keep_base_out
from pera_lightning.callback.strategies.checkpoint_objects import plain_values_alone
from pera_lightning.callback.strategies.flattened import is_flattened
from pera_lightning.checkpoint import Manifest, adapter_state_dict, install_state_hooks
from pera_lightning.checkpoint.training.plain_tensors import check_plain
from pera_lightning.errors import CheckpointError, InjectionError
from pera_lightning.functional.distributed import is_distributed
from pera_lightning.storage.recognition.no_checkpoint import refuse_other_folders
from pera_lightning.storage.remote import Place, place


class RunStrategy:
    """The strategy of a run, as adapters over a frozen base have to see it.

    As it stands: one device, and DDP in all its forms, where each process holds the whole module. A strategy that does
    more to a module has a subclass in a file of its own, a line in `choice.py`, and one in `KINDS` of
    `models/parallel/strategy_kind.py`, where others ask about it.

    Args:
        trainer: The Trainer with Lightning's strategy.
    """

    writes_to_urls = True
    """Whether checkpoints can be written to other file systems than the local one."""
    takes_adapter_folders = True
    """Whether the Trainer puts into the module what the strategy has read, and not the strategy itself."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self.trainer = trainer

    @property
    def strategy(self) -> Any:
        """Lightning's."""
        return self.trainer.strategy

    def refuse(self, pl_module: pl.LightningModule, polynomial_start_step: int) -> None:
        """Look whether the adapter can be trained and saved rightly, before anything is loaded.

        Args:
            pl_module: The module, which may have no model yet.
            polynomial_start_step: As PeraCallback has it.

        Raises:
            ConfigError: It cannot, with the options that the strategy has.
        """

    def refuse_module(self, pl_module: pl.LightningModule) -> None:
        """Look at the module when it has its model, before adapters are put into it.

        Raises:
            ConfigError: The strategy cannot run it.
            InjectionError: Another strategy has taken it apart.
        """
        if is_flattened(pl_module):
            raise InjectionError(
                "FSDP1 has taken the shapes of the layers' weights, which adapters are fitted to.",
                got=f"a module wrapped in FullyShardedDataParallel, under {type(self.strategy).__name__}",
                expected="a module that is wrapped when the adapters are in it, by the FSDPStrategy of this run",
                fix="leave wrapping to Lightning (FSDPStrategy(auto_wrap_policy=...)); after a fit under FSDPStrategy "
                "make the module anew and load the adapter folder into it",
            )

    def shard(self, pl_module: pl.LightningModule) -> None:
        """Shard the module, right after the adapters were put into it.

        Raises:
            InjectionError: Some adapter would be trained by each process for itself.
        """

    def has_shapes(self, pl_module: pl.LightningModule) -> bool:
        """Whether the weights of layers have their shapes at this moment."""
        return True

    def keep_adapter_alone(self, pl_module: pl.LightningModule) -> None:
        """Have checkpoints hold the adapter alone."""
        install_state_hooks(pl_module)
        keep_base_out(self.strategy)

    def check_before_loading(self, pl_module: pl.LightningModule, present: Manifest, state_key: str) -> None:
        """Have the next checkpoint looked at before it is loaded; an adapter folder does for one, but to go on.

        Its path is known only to the strategy, so a function is put in the way of its `load_checkpoint`, for one call.

        Args:
            pl_module: The module with its adapters, before the strategy wraps it.
            present: Of its adapter.
            state_key: What the Trainer knows the state of PeraCallback by.

        Raises:
            InjectionError: The module is sharded, and the strategy is none that runs it so.
        """
        self.refuse_sharded(pl_module)

        def load_checkpoint(checkpoint_path: str | Path, **options: Any) -> dict[str, Any]:
            self.stop_checking()
            fits = self.trainer.state.fn == TrainerFn.FITTING
            if self.takes_adapter_folders and not fits and is_adapter_folder(place(checkpoint_path)):
                return adapter_checkpoint(place(checkpoint_path), pl_module, state_key)
            loaded = self.load_checkpoint(pl_module, present, checkpoint_path, options)
            if fits:
                refuse_unknown_origin(loaded, checkpoint_path)
            return loaded

        self.strategy.__dict__["load_checkpoint"] = load_checkpoint

    def load_checkpoint(
        self, pl_module: pl.LightningModule, present: Manifest, path: str | Path, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Load a checkpoint as Lightning's strategy does, when it has been looked at.

        Args:
            pl_module: The module with its adapters.
            present: Of its adapter.
            path: The checkpoint.
            options: As Lightning gives them to the strategy.

        Raises:
            CheckpointError: It cannot be loaded here.
        """
        refuse_folder(place(path))
        loaded = self.load_plain_values(path, options)
        state = loaded.get("state_dict") if isinstance(loaded, dict) else None
        if isinstance(state, dict):
            own = {key: state.get(key) for key in adapter_state_dict(pl_module)}
            check_plain({key: value for key, value in own.items() if isinstance(value, Tensor)}, path)
        return loaded

    def load_plain_values(self, path: str | Path, options: dict[str, Any]) -> dict[str, Any]:
        """Load a checkpoint as Lightning's strategy does, without making the objects in it."""
        with plain_values_alone(path, options):
            loaded: dict[str, Any] = self.strategy.load_checkpoint(path, **options)
        return loaded

    def check_module(self, pl_module: pl.LightningModule) -> None:
        """Look at what the strategy has made of the module, when the run starts.

        Raises:
            InjectionError: It hides layers from their adapters.
        """

    def average_gradients(self, pl_module: pl.LightningModule) -> None:
        """Before an optimizer steps, average what Lightning's strategy does not. Collective."""

    def end(self) -> None:
        """Take away what was put in the way of Lightning's strategy."""
        self.stop_checking()

    def stop_checking(self) -> None:
        """Let the strategy load checkpoints by itself again."""
        self.strategy.__dict__.pop("load_checkpoint", None)

    def refuse_sharded(self, pl_module: pl.LightningModule) -> None:
        """Raise InjectionError for a module whose parameters lie in parts on several processes."""
        if any(map(is_distributed, pl_module.parameters())):
            raise InjectionError(
                "The module is sharded over processes, by an earlier run.",
                got=f"strategy {type(self.strategy).__name__} with a sharded module",
                expected="ModelParallelStrategy, or a new module",
                fix="make the module anew and load the adapter folder of the earlier run into it",
            )


def refuse_folder(path: Place) -> None:
    """Raise CheckpointError for a checkpoint that several processes wrote together, and for any other folder."""
    refuse_other_folders(path)
    # At a URL it would take the network to know; there are files alone.
    if isinstance(path, Path) and path.is_dir():
        raise CheckpointError(
            "The checkpoint is a folder, which this strategy cannot load.",
            got=f"{path}, as several processes write it together",
            expected="a .ckpt file",
            fix="go on with ModelParallelStrategy (devices=1 will do), or make an adapter of it: python -m "
            f"pera_lightning consolidate --checkpoint {path} --out FOLDER",
        )
