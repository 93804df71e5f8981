"""Adapters under Lightning's `FSDPStrategy` (FSDP1): the base is sharded, each process holds the whole adapter.

FSDP1 puts the parameters of a block into a flat one, of one dtype, in which they lose their shapes. What is trained
stays out of it, and is treated as DDP would: every process starts with the adapter of the first, and gradients are
averaged before the optimizer steps. So optimizer, clipping and checkpoints are those of a single process, while
Lightning's own would refuse to clip, and gather the whole base to save.
"""

from __future__ import annotations

import reprlib
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import FSDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from typing_extensions import override

from pera_lightning.callback.resume.restored_training import optimizers_problem, refuse_optimizer
from pera_lightning.callback.strategies.checkpoint_objects import plain_values_alone
from pera_lightning.callback.strategies.fitting_checkpoint import fitting_checkpoint
from pera_lightning.callback.strategies.flattened import ROOT, is_flattened
from pera_lightning.callback.strategies.refuse_quantized import refuse_quantized
from pera_lightning.callback.strategies.strategy import RunStrategy, refuse_folder
from pera_lightning.checkpoint import Manifest, adapter_state_dict
from pera_lightning.checkpoint.adapter_state import copy_into
from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.injection import adapter_layers, adapter_parameters, saved_modules
from pera_lightning.models.parallel.parallel_causal_lm import blocks
from pera_lightning.storage.remote import place

# On the strategy: its options as they were.
_OPTIONS = "_pera_fsdp_options"
_ALLOWED = {"use_orig_params": True, "state_dict_type": "full", "ignored_states": None, "ignored_modules": None}


class Fsdp1Run(RunStrategy):
    """See `RunStrategy`."""

    writes_to_urls = False
    takes_adapter_folders = False

    @override
    def refuse(self, pl_module: pl.LightningModule, polynomial_start_step: int) -> None:
        options: dict[str, Any] = {**self.strategy.kwargs, "state_dict_type": self.strategy._state_dict_type}
        for name, value in _ALLOWED.items():
            if options.get(name, value) != value:
                raise ConfigError(
                    "PERA keeps the adapter out of what FSDP1 shards, and saves it from the first process.",
                    got=f"strategy: FSDPStrategy with {name}={reprlib.repr(options[name])} beside PeraCallback",
                    expected=f"{name}={value!r}, the default",
                    fix=f"leave {name} out, as configs/strategies/fsdp.yaml does",
                )
        refuse_quantized(self.strategy, pl_module)

    @override
    def refuse_module(self, pl_module: pl.LightningModule) -> None:
        refuse_quantized(self.strategy, pl_module)
        # It may be wrapped by an earlier run of the same kind.
        if ROOT not in vars(pl_module):
            super().refuse_module(pl_module)
        if any(parameter.is_meta for parameter in pl_module.parameters()):
            raise InjectionError(
                "The base has no weights yet; FSDP1 would draw them at random.",
                got="parameters on the meta device under FSDPStrategy",
                expected="a base that is loaded in each process",
                fix="leave out init_module(empty_init=True), or use --config configs/strategies/fsdp2.yaml, under "
                "which only the first process loads the weights of a PeraCausalLM",
            )

    @override
    def has_shapes(self, pl_module: pl.LightningModule) -> bool:
        return not is_flattened(pl_module)

    @override
    def check_before_loading(self, pl_module: pl.LightningModule, present: Manifest, state_key: str) -> None:
        """Have FSDP1 shard the base alone, and checkpoints hold the adapter alone. Collective."""
        super().check_before_loading(pl_module, present, state_key)
        strategy = self.strategy
        options = strategy.__dict__.setdefault(_OPTIONS, strategy.kwargs)
        if ROOT in vars(pl_module):
            # An earlier run has wrapped the module; Lightning would do without what wraps it as a whole.
            strategy.model = vars(pl_module)[ROOT]
            strategy.kwargs = {name: value for name, value in options.items() if name != "auto_wrap_policy"}
        else:
            _start_alike(pl_module, strategy.root_device)
            trained = list(adapter_parameters(pl_module))
            strategy.kwargs = {**_wrap_blocks(pl_module), **options, "ignored_states": trained}
        _compute_as_one_process(strategy)
        # These stay when the run has ended: a checkpoint may be saved after it.
        strategy.__dict__["lightning_module_state_dict"] = lambda: adapter_state_dict(pl_module)
        strategy.__dict__["optimizer_state"] = partial(Strategy.optimizer_state, strategy)

    @override
    def load_checkpoint(
        self, pl_module: pl.LightningModule, present: Manifest, path: str | Path, options: dict[str, Any]
    ) -> dict[str, Any]:
        agreed = self.strategy.broadcast(path)
        refuse_folder(place(agreed))
        fitting_checkpoint(agreed, pl_module, present)
        with plain_values_alone(agreed, options):
            checkpoint = Strategy.load_checkpoint(self.strategy, agreed, **options)
        goes_on = self.trainer.state.fn == TrainerFn.FITTING and "optimizer_states" in checkpoint
        if goes_on:
            refuse_optimizer(optimizers_problem(self.strategy.optimizers, checkpoint["optimizer_states"]), agreed)
        copy_into(pl_module, checkpoint["state_dict"])
        if goes_on:
            Strategy.load_optimizer_state_dict(self.strategy, checkpoint)
        return checkpoint

    @override
    def check_module(self, pl_module: pl.LightningModule) -> None:
        """Look at what Lightning has made of the module, and keep it for later runs."""
        from torch.distributed.fsdp import FullyShardedDataParallel

        pl_module.__dict__[ROOT] = self.strategy.model
        wrapped = [
            name for name, layer in adapter_layers(pl_module) if isinstance(layer.base_layer, FullyShardedDataParallel)
        ]
        if wrapped:
            raise InjectionError(
                "A layer below an adapter was wrapped by itself, which hides it from the adapter.",
                got=f"an auto_wrap_policy that wraps {len(wrapped)} adapted layers, e.g. {wrapped[0]!r}",
                expected="a policy that wraps blocks of the model",
                fix="leave auto_wrap_policy out (the blocks of a transformer are found), or name the class of the "
                "blocks",
            )

    @override
    @torch.no_grad()
    def average_gradients(self, pl_module: pl.LightningModule) -> None:
        """Give every process the mean of all gradients, and the first one's buffers. Collective."""
        if self.trainer.world_size == 1:
            return
        trained = list(dict.fromkeys(value for value in adapter_parameters(pl_module) if value.requires_grad))
        for dtype in dict.fromkeys(value.dtype for value in trained):
            _average([value for value in trained if value.dtype == dtype], self.trainer.world_size)
        for _, module in saved_modules(pl_module):
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, src=0)

    @override
    def end(self) -> None:
        """Also give the strategy its options back, as they name parameters of this run's module."""
        super().end()
        if _OPTIONS in vars(self.strategy):
            self.strategy.kwargs = self.strategy.__dict__.pop(_OPTIONS)


