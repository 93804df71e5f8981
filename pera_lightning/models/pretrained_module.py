"""What the LightningModules of pretrained transformers models have in common."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

from lightning.pytorch import LightningModule
from typing_extensions import override

from pera_lightning.errors import InjectionError
from pera_lightning.injection import adapted_layers, parameter_groups
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.models.accumulation.weighted_accumulation import WeightedAccumulation
from pera_lightning.models.activation_offloading import check_offloading
from pera_lightning.models.optimization import OptimizerName, Schedule, make_optimizer, warmup_schedule
from pera_lightning.option_checks import between, one_of, positive
from pera_lightning.run_log.messages import rank_zero_info

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "native", "float32", "bfloat16", "float16"]


class PretrainedModule(LightningModule):
    """A LightningModule around one pretrained model: its source, its tokenizer and its optimizer.

    A subclass calls `set_source` and `set_optimization` in `__init__`, makes `self.model` in `configure_model`, and
    returns from `training_step` what `self.accumulation.weigh` makes of its loss; `train_loss` is logged by that.
    """

    activation_offloading: bool

    def __init__(self) -> None:
        super().__init__()
        self.accumulation = WeightedAccumulation(self, "train_loss")

    def set_source(self, source: PretrainedSource, dtype: Dtype, attn_implementation: str | None) -> None:
        """Keep where the model comes from and how it is loaded; nothing is loaded yet."""
        self.source = source
        self.dtype_name = one_of("dtype", dtype, get_args(Dtype))
        self.attn_implementation = attn_implementation
        self.model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    def set_optimization(
        self,
        *,
        optimizer: OptimizerName,
        learning_rate: float,
        b_lr_factor: float,
        h_lr_factor: float,
        weight_decay: float,
        warmup_ratio: float,
        schedule: Schedule,
    ) -> None:
        """Check and keep the options of `configure_optimizers`.

        Raises:
            ConfigError: An option has a value it cannot have.
        """
        self.optimizer_name = one_of("optimizer", optimizer, get_args(OptimizerName))
        # Under this name Lightning's learning-rate finder looks for it.
        self.learning_rate = positive("learning_rate", learning_rate)
        self.b_lr_factor = positive("b_lr_factor", b_lr_factor)
        self.h_lr_factor = positive("h_lr_factor", h_lr_factor)
        self.weight_decay = between("weight_decay", weight_decay, 0, math.inf)
        self.warmup_ratio = between("warmup_ratio", warmup_ratio, 0, 1)
        self.schedule = one_of("schedule", schedule, get_args(Schedule))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, with a pad token; loaded on first use, which may be before the model is built."""
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.source)
        return self._tokenizer

    @property
    def adapter_root(self) -> PreTrainedModel | None:
        """The module that adapters are put into and adapter files are named relative to; None before it is built."""
        return self.model

    @property
    def base_model_name(self) -> str:
        """What adapter files name as their base: `pretrained`, or `pretrained/gguf_file`."""
        return self.source.name

    def built_model(self) -> PreTrainedModel:
        """The model.

        Raises:
            InjectionError: `configure_model` has not been called yet.
        """
        if self.model is None:
            raise InjectionError(
                "The model is not loaded yet.",
                got=f"a {type(self).__name__} that no trainer has set up",
                expected="a model, built by configure_model",
                fix="run it with a Trainer, or call configure_model() first",
            )
        return self.model

    @override
    def setup(self, stage: str) -> None:
        """Refuse what cannot be, before anything is loaded.

        Raises:
            ConfigError: Activations are to be offloaded under a strategy that shards the model.
        """
        if stage == "fit" and self.activation_offloading:
            check_offloading(self.trainer)

    @override
    def on_fit_start(self) -> None:
        """Put the model in train mode, and say so when it is trained without an adapter."""
        model = self.built_model()
        # from_pretrained returns eval mode and Lightning keeps what it finds: without this, dropout and gradient
        # checkpointing would be off throughout.
        model.train()
        if not any(True for _ in adapted_layers(model)):
            trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            rank_zero_info(
                f"No PERA adapter in the model: fine-tuning {trained:,} parameters of {self.base_model_name} "
                "themselves. Add PeraCallback to the trainer's callbacks to train an adapter instead."
            )

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The chosen AdamW with the groups of `parameter_groups` and the schedule of `warmup_schedule`."""
        groups = parameter_groups(
            self.named_parameters(),
            learning_rate=self.learning_rate,
            b_lr_factor=self.b_lr_factor,
            h_lr_factor=self.h_lr_factor,
            weight_decay=self.weight_decay,
        )
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        optimizer = make_optimizer(self.optimizer_name, groups, self.learning_rate, scaled_gradients=scaled)
        scheduler = warmup_schedule(
            optimizer,
            schedule=self.schedule,
            warmup_ratio=self.warmup_ratio,
            total_steps=self.trainer.estimated_stepping_batches,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
