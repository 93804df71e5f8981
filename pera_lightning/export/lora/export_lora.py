"""`export_lora`: from a PERA adapter to a LoRA that others load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pera_lightning.concurrency import reading
from pera_lightning.errors import ConfigError, ExportError, InjectionError
from pera_lightning.export.certificate import Certificate, Reference
from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.forms import ExportForm, LoraForm, lora_form
from pera_lightning.export.lora.lora_applied import lora_applied
from pera_lightning.export.lora.lora_card import write_lora_card
from pera_lightning.export.lora.lora_factors import StoredLora
from pera_lightning.export.lora.peft_loading import has_peft, try_peft
from pera_lightning.export.lora.plain_lora import PeraTensors, PlainLora, plain_lora, smaller_rank
from pera_lightning.export.place import check_place, export_kind
from pera_lightning.export.probe import token_probe, uncalled_layers
from pera_lightning.injection import adapted_layers, adapter_layers, marked_modules, original_names
from pera_lightning.layers import PeraLinear
from pera_lightning.layers.call_hooks import changes_output
from pera_lightning.layers.merging import refuse_more
from pera_lightning.option_checks import check_flags
from pera_lightning.storage.remote import local_path
from pera_lightning.storage.whole_folder import whole_folder
from pera_lightning.visible_text import visible_logger

logger = visible_logger(__name__)
Check = Callable[[nn.Module, Path, Reference], Certificate]
"""How an export is loaded back: from the adapted model, the folder and what the model computes."""


def export_lora(
    model_or_dir: nn.Module | str | Path,
    out_dir: str | Path,
    rank: int | None = None,
    *,
    to: ExportForm = "peft",
    max_error: float | None = None,
    dtype: torch.dtype = torch.float32,
    inputs: Sequence[Any] | None = None,
    check: Check | None = None,
    model_config: Any = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write a PERA adapter as a plain LoRA, exactly unless a smaller rank is asked for.

    PERA is a LoRA of the expanded rank K whose factors are made of small ones (paper Eq. 6 to 8); here they are
    written out. Coefficients and scaling are in the factors, every layer has the same rank (zeros fill up), and alpha
    is that rank. With `rank` or `max_error` the weight change is cut by singular values, from a K x K core; the dense
    matrix is never built.

    Args:
        model_or_dir: A model with adapters, or a folder that `save_adapter` wrote: it takes no model to export it.
        out_dir: A new or empty folder, or an earlier export of the same form, which is replaced as a whole when all is
            written and compared. It gets an `export_report.json` too.
        rank: Largest rank of the LoRA; None is exact.
        to: "peft": PEFT's format, which most servers read. "vllm": the same where vLLM takes all of it. "safetensors":
            a file of factors under the layers' own names, for code of your own. "llamacpp": `adapter.gguf`.
        max_error: Instead of `rank`: the relative error of the weight change that no layer may exceed.
        dtype: Of the factors: float32, bfloat16 or float16.
        inputs: With a model: what to call it with to compare the export, loaded back from its files as two plain
            matrix products, with the adapter: a tensor, a tuple of arguments or a dict of keyword arguments for each
            call. Language models have tokens of their own by default. What differs by more than rounding is no export
            (`Certificate`). Where PEFT is installed, its format is loaded by it too, into the shapes of the model.
        check: Another way to load the export back; it may take the model apart.
        model_config: For "llamacpp", with a folder: the config of the transformers model that the adapter belongs to.
        overwrite: Write into a folder with other files too, and replace those of the same names; not into the base
            model's, nor over a PERA adapter.

    Returns:
        Ranks, kept energy and rounding of each layer, and the comparison.

    Raises:
        ConfigError: The options do not go together, or the inputs hold no position.
        ExportError: The export would not be all of the adapter where it is to be loaded (see `refuse_losses`), its rank
            is too high there, it holds values that are not finite or do not fit the dtype, the model's names are not
            those of the model inside that would load it, PEFT leaves a part of it out, or what was loaded back does not
            compute the same. Then nothing is written.
        FolderError: `out_dir` is somebody else's, or cannot be written to; it is as it was.
        InjectionError: The model holds no adapter, or a merged or disabled one, or a layer of it has come to do
            more than multiply.
        AdapterFileError: The folder is missing or damaged.
    """
    _check_options(dtype, inputs, overwrite)
    form = lora_form(to)
    folder = local_path(out_dir, "out_dir")
    with reading(model_or_dir, alone=True):
        if isinstance(model_or_dir, nn.Module):
            _check_model(model_or_dir, form)
        adapter = PeraTensors.of(model_or_dir)
        check_place(folder, to, base=adapter.manifest.base_model, overwrite=overwrite)
        form.refuse_losses(adapter.manifest)
        lora = plain_lora(adapter, rank, max_error=max_error, dtype=dtype)
        form.refuse_rank(lora.rank)
        reference = _reference(model_or_dir, inputs, lora)
        if model_config is None:
            model_config = getattr(model_or_dir, "config", None)
        form.check_config(model_config)
        size = sum(part.nbytes for factors in lora.factors.values() for part in factors)
        with whole_folder(folder, export_kind(to), overwrite=overwrite, bytes_needed=size) as temporary:
            form.write(lora, temporary, model_config)
            certificate = None
            if isinstance(model_or_dir, nn.Module):
                if check is None and form.of_peft and has_peft():
                    try_peft(model_or_dir, temporary)
                if reference is not None:
                    certificate = (check or _plain_check(form, model_config))(model_or_dir, temporary, reference)
                    certificate.refuse_inexact(
                        uncalled_layers(model_or_dir, reference.inputs) if certificate.inexact else ()
                    )
            name = str(dtype).removeprefix("torch.")
            report = ExportReport(
                *(to, lora.rank, name, lora.exact, lora.fits, lora.saved_rounding, certificate),
                smaller=smaller_rank(adapter) if rank is None and max_error is None else None,
            )
            if form.of_peft:
                write_lora_card(temporary, adapter.manifest, report)
            report.write(temporary)
        return report


