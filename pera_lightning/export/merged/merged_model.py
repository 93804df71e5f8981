"""`export_merged`: base plus adapter as one model that plain transformers loads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import nn

from pera_lightning.checkpoint import Manifest, load_adapter
from pera_lightning.checkpoint.manifest.manifest import FLOATING, read_manifest
from pera_lightning.errors import ConfigError
from pera_lightning.export.certificate import Reference
from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.lora.plain_lora import PeraTensors
from pera_lightning.export.merged.base_files import BaseFiles, is_complete
from pera_lightning.export.merged.classifier_padding import pad_as_trained
from pera_lightning.export.merged.companions import copy_companions
from pera_lightning.export.merged.merge import merge_and_report
from pera_lightning.export.merged.merge_report import MergeReport, rounding_norms
from pera_lightning.export.merged.merged_card import write_merged_card
from pera_lightning.export.merged.merged_certificate import adapted_reference, certify, prompt_reference
from pera_lightning.export.merged.merged_shards import merge_shards
from pera_lightning.export.place import check_place, export_kind
from pera_lightning.loading.adapter_base import is_classifier, load_base, model_class
from pera_lightning.loading.adapter_source import adapter_quantization, adapter_source
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_tokenizer import load_tokenizer
from pera_lightning.option_checks import check_flags, one_of
from pera_lightning.storage.out_folder import check_room
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.storage.remote import Place, local_path, place
from pera_lightning.storage.whole_folder import whole_folder

MergedDtype = Literal["float32", "bfloat16", "float16"]
MergedInto = Literal["auto", "dequantized", "original"]


def export_merged(
    adapter_dir: str | Path,
    out_dir: str | Path,
    *,
    base: str | None = None,
    gguf_file: str | None = None,
    dtype: MergedDtype | None = None,
    into: MergedInto = "auto",
    max_shard_size: str = "5GB",
    in_memory: bool = False,
    compare: bool = True,
    prompts: Sequence[str] | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write base plus adapter as a folder that `from_pretrained` loads, with tokenizer and generation config.

    A base whose safetensors files are on this machine is merged file by file: the model is never in memory, but for
    the comparison. Everything else (GGUF files, the dequantised weights of a base that training quantised) is merged in
    memory. The folder appears when it is whole, and compared, and takes the place of an earlier one in one step; the
    base's files are only read.

    Args:
        adapter_dir: Folder of the adapter.
        out_dir: A new or empty folder, or an earlier merged export, which stays until the new one is whole; never that
            of the base model.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        dtype: Of the merged weights; None is the one that the base is stored in (GGUF: what this machine multiplies in
            hardware, bfloat16 or float32).
        into: For an adapter that was trained on a quantised base. "dequantized" ("auto"): onto the quantised weights,
            written in floating point; computes what was trained. "original": onto the weights before quantisation.
        max_shard_size: Largest file of what is merged in memory; else the files are divided as the base's are.
        in_memory: Merge in memory although the base's files are here: for models whose layers have other names there.
        compare: Load the adapted and then the merged model and compare their outputs. This takes the memory of the
            model.
        prompts: Texts to compare on; by default some sentences and random tokens.
        overwrite: Write into a folder with other files too, and replace those of the same names.

    Returns:
        Errors of the weights and the comparison, also written to `export_report.json`.

    Raises:
        AdapterFileError: The adapter is missing, damaged, or does not fit the base.
        ConfigError: An option has a value it cannot have, or the base is missing, damaged, quantised or another one.
        ExportError: The base's files are not certain to hold what the adapter changes, or the merged model does not
            compute what the adapted one does. Then nothing is written.
        FolderError: `out_dir` is somebody else's or the base model's, there is no room, or it cannot be written to; it
            is as it was.
        InjectionError: The adapter cannot be merged.
    """
    if isinstance(adapter_dir, nn.Module):
        raise ConfigError(
            "export_merged starts from the adapter's folder.",
            got=f"a model ({type(adapter_dir).__name__})",
            expected="the folder that the fit or save_adapter wrote",
            fix="save_adapter(model, folder) first; or, in memory, merge_adapter(model).save_pretrained(out)",
        )
    check_flags(in_memory=in_memory, compare=compare, overwrite=overwrite)
    one_of("dtype", dtype, (None, *get_args(MergedDtype)))
    one_of("into", into, get_args(MergedInto))
    adapter, out = place(adapter_dir), local_path(out_dir, "out_dir")
    manifest = read_manifest(adapter / CONFIG_FILE)
    source = adapter_source(adapter, manifest, base, gguf_file)
    source.check()
    check_place(out, "merged", base=source.pretrained, overwrite=overwrite)
    quantized = set(manifest.quantization) != {FLOATING}
    job = _Job(adapter, manifest, source, dtype, quantized and into == "original", compare, prompts)
    folder = None if in_memory or (quantized and into != "original") else local_folder(source)
    with whole_folder(out, export_kind("merged"), overwrite=overwrite) as temporary:
        report = job.in_memory(temporary, max_shard_size) if folder is None else job.from_files(folder, temporary)
        write_merged_card(temporary, manifest, report)
        report.write(temporary)
    return report


