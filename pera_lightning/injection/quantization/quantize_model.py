"""`quantize_model`: a floating model becomes a 4-bit or 8-bit one, in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pera_lightning.base_layers import (
    Quantization,
    base_of,
    beyond_multiplying,
    check_layer,
    check_quantization,
    quantize_linear,
)
from pera_lightning.concurrency import in_turn
from pera_lightning.errors import ConfigError, InjectionError, TargetError
from pera_lightning.injection.quantization.stored_bytes import stored_bytes
from pera_lightning.injection.replacement import replace_modules
from pera_lightning.injection.shared_memory import SharedMemory
from pera_lightning.injection.targets.names import clean_name, has_suffix, near_names
from pera_lightning.injection.targets.output_head import output_head
from pera_lightning.injection.targets.plan import refuse_adapted
from pera_lightning.injection.weight_readers import read_by_torch
from pera_lightning.layers.call_hooks import carry_hooks


@dataclass(frozen=True)
class QuantizationReport:
    """What a quantisation did.

    Attributes:
        quantized: Names of the quantised layers.
        left: Names of the linear layers left as they were.
        bytes_before: Bytes of all parameters and buffers before.
        bytes_after: The same afterwards.
    """

    quantized: tuple[str, ...]
    left: tuple[str, ...]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        share = 100 * self.bytes_after / self.bytes_before
        return (
            f"{len(self.quantized)} layers quantised: {self.bytes_before / 1e6:.1f} MB -> "
            f"{self.bytes_after / 1e6:.1f} MB ({share:.1f} %); left alone: {', '.join(self.left) or 'none'}"
        )


@in_turn
def quantize_model(
    model: nn.Module,
    quantization: Quantization,
    *,
    skip_modules: Sequence[str] = (),
    blocksize: int | None = None,
    compute_dtype: torch.dtype | None = None,
    quant_storage: torch.dtype = torch.uint8,
    device: torch.device | str | None = None,
) -> QuantizationReport:
    """Quantise the linear layers of a floating model with bitsandbytes, in place, before adapters are injected.

    One layer at a time, so that never more than one exists in both forms. The output head, weights shared with other
    modules (a tied embedding), layers whose weights torch's attention modules read themselves, layers that do more than
    multiply (routers) and everything that is no linear layer stay as they are. Hooks move to the quantised layers.

    Args:
        model: Any module with floating linear layers (also transformers' Conv1D).
        quantization: "nf4", "nf4-dq" (NF4 whose scales are quantised too), "fp4" or "int8".
        skip_modules: Name suffixes of more layers to leave alone; a container leaves out all within.
        blocksize: Weights that share one scale (4-bit only); 64 by default.
        compute_dtype: Dtype of the products (4-bit only); by default that of each weight.
        quant_storage: Dtype that 4-bit weights are stored as; FSDP wants that of the other parameters.
        device: Where the quantised weights go; by default each stays on its device.

    Returns:
        Names of the layers, and bytes before and after.

    Raises:
        ConfigError: The options do not go together, or bitsandbytes is missing.
        InjectionError: The model holds adapters, or is quantised already.
        TargetError: A name in `skip_modules` matches nothing, or no layer is left to quantise.
    """
    check_quantization(quantization, blocksize, compute_dtype, quant_storage)
    _check_device(device)
    refuse_adapted(model)
    names, left = layers_to_quantize(model, skip_modules)
    for aliases in names:
        check_layer(model.get_submodule(aliases[0]), quantization, quant_storage)
    before = stored_bytes(model)
    for aliases in names:
        layer = model.get_submodule(aliases[0])
        new = quantize_linear(
            layer,
            quantization,
            blocksize=blocksize,
            compute_dtype=compute_dtype,
            quant_storage=quant_storage,
            device=None if device is None else torch.device(device),
        )
        carry_hooks(layer, new)
        for name in aliases:
            replace_modules(model.get_submodule(name.rpartition(".")[0]), {id(layer): new})
    quantized = tuple(clean_name(aliases[0]) for aliases in names)
    return QuantizationReport(quantized, tuple(left), before, stored_bytes(model))


def layers_to_quantize(model: nn.Module, skip_modules: Sequence[str] = ()) -> tuple[list[list[str]], list[str]]:
    """Which layers `quantize_model` takes; nothing is changed.

    Returns:
        Names of the layers to quantise, all names of a shared layer together; and names of the layers left alone.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    _check_skipped(modules, skip_modules)
    head, read = output_head(model), read_by_torch(model)
    memory = SharedMemory(model)
    chosen: dict[int, list[str]] = {}
    left = []
    for name, module in modules.items():
        base = base_of(module)
        if base is None or not base.linear or not name:
            continue
        _refuse_quantized(name, base.quantization(module))
        tied = any(memory.owners(parameter, besides=[module]) for parameter in module.parameters(recurse=False))
        kept = name in head or tied or id(module) in read or beyond_multiplying(module) is not None
        if kept or _is_skipped(name, skip_modules):
            left.append(clean_name(name))
        else:
            chosen.setdefault(id(module), []).append(name)
    if not chosen:
        raise TargetError(
            "The model has no linear layer to quantise.",
            got=f"linear layers: {', '.join(left) or 'none'}, all of them left alone",
            expected="a model with linear layers beside its output head",
            fix="skip fewer modules",
        )
    return list(chosen.values()), left


def _check_device(device: torch.device | str | None) -> None:
    kind = None if device is None else torch.device(device).type
    if kind == "meta" or (kind == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(
            "There is no such device to quantise on.",
            got=f"device={str(device)!r}",
            expected="a device with memory on this machine",
            fix="leave device out: every layer stays where it is",
        )


def _is_skipped(name: str, skip_modules: Sequence[str]) -> bool:
    parts = clean_name(name).split(".")
    containers = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(has_suffix(container, suffix) for container in containers for suffix in skip_modules)


def _check_skipped(modules: dict[str, nn.Module], skip_modules: Sequence[str]) -> None:
    if isinstance(skip_modules, str):
        raise ConfigError(
            "skip_modules is a list of name suffixes.", got=repr(skip_modules), expected="a list", fix="write a list"
        )
    for suffix in skip_modules:
        if not any(has_suffix(clean_name(name), suffix) for name in modules):
            raise TargetError(
                "skip_modules holds a name that matches no module.",
                got=repr(suffix),
                expected="a name suffix by whole components",
                fix=f"correct the name; near names in this model: {near_names(suffix, modules)}",
            )


def _refuse_quantized(name: str, quantization: str | None) -> None:
    if quantization is not None:
        raise InjectionError(
            "The model is quantised already.",
            got=f"{name!r} is {quantization}",
            expected="a floating model",
            fix="leave the call out, or load the model without quantisation",
        )
