"""`export_lora`: from a PERA adapter to a LoRA that others load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pera_lightning.errors import ConfigError, InjectionError
from pera_lightning.export.certificate import Certificate, Reference, lora_applied
from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.factors_format import read_factors, write_factors
from pera_lightning.export.lora_factors import LoraFactors
from pera_lightning.export.peft_format import read_peft_factors, write_peft
from pera_lightning.export.place import check_place
from pera_lightning.export.plain_lora import PeraTensors, PlainLora, plain_lora
from pera_lightning.export.probe import token_probe
from pera_lightning.export.servers import Server, refuse_losses, refuse_rank
from pera_lightning.injection import adapter_layers

Check = Callable[[nn.Module, Path, Reference], Certificate]
"""How an export is loaded back: from the adapted model, the folder and what the model computes."""


def export_lora(
    model_or_dir: nn.Module | str | Path,
    out_dir: str | Path,
    rank: int | None = None,
    *,
    to: Server = "peft",
    max_error: float | None = None,
    dtype: torch.dtype = torch.float32,
    inputs: Sequence[Any] | None = None,
    check: Check | None = None,
) -> ExportReport:
    """Write a PERA adapter as a plain LoRA, exactly unless a smaller rank is asked for.

    PERA is a LoRA of the expanded rank K whose factors are made of small ones (paper Eq. 6 to 8); here they are
    written out. Coefficients and scaling are in the factors, every layer has the same rank (zeros fill up), and alpha
    is that rank. With `rank` or `max_error` the weight change is cut by singular values, from a K x K core; the dense
    matrix is never built.

    Args:
        model_or_dir: A model with adapters, or a folder that `save_adapter` wrote: it takes no model to export it.
        out_dir: Folder to write to, beside others `export_report.json`.
        rank: Largest rank of the LoRA; None is exact.
        to: "peft": PEFT's format, which most servers read. "vllm": the same where vLLM takes all of it. "safetensors":
            a file of factors under the layers' own names, for code of your own.
        max_error: Instead of `rank`: the relative error of the weight change that no layer may exceed.
        dtype: Of the factors: float32, bfloat16 or float16.
        inputs: With a model: what to call it with to compare the export, loaded back from its files as two plain
            matrix products, with the adapter: a tensor, a tuple of arguments or a dict of keyword arguments for each
            call. Language models have tokens of their own by default.
        check: Another way to load the export back; it may take the model apart.

    Returns:
        Ranks, kept energy and rounding of each layer, and the comparison.

    Raises:
        ConfigError: The options do not go together.
        ExportError: The export would not be all of the adapter where it is to be loaded (see `refuse_losses`), its rank
            is too high there, it holds values that are not finite or do not fit the dtype, or `out_dir` holds a PERA
            adapter.
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
    if to not in _FORMATS:
        raise ConfigError(
            "There is no such target of an export.",
            got=repr(to),
            expected=" or ".join(map(repr, _FORMATS)),
            fix="use 'peft', which most servers read",
        )
    folder = Path(out_dir)
    check_place(folder)
    if isinstance(model_or_dir, nn.Module):
        _refuse_merged(model_or_dir)
    adapter = PeraTensors.of(model_or_dir)
    refuse_losses(to, adapter.manifest)
    lora = plain_lora(adapter, rank, max_error=max_error, dtype=dtype)
    refuse_rank(to, lora.rank)
    reference = _reference(model_or_dir, inputs)
    write, _ = _FORMATS[to]
    write(lora, folder)
    certificate = None
    if isinstance(model_or_dir, nn.Module) and reference is not None:
        certificate = (check or _plain_check(to))(model_or_dir, folder, reference)
    report = ExportReport(to, lora.rank, str(dtype).removeprefix("torch."), lora.exact, lora.fits, certificate)
    report.write(folder)
    return report


def _plain_check(to: Server) -> Check:
    _, read = _FORMATS[to]

    def check(model: nn.Module, folder: Path, reference: Reference) -> Certificate:
        with lora_applied(model, read(folder)):
            return reference.compare(model, "two plain matrix products per layer")

    return check


def _reference(source: nn.Module | str | Path, inputs: Sequence[Any] | None) -> Reference | None:
    """What the adapted model computes; None without a model or anything to call it with."""
    if not isinstance(source, nn.Module):
        return None
    if inputs is None:
        tokens = token_probe(source)
        inputs = [] if tokens is None else [tokens]
    return Reference.of(source, inputs) if inputs else None


def _refuse_merged(model: nn.Module) -> None:
    merged = [name for name, layer in adapter_layers(model) if layer.merged]
    if merged:
        raise InjectionError(
            "The export is compared with the adapter beside its base.",
            got=f"{len(merged)} merged layers, e.g. {merged[0]!r}",
            expected="an unmerged adapter",
            fix="call unmerge() on the layers first",
        )


_FORMATS: Mapping[Server, tuple[Callable[[PlainLora, Path], None], Callable[[Path], dict[str, LoraFactors]]]] = {
    "peft": (write_peft, read_peft_factors),
    "vllm": (write_peft, read_peft_factors),
    "safetensors": (write_factors, read_factors),
}
