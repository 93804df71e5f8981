"""Two networks in one model, of which one is a copy of the other: a mean teacher, a reference model, a twin."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from pera_lightning.base_layers import is_linear_like
from pera_lightning.functional.distributed import own_part
from pera_lightning.injection.targets.names import APART, adapter_layers, block_template, clean_name, within_any
from pera_lightning.injection.untrained import adds_nothing

# On a model that was injected into: name of a copy -> name of what it is a copy of.
_COPIES = "_pera_copies"
# On a copy that is not trained itself.
_FOLLOWS = "_pera_follows"
# On an adapted layer: a number of its own, and the layer's id, which a copy of the layer has not.
_IDENTITY = "_pera_identity"
_numbers = itertools.count()


@torch.no_grad()
def exact_copies(model: nn.Module) -> dict[str, str]:
    """The modules of a model that hold the same weights as another one registered before them, outermost ones.

    Returns:
        Clean name of the copy -> of the other one.
    """
    firsts: defaultdict[object, list[tuple[str, nn.Module]]] = defaultdict(list)
    found: dict[str, str] = {}
    for name, module in model.named_modules():
        if not name or within_any(name, found) or not _is_network(name, module):
            continue
        others = firsts[_fingerprint(module)]
        original = next((other for other, one in others if not _related(name, other) and _equal(one, module)), None)
        if original is None:
            others.append((name, module))
        else:
            found[name] = original
    return {clean_name(name): clean_name(original) for name, original in found.items()}


def _is_network(name: str, module: nn.Module) -> bool:
    # A linear layer by itself only at the top: of those further in there are too many.
    is_part = "." in name and not any(True for _ in module.children())
    parameters = list(module.parameters())
    there = bool(parameters) and not any(map(nn.parameter.is_lazy, parameters))
    return there and not is_part and any(map(is_linear_like, module.modules()))


def _fingerprint(module: nn.Module) -> tuple[object, ...]:
    parameters = dict(module.named_parameters())
    largest = max(parameters.values(), key=lambda value: value.numel())
    few = () if largest.is_meta else tuple(_few(largest).tolist())
    return type(module), few, tuple((key, value.shape, value.dtype) for key, value in parameters.items())


def _related(name: str, other: str) -> bool:
    """Whether one is in the other, or both are of the same row of blocks, which torch makes by copying the first."""
    same_row = block_template(f"{name}.") == block_template(f"{other}.")
    return same_row or within_any(name, [other]) or within_any(other, [name])


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    own = [(left.detach(), right.detach()) for left, right in pairs if left is not right]
    if not own or any(left.is_meta or left.device != right.device for left, right in own):
        return False
    # All the same number, as norms begin with, nobody has drawn or trained.
    drawn = any(len(set(_few(left).tolist())) > 1 for left, _ in own)
    return drawn and all(torch.equal(own_part(left), own_part(right)) for left, right in own)


def _few(value: Tensor) -> Tensor:
    flat = own_part(value.detach()).flatten()
    return flat[:: max(1, flat.numel() // 8)]


def mirrored(names: list[str], copies: Mapping[str, str], modules: Mapping[str, nn.Module]) -> list[str]:
    """What has the place of some modules in the copies of what they are in."""
    places = [
        copy + name.removeprefix(original)
        for name in names
        for copy, original in copies.items()
        if within_any(name, [original])
    ]
    return [name for name in places if name in modules and name not in names]


def frozen_copies(model: nn.Module, copies: Mapping[str, str]) -> dict[str, str]:
    """Copies that a user froze, and not what they are copies of; the other way round where that one is frozen.

    Returns:
        Name of the frozen one -> of the other.
    """
    modules = {clean_name(name): module for name, module in model.named_modules()}
    found = {}
    for pair in copies.items():
        trainable = [any(value.requires_grad for value in modules[name].parameters()) for name in pair]
        if trainable == [False, True]:
            found[pair[0]] = pair[1]
        elif trainable == [True, False]:
            found[pair[1]] = pair[0]
    return found


def note_copies(model: nn.Module, copies: Mapping[str, str], frozen: Mapping[str, str]) -> None:
    """After an injection: keep what was found before it, and let frozen copies follow."""
    setattr(model, _COPIES, dict(copies))
    for copy, original in frozen.items():
        follow(model, copy, original)


def noted_copies(model: nn.Module) -> dict[str, str]:
    """What `note_copies` kept, of adapted modules."""
    adapted = [name for name, _ in adapter_layers(model)]
    copies: dict[str, str] = getattr(model, _COPIES, {})
    return {
        copy: original
        for copy, original in copies.items()
        if all(any(within_any(name, [part]) for name in adapted) for part in (copy, original))
    }


@torch.no_grad()
def start_alike(model: nn.Module, copy: str, original: str) -> None:
    """Give the adapters of a copy the start of the other one's, where both are at their start."""
    layers = dict(adapter_layers(model))
    for name, layer in layers.items():
        source = layers.get(original + name.removeprefix(copy)) if within_any(name, [copy]) else None
        if source is None or not adds_nothing(layer) or not adds_nothing(source):
            continue
        for target, value in zip(layer.adapter().values(), source.adapter().values(), strict=True):
            if own_part(target).shape == own_part(value).shape:
                own_part(target.detach()).copy_(own_part(value.detach()))


def follow(model: nn.Module, copy: str, original: str) -> None:
    """Have a copy's adapters not be trained: whoever made it moves them, or leaves them as they are."""
    start_alike(model, copy, original)
    module = model.get_submodule(_real_name(model, copy))
    setattr(module, _FOLLOWS, original)
    module.requires_grad_(False)


def followers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The copies that are not trained, with their clean names."""
    return ((clean_name(name), part) for name, part in model.named_modules() if _FOLLOWS in vars(part))


def following(model: nn.Module) -> set[int]:
    """Ids of all modules in copies that are not trained."""
    return {id(part) for _, module in followers(model) for part in module.modules()}


def forget_copies(model: nn.Module) -> None:
    """When the adapters are taken out."""
    vars(model).pop(_COPIES, None)
    for _, module in list(followers(model)):
        delattr(module, _FOLLOWS)


def note_identity(layer: nn.Module) -> None:
    """Make an adapted layer known, so that a copy of it is recognised."""
    setattr(layer, _IDENTITY, (next(_numbers), id(layer)))


def late_copies(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost modules whose adapted layers are all copies of layers elsewhere in the model, made with adapters.

    Returns:
        Clean name -> module.
    """
    owners = {
        vars(layer)[_IDENTITY][0]
        for _, layer in adapter_layers(model)
        if vars(layer).get(_IDENTITY, (None, None))[1] == id(layer)
    }
    copied = {
        id(layer)
        for _, layer in adapter_layers(model)
        if (identity := vars(layer).get(_IDENTITY)) and identity[0] in owners and identity[1] != id(layer)
    }
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules() if copied else ():
        layers = [id(layer) for _, layer in adapter_layers(module)]
        if layers and copied.issuperset(layers) and not within_any(name, found):
            found[name] = module
    return {clean_name(name): module for name, module in found.items()}


def set_apart(module: nn.Module) -> None:
    """Have a late copy be none of the adapter's: neither trained nor saved."""
    setattr(module, APART, True)
    module.requires_grad_(False)


def adopt(module: nn.Module) -> None:
    """Have a late copy be a part of the adapter, by itself."""
    for _, layer in adapter_layers(module):
        note_identity(layer)


def _real_name(model: nn.Module, clean: str) -> str:
    return next(name for name, _ in model.named_modules() if clean_name(name) == clean)
