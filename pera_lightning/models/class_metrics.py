"""What is measured about the predictions of a sequence classifier."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import Accuracy, F1Score, MatthewsCorrCoef
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef

from pera_lightning.run_log.quiet import ignore_warning


class ClassMetrics(nn.Module):
    """Metrics of one stage, accumulated over its batches and ranks: the loss, and others by name.

    Classification: `accuracy`, `f1` (of class 1 where there are two classes, else the classes' mean) and `matthews`.
    Regression, with a single output: `pearson` and `spearman`.

    Args:
        num_labels: Outputs of the classifier.
    """

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        # A loss that is NaN is to be seen; "disable" would disable the weights too.
        self.loss = MeanMetric(nan_strategy=math.nan)
        self._named = nn.ModuleDict(_correlations() if num_labels == 1 else _of_classes(num_labels))

    def metrics(self) -> dict[str, Metric]:
        """Those of the predictions by name."""
        return dict(self._named.items())  # type: ignore[arg-type]

    def reset(self) -> None:
        """Start afresh, with tensors of the present autograd mode.

        Lightning resets metrics too, at an epoch's end: after trainer.validate that leaves inference tensors,
        which the validation of a fit, under no_grad, cannot update.
        """
        for metric in (self.loss, *self.metrics().values()):
            metric.reset()


def _of_classes(number: int) -> dict[str, nn.Module]:
    task: Any = "binary" if number == 2 else "multiclass"
    return {
        # Over all rows: the default for several classes is the mean of the classes.
        "accuracy": Accuracy(task=task, num_classes=number, average="micro"),
        "f1": F1Score(task=task, num_classes=number, average="macro"),
        # Of two classes torchmetrics makes something above 0 where one class alone is predicted. With a third that
        # never occurs it has the same values else, and 0 there, as GLUE's own evaluation has.
        "matthews": MatthewsCorrCoef(task="multiclass", num_classes=max(number, 3)),
    }


def _correlations() -> dict[str, nn.Module]:
    # The ranks of all rows are what it needs them for; GLUE's are few.
    ignore_warning("Metric `SpearmanCorrcoef` will save all targets")
    return {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}
