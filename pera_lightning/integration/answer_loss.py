"""The language-model loss on answers only, with logits only where an answer token is predicted."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from pera_lightning.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORE_INDEX = -100
"""Label of a token that takes no part in the loss."""


def answer_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Run the model and compute logits where some row of the batch predicts a labelled token.

    The output head is the largest layer of a small model, and the logits its largest activation; prompts and
    padding need neither.

    Args:
        model: A causal language model.
        batch: `input_ids` and `labels` (B, T), int64; and `attention_mask` (B, T) for padded rows, or
            `position_ids` (B, T) that restart at every sample for packed ones. `labels[:, t]` is the token
            at t, which the logits at t - 1 predict; the first token of a sample is labelled -100.

    Returns:
        Logits (B, C, vocabulary) at the C kept positions, in the model's dtype, and the labels they predict
        (B, C), -100 where a row predicts none there.

    Raises:
        DataError: No token of the batch is labelled.
    """
    targets = batch["labels"][:, 1:]
    columns = (targets != IGNORE_INDEX).any(dim=0).nonzero().flatten()
    if columns.numel() == 0:
        raise DataError(
            "The batch holds no answer to learn from.",
            got=f"{targets.shape[0]} rows of {targets.shape[1] + 1} tokens, all of them labelled {IGNORE_INDEX}",
            expected="at least one labelled token",
            fix="raise the maximum length (truncation took every answer away), or drop rows with empty answers",
        )
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    # Packed samples are told apart by position_ids only where there is no cache.
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits = model(**inputs, use_cache=False, logits_to_keep=columns).logits
    else:
        logits = model(**inputs, use_cache=False).logits[:, columns]
    return logits, targets[:, columns]


def answer_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in float32, averaged over the labelled tokens of the batch.

    Args:
        logits: (B, C, vocabulary), any floating dtype.
        targets: (B, C), int64; -100 takes no part.

    Returns:
        The loss in nats, a float32 scalar.
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX)
