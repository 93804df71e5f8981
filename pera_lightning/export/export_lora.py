"""`export_lora`: from a PERA adapter to a LoRA that others load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.export.certificate import Reference, lora_applied
from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.peft_format import read_peft_factors, write_peft
from pera_lightning.export.place import check_place
from pera_lightning.export.plain_lora import PeraTensors, plain_lora
from pera_lightning.export.probe import token_probe
from pera_lightning.export.servers import refuse_losses
from pera_lightning.injection import adapter_layers


def export_lora(
    model_or_dir: nn.Module | str | Path,
    out_dir: str | Path,
    rank: int | None = None,
    *,
    max_error: float | None = None,
    dtype: torch.dtype = torch.float32,
    inputs: Sequence[Any] | None = None,
) -> ExportReport:
    """Write a PERA adapter as a plain LoRA in PEFT's format, exactly unless a smaller rank is asked for.

    PERA is a LoRA of the expanded rank K whose factors are made of small ones (paper Eq. 6 to 8); here they are
    written out. Coefficients and scaling are in the factors, every layer has the same rank (zeros fill up), and alpha
    is that rank. With `rank` or `max_error` the weight change is cut by singular values, from a K x K core; the dense
    matrix is never built.

    Args:
        model_or_dir: A model with adapters, or a folder that `save_adapter` wrote: it takes no model to export it.
        out_dir: Folder to write `adapter_model.safetensors`, `adapter_config.json` and `export_report.json` to.
        rank: Largest rank of the LoRA; None is exact.
        max_error: Instead of `rank`: the relative error of the weight change that no layer may exceed.
        dtype: Of the factors: float32, bfloat16 or float16.
        inputs: With a model: what to call it with to compare the export, loaded back from its files as two plain
            matrix products, with the adapter: a tensor, a tuple of arguments or a dict of keyword arguments for each
            call. Language models have tokens of their own by default.

    Returns:
        Ranks, kept energy and rounding of each layer, and the comparison.

    Raises:
        ConfigError: The options do not go together.
        ExportError: PEFT would not apply all of the adapter (trained biases or token rows), or it holds values that
            are not finite or do not fit the dtype.
        InjectionError: The model holds no adapter, or a merged one.
        AdapterFileError: The folder is missing or damaged.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(
            "A LoRA is written in a floating dtype that servers read.",
            got=repr(dtype),
            expected="torch.float32, torch.bfloat16 or torch.float16",
            fix="leave it out for float32",
        )
    folder = Path(out_dir)
    check_place(folder)
    if isinstance(model_or_dir, nn.Module):
        _refuse_merged(model_or_dir)
    adapter = PeraTensors.of(model_or_dir)
    refuse_losses("peft", adapter.manifest)
    lora = plain_lora(adapter, rank, max_error=max_error, dtype=dtype)
    write_peft(lora, folder)
    certificate = None
    if isinstance(model_or_dir, nn.Module):
        calls = _default_inputs(model_or_dir) if inputs is None else inputs
        if calls:
            reference = Reference.of(model_or_dir, calls)
            with lora_applied(model_or_dir, read_peft_factors(folder)):
                certificate = reference.compare(model_or_dir, "two plain matrix products per layer")
    report = ExportReport("peft", lora.rank, str(dtype).removeprefix("torch."), lora.exact, lora.fits, certificate)
    report.write(folder)
    return report


def _default_inputs(model: nn.Module) -> list[Any]:
    tokens = token_probe(model)
    return [] if tokens is None else [tokens]


def _refuse_merged(model: nn.Module) -> None:
    merged = [name for name, layer in adapter_layers(model) if layer.merged]
    if merged:
        raise InjectionError(
            "The export is compared with the adapter beside its base.",
            got=f"{len(merged)} merged layers, e.g. {merged[0]!r}",
            expected="an unmerged adapter",
            fix="call unmerge() on the layers first",
        )
