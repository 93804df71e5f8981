"""`export_merged_gguf`: a copy of the base's GGUF file with the adapter in its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch

from pera_lightning.checkpoint import load_adapter
from pera_lightning.checkpoint.manifest.manifest import read_manifest
from pera_lightning.errors import ConfigError
from pera_lightning.export.certificate import Certificate
from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.gguf.gguf_writing import MERGED_GGUF_FILE, write_merged_gguf
from pera_lightning.export.lora.lora_losses import LLAMA_CPP, refuse_losses
from pera_lightning.export.lora.plain_lora import PeraTensors, plain_lora
from pera_lightning.export.merged.merged_certificate import prompt_reference
from pera_lightning.export.place import check_place, export_kind
from pera_lightning.loading.adapter_source import adapter_source
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
from pera_lightning.option_checks import check_flags, one_of
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.storage.remote import Place, local_path, place
from pera_lightning.storage.whole_folder import whole_folder

GgufDtype = Literal["float32", "bfloat16", "float16"]


def export_merged_gguf(
    adapter_dir: str | Path,
    out_dir: str | Path,
    *,
    base: str | None = None,
    gguf_file: str | None = None,
    dtype: GgufDtype = "float16",
    compare: bool = True,
    prompts: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write `model.gguf`: the base model's GGUF file with the adapter merged in, for llama.cpp and what is built on it.

    Weights without an adapter, metadata and tokenizer are copied as they are.

    Args:
        adapter_dir: Folder of the adapter.
        out_dir: A new or empty folder, or an earlier export of this form, which is replaced as a whole when all is
            written and compared; never that of the base model.
        base: Folder of the base model's GGUF file; by default what the adapter names.
        gguf_file: Name of the file. It may be quantised: the adapter is added to what it stores.
        dtype: Of the merged weights.
        compare: Load both the base with the adapter and the new file by transformers and compare their outputs.
        prompts: Texts to compare on; by default some sentences and random tokens.
        overwrite: Write into a folder with other files too, and replace those of the same names.

    Returns:
        What the dtype rounds, and the comparison, also written to `export_report.json`.

    Raises:
        AdapterFileError: The adapter is missing, damaged, or does not fit the base.
        ConfigError: An option has a value it cannot have, or the base is no GGUF file on this machine.
        ExportError: A LoRA cannot hold all of the adapter, the kind of model is not known, a merged weight does not fit
            the dtype, or the new file does not compute what the adapted model does.
        FolderError: `out_dir` is somebody else's or the base model's, or cannot be written to; it is as it was.
    """
    check_flags(compare=compare, overwrite=overwrite)
    one_of("dtype", dtype, get_args(GgufDtype))
    adapter, out = place(adapter_dir), local_path(out_dir, "out_dir")
    manifest = read_manifest(adapter / CONFIG_FILE)
    refuse_losses(LLAMA_CPP, manifest, linear_only=True)
    source = adapter_source(adapter, manifest, base, gguf_file)
    base_file = _base_file(source)
    check_place(out, "gguf", base=str(base_file), overwrite=overwrite)
    lora = plain_lora(PeraTensors.of(adapter))
    with whole_folder(out, export_kind("gguf"), overwrite=overwrite) as folder:
        merge = write_merged_gguf(lora, base_file, folder / MERGED_GGUF_FILE, getattr(torch, dtype))
        certificate = _certify(adapter, source, folder, prompts, getattr(torch, dtype)) if compare else None
        report = ExportReport("gguf", None, dtype, True, {}, certificate=certificate, merge=merge)
        report.write(folder)
    return report


def _certify(
    adapter: Place, source: PretrainedSource, out: Path, prompts: Sequence[str] | None, dtype: torch.dtype
) -> Certificate | None:
    model = load_causal_lm(source, dtype="float32")
    # The file may be quantised otherwise than the base was in training, or not at all.
    load_adapter(model, adapter, allow_other_quantization=True)
    reference = prompt_reference(model, source, prompts, dtype)
    if reference is None:
        return None
    del model
    merged = load_causal_lm(PretrainedSource(str(out), MERGED_GGUF_FILE), dtype="float32")
    certificate = reference.compare(merged, "transformers, from the GGUF file")
    certificate.refuse_inexact()
    return certificate


def _base_file(source: PretrainedSource) -> Path:
    source.check()
    if source.gguf_file is None or not Path(source.pretrained).is_dir():
        raise ConfigError(
            "The adapter is merged into a copy of the base model's GGUF file.",
            got=source.name,
            expected="a GGUF file of the base model on this machine",
            fix="name it: base=FOLDER, gguf_file=NAME (--base, --gguf_file); or export with --to merged and convert "
            "that folder by llama.cpp's convert_hf_to_gguf.py",
        )
    return Path(source.pretrained) / source.gguf_file
