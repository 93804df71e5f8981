"""Adapters of PEFT in place of PERA's, under the same duties: a frozen base and checkpoints of the adapter alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from typing_extensions import override

from pera_lightning.callback.adapter_root import with_own_modules
from pera_lightning.callback.conflicting_callbacks import refuse_conflicting_callbacks
from pera_lightning.callback.finite.finite_run import FiniteRun
from pera_lightning.callback.frozen_norms import stop_running_statistics
from pera_lightning.callback.late_injection import cancel_late_injection, inject_after_configure_model
from pera_lightning.cli.compare.peft_model_checks import refuse_averaging, refuse_other_parts, refuse_unfit_model
from pera_lightning.cli.compare.peft_options import make_configuration
from pera_lightning.config import PeraConfig
from pera_lightning.errors import CheckpointError, InjectionError, one_line
from pera_lightning.injection import InjectionPlan, plan_injection, saved_modules, saved_tensors
from pera_lightning.injection.saved_modules import mark_saved
from pera_lightning.layers import adapted_layer
from pera_lightning.storage.atomic import replacing

ADAPTER = "default"


class PeftCallback(pl.Callback):
    """Injects adapters of PEFT into the layers that `PeraCallback` would adapt.

    The base and everything else are frozen, but the modules saved whole; `.ckpt` files hold what PEFT added and those
    modules. For one device.

    Args:
        config: The options of `PeraCallback`; of them count which layers are adapted and which modules are saved whole.
        method: Fields of PEFT's configuration, with its `peft_type`.
        adapter_dir: Folder for the adapter that was tested.
    """

    def __init__(self, config: PeraConfig, method: Mapping[str, Any], adapter_dir: Path) -> None:
        self.config = config
        self.method = dict(method)
        self._kind: str = self.method["peft_type"]
        self.adapter_dir = adapter_dir
        self._own: list[tuple[nn.Module, str]] = []
        self._finite_run = FiniteRun()

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        refuse_conflicting_callbacks(trainer)
        refuse_averaging(trainer)
        inject_after_configure_model(pl_module, lambda: self._inject(pl_module))

    def _inject(self, pl_module: pl.LightningModule) -> None:
        if self._own:
            self._refuse_lost(pl_module)
            return
        plan = plan_injection(pl_module, with_own_modules(self.config, pl_module))
        refuse_unfit_model(pl_module, plan, self.method)
        pl_module.requires_grad_(False)
        self._put_in(pl_module, plan)
        self._own = [(module, name) for module in _own_modules(pl_module, plan) for name, _ in _own_tensors(module)]
        refuse_other_parts(pl_module, plan, self._own, self._kind)
        self._train_in_float32()
        for name in plan.saved:
            module = pl_module.get_submodule(name)
            mark_saved(module)
            self._own += [(part, own) for part in module.modules() for own, _ in _own_tensors(part)]
        pl_module.strict_loading = False
        pl_module.register_state_dict_post_hook(lambda module, state, prefix, _: self._keep_own(module, state, prefix))

    def _refuse_lost(self, pl_module: pl.LightningModule) -> None:
        there = {id(module) for module in pl_module.modules()}
        if any(id(module) not in there for module, _ in self._own):
            raise CheckpointError(
                "The trained adapters are gone: the model was built anew.",
                got="a model without adapters in a later part of the run",
                expected="the model that was trained",
                fix="build the model only once: `if self.model is None:` in setup() or configure_model()",
            )

    def _put_in(self, pl_module: pl.LightningModule, plan: InjectionPlan) -> None:
        from peft import inject_adapter_in_model

        layers = list(plan.layers)
        root = _pretrained_with(pl_module, layers)
        prefix = next(f"{name}." if name else "" for name, module in pl_module.named_modules() if module is root)
        self._configuration = make_configuration(self.method, [name.removeprefix(prefix) for name in layers])
        bases = {name: pl_module.get_submodule(name) for name in layers}
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                inject_adapter_in_model(self._configuration, root, ADAPTER)
        except (AttributeError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise InjectionError(
                f"PEFT cannot put {self._kind} into the model.",
                got=one_line(error, kind=False),
                expected="options and layers that the method takes, and the packages that it needs",
                fix="correct its options in --methods, or leave it out; --pera.target_modules names other layers",
            ) from error
        # Rows and dropout are drawn next: they come as they do after adapters of ours have been made.
        for name, layer in plan.layers.items():
            adapted_layer(bases[name], plan.config, rank=layer.rank, alpha=layer.alpha)
        self._root = root

    def _train_in_float32(self) -> None:
        """As PEFT does where it wraps a model itself, and as adapters of ours are."""
        for module, name in self._own:
            value = getattr(module, name)
            if isinstance(value, nn.Parameter) and value.dtype in (torch.float16, torch.bfloat16):
                value.data = value.data.float()

    def _names(self, pl_module: nn.Module) -> set[str]:
        """What the adapter's tensors are called at this moment: layers may have been taken out of the base since."""
        places = {id(module): name for name, module in pl_module.named_modules()}
        found = ((places.get(id(module)), name) for module, name in self._own)
        return {f"{place}.{name}" if place else name for place, name in found if place is not None}

    def _keep_own(self, module: nn.Module, state: dict[str, Any], prefix: str) -> None:
        own = {f"{prefix}{name}" for name in self._names(module)}
        for key in [key for key in state if key not in own]:
            del state[key]

    @override
    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Any) -> None:
        missing = pl_module.state_dict().keys() - checkpoint["state_dict"].keys()
        if missing:
            raise CheckpointError(
                "The checkpoint is not of this method.",
                got=f"{len(missing)} tensors are missing, the first is {min(missing)}",
                expected=f"the adapter of PEFT's {self._kind} as this comparison saves it",
                fix="delete the folder of the run, and it is made again",
            )

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_running_statistics(pl_module)
        self._finite_run.on_train_start(trainer)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_running_statistics(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._finite_run.on_train_batch(batch)

    @override
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self._finite_run.on_before_backward(trainer, loss)

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self._finite_run.look()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._finite_run.on_train_batch(None)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._finite_run.on_fit_end(trainer)

    @override
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(pl_module)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        cancel_late_injection(pl_module)
        self._finite_run.forget()

    def _write(self, pl_module: pl.LightningModule) -> None:
        """A folder that PEFT loads into the plain model."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        root = self._root
        own = get_peft_model_state_dict(root, adapter_name=ADAPTER, save_embedding_layers=False)
        # Of tensors that share memory each gets its own.
        state = {
            f"base_model.model.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in (own | dict(saved_tensors(root))).items()
        }
        configuration: Any = copy.deepcopy(self._configuration)
        configuration.modules_to_save = [name for name, _ in saved_modules(root)] or None
        configuration.base_model_name_or_path = getattr(root, "name_or_path", None)
        with replacing(self.adapter_dir / "adapter_model.safetensors") as temporary:
            save_file(state, temporary)
        configuration.save_pretrained(str(self.adapter_dir))


def _own_modules(pl_module: nn.Module, plan: InjectionPlan) -> Iterator[nn.Module]:
    """The modules that PEFT has put into the layers of a plan; it keeps the base under `base_layer`."""
    for name in plan.layers:
        for inner, module in pl_module.get_submodule(name).named_modules():
            if "base_layer" not in inner.split("."):
                yield module


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _pretrained_with(module: nn.Module, layers: list[str]) -> nn.Module:
    """The transformers model that holds all of these layers, whose kind PEFT asks for; else the module itself."""
    wanted = {id(module.get_submodule(name)) for name in layers}
    for part in module.modules():
        is_pretrained = hasattr(part, "base_model_prefix") and hasattr(part, "get_output_embeddings")
        if is_pretrained and wanted <= {id(inner) for inner in part.modules()}:
            return part
    return module
