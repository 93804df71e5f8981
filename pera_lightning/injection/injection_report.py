"""What an injection did, in numbers and in words."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from pera_lightning.form_bounds import column_count
from pera_lightning.injection.quantization.stored_bytes import parameter_count
from pera_lightning.injection.targets.names import adapted_layers
from pera_lightning.injection.targets.plan import InjectionPlan
from pera_lightning.layers import PeraLinear


@dataclass(frozen=True)
class InjectionReport:
    """What an injection did.

    Attributes:
        adapted: Names of the adapted layers.
        saved: Names of the modules trained and saved whole, and of the trained biases.
        head: Linear layers left alone as the output head ("all-linear" only).
        trainable: Number of trainable parameters now.
        total: Number of parameters now, adapters included.
        unreached: Weight matrices outside linear layers, which stay as they are ("all-linear" only): packed projections
            of attention, stacked experts, convolutions, recurrent layers.
        tokens: Name of an embedding (or output head) -> number of its rows that are trained.
        not_plain: Layers that are linear by class and do more than multiply (a router that returns a tuple), which stay
            as they are -> what they do ("all-linear" only).
        beyond_rank: Adapted layers with more expanded columns than the rank that a change of their weight can have.
    """

    adapted: tuple[str, ...]
    saved: tuple[str, ...]
    head: tuple[str, ...]
    trainable: int
    total: int
    unreached: tuple[str, ...] = ()
    tokens: dict[str, int] = field(default_factory=dict)
    not_plain: dict[str, str] = field(default_factory=dict)
    beyond_rank: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = 100 * self.trainable / self.total
        parts = [
            f"PERA: {len(self.adapted)} adapted layers",
            f"{self.trainable:,} trainable of {self.total:,} parameters ({share:.2f} %)",
        ]
        if self.tokens:
            parts.append(f"trained rows: {', '.join(f'{count} of {name}' for name, count in self.tokens.items())}")
        if self.saved:
            parts.append(f"trained whole, without adapters: {_grouped(self.saved)}")
        if self.head:
            parts.append(f"output head left alone: {', '.join(self.head)}")
        for what in dict.fromkeys(self.not_plain.values()):
            names = [name for name, other in self.not_plain.items() if other == what]
            parts.append(f"no plain linear layers, left alone: {_grouped(names)} (each {what})")
        if self.unreached:
            parts.append(f"no linear layers, left alone: {_grouped(self.unreached)}")
        if self.beyond_rank:
            parts.append(
                "more expanded columns than the smaller side of the layer, so that a smaller rank reaches as much: "
                f"{_grouped(self.beyond_rank)}"
            )
        return "; ".join(parts)


def report_of(model: nn.Module, plan: InjectionPlan) -> InjectionReport:
    """The report of a plan that was carried out on a model."""
    return InjectionReport(
        adapted=tuple(plan.layers),
        saved=plan.saved,
        head=plan.head,
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        total=parameter_count(model),
        unreached=plan.unreached,
        tokens={name: len(tokens.ids) for name, tokens in plan.tokens.items()},
        not_plain=plan.not_plain,
        beyond_rank=tuple(name for name, layer in adapted_layers(model) if _is_beyond_rank(layer)),
    )


def _is_beyond_rank(layer: PeraLinear) -> bool:
    config = layer.config
    sizes = layer.pera_A.shape[1], layer.pera_B.shape[0]
    return column_count(layer.rank, config.order, config.terms) > min(sizes)


def _grouped(names: Iterable[str]) -> str:
    """Names, and of those that differ by numbers one with `*` for these and how many there are."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\b\d+\b", "*", name), []).append(name)
    return ", ".join(f"{kind} ({len(alike)})" if len(alike) > 1 else alike[0] for kind, alike in kinds.items())
