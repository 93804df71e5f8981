"""`export`: an adapter in a form that others load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pera_lightning.checkpoint.base_code import base_code
from pera_lightning.checkpoint.manifest.manifest import read_manifest
from pera_lightning.cli.screen import show
from pera_lightning.errors import ConfigError
from pera_lightning.export.forms import LORA_FORMS, MODEL_FORMS, ExportForm
from pera_lightning.option_checks import one_of
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.storage.remote import local_path, place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def export(
    adapter: str,
    out: str,
    to: ExportForm = "peft",
    rank: int | None = None,
    max_error: float | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    into: Literal["auto", "dequantized", "original"] = "auto",
    check: bool = True,
    base: str | None = None,
    gguf_file: str | None = None,
    base_dtype: Literal["auto", "native", "float32", "bfloat16", "float16"] = "float32",
    rows: str | None = None,
    positions: int = 2000,
    system_prompt: str | None = None,
    use_chat_template: bool | None = None,
    overwrite: bool = False,
) -> None:
    """Write a PERA adapter in a form that others load, load that back and compare it with the adapter.

    As a LoRA it is exact, of the expanded rank, unless --rank or --max_error cut it by singular values. What was found
    stands in export_report.json beside it.

    Args:
        adapter: Folder of the adapter, as the fit wrote it.
        out: Folder to write to: new, empty, or an earlier export of the same form, which is replaced.
        to: "peft" for PEFT and what reads its format; "vllm": the same, after checking that vLLM takes all of it;
            "llamacpp": a GGUF file for llama.cpp's --lora; "merged": the base model with the adapter in its weights,
            with tokenizer, as transformers loads it; "gguf": the base's GGUF file (--gguf_file) with the adapter in its
            weights; "safetensors": a file of factors under the layers' own names, for
            code of your own.
        rank: Largest rank of the LoRA.
        max_error: Instead of --rank: the relative error of the weight change that no layer may exceed; the smallest
            rank that holds it is chosen.
        dtype: Of the LoRA's factors, by default float32; of a merged model, by default the base's; of the merged
            weights in a GGUF file, by default float16.
        into: For "merged", where training quantised the base: onto the dequantised weights ("auto"), which computes
            what was trained, or onto the original ones.
        check: Load the base model and the export (by PEFT where it is installed) and compare outputs. A LoRA of a
            module of one's own, whose adapter names no base model, is not compared here: `export_lora(model, ...)` in
            Python does it.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        base_dtype: Dtype of the base's weights in the comparison.
        rows: File of rows in the format of the training, to compare on; some sentences by default.
        positions: How many tokens of the rows are compared.
        system_prompt: Another system message than that of the training; "" is the chat template's own.
        use_chat_template: Whether to use the tokenizer's chat template; by default as in training.
        overwrite: Write into a folder with other files too, and replace those of the same names. The folder then
            holds an export of ours: later calls replace that without this option.
    """
    import torch

    from pera_lightning.export import export_lora
    from pera_lightning.export.export_check import check_with_peft
    from pera_lightning.export.lora.peft_loading import has_peft
    from pera_lightning.export.place import check_place
    from pera_lightning.loading.adapted_model import load_adapted_model
    from pera_lightning.loading.adapter_source import adapter_source
    from pera_lightning.loading.pretrained import load_config

    # What is wrong is said before the base is loaded.
    _refuse_idle(to, check, rank, max_error, into, rows, base_dtype)
    folder, examples = local_path(out, "--out"), None if rows is None else local_path(rows, "--rows")
    manifest = read_manifest(place(adapter) / CONFIG_FILE)
    if to in MODEL_FORMS:
        model = MODEL_FORMS[to]
        merging: dict[str, Any] = {"base": base, "gguf_file": gguf_file, "compare": check, "overwrite": overwrite}
        merging |= ({} if dtype is None else {"dtype": dtype}) | ({"into": into} if model.takes_into else {})
        show(model.export(adapter, out, **merging))
        show(model.how_to_load(folder, manifest))
        return
    form = LORA_FORMS[to]
    check_place(folder, to, base=base or manifest.base_model, overwrite=overwrite)
    form.refuse_losses(manifest)
    options: dict[str, Any] = {"to": to, "max_error": max_error, "dtype": getattr(torch, dtype or "float32")}
    options["overwrite"] = overwrite
    source: Any = adapter
    own_module = base_code(manifest) is None and manifest.base_model is None
    if check and own_module and base is None and not form.needs_config:
        check = _refuse_rows(rows)
    if check:
        if form.of_peft and has_peft():
            options["check"] = check_with_peft
        source, tokenizer = load_adapted_model(adapter, base=base, gguf_file=gguf_file, dtype=base_dtype)
        as_trained = {
            "trained": manifest.chat,
            "use_chat_template": use_chat_template,
            "system_prompt": system_prompt,
        }
        options["inputs"] = _inputs(source, tokenizer, examples, positions, as_trained)
    elif form.needs_config:
        options["model_config"] = load_config(adapter_source(place(adapter), manifest, base, gguf_file))
    report = export_lora(source, out, rank, **options)
    show(report)
    assert report.rank is not None
    show(form.how_to_load(folder, base or manifest.base_model or "BASE", report.rank))


def _refuse_rows(rows: str | None) -> Literal[False]:
    """Say that nothing will be compared; refuse what there is to compare on."""
    if rows is not None:
        raise ConfigError(
            "Without a base model there is nothing to compare.",
            got="--rows, and an adapter that names no base model",
            expected="its base model",
            fix="name it with --base, or leave --rows out",
        )
    show(
        "Not compared: the adapter names no base model. It is of a module of your own: export_lora(model, folder, "
        "inputs=[...]) in Python compares the export with it."
    )
    return False


def _inputs(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: Path | None, positions: int, as_trained: dict[str, Any]
) -> list[dict[str, Any]]:
    """What the export is compared on: rows of a file, encoded as in training, or some sentences."""
    from pera_lightning.data.chat.as_trained import encoder_as_trained
    from pera_lightning.export.export_check import row_inputs, sentence_inputs

    if examples is None:
        return sentence_inputs(tokenizer)
    return row_inputs(examples, encoder_as_trained(tokenizer, max_length=4096, **as_trained), positions, model)


def _refuse_idle(
    to: str, check: bool, rank: int | None, max_error: float | None, into: str, rows: str | None, base_dtype: str
) -> None:
    """Refuse options that would do nothing, and a form that there is not."""
    one_of("to", to, (*LORA_FORMS, *MODEL_FORMS))
    lora = to in LORA_FORMS
    onto = [f"--to {name}" for name, form in MODEL_FORMS.items() if form.takes_into]
    for option, given, where, holds in (
        ("--rank", rank is not None, "a LoRA", lora),
        ("--max_error", max_error is not None, "a LoRA", lora),
        ("--into", into != "auto", " or ".join(onto), f"--to {to}" in onto),
        ("--rows", rows is not None, "the comparison of a LoRA", check and lora),
        ("--base_dtype", base_dtype != "float32", "the comparison of a LoRA", check and lora),
    ):
        if given and not holds:
            raise ConfigError(
                f"{option} would do nothing here.",
                got=f"{option} with --to {to}" + ("" if check else " --check false"),
                expected=f"{option} with {where}",
                fix=f"leave {option} out",
            )
