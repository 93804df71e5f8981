"""Whether a model keeps rows apart that stand end to end in one row: not all do, and those that do not say nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pera_lightning.errors import ConfigError
from pera_lightning.models.evaluation_mode import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 8
"""Tokens of each row: more than convolutions and states of linear attention look back at once."""
REACHES = ("attention_chunk_size", "keep_window_size")
"""Sizes in tokens, of configs and layers, from which on attention counts the tokens of the whole row."""
SHORT_REACH = 5
"""What they are while the model is asked, so that what comes of them shows: no divisor of LENGTH."""
TIMES_NOISE = 8
"""How much more than where nothing can come of it the logits may differ where a leak would show."""


@dataclass(frozen=True)
class Separation:
    """How well rows are kept apart; all numbers are shares of the size of the logits.

    Attributes:
        leak: How much the logits of a row change when the rows before and after it change places. To the last bit zero
            where rows are kept apart, in every dtype: sizes, kernels and the tokens that each expert gets are the same.
        noise: The same for a row that has both rows behind it.
        difference: How much the logits of a row in a pack differ from those of the row alone, at worst.
        rounding: How much they differ between the row alone and in a batch, where nothing is packed.
        precision: Roundings to this relative size are in the numbers.
    """

    leak: float
    noise: float
    difference: float
    rounding: float
    precision: float

    @property
    def holds(self) -> bool:
        """Whether a pack computes what its rows do alone."""
        # Sums in no fixed order, which some GPU kernels make, may move a bit here and not there.
        leaks = self.leak > max(TIMES_NOISE * self.noise, self.precision / TIMES_NOISE)
        return not leaks and not self.difference > max(TIMES_NOISE * self.rounding, self.precision**0.5)


# Tracing it would make part of the training step's graph of it.
@torch.compiler.disable
def check_packs(model: PreTrainedModel, device: torch.device) -> None:
    """Run three short rows of random tokens alone and end to end, in several orders, and compare their logits.

    The modes of the model and the random numbers of a run stay as they are. Under strategies that shard the model every
    process must call it.

    Args:
        model: A causal language model.
        device: Where its inputs go; weights may be elsewhere between their uses.

    Raises:
        ConfigError: A row in a pack is not what it is alone, or the model cannot be asked.
    """
    try:
        separation = measure_separation(model, device)
    except (TypeError, ValueError, IndexError) as error:
        raise _refusal(
            model, f"{type(error).__name__} for rows with position_ids that restart: {_first_line(error)}"
        ) from error
    if not separation.holds:
        raise _refusal(
            model,
            f"the logits of a row between two others differ by {separation.difference:.2g} of their size from those "
            f"of the row alone, and change by {separation.leak:.2g} when the other two change places",
        )


@torch.no_grad()
def measure_separation(model: PreTrainedModel, device: torch.device) -> Separation:
    """How well a causal language model keeps rows apart: see `Separation`."""
    before, row, after = _random_rows(model).to(device)
    # Compiled models run as they are written: nothing is compiled for these lengths, and no graph keeps them.
    unmoved = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with evaluation_mode(model), unmoved, _as_written(), _short_reaches(model):
        batch = _padded(model, row, before, after)[0]
        alone = _padded(model, row)[0]
        between, swapped = _packed(model, before, row, after)[1], _packed(model, after, row, before)[1]
        first, other = _packed(model, row, before, after)[0], _packed(model, row, after, before)[0]
    # Older versions of torch would take up the weights that autocast has cast here, without gradients, in the step.
    torch.clear_autocast_cache()
    return Separation(
        leak=_change(between, swapped),
        noise=_change(first, other),
        difference=max(_change(alone, between, dim=(0, 1)), _change(alone, first, dim=(0, 1))),
        rounding=_change(alone, batch, dim=(0, 1)),
        precision=_precision(model, alone),
    )


def _as_written() -> Any:
    return torch.compiler.set_stance("force_eager")


@contextmanager
def _short_reaches(model: PreTrainedModel) -> Iterator[None]:
    owners: list[Any] = [model.config.get_text_config(decoder=True), *model.modules()]
    found = [(owner, name, vars(owner)[name]) for owner in owners for name in REACHES if vars(owner).get(name)]
    for owner, name, _ in found:
        setattr(owner, name, SHORT_REACH)
    try:
        yield
    finally:
        for owner, name, size in found:
            setattr(owner, name, size)


def _padded(model: PreTrainedModel, *rows: Tensor) -> Tensor:
    ids = torch.stack(rows)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def _packed(model: PreTrainedModel, *rows: Tensor) -> Tensor:
    ids = torch.cat(rows).unsqueeze(0)
    positions = torch.arange(LENGTH, device=ids.device).repeat(len(rows)).unsqueeze(0)
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits.view(len(rows), LENGTH, -1)


def _change(one: Tensor, other: Tensor, dim: int | tuple[int, ...] = -1) -> float:
    """The largest change relative to the size of what changes: of a token, or of all."""
    size = one.float().norm(dim=dim).clamp_min(torch.finfo(torch.float32).tiny)
    return ((one - other).float().norm(dim=dim) / size).max().item()


def _random_rows(model: PreTrainedModel) -> Tensor:
    """Three rows of ordinary tokens, (3, LENGTH): ids with a meaning of their own would call for images or sounds."""
    config = model.config.get_text_config(decoder=True)
    special = set(_special_ids(model.config.to_dict()))
    ordinary = [token for token in range(config.vocab_size) if token not in special] or [0]
    picked = torch.randint(len(ordinary), (3, LENGTH), generator=torch.Generator().manual_seed(0))
    return torch.tensor(ordinary)[picked]


def _special_ids(config: Mapping[str, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _special_ids(value)
        elif str(name).endswith(("token_id", "token_ids", "token_index")):
            yield from (entry for entry in (value if isinstance(value, list) else [value]) if isinstance(entry, int))


def _precision(model: PreTrainedModel, logits: Tensor) -> float:
    """The coarsest rounding that takes part: of weights, products and logits."""
    dtypes = {logits.dtype, *(parameter.dtype for parameter in model.parameters())}
    device = logits.device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    if device == "cuda" and torch.get_float32_matmul_precision() != "highest":
        dtypes.add(torch.bfloat16)
    # Quantised layers compute in 16 bits, or round what reaches them to 8.
    floating = {dtype if dtype.is_floating_point and dtype.itemsize > 1 else torch.bfloat16 for dtype in dtypes}
    return max(torch.finfo(dtype).eps for dtype in floating)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _refusal(model: PreTrainedModel, found: str) -> ConfigError:
    return ConfigError(
        "The model mixes rows that stand end to end in one row.",
        got=f"{type(model).__name__} with attn_implementation {model.config._attn_implementation}: {found}",
        expected="a model that tells rows apart by position_ids that restart",
        fix="set packing: false and padding_free: false (group_by_length: true saves most of the padding too)",
    )
