"""`PeraSequenceClassifier`: fine-tuning a pretrained model to classify or score texts with Lightning."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from pera_lightning.errors import ConfigError, DataError
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_classifier import load_classifier
from pera_lightning.models.activation_offloading import ActivationOffloading
from pera_lightning.models.class_metrics import ClassMetrics
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from pera_lightning.models.optimization import OptimizerName, Schedule
from pera_lightning.models.pretrained_module import Dtype, PretrainedModule
from pera_lightning.option_checks import check_flags, count


class PeraSequenceClassifier(PretrainedModule):
    """A pretrained model that learns the classes or scores of sentences, or of pairs of them.

    With `PeraCallback` the adapters are trained and, whole, the classification head (whatever the model calls it):
    both are in checkpoints and adapter folders. Without it every parameter is.

    Batches are dicts of what the tokenizer returns and `labels` (B): class numbers, or scores for a regression.
    An optimizer step weighs all its rows alike, however they are batched, accumulated and spread over processes.
    Logged: `train_loss`, their mean, at every step; in validation and test `val_loss` and, for classes,
    `val_accuracy`, `val_f1` (of class 1 of two, else the classes' mean) and `val_matthews`, for scores `val_pearson`
    and `val_spearman`; likewise `test_...`.
    Prediction returns a dict of tensors: `labels` (B) and `scores` (B, classes), which are probabilities; for a
    regression `scores` (B) alone.

    Args:
        pretrained: Hub id or local folder of a model, with or without a classification head.
        num_labels: Number of classes; 1 for a regression (with the mean squared error as its loss); null takes what
            the data module says, such as `GlueDataModule`.
        revision: Branch, tag or commit of the hub repository.
        dtype: Dtype of the model's weights: "auto" keeps the one they were saved in, "native" is bfloat16 where the
            machine has instructions for it, else float32.
        attn_implementation: "eager", "sdpa", "flash_attention_2", ...; null leaves the choice to transformers.
        trust_remote_code: Whether code that comes with the repository may run.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        activation_offloading: Keep in CPU memory what the forward pass saves for the backward pass: less GPU memory
            and more time. Best with gradient_checkpointing, which leaves one tensor per layer to be moved.
        optimizer: "adamw", or bitsandbytes' with moments in 8 bits: "adamw_8bit", or "paged_adamw_8bit", which makes
            room on the GPU when memory runs out.
        learning_rate: Peak learning rate of AdamW, for the factors A and the head.
        b_lr_factor: Factor on the learning rate of the factors B.
        h_lr_factor: Factor on the learning rate of the polynomial coefficients h.
        weight_decay: Weight decay of AdamW; coefficients h, biases and norms are never decayed.
        warmup_ratio: Share of all optimizer steps over which the learning rate rises from 0, in [0, 1).
        schedule: What the learning rate does after the warm-up; linear and cosine end at 0.

    Raises:
        ConfigError: An option has a value it cannot have.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        num_labels: int | None = None,
        revision: str | None = None,
        dtype: Dtype = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        gradient_checkpointing: bool = False,
        activation_offloading: bool = False,
        optimizer: OptimizerName = "adamw",
        learning_rate: float = 1e-3,
        b_lr_factor: float = 1.0,
        h_lr_factor: float = 1.0,
        weight_decay: float = 0.0,
        warmup_ratio: float = 0.0,
        schedule: Schedule = "linear",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        source = PretrainedSource(pretrained, revision=revision, trust_remote_code=trust_remote_code)
        self.set_source(source, dtype, attn_implementation)
        self.num_labels = None if num_labels is None else count("num_labels", num_labels, least=1)
        check_flags(
            trust_remote_code=trust_remote_code,
            gradient_checkpointing=gradient_checkpointing,
            activation_offloading=activation_offloading,
        )
        self.gradient_checkpointing = gradient_checkpointing
        self.activation_offloading = activation_offloading
        self.set_optimization(
            optimizer=optimizer,
            learning_rate=learning_rate,
            b_lr_factor=b_lr_factor,
            h_lr_factor=h_lr_factor,
            weight_decay=weight_decay,
            warmup_ratio=warmup_ratio,
            schedule=schedule,
        )
        self.modules_to_save: tuple[str, ...] = ()
        """What `PeraCallback` trains whole without being told: the head; known when the model is built."""

    @override
    def configure_model(self) -> None:
        """Load the pretrained model; once, though Lightning calls this for every fit, validate, test and predict.

        Raises:
            ConfigError: Nothing says how many labels there are, the data module says another number, or the strategy
                is one of model parallelism.
        """
        if self.device_mesh is not None:
            raise ConfigError(
                "PeraSequenceClassifier does not shard its model.",
                got=type(self.trainer.strategy).__name__,
                expected="a strategy under which every process holds the whole model",
                fix="use strategy: ddp",
            )
        self.num_labels = number = self._agreed_labels()
        # For load_from_checkpoint, which has no data module to ask.
        self.hparams["num_labels"] = number
        if self.model is not None:
            return
        self.model, self.modules_to_save = load_classifier(
            self.source, num_labels=number, dtype=self.dtype_name, attn_implementation=self.attn_implementation
        )
        # Decoders find the last token, whose state is classified, by it.
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        if self.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        if self.activation_offloading:
            ActivationOffloading().attach(self.model.base_model)
        self.val_metrics = ClassMetrics(number)
        self.test_metrics = ClassMetrics(number)

    def _agreed_labels(self) -> int:
        data = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        offered = getattr(data, "num_labels", None)
        number = offered if self.num_labels is None else self.num_labels
        if number is None:
            raise ConfigError(
                "The number of labels is not known.",
                got="num_labels=None and data that does not say it either",
                expected="a number of classes, or 1 for a regression",
                fix="set num_labels",
            )
        if offered not in (None, number):
            raise ConfigError(
                "The data has another number of labels than the model.",
                got=f"num_labels={number}, and {type(data).__name__} with {offered}",
                expected="the same number",
                fix="leave num_labels out, or change the data",
            )
        return number

    @override
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        _, loss = self._outputs_and_loss(batch)
        return self.accumulation.weigh(loss, len(batch["labels"]))

    @override
    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("val", self.val_metrics, batch)

    @override
    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._evaluate("test", self.test_metrics, batch)

    @override
    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = self._outputs(batch)
        if self.num_labels == 1:
            return {"scores": outputs}
        return {"labels": outputs.argmax(dim=-1), "scores": outputs.softmax(dim=-1)}

    @override
    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    @override
    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def _outputs(self, batch: dict[str, Any]) -> Tensor:
        """The logits (B, classes), or the scores (B) of a regression; in float32."""
        texts = {name: value for name, value in batch.items() if name != "labels"}
        logits: Tensor = self.built_model()(**texts).logits.float()
        return logits.squeeze(-1) if self.num_labels == 1 else logits

    def _outputs_and_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        outputs, labels = self._outputs(batch), batch["labels"]
        if self.num_labels == 1:
            return outputs, F.mse_loss(outputs, labels.float())
        try:
            return outputs, F.cross_entropy(outputs, labels)
        except (IndexError, RuntimeError) as error:
            classes = outputs.shape[-1]
            # A GPU that has stopped a kernel answers no more questions.
            if labels.is_cuda or (labels.dtype == torch.int64 and labels.min() >= 0 and labels.max() < classes):
                raise
            raise DataError(
                "Labels do not fit the classifier.",
                got=f"{labels.dtype} from {labels.min()} to {labels.max()}",
                expected=f"class numbers (torch.int64) from 0 to {classes - 1}",
                fix="set num_labels, or correct the data; scores are learned with num_labels=1",
            ) from error

    def _evaluate(self, stage: str, metrics: ClassMetrics, batch: dict[str, Tensor]) -> None:
        outputs, loss = self._outputs_and_loss(batch)
        rows = len(batch["labels"])
        metrics.loss.update(loss, rows)
        self.log(f"{stage}_loss", metrics.loss, prog_bar=True)
        predicted = outputs if self.num_labels == 1 else outputs.argmax(dim=-1)
        target = batch["labels"].to(torch.float32) if self.num_labels == 1 else batch["labels"]
        for name, metric in metrics.metrics().items():
            metric.update(predicted, target)
            self.log(f"{stage}_{name}", metric, prog_bar=True, batch_size=rows)
