"""Whether the adapters of a model are as they were put in: neither trained nor loaded since."""

from __future__ import annotations

from torch import nn

from pera_lightning.functional.distributed import own_part
from pera_lightning.injection.saved_modules import marked_modules
from pera_lightning.injection.targets.names import adapted_layers, token_layers
from pera_lightning.layers import PeraEmbedding, PeraLinear, TokenRowsLayer

# On a layer: the count of changes of its B, which every step, and every value that is loaded, counts up.
_START = "_pera_changes_at_start"


def note_start(model: nn.Module) -> None:
    """Take the present values of a model's adapters for their start."""
    for _, layer in adapted_layers(model):
        setattr(layer, _START, _changes(layer))


def _changes(layer: PeraLinear) -> tuple[int, int]:
    B = layer.pera_B
    # Under inference_mode nothing is counted.
    return id(B), 0 if B.is_inference() else B._version


def forget_start(model: nn.Module) -> None:
    """From now on a model's adapters count as trained."""
    for _, layer in adapted_layers(model):
        setattr(layer, _START, None)


def is_untrained(model: nn.Module) -> bool:
    """Whether a model has adapters, and nobody has trained or loaded any of them."""
    layers = [layer for _, layer in adapted_layers(model)]
    return bool(layers) and all(map(_is_at_start, layers))


def is_idle(model: nn.Module) -> bool:
    """Whether a model has adapters that change nothing, loaded or not, and nothing is trained beside them."""
    layers = [layer for _, layer in adapted_layers(model)]
    beside = any(True for _ in marked_modules(model)) or any(True for _ in token_layers(model))
    return bool(layers) and not beside and all(map(adds_nothing, layers))


def adds_nothing(layer: PeraLinear | TokenRowsLayer) -> bool:
    """Whether an adapter changes nothing: what it starts with at zero, a factor or its rows, is zero still."""
    if isinstance(layer, TokenRowsLayer):
        zero = layer.token_rows.delta
    else:
        zero = layer.pera_A if isinstance(layer, PeraEmbedding) else layer.pera_B
    return not own_part(zero.detach()).any()


def _is_at_start(layer: PeraLinear) -> bool:
    if getattr(layer, _START, None) != _changes(layer):
        return False
    # Values can be exchanged without being counted. A LoftQ start is none that changes nothing.
    return layer.config.init == "loftq" or adds_nothing(layer)
