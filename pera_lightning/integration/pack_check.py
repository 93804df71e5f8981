"""Whether a model keeps rows apart that stand end to end in one row: not all do, and those that do not say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.integration.evaluation_mode import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COMPARED = 4
"""Tokens of each of the two rows: what leaks from one into the other shows most in its first ones."""
TIMES_ROUNDING = 8
"""How much more than the first row, into which nothing can leak, the second one may differ."""


def check_packs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> None:
    """Run two short rows end to end, and alone, and compare their logits. The random numbers of a run stay as they are.

    Args:
        model: A causal language model.
        batch: One whose `position_ids` restart at every row; its first tokens serve as the two rows.

    Raises:
        ConfigError: The second row is not what it is alone.
    """
    ids = batch["input_ids"][:1, : 2 * COMPARED]
    length = ids.shape[1] // 2
    if length == 0:
        return
    rows = ids[0, : 2 * length].view(2, length)
    positions = torch.arange(length, device=ids.device).repeat(2).unsqueeze(0)
    with torch.no_grad(), evaluation_mode(model):
        alone = model(input_ids=rows, use_cache=False).logits
        packed = model(input_ids=rows.view(1, -1), position_ids=positions, use_cache=False).logits
    # Older versions of torch would take up the weights that autocast has cast here, without gradients, in the step.
    torch.clear_autocast_cache()
    rounding, difference = (packed.view_as(alone) - alone).float().flatten(1).norm(dim=1).tolist()
    size = alone[1].float().norm().item()
    if difference > max(TIMES_ROUNDING * rounding, torch.finfo(alone.dtype).eps ** 0.5 * size):
        raise _mixed_rows(model, difference / size)


def _mixed_rows(model: PreTrainedModel, share: float) -> ConfigError:
    return ConfigError(
        "The model mixes rows that stand end to end in one row.",
        got=f"{type(model).__name__} with attn_implementation {model.config._attn_implementation}: the logits of the "
        f"second of two rows differ by {share:.2g} of their size from those of the row alone",
        expected="a model that tells rows apart by position_ids that restart",
        fix="set packing: false and padding_free: false (group_by_length: true saves most of the padding too)",
    )
