"""What a model is at a moment, to compare it with what it is later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pera_lightning import InjectionReport


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Not by train(), at which adapted layers forget what they keep between calls: that is to be noticed by itself."""
    before = modes(model)
    for module in model.modules():
        module.training = training
    yield
    for module in model.modules():
        module.training = before[id(module)]


def modes(model: nn.Module) -> dict[int, bool]:
    return {id(module): module.training for module in model.modules()}


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, each name of a shared one."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors(model).items()}


@dataclass(frozen=True)
class Before:
    """What a model was before the injection."""

    modules: dict[str, nn.Module]
    tensors: dict[str, Tensor]
    values: dict[str, Tensor]
    flags: dict[str, bool]
    modes: dict[int, bool]
    keys: list[str]

    @classmethod
    def of(cls, model: nn.Module) -> Before:
        modules = dict(model.named_modules(remove_duplicate=False))
        flags = {name: value.requires_grad for name, value in tensors(model).items()}
        return cls(modules, tensors(model), values(model), flags, modes(model), list(model.state_dict()))

    def assert_restored(self, model: nn.Module) -> None:
        """The same objects under the same names with the same values, flags and modes."""
        now = Before.of(model)
        for kind in ("modules", "tensors"):
            ours, theirs = getattr(now, kind), getattr(self, kind)
            assert list(ours) == list(theirs)
            assert all(ours[name] is theirs[name] for name in theirs)
        for name, value in self.values.items():
            assert torch.equal(now.values[name], value), name
        assert (now.flags, now.modes, now.keys) == (self.flags, self.modes, self.keys)
        assert not [name for module in model.modules() for name in vars(module) if "pera" in name]

    def freeze(self, model: nn.Module, report: InjectionReport) -> nn.Module:
        """Give the base the flags that it has under the adapter: torch's attention computes otherwise without them."""
        trained = self.trained(report)
        for name, value in model.named_parameters(remove_duplicate=False):
            value.requires_grad_(id(self.tensors[name]) in trained)
        return model

    def trained(self, report: InjectionReport) -> set[int]:
        """Ids of the tensors that training may change, beside the factors."""
        allowed: set[int] = set()
        for name in report.saved:
            found = tensors(self.modules[name]).values() if name in self.modules else [self.tensors[name]]
            allowed |= set(map(id, found))
        return allowed
