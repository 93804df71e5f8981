"""`AdapterPictures`: the pictures of `inspect` during training."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from typing_extensions import override

from pera_lightning.callback.adapter_root import adapter_root
from pera_lightning.callback.strategies.flattened import is_flattened
from pera_lightning.checkpoint import adapter_state_dict, manifest_of
from pera_lightning.errors import TrainingError
from pera_lightning.functional.distributed import whole
from pera_lightning.option_checks import count
from pera_lightning.run_log.messages import rank_zero_warn


class AdapterPictures(Callback):
    """Logs pictures of the adapter at the ends of epochs: spectra, energies of the parts, coefficients h.

    They go to each TensorBoardLogger and WandbLogger of the Trainer, as `adapter/spectrum`, `adapter/parts` and
    `adapter/coefficients`, at the present step; docs/inspect.md says how to read them. The first process draws, some
    seconds for a hundred layers.

    Args:
        every_n_epochs: How many epochs from one set of pictures to the next.

    Raises:
        ConfigError: `every_n_epochs` is no whole number above 0.
        TrainingError: The strategy is FSDPStrategy, which keeps no layer whole during a fit.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        self.every_n_epochs = count("every_n_epochs", every_n_epochs, least=1)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_flattened(pl_module):
            raise TrainingError(
                "Pictures of an adapter cannot be drawn while FSDPStrategy has it in parts.",
                got="AdapterPictures with FSDPStrategy",
                expected="another strategy, for example FSDP2Strategy",
                fix="leave the callback out, and inspect the adapter folder after the fit",
            )
        if not any(map(_shows_images, trainer.loggers)):
            rank_zero_warn(
                "AdapterPictures has nowhere to log to: give the Trainer a TensorBoardLogger or WandbLogger."
            )

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if _shows_images(logger)]
        if not loggers or (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        root = adapter_root(pl_module)
        # In every process: sharded tensors come from all of them.
        tensors = {key: whole(value).cpu() for key, value in adapter_state_dict(root).items()}
        if trainer.is_global_zero:
            # Imported late: every start of the command line imports this file.
            from pera_lightning.analysis.inspection import inspect_tensors
            from pera_lightning.analysis.plots import plot_inspection

            for name, figure in plot_inspection(inspect_tensors(manifest_of(root), tensors)).items():
                for logger in loggers:
                    _log(logger, f"adapter/{name}", figure, trainer.global_step)


def _shows_images(logger: Logger) -> bool:
    return isinstance(logger, TensorBoardLogger | WandbLogger)


def _log(logger: Logger, name: str, figure: Any, step: int) -> None:
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_figure(name, figure, global_step=step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [figure], step=step)
