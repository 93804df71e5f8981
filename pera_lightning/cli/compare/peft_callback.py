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

from pera_lightning.base_layers import base_of
from pera_lightning.callback.adapter_root import with_own_modules
from pera_lightning.callback.finite.finite_run import FiniteRun
from pera_lightning.callback.frozen_norms import stop_running_statistics
from pera_lightning.callback.late_injection import cancel_late_injection, inject_after_configure_model
from pera_lightning.cli.compare.peft_options import make_configuration
from pera_lightning.config import PeraConfig
from pera_lightning.errors import CheckpointError, InjectionError, one_line
from pera_lightning.injection import InjectionPlan, plan_injection, saved_modules, saved_tensors
from pera_lightning.injection.saved_modules import mark_saved
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
        if not self._own:
            inject_after_configure_model(pl_module, lambda: self._inject(pl_module))

    def _inject(self, pl_module: pl.LightningModule) -> None:
        config = with_own_modules(self.config, pl_module)
        plan = plan_injection(pl_module, config)
        self._refuse_quantized(pl_module, plan)
        before = {id(tensor) for tensor in _tensors(pl_module)}
        pl_module.requires_grad_(False)
        self._put_in(pl_module, list(plan.layers))
        self._own = [
            (module, name)
            for module in pl_module.modules()
            for name, tensor in _own_tensors(module)
            if id(tensor) not in before
        ]
        self._refuse_left_out(plan, pl_module)
        for name in plan.saved:
            module = pl_module.get_submodule(name)
            mark_saved(module)
            self._own += [(part, own) for part in module.modules() for own, _ in _own_tensors(part)]
        pl_module.strict_loading = False
        pl_module.register_state_dict_post_hook(lambda module, state, prefix, _: self._keep_own(module, state, prefix))

    def _refuse_quantized(self, pl_module: pl.LightningModule, plan: InjectionPlan) -> None:
        """Others than LoRA reckon with the weight itself, of which PEFT would take the packed numbers."""
        modules = dict(pl_module.named_modules())
        packed = [name for name in plan.layers if (base := base_of(modules[name])) and base.quantization(modules[name])]
        if packed and self._kind != "LORA":
            raise InjectionError(
                f"PEFT's {self._kind} is compared over floating bases alone.",
                got=f"{len(packed)} quantised layers, the first is {packed[0]}",
                expected="a base that is not quantised, or LoRA (DoRA and rsLoRA too)",
                fix="leave it out of --methods, or compare without --model.init_args.quantize",
            )

    def _put_in(self, pl_module: pl.LightningModule, layers: list[str]) -> None:
        from peft import inject_adapter_in_model

        root = _pretrained_with(pl_module, layers)
        prefix = next(f"{name}." if name else "" for name, module in pl_module.named_modules() if module is root)
        self._configuration = make_configuration(self.method, [name.removeprefix(prefix) for name in layers])
        try:
            inject_adapter_in_model(self._configuration, root, ADAPTER)
        except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise InjectionError(
                f"PEFT cannot put {self._kind} into the model.",
                got=one_line(error, kind=False),
                expected="layers of the kinds that the method takes, and the packages that it needs",
                fix="name other layers for all methods with --pera.target_modules, or leave the method out",
            ) from error
        self._root = root

    def _refuse_left_out(self, plan: InjectionPlan, pl_module: pl.LightningModule) -> None:
        """PEFT may pass over a layer; then the method would not adapt what the others do."""
        adapted = {id(module) for module, _ in self._own}
        untouched = [
            name for name in plan.layers if not adapted & {id(part) for part in pl_module.get_submodule(name).modules()}
        ]
        if untouched:
            raise InjectionError(
                f"PEFT's {self._kind} left layers without an adapter.",
                got=f"{len(untouched)} of {len(plan.layers)}, the first is {untouched[0]}",
                expected="an adapter in every layer that the other methods adapt",
                fix="name other layers for all methods with --pera.target_modules, or leave the method out",
            )

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
        saved = dict(saved_tensors(root))
        # Of tensors that share memory each gets its own.
        state = {
            f"base_model.model.{name}": value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in (get_peft_model_state_dict(root, adapter_name=ADAPTER) | saved).items()
        }
        configuration: Any = copy.deepcopy(self._configuration)
        configuration.modules_to_save = [name for name, _ in saved_modules(root)] or None
        configuration.base_model_name_or_path = getattr(root, "name_or_path", None)
        with replacing(self.adapter_dir / "adapter_model.safetensors") as temporary:
            save_file(state, temporary)
        configuration.save_pretrained(str(self.adapter_dir))


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _pretrained_with(module: nn.Module, layers: list[str]) -> nn.Module:
    """The transformers model that holds all of these layers, whose kind PEFT asks for; else the module itself."""
    wanted = {id(module.get_submodule(name)) for name in layers}
    for part in module.modules():
        is_pretrained = hasattr(part, "base_model_prefix") and hasattr(part, "get_output_embeddings")
        if is_pretrained and wanted <= {id(inner) for inner in part.modules()}:
            return part
    return module
