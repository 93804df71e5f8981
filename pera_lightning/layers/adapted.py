"""From a frozen layer to the adapted one that fits it."""

from __future__ import annotations

from torch import Tensor, nn

from pera_lightning.base_layers import base_of
from pera_lightning.config import PeraConfig
from pera_lightning.layers.merging import storage_of
from pera_lightning.layers.pera_embedding import PeraEmbedding
from pera_lightning.layers.pera_linear import PeraLinear
from pera_lightning.layers.token_rows import TokenRowsLayer


def adapted_layer(
    layer: nn.Module, config: PeraConfig, *, rank: int | None = None, alpha: float | None = None
) -> PeraLinear:
    """A `PeraLinear` over a linear layer, a `PeraEmbedding` over an embedding.

    Args:
        layer: The layer to adapt; it is not copied.
        config: The adapter's options.
        rank: Rank of this layer, if it differs from the config's.
        alpha: Alpha of this layer, if it differs from the config's.

    Raises:
        TargetError: No adapter can sit on the layer.
    """
    base = base_of(layer)
    kind = PeraLinear if base is None or base.linear else PeraEmbedding
    return kind(layer, config, rank=rank, alpha=alpha)


def stored_weight(layer: PeraLinear | TokenRowsLayer) -> Tensor:
    """What the base of an adapted layer stores as its weight, or did before it was merged."""
    unmerged = layer._unmerged if isinstance(layer, PeraLinear) else layer.token_rows.replaced
    return storage_of(layer.base_layer) if unmerged is None else unmerged.stored
