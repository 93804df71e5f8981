"""`export`: an adapter in a form that others load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pera_lightning.checkpoint.adapter_files import CONFIG_FILE
from pera_lightning.checkpoint.manifest import read_manifest
from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.factors_format import FACTORS_FILE
from pera_lightning.export.servers import max_lora_rank, refuse_losses


def export(
    adapter: str,
    out: str,
    to: Literal["peft", "vllm", "safetensors"] = "peft",
    rank: int | None = None,
    max_error: float | None = None,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    check: bool = True,
    base: str | None = None,
    gguf_file: str | None = None,
    base_dtype: Literal["auto", "native", "float32", "bfloat16", "float16"] = "float32",
    rows: str | None = None,
    positions: int = 2000,
    system_prompt: str | None = None,
    use_chat_template: bool = True,
) -> None:
    """Write a PERA adapter as a plain LoRA of the expanded rank, load it back and compare it with the adapter.

    The export is exact unless --rank or --max_error cut it by singular values. What was found stands in
    export_report.json beside it.

    Args:
        adapter: Folder of the adapter, as the fit wrote it.
        out: Folder to write to; not that of the adapter.
        to: "peft" for PEFT and what reads its format; "vllm": the same, after checking that vLLM takes all of it;
            "safetensors": a file of factors under the layers' own names, for code of your own.
        rank: Largest rank of the LoRA.
        max_error: Instead of --rank: the relative error of the weight change that no layer may exceed; the smallest
            rank that holds it is chosen.
        dtype: Of the LoRA's factors.
        check: Load the base model and the export (by PEFT where it is installed) and compare outputs. Without it no
            base model is needed.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        base_dtype: Dtype of the base's weights in the comparison.
        rows: File of rows in the format of the training, to compare on; some sentences by default.
        positions: How many tokens of the rows are compared.
        system_prompt: The system message that the adapter was trained with, if it was trained with one.
        use_chat_template: Whether the adapter was trained with the tokenizer's chat template.
    """
    import torch

    from pera_lightning.export import export_lora
    from pera_lightning.export.place import check_place
    from pera_lightning.integration.adapted_model import load_adapted_model
    from pera_lightning.integration.data.prompts import ChatEncoder
    from pera_lightning.integration.export_check import check_with_peft, has_peft, row_inputs, sentence_inputs

    # What is wrong is said before the base is loaded.
    manifest = read_manifest(Path(adapter) / CONFIG_FILE)
    check_place(Path(out))
    refuse_losses(to, manifest)
    options: dict[str, Any] = {"to": to, "max_error": max_error, "dtype": getattr(torch, dtype)}
    if check:
        model, tokenizer = load_adapted_model(adapter, base=base, gguf_file=gguf_file, dtype=base_dtype)
        if rows is None:
            options["inputs"] = sentence_inputs(tokenizer)
        else:
            encoder = ChatEncoder(
                tokenizer, max_length=4096, use_chat_template=use_chat_template, system_prompt=system_prompt
            )
            options["inputs"] = row_inputs(Path(rows), encoder, positions)
        if to != "safetensors" and has_peft():
            options["check"] = check_with_peft
        report = export_lora(model, out, rank, **options)
    else:
        report = export_lora(adapter, out, rank, **options)
    print(report)
    print(how_to_load(report, Path(out), base or manifest.base_model or "BASE"))


def how_to_load(report: ExportReport, folder: Path, base: str) -> str:
    """The last line: what to do with the export."""
    if report.to == "vllm":
        return (
            f"vllm serve {base} --enable-lora --max-lora-rank {max_lora_rank(report.rank)} "
            f"--lora-modules {folder.name}={folder}"
        )
    if report.to == "peft":
        return f"PeftModel.from_pretrained(model, {str(folder)!r})  # model: {base}"
    return f"weight of each layer + up @ down, from {folder / FACTORS_FILE}"
