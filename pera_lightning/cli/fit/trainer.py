"""The Trainer's commands: LightningCLI with `PeraCallback` built in."""

from __future__ import annotations

import sys
from ast import literal_eval
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich import get_console
from typing_extensions import override

# Not used here, but with the classes imported the command line accepts and offers their short names.
from pera_lightning.callback.adapter_pictures import AdapterPictures  # noqa: F401
from pera_lightning.callback.callback import PeraCallback
from pera_lightning.cli.fit.base_comparison import (
    COMPARISON_FILE,
    as_table,
    check_comparison,
    comparison,
    write_comparison,
)
from pera_lightning.cli.fit.earlier_files import earlier_files_kept
from pera_lightning.cli.fit.predictions import Rows, check_predictions, write_predictions
from pera_lightning.cli.fit.progress_bar import PeraProgressBar
from pera_lightning.cli.fit.progress_lines import ProgressLines
from pera_lightning.cli.fit.readable_predictions import NumbersOfRows, readable_predictions
from pera_lightning.cli.fit.untrained_base import RefuseUntrained, refuse_without_checkpoint
from pera_lightning.cli.options.checked import chosen_classes
from pera_lightning.cli.options.given import given_options
from pera_lightning.cli.options.known import OF_COMMAND_LINE, trainer_options
from pera_lightning.cli.options.parser import OptionParser, with_flags
from pera_lightning.cli.options.places import check_checkpoint
from pera_lightning.cli.screen import show, show_table
from pera_lightning.data.classification import ClassificationDataModule  # noqa: F401
from pera_lightning.data.commonsense import CommonsenseDataModule  # noqa: F401
from pera_lightning.data.glue import GlueDataModule  # noqa: F401
from pera_lightning.data.instruction import InstructionDataModule  # noqa: F401
from pera_lightning.data.text import TextDataModule  # noqa: F401
from pera_lightning.did_you_mean import did_you_mean, near
from pera_lightning.errors import ConfigError, FolderError, PeraError, one_line
from pera_lightning.injection import adapter_disabled
from pera_lightning.models.causal_lm import PeraCausalLM  # noqa: F401
from pera_lightning.models.parallel.fsdp2 import FSDP2Strategy  # noqa: F401
from pera_lightning.models.sequence_classifier import PeraSequenceClassifier  # noqa: F401
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.storage.remote import Place, place, written

