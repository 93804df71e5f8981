"""A merged model from the files of its base, one tensor after the other: the model is never in memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.manifest.class_names import as_config
from pera_lightning.checkpoint.manifest.manifest import FLOATING
from pera_lightning.errors import ExportError
from pera_lightning.export.lora.lora_factors import LoraFactors
from pera_lightning.export.lora.plain_lora import PeraTensors
from pera_lightning.export.merged.base_files import INDEX_FILE, BaseFiles
from pera_lightning.export.merged.companions import copy_companions, write_model_config
from pera_lightning.export.merged.merge_plan import MergePlan, plan_merge, transposed
from pera_lightning.export.merged.merge_report import MergeReport, Norms, rounding_norms
from pera_lightning.storage.out_folder import check_room

ROWS = 2048
"""Rows of a weight that are summed at a time."""


@torch.no_grad()
def merge_shards(adapter: PeraTensors, base: Path, folder: Path, *, dtype: torch.dtype | None = None) -> MergeReport:
    """Write base plus adapter as a model that transformers loads, file by file as the base is divided.

    The adapter's dW comes from its exact factors, is added in float32 or better, and rounded once. Memory holds what
    changes in one file. The base's files are only read. Over an adapter of a quantised base this is the merge onto the
    weights before quantisation.

    Args:
        adapter: The adapter.
        base: Folder of the base model with `config.json` and safetensors files.
        folder: An existing folder to write to.
        dtype: Of the floating tensors; None is that of each in the base.

    Returns:
        The errors of rounding.

    Raises:
        ConfigError: The base is missing, damaged, quantised, or another one than the adapter was trained on.
        ExportError: What the adapter changes is not certain to be in the files, or values do not fit the dtype. Only
            the latter is found out after the first file was written.
        OSError: There is no room, or the system refused something else.
    """
    files = BaseFiles.of(base)
    merge = _Merge(adapter, files, plan_merge(adapter, files), dtype)
    check_room(folder, _size(files, dtype))
    errors: dict[str, Norms] = {}
    for file in files.files:
        errors |= merge.write(file, folder)
    if files.index is not None:
        _write_index(files, folder)
    write_model_config(_config(files.config, adapter.manifest, merge.plan), folder, dtype)
    copy_companions(base, folder)
    quantized = set(adapter.manifest.quantization) != {FLOATING}
    return MergeReport.of(errors, "original" if quantized else "dense")


def _config(base: dict[str, Any], manifest: Manifest, plan: MergePlan) -> dict[str, Any]:
    """The base's config; with the names of a classifier's classes, and its own class where its head was added."""
    classes = as_config(manifest.labels) if manifest.labels else {}
    return {**base, **classes, **({"architectures": [manifest.architecture]} if plan.added else {})}


def _size(base: BaseFiles, dtype: torch.dtype | None) -> int:
    values = map(base.read, base.tensors)
    return sum(
        value.numel() * (dtype if dtype is not None and value.is_floating_point() else value.dtype).itemsize
        for value in values
    )


class _Merge:
    """What does not change from file to file."""

    def __init__(self, adapter: PeraTensors, base: BaseFiles, plan: MergePlan, dtype: torch.dtype | None) -> None:
        self.adapter = adapter
        self.base = base
        self.plan = plan
        self.dtype = dtype

    def write(self, file: str, folder: Path) -> dict[str, Norms]:
        """Write one file; returns the errors of its layers."""
        keys = self.base.keys(file)
        if self.dtype is None and self.plan.changed.isdisjoint(keys) and not self.plan.added:
            shutil.copyfile(self.base.folder / file, folder / file)
            return {}
        tensors, errors = self._added(file), {}
        for key in keys:
            name = self.plan.name_of(key)
            if name is None:
                continue
            weight = self.base.read(key)
            tensors[name], norms = self._merged(key, weight)
            _refuse_overflow(key, tensors[name], weight)
            if norms is not None:
                errors[self.plan.layers.get(key) or self.plan.rows[key]] = norms
        with safe_open(self.base.folder / file, framework="pt") as opened:
            metadata = opened.metadata()
        save_file(tensors, folder / file, metadata=metadata or {"format": "pt"})
        return errors

    def _added(self, file: str) -> dict[str, Tensor]:
        """The parts of the head that the base lacks; they come into the last file."""
        if file != self.base.files[-1]:
            return {}
        found = {}
        for name, own in self.plan.added.items():
            value = self.adapter.tensors[own]
            dtype = self.dtype or self.base.dtype
            found[name] = value.to(dtype if value.is_floating_point() else value.dtype, copy=True).contiguous()
            _refuse_overflow(name, found[name], value)
        return found

    def _merged(self, key: str, weight: Tensor) -> tuple[Tensor, Norms | None]:
        dtype = self.dtype if self.dtype is not None and weight.is_floating_point() else weight.dtype
        if key in self.plan.saved:
            # Not to(): what is written must not share memory with another tensor.
            return self.adapter.tensors[self.plan.saved[key]].to(dtype, copy=True).contiguous(), None
        if key in self.plan.rows:
            name = self.plan.rows[key]
            ids = torch.tensor(self.adapter.manifest.tokens[name].ids)
            return _with_rows(weight, ids, self.adapter.tensors[f"{name}.token_rows.delta"], dtype)
        if key not in self.plan.layers:
            return weight.to(dtype), None
        name = self.plan.layers[key]
        factors = self.adapter.factors(name)
        down, up = factors
        # A weight that is stored as (in, out) gets the transposed product.
        across = LoraFactors(up.T, down.T) if transposed(self.adapter.manifest, name) else factors
        return _with_change(weight, across, dtype)


def _with_change(weight: Tensor, factors: LoraFactors, dtype: torch.dtype) -> tuple[Tensor, Norms]:
    # Rounded once, to `dtype`: sums in float32 would add an error of the size of its own.
    wide = torch.float64
    down, up = (part.to(wide) for part in factors)
    merged = torch.empty(weight.shape, dtype=dtype)
    error = norm = 0.0
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        exact = weight[rows].to(wide) + up[rows] @ down
        merged[rows] = exact
        of_rows = rounding_norms(merged[rows], exact)
        error, norm = error + of_rows[0], norm + of_rows[1]
    return merged, (error, norm)


def _with_rows(weight: Tensor, ids: Tensor, delta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Norms]:
    wide = torch.promote_types(torch.promote_types(weight.dtype, delta.dtype), torch.float32)
    exact = weight[ids].to(wide) + delta.to(wide)
    merged = weight.to(dtype, copy=True)
    merged[ids] = exact.to(dtype)
    return merged, rounding_norms(merged[ids], exact)


def _refuse_overflow(key: str, tensor: Tensor, before: Tensor) -> None:
    # Masks hold infinities of their own.
    if not torch.isfinite(tensor).all() and torch.isfinite(before).all():
        raise ExportError(
            "The merged weights do not fit their dtype.",
            got=f"values of {key!r} beyond {tensor.dtype}",
            expected="a dtype that holds them",
            fix="use dtype='bfloat16' or 'float32'",
        )


def _write_index(base: BaseFiles, folder: Path) -> None:
    size, weight_map = 0, {}
    for file in base.files:
        with safe_open(folder / file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118  it is no dict
                size += opened.get_tensor(key).nbytes
                weight_map[key] = file
    metadata = {**((base.index or {}).get("metadata") or {}), "total_size": size}
    text = json.dumps({"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}, indent=2)
    (folder / INDEX_FILE).write_text(text + "\n", encoding="utf-8")
