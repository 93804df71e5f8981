"""`export_lora`: from a PERA adapter to a LoRA that others load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pera_lightning.errors import ConfigError, ExportError, InjectionError
from pera_lightning.export.certificate import Certificate, Reference, lora_applied
from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.factors_format import read_factors, write_factors
from pera_lightning.export.gguf_adapter import read_gguf_factors, write_gguf_adapter
from pera_lightning.export.lora_card import write_lora_card
from pera_lightning.export.lora_factors import LoraFactors
from pera_lightning.export.peft_format import read_peft_factors, write_peft
from pera_lightning.export.place import check_place
from pera_lightning.export.plain_lora import PeraTensors, PlainLora, plain_lora
from pera_lightning.export.probe import token_probe
from pera_lightning.export.servers import SERVERS, Server, refuse_losses, refuse_rank
from pera_lightning.injection import adapter_layers, original_names
from pera_lightning.layers import PeraLinear

GGUF_FILE = "adapter.gguf"
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
    model_config: Any = None,
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
            a file of factors under the layers' own names, for code of your own. "llamacpp": `adapter.gguf`.
        max_error: Instead of `rank`: the relative error of the weight change that no layer may exceed.
        dtype: Of the factors: float32, bfloat16 or float16.
        inputs: With a model: what to call it with to compare the export, loaded back from its files as two plain
            matrix products, with the adapter: a tensor, a tuple of arguments or a dict of keyword arguments for each
            call. Language models have tokens of their own by default.
        check: Another way to load the export back; it may take the model apart.
        model_config: For "llamacpp", with a folder: the config of the transformers model that the adapter belongs to.

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
    if to not in SERVERS:
        raise ConfigError(
            "There is no such target of an export.",
            got=repr(to),
            expected=" or ".join(map(repr, SERVERS)),
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
    form = _form(to, getattr(model_or_dir, "config", None) if model_config is None else model_config)
    form.write(lora, folder)
    certificate = None
    if isinstance(model_or_dir, nn.Module) and reference is not None:
        certificate = (check or _plain_check(form))(model_or_dir, folder, reference)
    report = ExportReport(to, lora.rank, str(dtype).removeprefix("torch."), lora.exact, lora.fits, certificate)
    report.write(folder)
    if to in ("peft", "vllm"):
        write_lora_card(folder, adapter.manifest, report)
    return report


class _Form(NamedTuple):
    """How a form of LoRA is written to a folder and read back."""

    write: Callable[[PlainLora, Path], None]
    read: Callable[[Path, Iterable[str]], dict[str, LoraFactors]]


def _form(to: Server, model_config: Any) -> _Form:
    if to == "safetensors":
        return _Form(write_factors, lambda folder, _: read_factors(folder))
    if to != "llamacpp":
        return _Form(write_peft, lambda folder, _: read_peft_factors(folder))
    if model_config is None:
        raise ExportError(
            "GGUF files name layers by the kind of model, which an adapter folder does not tell.",
            got="no config of the model",
            expected="a transformers model, or its config",
            fix="export_lora(model, ...), or model_config=AutoConfig.from_pretrained(base)",
        )
    return _Form(
        lambda lora, folder: write_gguf_adapter(lora, folder / GGUF_FILE, model_config),
        lambda folder, layers: read_gguf_factors(folder / GGUF_FILE, model_config, layers),
    )


def _plain_check(form: _Form) -> Check:
    def check(model: nn.Module, folder: Path, reference: Reference) -> Certificate:
        layers = [name for name, layer in original_names(model) if isinstance(layer, PeraLinear)]
        with lora_applied(model, form.read(folder, layers)):
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