def local_folder(source: PretrainedSource) -> Path | None:
    """The folder with a model's config and safetensors files: the source itself, or its copy in the hub's cache.

    Returns:
        None if they are not on this machine.
    """
    if source.gguf_file is not None:
        return None
    folder = Path(source.pretrained)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(source.pretrained, revision=source.revision, local_files_only=True))
        except LocalEntryNotFoundError:
            return None
    return folder if is_complete(folder) else None


@dataclass(frozen=True)
class _Job:
    """What both ways need to know."""

    adapter: Place
    manifest: Manifest
    source: PretrainedSource
    dtype: MergedDtype | None
    onto_original: bool
    compare: bool
    prompts: Sequence[str] | None

    def from_files(self, folder: Path, out: Path) -> ExportReport:
        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        merge = merge_shards(PeraTensors.of(self.adapter), folder, out, dtype=dtype)
        # The files, not the hub, which may have moved on.
        reference = self._reference(PretrainedSource(str(folder))) if self.compare else None
        return self._finish(merge, reference, out)

    def in_memory(self, out: Path, max_shard_size: str) -> ExportReport:
        reference = self._reference(self.source) if self.compare and self.onto_original else None
        quantization = None if self.onto_original else adapter_quantization(self.manifest, self.source)
        model = load_base(self.manifest, self.source, dtype=self._loaded_dtype, quantization=quantization)
        stored = model.dtype
        load_adapter(model, self.adapter, allow_other_quantization=self.onto_original)
        if self.compare and not self.onto_original:
            reference = prompt_reference(model, self.source, self.prompts, stored)
        merge = merge_and_report(model)
        if self.onto_original:
            merge = replace(merge, into="original")
        # Where the machine computes wider than a quantised base stores the rest, the merged layers are as wide.
        if merge.into == "dequantized":
            merge = _narrow(model, self.manifest.layers, stored, merge)
        check_room(out, sum(value.nbytes for value in model.parameters()))
        model.save_pretrained(out, max_shard_size=max_shard_size)
        self._write_tokenizer(out)
        del model
        return self._finish(merge, reference, out)

    @property
    def _loaded_dtype(self) -> str:
        return self.dtype or "auto"

    def _reference(self, source: PretrainedSource) -> Reference | None:
        return adapted_reference(
            self.adapter,
            self.manifest,
            source,
            dtype=self._loaded_dtype,
            quantization=adapter_quantization(self.manifest, source),
            prompts=self.prompts,
        )

    def _write_tokenizer(self, out: Path) -> None:
        folder = Path(self.source.pretrained)
        if self.source.gguf_file is None and folder.is_dir():
            copy_companions(folder, out)
        else:
            load_tokenizer(self.source).save_pretrained(out)

    def _finish(self, merge: MergeReport, reference: Reference | None, out: Path) -> ExportReport:
        if is_classifier(model_class(self.manifest)):
            pad_as_trained(out, self.source)
        certificate = None
        if reference is not None:
            if self.onto_original:
                reference = replace(reference, expected="the weights before quantisation, which were asked for")
            certificate = certify(out, self.manifest, reference)
            certificate.refuse_inexact()
        dtype = str(BaseFiles.of(out).dtype).removeprefix("torch.")
        return ExportReport("merged", None, dtype, True, {}, certificate=certificate, merge=merge)


@torch.no_grad()
def _narrow(model: nn.Module, layers: Iterable[str], dtype: torch.dtype, merge: MergeReport) -> MergeReport:
    """Convert a merged model; returns the report with what that rounds."""
    if all(value.dtype == dtype for value in model.parameters()):
        return merge
    errors = {}
    for name in layers:
        weight = model.get_parameter(f"{name}.weight")
        errors[name] = rounding_norms(weight.to(dtype).to(weight.dtype), weight)
    model.to(dtype=dtype)
    # The probe was computed before.
    return replace(MergeReport.of(errors, merge.into), layers=merge.layers)
