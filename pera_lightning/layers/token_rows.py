"""Trained rows of a frozen table of tokens: an embedding, an output head, or both where they are tied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pera_lightning.concurrency import in_turn
from pera_lightning.errors import InjectionError
from pera_lightning.functional.precision import factor_dtype, product_dtype, without_autocast
from pera_lightning.layers.merging import (
    MergeTarget,
    Unmerged,
    check_merge_target,
    expect_merged,
    give_new_weight,
    has_own_weight,
    refuse_infinite,
    refuse_merging_twice,
    refuse_more,
    refuse_other_values,
    refuse_overflow,
    refuse_training_merged,
)


class TokenRows(nn.Module):
    """What is added to the rows of some tokens, once for all modules that share the weight.

    Args:
        ids: The tokens, in rising order.
        weight: The frozen weight, one row per token.

    Attributes:
        delta: Shape (number of tokens, dim), zero at first; float32 over half precision, else the weight's dtype.
        tokens: The ids as a tensor.
        layers: The modules that it serves.
    """

    tokens: Tensor

    def __init__(self, ids: Sequence[int], weight: Tensor) -> None:
        super().__init__()
        self.ids = tuple(ids)
        self.layers: tuple[TokenRowsLayer, ...] = ()
        self.enabled = True
        # What a merge has replaced. No buffer: it must neither be saved nor follow the weight's dtype.
        self.replaced: Unmerged | None = None
        self.register_buffer("tokens", torch.tensor(self.ids, device=weight.device), persistent=False)
        dtype = factor_dtype(weight.dtype)
        self.delta = nn.Parameter(torch.zeros(len(self.ids), weight.shape[1], device=weight.device, dtype=dtype))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Start values: a delta of zero."""
        self.tokens = torch.tensor(self.ids, device=self.delta.device)
        self.delta.zero_()

    @property
    def adds(self) -> bool:
        """Whether the layers have to add the delta themselves."""
        return self.enabled and self.replaced is None

    def extra_repr(self) -> str:
        """Number and length of the rows."""
        return f"tokens={len(self.ids)}, dim={self.delta.shape[1]}"