def _average(parameters: list[nn.Parameter], processes: int) -> None:
    """One message for all. A parameter without a gradient counts as zero, if another process has one."""
    gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
    found = gradients[0].new_ones(len(parameters))
    missing = [index for index, value in enumerate(parameters) if value.grad is None]
    for index in missing:
        found[index] = 0
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), found])
    torch.distributed.all_reduce(flat)
    *means, found = flat.div_(processes).split([*(value.numel() for value in parameters), len(parameters)])
    # Only where this process has none it matters whether another has; to ask makes a GPU wait.
    nowhere = {index for index, share in enumerate(found.tolist()) if share == 0} if missing else set()
    for index, (value, gradient, mean) in enumerate(zip(parameters, gradients, means, strict=True)):
        if index not in nowhere:
            value.grad = gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def _start_alike(pl_module: pl.LightningModule, device: torch.device) -> None:
    # FSDP1 moves only what it shards, and does not compare start values.
    for parameter in adapter_parameters(pl_module):
        parameter.data = parameter.data.to(device)
        torch.distributed.broadcast(parameter.data, src=0)


def _wrap_blocks(pl_module: pl.LightningModule) -> dict[str, Any]:
    """The default policy: each block of the model by itself; without any, the whole base would be gathered at once."""
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    below = {type(layer.base_layer) for _, layer in adapter_layers(pl_module)}
    classes = {type(block) for block in blocks(pl_module)} - below
    return {"auto_wrap_policy": ModuleWrapPolicy(classes)} if classes else {}


def _compute_as_one_process(strategy: FSDPStrategy) -> None:
    """Keep weights and buffers as they are, under the Trainer's autocast; and clip, where Lightning refuses to.

    By default Lightning casts a bf16 base up under the precision 32-true, and positions' frequencies down under bf16.
    """
    from torch.distributed.fsdp import MixedPrecision

    if strategy.mixed_precision is None:
        strategy.mixed_precision = MixedPrecision()
    plugin = strategy.precision_plugin
    # It expects parameters that are in parts.
    plugin.__dict__["clip_grad_by_norm"] = partial(Precision.clip_grad_by_norm, plugin)
    if plugin.precision == "32-true":
        plugin.__dict__["convert_module"] = partial(Precision.convert_module, plugin)
