"""A fit that starts from a LoRA of PEFT (`init_from`): whose options count, and where its layers are in the module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
from torch import nn

from pera_lightning.callback.adapter_root import adapter_root, prefix_of
from pera_lightning.callback.float_model import inject_into
from pera_lightning.checkpoint.lora.lora_start import copy_lora, plan_lora
from pera_lightning.checkpoint.lora.peft_lora import read_peft_lora
from pera_lightning.config import PeraConfig
from pera_lightning.errors import ConfigError
from pera_lightning.injection import InjectionPlan, InjectionReport, clean_name, inject_plan
from pera_lightning.injection.targets.output_head import outermost_pretrained
from pera_lightning.injection.untrained import note_start
from pera_lightning.run_log.messages import rank_zero_info
from pera_lightning.storage.remote import Place, place

# What a LoRA leaves open. Dropout acts in training only, so that it is the new run's to choose.
_OPEN = ("order", "terms", "dropout", "coefficient_scale")


def chosen_options(
    options: PeraConfig, rank: int | None, config: PeraConfig | None, init_from: str | None, adapter_dir: str | None
) -> PeraConfig:
    """The options of an adapter from those that a user gave; with a LoRA to start from, completed by it.

    Args:
        options: The single options.
        rank: The rank among them if it was given.
        config: Or all of them in one object.
        init_from: Folder of the LoRA.
        adapter_dir: Where the trained adapter is going to be written.

    Raises:
        ConfigError: Options were given twice, or others than the LoRA's; or a folder is no path.
        AdapterFileError: The LoRA cannot be read.
    """
    if config is not None and (options != PeraConfig() or init_from is not None):
        raise ConfigError(
            "PeraCallback got its options twice.",
            got=f"config={config} and {options if init_from is None else f'init_from={init_from!r}'}",
            expected="either config or single options",
            fix="put all options into the PeraConfig; with init_from give order, terms, dropout and coefficient_scale "
            "as single options",
        )
    chosen = None if adapter_dir is None else _resolved(adapter_dir)
    if init_from is None:
        return config or options
    if chosen == _resolved(init_from):
        raise ConfigError(
            "The trained adapter would take the place of the LoRA it started from.",
            got=f"adapter_dir and init_from are both {init_from}",
            expected="two folders",
            fix="name another adapter_dir",
        )
    lora = read_peft_lora(init_from).config
    _refuse_other_options(options, rank, lora, init_from)
    return dataclasses.replace(lora, **{name: getattr(options, name) for name in _OPEN})


def _resolved(folder: str) -> Place:
    found = place(folder)
    return found.resolve() if isinstance(found, Path) else found


def _refuse_other_options(options: PeraConfig, rank: int | None, lora: PeraConfig, init_from: str) -> None:
    default = PeraConfig()
    for field in dataclasses.fields(PeraConfig):
        given, own = getattr(options, field.name), getattr(lora, field.name)
        is_given = rank is not None if field.name == "rank" else given != getattr(default, field.name)
        if field.name not in _OPEN and is_given and given != own:
            raise ConfigError(
                "With init_from this option is the LoRA's.",
                got=f"{field.name}={given!r}",
                expected=f"{own!r}, as the LoRA in {init_from} has it, or nothing",
                fix=f"leave {field.name} out, or if a config file has it, set it to its default "
                f"({getattr(default, field.name)!r}); only {', '.join(_OPEN)} are open",
            )


def start_adapters(
    module: pl.LightningModule,
    config: PeraConfig,
    init_from: str | None,
    shard: Callable[[pl.LightningModule], None],
) -> InjectionReport:
    """Put adapters into a module at their start.

    Args:
        module: The module, without adapters.
        config: The adapter's options.
        init_from: Folder of a LoRA with which they start.
        shard: Shards the module with its adapters, where the run's strategy does.

    Raises:
        AdapterFileError: The LoRA does not fit the module.
    """
    if init_from is None:
        report = inject_into(module, config)
        shard(module)
        # Sharding may exchange the parameters.
        note_start(module)
        return report
    lora, root = read_peft_lora(init_from), _lora_root(module)
    prefix = clean_name(prefix_of(module, root))
    plan = plan_lora(lora, root, config)
    layers = {prefix + name: layer for name, layer in plan.layers.items()}
    report = inject_plan(module, InjectionPlan(config, layers, tuple(prefix + name for name in plan.saved)))
    # First: what is sharded from the meta device gets memory then.
    shard(module)
    copy_lora(lora, root)
    rank_zero_info(f"PERA: adapters of rank {config.rank} and alpha {config.alpha:g} from the LoRA in {init_from}")
    return report


def _lora_root(module: nn.Module) -> nn.Module:
    """The module that PEFT had: before there are adapters, whatever adapters could be in."""
    models = outermost_pretrained(module)
    if len(models) > 1 and not isinstance(getattr(module, "adapter_root", None), nn.Module):
        raise ConfigError(
            "init_from cannot tell which model the LoRA belongs to.",
            got=f"{type(module).__name__} with the models {', '.join(models)}",
            expected="one model",
            fix="name it by an attribute of the module: self.adapter_root = self.student",
        )
    return adapter_root(module)
