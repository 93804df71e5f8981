"""`PeraSequenceClassifier`: fine-tuning a pretrained model to classify or score texts with Lightning."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from pera_lightning.errors import ConfigError, DataError
from pera_lightning.loading.pretrained_classifier import load_classifier
from pera_lightning.models.agreed_labels import agreed_labels, refuse_other_classes
from pera_lightning.models.class_metrics import ClassMetrics
from pera_lightning.models.pretrained_module import PretrainedModule
from pera_lightning.option_checks import count


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
        learning_rate: Peak learning rate of AdamW, for the factors A and the head.
        num_labels: Number of classes; 1 for a regression (with the mean squared error as its loss); null takes what
            the data module says, such as `ClassificationDataModule`.
        labels: Names or numbers of the classes in the order of their numbers; null takes what the data module says, or
            leaves them without names.
        **options: What every `PretrainedModule` has: revision, dtype, attn_implementation, trust_remote_code,
            gradient_checkpointing, activation_offloading, optimizer, b_lr_factor, h_lr_factor, weight_decay,
            warmup_ratio, warmup_steps, schedule.

    Raises:
        ConfigError: An option has a value it cannot have.
    """

    def __init__(
        self,
        pretrained: str,
        *,
        learning_rate: float = 1e-3,
        num_labels: int | None = None,
        labels: list[int | str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(pretrained, learning_rate=learning_rate, **options)
        self.num_labels = None if num_labels is None else count("num_labels", num_labels, least=1)
        self.labels = None if labels is None else list(labels)
        if labels is not None and self.num_labels is None:
            self.num_labels = len(labels)
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
        self.num_labels, self.labels = number, names = agreed_labels(self._datamodule, self.num_labels, self.labels)
        # For load_from_checkpoint, which has no data module to ask.
        self.hparams.update(num_labels=number, labels=names)
        if self.model is not None:
            return
        self.model, self.modules_to_save = load_classifier(
            self.source,
            num_labels=number,
            names=names,
            dtype=self.dtype_name,
            attn_implementation=self.attn_implementation,
        )
        # Decoders find the last token, whose state is classified, by it.
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.spare_memory(self.model)
        self.val_metrics = ClassMetrics(number)
        self.test_metrics = ClassMetrics(number)

    @property
    def _datamodule(self) -> Any:
        return None if self._trainer is None else getattr(self._trainer, "datamodule", None)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of a classifier of other classes, or in another order.

        Raises:
            CheckpointError: It is.
        """
        super().on_load_checkpoint(checkpoint)
        refuse_other_classes(checkpoint.get("hyper_parameters", {}).get("labels"), self.labels)

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
