"""Batches: right-padded rows, or rows and packs end to end in one row."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pera_lightning.data.examples import IGNORE_INDEX


class PaddingCollator:
    """Pads examples on the right to the longest of the batch.

    Batch: a dict of int64 tensors `input_ids`, `attention_mask` and `labels`, each (B, T). Padding has
    attention 0 and label -100, whatever its token, so that the eos token may serve.

    Args:
        pad_id: Token id of the padding.
    """

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id

    def __call__(self, examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns the batch of the examples."""
        ids = [example["input_ids"] for example in examples]
        labels = [example["labels"] for example in examples]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self._pad_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        }


def lay_end_to_end(examples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenates examples in one row, without padding.

    Batch: a dict of int64 tensors `input_ids`, `position_ids` and `labels`, each (1, T). Positions restart
    at 0 with every example, and there is no attention mask: from this transformers builds attention within
    examples. It does so only for a model called with `use_cache=False`; with a cache, tokens would attend
    to the examples before theirs. The first label of an example is -100: what comes before it does not predict it.
    """
    positions = [torch.arange(len(example["input_ids"])) for example in examples]
    batch = {
        "input_ids": torch.cat([example["input_ids"] for example in examples]).unsqueeze(0),
        "position_ids": torch.cat(positions).unsqueeze(0),
        "labels": torch.cat([example["labels"] for example in examples]).unsqueeze(0),
    }
    batch["labels"][batch["position_ids"] == 0] = IGNORE_INDEX
    return batch


def collate_packs(packs: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
    """All examples of all packs as one batch of `lay_end_to_end`."""
    return lay_end_to_end(list(itertools.chain.from_iterable(packs)))
