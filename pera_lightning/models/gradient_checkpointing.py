"""Computing a model's activations again in the backward pass instead of keeping them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pera_lightning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def enable_gradient_checkpointing(model: PreTrainedModel) -> None:
    """Recompute the layers' activations in the backward pass; it takes effect in train mode only.

    Raises:
        ConfigError: The model does not support it.
    """
    # transformers renamed the method; both take the options of torch.utils.checkpoint first, and both let the
    # embeddings' output require grad, so that gradients reach adapters over a frozen base.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"{type(model).__name__} cannot recompute activations.",
            got="gradient_checkpointing=True",
            expected="a model that supports it",
            fix="set gradient_checkpointing: false",
        ) from error
