"""Random adapter options whose patterns are made of a model's own names."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from pera_lightning.families import FAMILIES
from pera_lightning.functional import expanded_rank

# Ways to ask for what the model does not have.
WRONG = (
    {"target_modules": ["nothing_like_it"]},
    {"target_modules": ["*fc"]},
    {"target_modules": r".*\.nothing"},
    {"exclude_modules": ["nothing("]},
    {"exclude_modules": ".*"},
    {"modules_to_save": ["nothing"]},
    {"rank_pattern": {"nothing": 2}},
    {"alpha_pattern": {r".*\.nothing": 2.0}},
    {"trainable_tokens": {"nothing": [0]}},
    {"trainable_tokens": {"norm1": [10**6]}},
)


def random_options(rng: random.Random, model: nn.Module) -> tuple[dict[str, Any], bool]:
    """Options of a `PeraConfig`, and whether they must be refused; others may be, seldom."""
    modules = {name: module for name, module in model.named_modules() if name}
    computed = [name for name, module in modules.items() if isinstance(module, nn.Linear) and _is_computed(module)]
    linear = [n for n, m in modules.items() if isinstance(m, (nn.Linear, Conv1D)) and n not in computed]
    tables = [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    options: dict[str, Any] = {
        "rank": rng.randint(1, 4),
        "order": rng.randint(1, 3),
        "alpha": rng.choice([None, None, 1, 0.7, 6]),
        "use_rslora": rng.random() < 0.3,
        "dropout": rng.choice([0.0, 0.0, 0.3]),
        "coefficient_scale": rng.choice([1.0, 2.5, "auto"]),
        "bias": rng.choice(["none", "none", "adapted", "all"]) if _has_bias(linear, modules) else "none",
    }
    options["terms"] = rng.choice(
        [name for name in FAMILIES if expanded_rank(options["rank"], 2, name) > options["rank"]]
    )
    targets = _targets(rng, options, linear, tables)
    saved = _saved(rng, modules)
    excluded = set(computed) if options["target_modules"] == "all-linear" else set()
    if rng.random() < 0.3 and targets:
        excluded.add(_self_or_parent(rng, rng.choice(targets)))
    gone = excluded | {name for name in modules if any(f".{name}".endswith(f".{end}") for end in saved)}
    left = [name for name in targets if not any(f"{name}.".startswith(f"{other}.") for other in gone)]
    if left or rng.random() < 0.2:
        options["modules_to_save"] = saved
        options["target_modules"] = _without_saved(options["target_modules"], saved, modules)
        if excluded:
            options["exclude_modules"] = _expression(excluded) if rng.random() < 0.3 else sorted(excluded)
    elif options["target_modules"] == "all-linear" and computed:
        options["exclude_modules"] = computed
    _patterns(rng, options, left)
    taken = {f"{name}." for name in gone | set(left)}
    _tokens(rng, options, modules, [n for n in [*linear, *tables] if not any(f"{n}.".startswith(t) for t in taken)])
    wrong = rng.random() < 0.08
    if wrong:
        options |= rng.choice(WRONG)
    return options, wrong


def _targets(rng: random.Random, options: dict[str, Any], linear: list[str], tables: list[str]) -> list[str]:
    """Set `target_modules`; returns names that they match, at least."""
    kind = rng.choice(["all-linear", "suffixes", "expression"])
    if kind == "all-linear" and len(linear) > 2:
        options["target_modules"] = kind
        # The last one may be taken for the output head.
        return linear[:-1]
    chosen = _some(rng, linear, rng.randint(1, 4))
    if kind == "expression":
        options["target_modules"] = _expression(chosen)
        return chosen
    chosen += [name for name in tables if rng.random() < 0.5]
    options["target_modules"] = [_suffix(rng, name) for name in chosen]
    return chosen


def _without_saved(targets: Any, saved: Sequence[str], modules: dict[str, nn.Module]) -> Any:
    """Targets without suffixes that name nothing but what is saved whole by its own name, which is refused."""
    if isinstance(targets, str):
        return targets

    def named(ends: Sequence[str]) -> set[str]:
        return {name for name in modules if any(f".{name}".endswith(f".{end}") for end in ends)}

    return [end for end in targets if not named([end]) <= named(saved)] or targets


def _patterns(rng: random.Random, options: dict[str, Any], adapted: list[str]) -> None:
    lowest = next(rank for rank in (1, 2) if expanded_rank(rank, 2, options["terms"]) > rank)
    if adapted and rng.random() < 0.25:
        options["rank_pattern"] = {re.escape(name): rng.randint(lowest, 5) for name in _some(rng, adapted, 2)}
        if rng.random() < 0.5:
            options["rank_pattern"][".*"] = rng.randint(lowest, 5)
    if adapted and rng.random() < 0.25:
        options["alpha_pattern"] = {_suffix(rng, rng.choice(adapted)): rng.choice([0.5, 3])}


def _tokens(rng: random.Random, options: dict[str, Any], modules: dict[str, nn.Module], free: list[str]) -> None:
    """Train rows of embeddings and heads; a weight that is tied to an adapted one is refused."""
    chosen = [name for name in free if rng.random() < (0.5 if "embed" in name else 0.1)]
    rows = {name: modules[name].weight.shape[0] for name in chosen if not isinstance(modules[name], Conv1D)}
    if rows:
        ids = {name: sorted(rng.sample(range(count), rng.randint(1, min(3, count)))) for name, count in rows.items()}
        options["trainable_tokens"] = ids["embed"] if list(ids) == ["embed"] and rng.random() < 0.5 else ids


def _saved(rng: random.Random, modules: dict[str, nn.Module]) -> list[str]:
    tied = _tied(modules)
    if tied and rng.random() < 0.2:
        return rng.choice(tied)
    names = [name for name, module in modules.items() if list(module.parameters())]
    return _some(rng, names, rng.randint(1, 2)) if rng.random() < 0.2 else []


def _tied(modules: dict[str, nn.Module]) -> list[list[str]]:
    """Names of modules that own the same parameter, together."""
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return [names for names in owners.values() if len(names) > 1]


def _self_or_parent(rng: random.Random, name: str) -> str:
    parent = name.rpartition(".")[0]
    return parent if parent and rng.random() < 0.5 else name


def _is_computed(layer: nn.Linear) -> bool:
    return "weight" not in layer._parameters


def _has_bias(names: list[str], modules: dict[str, nn.Module]) -> bool:
    return any(modules[name]._parameters.get("bias") is not None for name in names)


def _some(rng: random.Random, names: Sequence[str], count: int) -> list[str]:
    return rng.sample(names, min(count, len(names)))


def _suffix(rng: random.Random, name: str) -> str:
    """The whole name or its end, by whole components."""
    parts = name.split(".")
    return ".".join(parts[rng.randrange(len(parts)) :]) if rng.random() < 0.5 else name


def _expression(names: Sequence[str] | set[str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names))