def _check_options(dtype: torch.dtype, inputs: Sequence[Any] | None, overwrite: bool) -> None:
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(
            "A LoRA is written in a floating dtype that servers read.",
            got=repr(dtype),
            expected="torch.float32, torch.bfloat16 or torch.float16",
            fix="leave it out for float32",
        )
    check_flags(overwrite=overwrite)
    if not (inputs is None or isinstance(inputs, list | tuple)):
        raise ConfigError(
            "inputs holds one call of the model after the other.",
            got=f"a {type(inputs).__name__}",
            expected="a list of tensors, tuples of arguments or dicts of keyword arguments",
            fix="put it in a list: inputs=[...]",
        )


def _check_model(model: nn.Module, form: LoraForm) -> None:
    """Refuse a model that does not compute base plus adapter, and no more, or is not what loads the export."""
    _refuse_inactive(model)
    for name, layer in adapted_layers(model):
        refuse_more(layer.base_layer, layer, name)
    if not form.wrapped:
        _refuse_wrapped(model)
    _name_hooks(model)


def _plain_check(form: LoraForm, model_config: Any) -> Check:
    def check(model: nn.Module, folder: Path, reference: Reference) -> Certificate:
        layers = [name for name, layer in original_names(model) if isinstance(layer, PeraLinear)]
        with lora_applied(model, form.read(folder, model_config, layers)):
            return reference.compare(model, "two plain matrix products per layer")

    return check


def _reference(source: nn.Module | str | Path, inputs: Sequence[Any] | None, lora: PlainLora) -> Reference | None:
    """What the adapted model and its LoRA compute; None without a model or anything to call it with."""
    if not isinstance(source, nn.Module):
        return None
    if inputs is None:
        tokens = token_probe(source)
        if tokens is None:
            return None
        inputs = [tokens]
    reference, losses = Reference.of(source, inputs), _losses(lora)
    return reference if losses is None else reference.lossy(source, StoredLora(lora.factors, lora.saved), losses)


def _losses(lora: PlainLora) -> str | None:
    """What the user asked for that is less than the adapter."""
    wide = next(iter(lora.fits.values())).expanded_rank
    found = [] if lora.exact else [f"rank {lora.rank} of {wide}"]
    dtype = next(iter(lora.factors.values())).down.dtype
    if dtype != torch.float32:
        found.append(f"factors in {str(dtype).removeprefix('torch.')}")
    return " and ".join(found) or None


def _refuse_inactive(model: nn.Module) -> None:
    layers = list(adapter_layers(model))
    for state, names in (
        ("merged", [name for name, layer in layers if layer.merged]),
        ("disabled", [name for name, layer in layers if not layer.enabled]),
    ):
        if names:
            raise InjectionError(
                "The export is compared with the adapter at work beside its base.",
                got=f"{len(names)} {state} layers, e.g. {names[0]!r}",
                expected="an adapter that is neither merged nor disabled",
                fix="call unmerge() on the layers first"
                if state == "merged"
                else "export it outside of adapter_disabled(model)",
            )


def _refuse_wrapped(model: nn.Module) -> None:
    """Refuse a LightningModule, say, around the model that the export is for: its names have one component more."""
    if hasattr(model, "save_pretrained"):
        return
    # What lies beside the inner model belongs to the whole, and the names with it.
    names = [name for name, _ in (*adapter_layers(model), *marked_modules(model))]
    inner = (name for name, module in original_names(model) if hasattr(module, "save_pretrained"))
    around = next((name for name in inner if names and all(own.startswith(f"{name}.") for own in names)), None)
    if around is not None:
        raise ExportError(
            "The names in the export would not be those of the model that loads it.",
            got=f"a {type(model).__name__} with the model in its {around!r}",
            expected="the model itself",
            fix=f"export_lora(module.{around}, ...), or name the adapter's folder",
        )


def _name_hooks(model: nn.Module) -> None:
    hooked = [name for name, layer in original_names(model) if changes_output(layer)]
    if hooked:
        logger.warning(
            "The export holds no hooks: those of %s act in this model on what base and adapter give together. A model "
            "that loads the export computes the same if they do no more than look.",
            ", ".join(map(repr, hooked[:5])) + (f" and {len(hooked) - 5} more layers" if len(hooked) > 5 else ""),
        )
