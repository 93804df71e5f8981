"""What is counted about the answers of a validation or a test."""

from __future__ import annotations

import math

from torch import nn
from torchmetrics import MeanMetric
from torchmetrics.text import Perplexity

from pera_lightning.data.examples import IGNORE_INDEX


class AnswerMetrics(nn.Module):
    """Metrics of one stage, accumulated over its batches and ranks."""

    def __init__(self) -> None:
        super().__init__()
        # A loss that is NaN is to be seen; "disable" would disable the weights too.
        self.loss = MeanMetric(nan_strategy=math.nan)
        self.perplexity = Perplexity(ignore_index=IGNORE_INDEX)
        self.token_accuracy = MeanMetric()
        self.exact_match = MeanMetric()

    def reset(self) -> None:
        """Start afresh, with tensors of the present autograd mode.

        Lightning resets metrics too, at an epoch's end: after trainer.validate that leaves inference tensors,
        which the validation of a fit, under no_grad, cannot update.
        """
        for metric in (self.loss, self.perplexity, self.token_accuracy, self.exact_match):
            metric.reset()
