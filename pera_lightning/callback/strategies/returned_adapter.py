"""What `ddp_spawn`, `ddp_fork` and `ddp_notebook` train comes back to the process that called `trainer.fit`.

There Lightning loads the weights that the first worker leaves behind into the module of the main process, without what
does not fit: without the adapter, which was injected in the workers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from pera_lightning.errors import TargetError
from pera_lightning.run_log.messages import rank_zero_warn

_EXTENDED = "_pera_returns_adapters"


class ReturnedAdapter:
    """The adapter on its way from a worker into the main process, kept until the module there has a model.

    Args:
        inject: Called with Trainer and module, puts adapters into the module and calls `load_into`.
    """

    def __init__(self, inject: Callable[[pl.Trainer, pl.LightningModule], None]) -> None:
        self._inject = inject
        self._state_dict: dict[str, Any] | None = None
        _extend_launcher()

    def receive(self, trainer: pl.Trainer, state_dict: dict[str, Any]) -> None:
        """In the main process, after the workers have ended: bring the module into the state of theirs.

        A model built in `configure_model()` is built here too; Lightning wants that hook callable again and again. One
        built in `setup()` is not, for that hook may do anything: the next run of the module loads the adapter.
        """
        self._state_dict = state_dict
        module = trainer.lightning_module
        module.trainer = trainer
        module.configure_model()
        try:
            # The factors are overwritten: what they were drawn from is not to change the user's random numbers.
            with torch.random.fork_rng(devices=[]):
                self._inject(trainer, module)
        except TargetError:
            rank_zero_warn(
                "PERA: the module of the main process has no model to put the trained adapter into, as it is built in "
                "setup(). The adapter is in the folder named above, for load_adapter(model, folder); the next fit, "
                "validate, test or predict with this callback loads it. Models built in __init__ or configure_model() "
                "get it at once."
            )

    def load_into(self, module: pl.LightningModule) -> None:
        """Load the adapter, if one came back, into a module that has just got adapters."""
        if self._state_dict is not None:
            module.load_state_dict(self._state_dict)
            self._state_dict = None


def _extend_launcher() -> None:
    """Let Lightning's launcher hand over a worker's weights before it loads them itself.

    Callbacks have no hook in the main process. Done once, and nothing changes for Trainers without a PeraCallback.
    """
    launcher_class: Any = _MultiProcessingLauncher
    if hasattr(launcher_class, _EXTENDED):
        return
    recover = launcher_class._recover_results_in_main_process

    def hand_over_and_recover(launcher: Any, worker_output: Any, trainer: pl.Trainer) -> None:
        # After a validation or test there are no weights.
        if worker_output.weights_path is not None:
            for returned in _returned_adapters(trainer):
                returned.receive(trainer, launcher._strategy.checkpoint_io.load_checkpoint(worker_output.weights_path))
        recover(launcher, worker_output, trainer)

    launcher_class._recover_results_in_main_process = hand_over_and_recover
    setattr(launcher_class, _EXTENDED, True)


def _returned_adapters(trainer: Any) -> list[ReturnedAdapter]:
    candidates = (getattr(callback, "returned", None) for callback in trainer.callbacks)
    return [candidate for candidate in candidates if isinstance(candidate, ReturnedAdapter)]
