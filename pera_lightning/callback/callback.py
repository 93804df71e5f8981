"""`PeraCallback`: PERA adapters for anybody's LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from typing_extensions import override

from pera_lightning.callback.adapter_root import adapter_root, with_own_modules
from pera_lightning.callback.conflicting_callbacks import refuse_conflicting_callbacks
from pera_lightning.callback.copied_networks import settle_copies
from pera_lightning.callback.energy_log import EnergyLog
from pera_lightning.callback.finite.finite_run import FiniteRun
from pera_lightning.callback.frozen_norms import stop_running_statistics
from pera_lightning.callback.guards import CheckpointOrigin, refuse_lost_adapters, refuse_other_options
from pera_lightning.callback.init_from import chosen_options, start_adapters
from pera_lightning.callback.late_injection import cancel_late_injection, inject_after_configure_model
from pera_lightning.callback.polynomial_start import HeldCoefficients
from pera_lightning.callback.preflight import Preflight
from pera_lightning.callback.remote_places import refuse_lost_urls, refuse_remote_shards
from pera_lightning.callback.resume.exact_resume import ExactResume
from pera_lightning.callback.resume.termination import JointTermination, save_before_termination
from pera_lightning.callback.strategies.choice import strategy_of
from pera_lightning.callback.strategies.lost_worker import explain_lost_worker
from pera_lightning.callback.strategies.returned_adapter import ReturnedAdapter
from pera_lightning.callback.strategies.strategy import RunStrategy
from pera_lightning.callback.thawed_base import ThawedBaseCheck
from pera_lightning.callback.trained.trained_adapter import TrainedAdapter
from pera_lightning.callback.weight_averaging import average_the_adapter_alone
from pera_lightning.checkpoint import Manifest
from pera_lightning.config import ALL_LINEAR, Bias, Init, PeraConfig
from pera_lightning.families import Terms
from pera_lightning.injection import InjectionReport, adapted_layers, freeze_base
from pera_lightning.injection.untrained import forget_start
from pera_lightning.option_checks import count
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.token_ids import TokenIds


class PeraCallback(pl.Callback):
    """Injects PERA adapters into the module that a Trainer runs, and keeps checkpoints adapter-only.

    Works with models built in `__init__`, `setup()` or `configure_model()`. The base is frozen; `.ckpt` files
    hold the adapter, the modules saved whole and the training state, never a base weight. At the end of fit the
    adapter is written as a folder that `load_adapter` reads: of the best checkpoint where a ModelCheckpoint
    monitors a metric, else the present one.

    Args:
        rank: Number of rows of A and columns of B before the expansion; None: 8, or with `init_from` the LoRA's.
        order: Highest degree of the monomials: 1 is plain LoRA, 2 the paper's square and cross terms.
        terms: Which monomials take part: all of them, pure powers only, or mixed ones only.
        alpha: Numerator of the scaling alpha / rank; None means alpha = rank (scaling 1, as in the paper).
        use_rslora: Scale by alpha / sqrt(rank) instead.
        dropout: Dropout probability on the adapter's input, in [0, 1).
        coefficient_scale: Factor on the polynomial coefficients: 1.0 is the paper's form, "auto" makes up for
            the small products of A's start values.
        target_modules: "all-linear" (every linear layer but the output head), a list of name suffixes (embeddings
            too), or one regular expression for whole names of linear layers.
        exclude_modules: Layers to leave alone, by the same rules; a container leaves out all within.
        modules_to_save: Name suffixes of modules trained and saved whole, e.g. a new head; besides the module's own.
            They come before `target_modules`: nothing in them is adapted.
        bias: Which biases are trained and saved too: "none", those of "adapted" layers, or "all".
        trainable_tokens: Tokens whose rows of an embedding (and of a head tied to it) are trained and saved: ids, or
            name suffix of an embedding or output head -> ids.
        rank_pattern: Other ranks for some layers: name suffix or regular expression -> rank.
        alpha_pattern: Other alphas for some layers, by the same rules.
        init: How A and B start: "default" (the model computes what its base does), or "loftq" over a quantised base:
            closer to the floating model, which the module's method `float_model()` has to return.
        loftq_steps: With "loftq": how often quantisation and approximation take turns.
        config: All of the options above in one object instead.
        init_from: Folder of a LoRA of PEFT to start from: its A, B and modules saved whole are taken over and h is 0,
            so that training begins with its outputs. Layers, ranks and alphas are its own. Values of a checkpoint, or
            of adapters that the module has already, come before it.
        adapter_dir: Folder, here or at a URL, for the adapter at the end of fit; by default `adapter` in the logger's
            folder of the run (in `default_root_dir` without a logger). Not written in `fast_dev_run`.
        energy_every_n_steps: How often `pera_energy` is logged: the norm of the polynomial part over that of
            the linear part, mean over layers. None: as often as the Trainer logs; 0: never.
        polynomial_start_step: Optimizer step from which the polynomial terms take part; before it the order is 1.
        skip_checks: Checks before the first step to leave out: "base", "optimizer", "factors", "epsilon" (errors);
            "mode", "head", "learning_rate", "untrained" (warnings); "gradients" (either).

    Raises:
        ConfigError: An option is out of range, `config` and single options are both given, or options are others than
            those of the LoRA in `init_from`.
        AdapterFileError: `init_from` is no plain LoRA.
    """

    shards_after_injecting = True
    """Calls the module's `shard_model`, so that the module does not have to."""

    def __init__(
        self,
        rank: int | None = None,
        order: int = 2,
        *,
        terms: Terms = "full",
        alpha: float | None = None,
        use_rslora: bool = False,
        dropout: float = 0.0,
        coefficient_scale: float | Literal["auto"] = 1.0,
        target_modules: str | Sequence[str] = ALL_LINEAR,
        exclude_modules: str | Sequence[str] = (),
        modules_to_save: Sequence[str] = (),
        bias: Bias = "none",
        trainable_tokens: TokenIds | None = None,
        rank_pattern: Mapping[str, int] | None = None,
        alpha_pattern: Mapping[str, float] | None = None,
        init: Init = "default",
        loftq_steps: int = 1,
        config: PeraConfig | None = None,
        init_from: str | None = None,
        adapter_dir: str | None = None,
        energy_every_n_steps: int | None = None,
        polynomial_start_step: int = 0,
        skip_checks: Sequence[str] = (),
    ) -> None:
        options = PeraConfig(
            PeraConfig.rank if rank is None else rank,
            order,
            terms=terms,
            alpha=alpha,
            use_rslora=use_rslora,
            dropout=dropout,
            coefficient_scale=coefficient_scale,
            target_modules=target_modules,
            exclude_modules=exclude_modules,
            modules_to_save=modules_to_save,
            bias=bias,
            trainable_tokens=trainable_tokens,
            rank_pattern=rank_pattern,
            alpha_pattern=alpha_pattern,
            init=init,
            loftq_steps=loftq_steps,
        )
        self.config = chosen_options(options, rank, config, init_from, adapter_dir)
        self.init_from = init_from
        self.adapter_dir = adapter_dir
        self.energy_every_n_steps = energy_every_n_steps
        self.polynomial_start_step = count("polynomial_start_step", polynomial_start_step, least=0)
        self.report: InjectionReport | None = None
        self._origin = CheckpointOrigin()
        self._trained_adapter = TrainedAdapter()
        self._exact_resume = ExactResume()
        self._preflight = Preflight(skip_checks)
        self.skip_checks = self._preflight.skip
        self._held_coefficients = HeldCoefficients()
        self._energy_log = EnergyLog()
        self._finite_run = FiniteRun()
        self._thawed_base_check = ThawedBaseCheck()
        self._termination = JointTermination()
        self.returned = ReturnedAdapter(self._inject_after_workers)
        # Chosen when a run is set up.
        self._strategy: RunStrategy

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_lost_urls(trainer)
        self._strategy = strategy_of(trainer)
        refuse_conflicting_callbacks(trainer)
        self._strategy.refuse(pl_module, self.polynomial_start_step)
        self._exact_resume.setup(trainer, pl_module, stage)
        # Late, so that it comes after the module's own setup(), which may build or rebuild the model.
        inject_after_configure_model(pl_module, lambda: self._inject(trainer, pl_module))

    def _inject(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._strategy.refuse_module(pl_module)
        layers = [layer for _, layer in adapted_layers(pl_module)]
        self.config = with_own_modules(self.config, pl_module)
        if not layers:
            refuse_lost_adapters(self.report)
            self.report = start_adapters(pl_module, self.config, self.init_from, self._strategy.shard)
        elif self.report is None:
            refuse_other_options(self.config, layers[0].config)
            freeze_base(pl_module)
        self._strategy.keep_adapter_alone(pl_module)
        self.returned.load_into(pl_module)
        self._trained_adapter.on_setup(trainer, new=not layers)
        average_the_adapter_alone(trainer, pl_module)
        self._strategy.check_before_loading(pl_module, self._describe(pl_module), self.state_key)

    def _inject_after_workers(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # They were set up, this process was not.
        self._strategy = strategy_of(trainer)
        self._inject(trainer, pl_module)

    def _describe(self, pl_module: pl.LightningModule) -> Manifest:
        return self._origin.describe(pl_module, has_shapes=self._strategy.has_shapes(pl_module))

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        refuse_remote_shards(trainer, self._strategy)
        self._strategy.check_module(pl_module)
        # Lightning's BitsandbytesPrecision has quantised the base only now.
        self._origin.compare_base(self._describe(pl_module))
        if self.report is not None:
            rank_zero_info(str(self.report))
        self._trained_adapter.on_fit_start(trainer, adapter_root(pl_module), self.adapter_dir)
        self._exact_resume.on_fit_start(trainer, pl_module)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not in on_fit_start: the module's own comes after it.
        settle_copies(trainer, pl_module)
        self._preflight.on_train_start(trainer, pl_module)
        self._exact_resume.on_train_start(trainer, pl_module)
        # A run that goes on within an epoch does not begin one.
        stop_running_statistics(pl_module)
        self._held_coefficients.find(pl_module)
        self._energy_log.on_train_start(trainer)
        self._termination.on_train_start(trainer)
        self._finite_run.on_train_start(trainer)
        self._trained_adapter.on_train_start(trainer)
        forget_start(pl_module)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._strategy.check_module(pl_module)
        if self._origin.waits:
            self._origin.compare_base(self._describe(pl_module))
        self._preflight.on_evaluation_start(trainer, pl_module)
        self._trained_adapter.on_evaluation_start(trainer)

    on_test_start = on_predict_start = on_validation_start

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._trained_adapter.on_validation_end(trainer)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_running_statistics(pl_module)
        settle_copies(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._termination.on_train_epoch_end(trainer)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._finite_run.on_train_batch(batch)

    @override
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        self._preflight.on_before_backward(loss)
        self._finite_run.on_before_backward(trainer, loss)

    @override
    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._preflight.on_after_backward(pl_module)
        # By hand they may be clipped before the step.
        if not pl_module.automatic_optimization:
            self._strategy.average_gradients(pl_module)

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._finite_run.look()
        if pl_module.automatic_optimization:
            self._strategy.average_gradients(pl_module)
        if trainer.global_step < self.polynomial_start_step:
            self._held_coefficients.hold()
        self._thawed_base_check.check(pl_module, optimizer)

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._finite_run.on_train_batch(None)
        if self.config.order > 1:
            self._energy_log.on_train_batch_end(trainer, pl_module, self.energy_every_n_steps)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finite_run.on_fit_end(trainer)
        self._trained_adapter.on_fit_end(trainer, pl_module, self._describe(pl_module))

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # First: the system may end this process too at any moment.
        explain_lost_worker(trainer, exception)
        save_before_termination(trainer, exception)
        self._trained_adapter.on_exception(trainer)
        # Lightning calls no teardown after an exception.
        self.teardown(trainer, pl_module, str(trainer.state.stage))

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        cancel_late_injection(pl_module)
        # None where the run was refused before.
        if hasattr(self, "_strategy"):
            self._strategy.end()
            del self._strategy
        self._exact_resume.teardown(trainer, pl_module, stage)
        for part in (self._held_coefficients, self._finite_run, self._thawed_base_check):
            part.forget()

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._origin.state_dict()

    @override
    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self._finite_run.look()
        self._trained_adapter.on_save_checkpoint(trainer)
        self._exact_resume.on_save_checkpoint(trainer, pl_module, checkpoint)

    @override
    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        self._exact_resume.on_load_checkpoint(trainer, pl_module, checkpoint)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._origin.receive(state_dict)