class TokenRowsLayer(nn.Module):
    """A frozen layer whose rows `W[t]` become `W[t] + delta[t]` for some tokens t.

    Wraps the layer, as adapters do. Layers that share a weight share one `TokenRows`.

    Args:
        base_layer: The layer; it is not copied.
        token_rows: The rows, of this layer's weight.
    """

    def __init__(self, base_layer: nn.Module, token_rows: TokenRows) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.token_rows = token_rows
        token_rows.layers += (self,)
        # Not train(), which reaches down.
        self.training = base_layer.training

    def adapter(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name below this layer."""
        return {"token_rows.delta": self.token_rows.delta}

    def reset_parameters(self) -> None:
        """Start values of the rows."""
        self.token_rows.reset_parameters()

    @property
    def ids(self) -> tuple[int, ...]:
        """The tokens, in rising order."""
        return self.token_rows.ids

    @property
    def enabled(self) -> bool:
        """Whether the delta counts."""
        return self.token_rows.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self.token_rows.enabled = enabled

    @property
    def merged(self) -> bool:
        """Whether the weight holds the delta now."""
        return self.token_rows.replaced is not None

    @property
    def merged_into(self) -> MergeTarget:
        """How to merge again: the weight is never quantised."""
        return "auto"

    @property
    def weight(self) -> Tensor:
        """The effective weight (tokens, dim). Differentiable; a copy while the delta is beside it."""
        weight = self._weight
        if not self.token_rows.adds:
            return weight
        return weight.index_copy(0, self.token_rows.tokens, self.merged_rows().to(weight.dtype))

    @property
    def _weight(self) -> nn.Parameter:
        return cast("nn.Parameter", self.base_layer.weight)

    def merged_rows(self) -> Tensor:
        """The rows with their delta, shape (number of tokens, dim), in float32 or better and not rounded yet."""
        rows = self._weight[self.token_rows.tokens]
        dtype = torch.promote_types(torch.promote_types(rows.dtype, self.token_rows.delta.dtype), torch.float32)
        return rows.to(dtype) + self.token_rows.delta.to(dtype)

    @in_turn
    @torch.no_grad()
    def merge(self, into: MergeTarget = "auto") -> None:
        """Write the sum, rounded once, into a new weight for the layers that share these rows.

        Args:
            into: As for `PeraLinear`; makes no difference, since the weight is not quantised.

        Raises:
            InjectionError: Merged already, a value is or would become infinite, or the layers share their weight no
                longer.
        """
        check_merge_target(into)
        refuse_merging_twice(self, "the token rows")
        self.check_merge()
        before, tokens, rows = self._weight, self.token_rows.tokens, self.merged_rows()
        # A weight for these layers alone: others that theirs is tied to keep it.
        replaced = all(has_own_weight(layer.base_layer) for layer in self.token_rows.layers)
        if replaced:
            give_new_weight(self.base_layer)
            self._share(self._weight)
        self.token_rows.replaced = Unmerged(
            self.base_layer, before if replaced else None, None if replaced else before[tokens]
        )
        self._weight[tokens] = rows.to(before.dtype)

    def _share(self, weight: nn.Parameter) -> None:
        for layer in self.token_rows.layers:
            layer.base_layer.weight = weight

    def check_merge(self) -> None:
        """Raise InjectionError if a merge would not give what the layers compute now."""
        refuse_more(self.base_layer, self)
        refuse_infinite(self.adapter())
        if any(layer._weight is not self._weight for layer in self.token_rows.layers):
            raise InjectionError(
                "Layers that shared a weight when their token rows were injected do not share it any more.",
                got=", ".join(type(layer.base_layer).__name__ for layer in self.token_rows.layers),
                expected="one weight",
                fix="merge before the output head is quantised",
            )
        if not self.merged:
            rows, weight = self.merged_rows(), self._weight
            refuse_overflow(rows, weight.dtype, lambda: weight[self.token_rows.tokens])

    @in_turn
    @torch.no_grad()
    def unmerge(self) -> None:
        """Put the rows back that the weight held before: the same bits.

        Raises:
            InjectionError: Not merged.
        """
        replaced = expect_merged(self.token_rows.replaced, "the token rows")
        if replaced.weight is None:
            self._weight[self.token_rows.tokens] = replaced.snapshot.to(self._weight)
        else:
            replaced.restore()
            self._share(replaced.weight)
        self.token_rows.replaced = None

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # What torch calls for each module that is loaded.
        if self.merged:
            refuse_other_values(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class TokenRowsEmbedding(TokenRowsLayer):
    """`nn.Embedding` with trained rows."""

    @property
    def num_embeddings(self) -> int:
        """Number of rows of the table."""
        return self._weight.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Length of a row."""
        return self._weight.shape[1]

    @property
    def padding_idx(self) -> int | None:
        """The base's padding token."""
        return self.base_layer.padding_idx  # type: ignore[return-value]

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Look up tokens, shape (*input.shape, dim); the sum of row and delta is rounded once."""
        refuse_training_merged(self, "merged token rows", self.token_rows.delta)
        rows: Tensor = self.base_layer(input, *args, **kwargs)
        if not self.token_rows.adds:
            return rows
        tokens, delta = self.token_rows.tokens, self.token_rows.delta
        places = torch.searchsorted(tokens, input.to(tokens.dtype).contiguous()).clamp(max=len(self.ids) - 1)
        listed = (tokens[places] == input).unsqueeze(-1)
        # Gathered in the delta's own dtype, so that the gradients of a token that comes often are summed up in it.
        change = F.embedding(places, delta)
        return torch.where(listed, (rows + change).to(rows.dtype), rows)


class TokenRowsLinear(TokenRowsLayer):
    """An output head, a plain linear layer with one output per token, with trained rows."""

    @property
    def in_features(self) -> int:
        """Length of a row."""
        return self._weight.shape[1]

    @property
    def out_features(self) -> int:
        """Number of tokens."""
        return self._weight.shape[0]

    @property
    def bias(self) -> Tensor | None:
        """The base's bias."""
        return self.base_layer.bias  # type: ignore[return-value]

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Logits, shape (..., tokens), the dtype of the base's output."""
        refuse_training_merged(self, "merged token rows", self.token_rows.delta)
        logits: Tensor = self.base_layer(input, *args, **kwargs)
        if not self.token_rows.adds:
            return logits
        dtype = product_dtype(input)
        with without_autocast(input.device.type):
            change = F.linear(input.to(dtype), self.token_rows.delta.to(dtype))
        # Not in place: the logits are the base's own, whose hooks may have kept them and whose graph may need them.
        return logits.index_add(-1, self.token_rows.tokens, change.to(logits.dtype))
