"""Log-likelihoods of possible answers, exact and in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pera_lightning.integration.answer_loss import IGNORE_INDEX, answer_logits
from pera_lightning.integration.data.collate import PaddingCollator
from pera_lightning.integration.data.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def log_likelihoods(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad_id: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[float]:
    """Sums the log-probabilities of the labelled tokens of every example.

    Examples of similar length share a batch, padded on the right and masked.

    Args:
        model: A causal language model in eval mode.
        examples: Prompts with an answer that is labelled; at least one token comes before it.
        batch_size: Examples of a batch.
        pad_id: Token that fills up shorter rows.
        advance: Called with the number of examples of every finished batch.

    Returns:
        Log-likelihoods in nats, in the order of the examples.
    """
    collate = PaddingCollator(pad_id)
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids), reverse=True)
    found = [0.0] * len(examples)
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = collate([_tensors(examples[index]) for index in indices])
        sums = _sums(model, {name: values.to(model.device) for name, values in batch.items()})
        for index, value in zip(indices, sums.tolist(), strict=True):
            found[index] = value
        advance(len(indices))
    return found


def best_option(scores: Sequence[float]) -> int:
    """Returns the position of the highest score; of equal ones the first."""
    return max(range(len(scores)), key=lambda index: scores[index])


@torch.inference_mode()
def _sums(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    logits, targets = answer_logits(model, batch)
    labelled = targets != IGNORE_INDEX
    chosen = logits.float().log_softmax(dim=-1).gather(-1, targets.masked_fill(~labelled, 0).unsqueeze(-1))
    return chosen.squeeze(-1).double().masked_fill(~labelled, 0.0).sum(dim=1)


def _tensors(example: Example) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor(example.input_ids), "labels": torch.tensor(example.labels)}
