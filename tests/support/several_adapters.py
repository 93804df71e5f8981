"""A small float64 network with adapters of different forms, and what they amount to, computed densely."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, adapter_state_dict, inject_adapter, load_adapter, save_adapter
from pera_lightning.injection import adapted_layers
from pera_lightning.layers import PeraEmbedding, PeraLinear
from tests.support.models import randomise_adapter
from tests.support.reference import reference_delta_weight, reference_monomials

CONFIGS = {
    "weather": PeraConfig(
        2, 2, alpha=3, dropout=0.1, target_modules=["embed", "first", "middle"], bias="adapted", modules_to_save=["out"]
    ),
    "music": PeraConfig(
        3,
        3,
        terms="cross",
        coefficient_scale="auto",
        use_rslora=True,
        target_modules=["first"],
        modules_to_save=["norm"],
    ),
    "lora": PeraConfig(2, 1, target_modules=["middle"], bias="all"),
}


IDS = torch.arange(10).view(2, 5)


class Network(nn.Module):
    """An embedding, a layer under two names, a norm and two plain layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.first = nn.Linear(6, 6)
        self.second = self.first
        self.norm = nn.LayerNorm(6)
        self.middle = nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.first(self.embed(ids)))
        return self.out(torch.tanh(self.middle(self.norm(self.second(x)))))


def network() -> nn.Module:
    """The same base every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Network().double().eval()


def save_all(folder: Path) -> dict[str, Path]:
    """Folders of one trained adapter per entry of `CONFIGS`."""
    folders = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        model = network()
        inject_adapter(model, config)
        randomise_adapter(model)
        for key, value in adapter_state_dict(model).items():
            if ".pera_" not in key:
                value.add_(torch.randn_like(value))
        folders[name] = save_adapter(model, folder / name)
    return folders


def loaded(folder: Path) -> nn.Module:
    """The base with the adapter of a folder, loaded alone."""
    model = network()
    load_adapter(model, folder)
    return model


def dense_change(layer: PeraLinear) -> Tensor:
    """dW of a layer, (out, in), from the equation."""
    h = layer.pera_h
    if h is not None and layer.config.coefficient_scale == "auto":
        degrees = [len(indices) for indices in reference_monomials(layer.rank, layer.config.order, layer.config.terms)]
        factors = [math.sqrt(3 * layer.in_features) ** (degree - 1) for degree in degrees]
        h = h * torch.tensor(factors, dtype=h.dtype)
    alpha = layer.rank if layer.alpha is None else layer.alpha
    scaling = alpha / (math.sqrt(layer.rank) if layer.config.use_rslora else layer.rank)
    return reference_delta_weight(layer.pera_A, layer.pera_B, h, layer.config.order, layer.config.terms, scaling)


@torch.no_grad()
def dense_parameters(model: nn.Module) -> dict[str, Tensor]:
    """What an adapted model computes with, as the state dict of a plain one."""
    state = {
        name.replace(".base_layer", ""): value.clone()
        for name, value in model.state_dict().items()
        if ".pera_" not in name
    }
    aliases = {"first": ("first", "second")}
    for name, layer in adapted_layers(model):
        change = dense_change(layer)
        for alias in aliases.get(name, (name,)):
            state[f"{alias}.weight"] += change.T if isinstance(layer, PeraEmbedding) else change
    return state


def dense_mixture(folders: dict[str, Path], weights: dict[str, float]) -> nn.Module:
    """A plain network: the base plus the weighted changes of all parameters."""
    mixture, base = network(), network().state_dict()
    state = {name: value.clone() for name, value in base.items()}
    for part, weight in weights.items():
        for name, value in dense_parameters(loaded(folders[part])).items():
            state[name] += weight * (value - base[name])
    mixture.load_state_dict(state)
    return mixture


def flags(model: nn.Module) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Names, order, bits, gradients asked for and training mode."""
    ours, theirs = one.state_dict(), other.state_dict()
    same = list(ours) == list(theirs) and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    modes = [module.training for module in one.modules()] == [module.training for module in other.modules()]
    return same and modes and flags(one) == flags(other) and torch.equal(one(IDS), other(IDS))
