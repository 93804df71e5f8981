"""The Trainer's commands: LightningCLI with `PeraCallback` built in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

# Not used here, but with the classes imported the command line accepts and offers their short names.
from pera_lightning.integration.callback import PeraCallback
from pera_lightning.integration.causal_lm import PeraCausalLM  # noqa: F401
from pera_lightning.integration.data import InstructionDataModule  # noqa: F401

DESCRIPTION = "Fine-tune with PERA adapters on PyTorch Lightning."
EPILOG = (
    "Tools without a Trainer: `python -m pera_lightning generate --help`. "
    "Options of the adapter are under `pera`; any LightningModule and LightningDataModule can be named by class_path."
)


class SaveFitConfig(SaveConfigCallback):
    """Saves the config of a fit beside its logs.

    Without a logger that would be the working directory, where it could overwrite the user's own `config.yaml`;
    a later test must not overwrite the config of the fit.
    """

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.loggers:
            super().setup(trainer, pl_module, stage)


class PeraCLI(LightningCLI):
    """LightningCLI with the options of `PeraCallback` under `pera:`, a rich progress bar and a loss curve."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(PeraCallback, "pera")

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the config as the user wrote it.

        LightningCLI would put the hyperparameters stored in the checkpoint over the YAML and the flags, so that
        `test --ckpt_path ... --model.generate_in_test true` could not turn anything on.
        """

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        bars = [callback for callback in trainer.callbacks if isinstance(callback, ProgressBar)]
        if bars and not any(isinstance(bar, RichProgressBar) for bar in bars) and not self._chose_a_bar():
            for bar in bars:
                trainer.callbacks.remove(bar)
            trainer.callbacks.append(RichProgressBar())
        return trainer

    def _chose_a_bar(self) -> bool:
        chosen = self._get(self.config_init, "trainer.callbacks") or []
        return any(isinstance(callback, ProgressBar) for callback in chosen)

    def after_fit(self) -> None:
        """Draw the loss curve of the run beside its CSV metrics."""
        for logger in self.trainer.loggers:
            metrics = Path(logger.log_dir) / "metrics.csv" if isinstance(logger, CSVLogger) else None
            if metrics is not None and metrics.is_file() and self.trainer.is_global_zero:
                # Imported late: matplotlib would slow every --help down.
                from pera_lightning.analysis.loss_curve import plot_loss_curve

                picture = plot_loss_curve(metrics, metrics.with_name("loss_curve.png"))
                rank_zero_info(f"Loss curve written to {picture}")


def run_trainer() -> None:
    """Run `fit`, `validate`, `test` or `predict`, as the command line of this process says."""
    PeraCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # LightningCLI would make an optimizer given in YAML before the adapters exist, and it would miss them.
        auto_configure_optimizers=False,
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"description": DESCRIPTION, "epilog": EPILOG, "prog": "pera_lightning"},
    )
