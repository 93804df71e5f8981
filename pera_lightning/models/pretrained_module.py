"""What the LightningModules of pretrained transformers models have in common."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

from lightning.pytorch import LightningModule
from typing_extensions import override

from pera_lightning.checkpoint import install_state_hooks
from pera_lightning.checkpoint.training.training_checkpoint import manifest_in
from pera_lightning.errors import CheckpointError, ConfigError, InjectionError
from pera_lightning.injection import inject_plan, is_adapted, parameter_groups
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.models.accumulation.weighted_accumulation import WeightedAccumulation
from pera_lightning.models.activation_offloading import ActivationOffloading, check_offloading
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from pera_lightning.models.optimization import OptimizerName, Schedule, make_optimizer, warmup_schedule
from pera_lightning.option_checks import between, check_flags, count, one_of, positive
from pera_lightning.run_log.messages import rank_zero_info

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["auto", "native", "float32", "bfloat16", "float16"]


class PretrainedModule(LightningModule):
    """A LightningModule around one pretrained model: its source, its tokenizer and its optimizer.

    A subclass makes `self.model` in `configure_model` (and calls `spare_memory` on it), and returns from
    `training_step` what `self.accumulation.weigh` makes of its loss; `train_loss` is logged by that.

    Args:
        pretrained: Hub id or local folder of a model.
        learning_rate: Peak learning rate of AdamW, for the factors A and everything trained whole.
        revision: Branch, tag or commit of the hub repository.
        dtype: Dtype of the model's weights: "auto" keeps the one they were saved in (GGUF, which has none:
            "native"), "native" is bfloat16 where the machine has instructions for it, else float32. The adapter's
            factors are float32 on a bfloat16 base.
        attn_implementation: "eager", "sdpa", "flash_attention_2", ...; null leaves the choice to transformers.
        trust_remote_code: Whether code that comes with the repository may run.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        activation_offloading: Keep in CPU memory what the forward pass saves for the backward pass: less GPU memory
            and more time. Best with gradient_checkpointing, which leaves one tensor per layer to be moved.
        optimizer: "adamw", or bitsandbytes' with moments in 8 bits: "adamw_8bit", or "paged_adamw_8bit", which makes
            room on the GPU when memory runs out.
        b_lr_factor: Factor on the learning rate of the factors B.
        h_lr_factor: Factor on the learning rate of the polynomial coefficients h.
        weight_decay: Weight decay of AdamW; coefficients h, biases and norms are never decayed.
        warmup_ratio: Share of all optimizer steps over which the learning rate rises from 0, in [0, 1).
        warmup_steps: Optimizer steps over which it rises, instead of a share of them; 0 leaves that to `warmup_ratio`.
        schedule: What the learning rate does after the warm-up; linear and cosine end at 0.

    Raises:
        ConfigError: An option has a value it cannot have.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        learning_rate: float,
        revision: str | None = None,
        dtype: Dtype = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        gradient_checkpointing: bool = False,
        activation_offloading: bool = False,
        optimizer: OptimizerName = "adamw",
        b_lr_factor: float = 1.0,
        h_lr_factor: float = 1.0,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.0,
        warmup_steps: int = 0,
        schedule: Schedule = "linear",
    ) -> None:
        super().__init__()
        # With the options of the subclass, and of the user's own below it.
        self.save_hyperparameters()
        check_flags(
            trust_remote_code=trust_remote_code,
            gradient_checkpointing=gradient_checkpointing,
            activation_offloading=activation_offloading,
        )
        self.source = PretrainedSource(pretrained, revision=revision, trust_remote_code=trust_remote_code)
        self.dtype_name = one_of("dtype", dtype, get_args(Dtype))
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.activation_offloading = activation_offloading
        self.optimizer_name = one_of("optimizer", optimizer, get_args(OptimizerName))
        # Under this name Lightning's learning-rate finder looks for it.
        self.learning_rate = positive("learning_rate", learning_rate)
        self.b_lr_factor = positive("b_lr_factor", b_lr_factor)
        self.h_lr_factor = positive("h_lr_factor", h_lr_factor)
        self.weight_decay = between("weight_decay", weight_decay, 0, math.inf)
        self.warmup_ratio = between("warmup_ratio", warmup_ratio, 0, 1)
        self.warmup_steps = count("warmup_steps", warmup_steps, least=0)
        if warmup_ratio and warmup_steps:
            raise ConfigError(
                "The warm-up has one length.",
                got=f"warmup_ratio={warmup_ratio} and warmup_steps={warmup_steps}",
                expected="a share of the steps, or their number",
                fix="leave one out",
            )
        self.schedule = one_of("schedule", schedule, get_args(Schedule))
        self.model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self.accumulation = WeightedAccumulation(self, "train_loss")

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

    def spare_memory(self, model: PreTrainedModel) -> None:
        """Have a model that was just built recompute or offload its activations, as the options say."""
        if self.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        if self.activation_offloading:
            ActivationOffloading().attach(model.base_model)

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
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the adapter of a checkpoint in place for `load_from_checkpoint`, which knows no PeraCallback."""
        manifest = manifest_in(checkpoint) if self._trainer is None else None
        if manifest is None or is_adapted(self):
            return
        if manifest.config.base_steps > 1:
            raise CheckpointError(
                "The base of this adapter was changed when its training began.",
                got=f"loftq_steps={manifest.config.base_steps}, in load_from_checkpoint",
                expected="a Trainer with PeraCallback, which makes the same base again",
                fix="trainer.validate, test or predict(module, ckpt_path=...)",
            )
        inject_plan(self.built_model(), manifest.plan)
        install_state_hooks(self)

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
        if not is_adapted(model):
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
            warmup_steps=self.warmup_steps,
            total_steps=self.trainer.estimated_stepping_batches,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