DESCRIPTION = "Fine-tune with PERA adapters on PyTorch Lightning."
EPILOG = (
    "Options of the adapter are under `pera`; any LightningModule and LightningDataModule can be named by class_path. "
    "`pera_lightning --help` lists the tools that need no Trainer."
)
LOSS_CURVE_FILE = "loss_curve.png"
_WITHOUT_GPU = (
    "--trainer.accelerator cpu, after the configs; several processes are tried out on a CPU with --trainer.devices 2 "
    "too, or with --config configs/strategies/ddp_gloo_cpu.yaml"
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


class TrainerParser(OptionParser, LightningArgumentParser):
    """LightningCLI's parser with errors of ours."""


class PeraCLI(LightningCLI):
    """LightningCLI with the options of `PeraCallback` under `pera:`, a rich progress bar and a loss curve."""

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(PeraCallback, "pera")
        for name, kind in (
            ("float32_matmul_precision", Literal["highest", "high", "medium"]),
            ("compare_base", bool),
            ("overwrite", bool),
        ):
            known = OF_COMMAND_LINE[name]
            parser.add_argument(f"--{name}", type=kind, default=literal_eval(str(known.default)), help=known.help)

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        words = sys.argv[1:] if args is None else args
        if not isinstance(words, list):
            super().parse_arguments(parser, args)
            return
        command = next((word for word in words if word in self.subcommands()), "fit")
        known = trainer_options(command, chosen_classes(given_options(words)))
        self.config = parser.parse_args(with_flags(words, known))

    @override
    def before_instantiate_classes(self) -> None:
        torch.set_float32_matmul_precision(self._get(self.config, "float32_matmul_precision"))
        check_checkpoint(self.subcommand, self._get(self.config, "ckpt_path"))
        if self.subcommand is not None:
            refuse_without_checkpoint(self.subcommand, self.config[self.subcommand])
        if self.subcommand not in (None, "fit"):
            _keep_metrics(self._get(self.config, "trainer").logger, self.subcommand)

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the config as the user wrote it.

        LightningCLI would put the hyperparameters stored in the checkpoint over the YAML and the flags, so that
        `test --ckpt_path ... --model.generate_in_test true` could not turn anything on.
        """

    @override
    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        options = self._get(self.config_init, "trainer")
        callbacks = chosen_callbacks(options)
        if self.subcommand in ("test", "predict"):
            callbacks = [*callbacks, RefuseUntrained()]
        if self.subcommand == "predict":
            callbacks = [*callbacks, self._numbers]
        wants_bar = options.get("enable_progress_bar") is not False and not options.get("barebones")
        if wants_bar and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            callbacks = [*callbacks, PeraProgressBar() if get_console().is_terminal else ProgressLines()]
        options["callbacks"] = callbacks
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, TypeError, ValueError) as error:
            if isinstance(error, PeraError):
                raise
            strategy = options.get("strategy")
            names = StrategyRegistry.available_strategies() if str(strategy) in str(error) else []
            cure = _WITHOUT_GPU if "gpu backend" in str(error) else "change what it names, under `trainer`"
            raise ConfigError(
                "Lightning's Trainer refuses its options.",
                got=one_line(error, kind=False),
                expected="options as lightning's documentation of the Trainer says",
                fix=did_you_mean(near(str(strategy), names), cure),
            ) from error

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        with earlier_files_kept(self.trainer):
            super()._run_subcommand(subcommand)

    def before_test(self) -> None:
        """Look whether the comparison may be written."""
        if self._get(self.config, "compare_base") and self.trainer.log_dir is not None:
            check_comparison(place(self.trainer.log_dir) / COMPARISON_FILE, overwrite=self._overwrites)

    def before_predict(self) -> None:
        """Look whether the predictions may be written."""
        check_predictions(self._predictions, overwrite=self._overwrites)

    @property
    def _overwrites(self) -> bool:
        return bool(self._get(self.config, "overwrite"))

    @cached_property
    def _numbers(self) -> NumbersOfRows:
        return NumbersOfRows()

    def _readable(self, rows: Rows) -> Rows:
        return readable_predictions(rows, self._numbers.numbers, self.model, self.datamodule)

    @property
    def _predictions(self) -> Place:
        """The file of this process."""
        trainer = self.trainer
        name = "predictions" if trainer.world_size == 1 else f"predictions_{trainer.global_rank}"
        return place(trainer.log_dir or trainer.default_root_dir) / f"{name}.jsonl"

    def after_test(self) -> None:
        """Test the base model on the same data where asked to, and show both side by side."""
        if not self._get(self.config, "compare_base"):
            return
        adapted = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        with adapter_disabled(self.model):
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        base = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        if self.trainer.is_global_zero:
            table, folder = comparison(base, adapted), self.trainer.log_dir
            show_table(as_table(table))
            if folder is not None:
                with written(place(folder)) as local:
                    write_comparison(table, local / COMPARISON_FILE)

    def after_predict(self) -> None:
        """Write the predictions beside the logs."""
        trainer = self.trainer
        if trainer.predict_loop.num_dataloaders != 1 or not trainer.predict_loop.predictions:
            return
        path = self._predictions
        try:
            with written(path.parent) as local:
                found = trainer.predict_loop.predictions
                rows = write_predictions(found, local / path.name, overwrite=self._overwrites, readable=self._readable)
        except FolderError:
            raise
        except (TypeError, ValueError) as error:
            # Any module may predict; what it returns need not be rows.
            show(error)
        else:
            show(f"{rows:,} predictions written to {path}")

    def after_fit(self) -> None:
        """Draw the loss curve of the run beside its CSV metrics."""
        for logger in self.trainer.loggers:
            folder = place(logger.log_dir) if isinstance(logger, CSVLogger) else None
            if folder is not None and self.trainer.is_global_zero and (folder / "metrics.csv").is_file():
                # Imported late: matplotlib would slow every --help down.
                from pera_lightning.analysis.loss_curve import is_loss_curve, plot_loss_curve

                if (folder / LOSS_CURVE_FILE).is_file() and not is_loss_curve(folder / LOSS_CURVE_FILE):
                    rank_zero_info(f"No loss curve: {folder / LOSS_CURVE_FILE} is somebody else's, and stays.")
                    continue
                metrics = (folder / "metrics.csv").read_text("utf-8")
                with written(folder) as local:
                    picture = plot_loss_curve(metrics, local / LOSS_CURVE_FILE)
                rank_zero_info(f"Loss curve written to {folder / picture.name}")


def chosen_callbacks(options: Mapping[str, Any]) -> list[pl.Callback]:
    """The callbacks among the Trainer's options, where one may stand by itself."""
    chosen = options.get("callbacks") or []
    return chosen if isinstance(chosen, list) else [chosen]


def _keep_metrics(loggers: Any, subcommand: str) -> None:
    """Let a CSVLogger write elsewhere than over the metrics of a fit, which it would delete first."""
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        options = getattr(logger, "init_args", None)
        if options is None or not logger.class_path.endswith("CSVLogger") or options.version in (None, subcommand):
            continue
        # As CSVLogger names its folders.
        version = options.version if isinstance(options.version, str) else f"version_{options.version}"
        folder = place(options.save_dir) / (options.name or "") / version
        if (folder / "metrics.csv").is_file():
            rank_zero_info(f"{folder} keeps its metrics; those of {subcommand} go to {subcommand}.")
            options.version = subcommand


def make_cli(kind: type[PeraCLI], words: list[str] | None = None, prog: str = "pera_lightning") -> PeraCLI:
    """Run `fit`, `validate`, `test` or `predict`.

    Args:
        kind: The command line's class.
        words: The words of the command line; by default those of this process.
        prog: Its name in help and messages.
    """
    return kind(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        # LightningCLI would make an optimizer given in YAML before the adapters exist, and it would miss them.
        auto_configure_optimizers=False,
        save_config_callback=SaveFitConfig,
        save_config_kwargs={"overwrite": True},
        parser_class=TrainerParser,
        parser_kwargs={"description": DESCRIPTION, "epilog": EPILOG, "prog": prog},
        args=words,
    )
