"""Which tensors of a base model's files an adapter changes, found out before anything is written."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.adapter_mismatch import file_difference
from pera_lightning.checkpoint.manifest.layer_traits import CONV1D, EMBEDDING, TIED
from pera_lightning.errors import ConfigError, ExportError
from pera_lightning.export.lora.plain_lora import PeraTensors, refuse_infinite_tensors
from pera_lightning.export.merged.base_files import MODEL_CONFIG_FILE, BaseFiles
from pera_lightning.export.merged.file_names import FileNames
from pera_lightning.export.merged.head_parts import HeadParts, head_parts
from pera_lightning.injection.targets.names import within_any
from pera_lightning.loading.pretrained_classifier import refuse_untrained_head

IN_MEMORY = (
    "merge in memory: load the model as in training, load_adapter(model, folder), merge_adapter(model), "
    "model.save_pretrained(out); for language models export_merged(..., in_memory=True)"
)


@dataclass(frozen=True)
class MergePlan:
    """What is done to the tensors of the files; all others are copied.

    Attributes:
        layers: Key -> name of the adapted layer whose weight it is.
        rows: Key -> name of the module whose token rows are trained.
        saved: Key -> name of the adapter's tensor that takes its place.
        added: Name of a part of the head that the files lack -> name of the adapter's tensor that it is.
        written: Key -> its name in the merged files, where that is another one; None for what belongs to another task.
    """

    layers: dict[str, str]
    rows: dict[str, str]
    saved: dict[str, str]
    added: dict[str, str] = field(default_factory=dict)
    written: dict[str, str | None] = field(default_factory=dict)

    @property
    def changed(self) -> set[str]:
        """The keys whose values change."""
        return {*self.layers, *self.rows, *self.saved}

    def name_of(self, key: str) -> str | None:
        """What a tensor of the base's files is called in the merged ones; None if it is left out."""
        return self.written.get(key, key)


def plan_merge(adapter: PeraTensors, base: BaseFiles) -> MergePlan:
    """Find every tensor that the adapter changes.

    Raises:
        ConfigError: The base is quantised, or another one than the adapter was trained on.
        ExportError: What the adapter changes is not certain to be in the files under its own name and in its own form,
            or the adapter holds values that are not finite.
    """
    _refuse_quantized(base)
    _refuse_unknown(adapter.manifest)
    refuse_infinite_tensors(adapter)
    head = head_parts(adapter.manifest, base.folder)
    plan = _find(adapter, base, head)
    _check_shapes(plan, adapter, base, () if head is None else head.shapes)
    _refuse_copies(plan, base)
    _check_sample(plan, adapter.manifest, base)
    return plan


def transposed(manifest: Manifest, layer: str) -> bool:
    """Whether the weight of a layer is stored as (in, out)."""
    return not {CONV1D, EMBEDDING}.isdisjoint(manifest.traits.get(layer, ()))


def _find(adapter: PeraTensors, base: BaseFiles, head: HeadParts | None) -> MergePlan:
    manifest = adapter.manifest
    layers = {f"{name}.weight": name for name in manifest.layers}
    saved = {_without_base_layer(name, manifest): name for name in adapter.saved}
    stored = FileNames.of(base.tensors, [*layers, *(f"{name}.weight" for name in manifest.tokens)], saved)
    rows = {}
    for name, plan in manifest.tokens.items():
        rows[stored.key(f"{name}.weight")] = name
        # Some files hold a tied weight under each of its names.
        rows |= {key: name for tied in plan.tied if (key := stored.key(f"{tied}.weight")) in base.tensors}
    lacking = {name for name in saved if stored.key(name) not in base.tensors}
    added = lacking & head.shapes.keys() if head else set()
    found = MergePlan(
        {stored.key(name): layer for name, layer in layers.items()},
        rows,
        {stored.key(name): own for name, own in saved.items() if name not in added},
        {name: saved[name] for name in added},
        _written(base, stored, head) if head and added else {},
    )
    if head:
        _refuse_untrained(head, set(saved), stored, manifest, base)
    _refuse_missing(found, adapter, base)
    return found


def _written(base: BaseFiles, stored: FileNames, head: HeadParts) -> dict[str, str | None]:
    """New names of the tensors: with a head beside it the body is no bare one any more, and named as in the model."""

    def name(key: str) -> str | None:
        known = [one for one in (key, stored.name(key)) if one.partition(".")[0] in head.modules]
        return known[0] if known else None

    return {key: name(key) for key in base.tensors}


def _refuse_untrained(head: HeadParts, saved: set[str], stored: FileNames, manifest: Manifest, base: BaseFiles) -> None:
    """Refuse a head that would come out random: files of another class may lack it, or have one of another size."""
    same_class = base.config.get("architectures") == [manifest.architecture]

    def is_stored(name: str, shape: tuple[int, ...]) -> bool:
        tensor = base.tensors.get(stored.key(name))
        return same_class if tensor is None else tensor.shape == shape

    lacking = [name for name, shape in head.shapes.items() if name not in saved and not is_stored(name, shape)]
    refuse_untrained_head(str(base.folder), lacking)


def _refuse_missing(found: MergePlan, adapter: PeraTensors, base: BaseFiles) -> None:
    missing = sorted(found.changed - base.tensors.keys())
    _refuse_tied_saved(missing, found, adapter.manifest)
    if missing:
        raise ExportError(
            "The base model's files do not hold all that the adapter changes under the names of the model.",
            got=f"{base.folder} without {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; "
            f"it holds {', '.join(sorted(base.tensors)[:3])}, ...",
            expected="the names of the model, with or without one prefix such as `model.`",
            fix=f"check that it is the right base; if it is, {IN_MEMORY}",
        )


def _refuse_tied_saved(missing: Sequence[str], plan: MergePlan, manifest: Manifest) -> None:
    """Refuse what was trained whole under one name of a tied weight when the files have it under the other."""
    modules = [name for name in manifest.saved if TIED in manifest.traits.get(name, ())]
    tied = [key for key in missing if key in plan.saved and within_any(plan.saved[key], modules)]
    if tied:
        raise ExportError(
            "A module that was trained whole shares its weight with another one.",
            got=f"{tied[0]!r}, which the base model's files hold under another name",
            expected="a weight of its own",
            fix=IN_MEMORY,
        )


def _without_base_layer(name: str, manifest: Manifest) -> str:
    """The name that a tensor has without adapters: a trained bias lies one module deeper with them."""
    module, _, own = name.rpartition(".")
    layer = module.removesuffix(".base_layer")
    return f"{layer}.{own}" if layer in manifest.layers else name


def _refuse_quantized(base: BaseFiles) -> None:
    if "quantization_config" in base.config:
        method = base.config["quantization_config"].get("quant_method", "quantised")
        raise ConfigError(
            "The base model's files are quantised.",
            got=f"{base.folder / MODEL_CONFIG_FILE} with quantization_config ({method})",
            expected="floating weights",
            fix="name the model that it was made of with base=...; or merge what was trained in memory "
            "(into='dequantized')",
        )


def _refuse_unknown(manifest: Manifest) -> None:
    if manifest.architecture is None:
        raise ExportError(
            "The adapter does not say what kind of layers it was trained on.",
            got="an adapter folder of an earlier version",
            expected="the kinds of its layers in adapter_config.json",
            fix=f"load it into its model and save_adapter(model, folder) again; or {IN_MEMORY}",
        )
    tied = [name for name in manifest.layers if TIED in manifest.traits.get(name, ())]
    if tied:
        raise ExportError(
            "An adapted weight is tied to another module, which a merge would change too.",
            got=f"{', '.join(tied[:3])}{', ...' if len(tied) > 3 else ''}",
            expected="weights of their own in adapted layers",
            fix="leave it out with exclude_modules, or untie the weights before training",
        )


def _check_shapes(plan: MergePlan, adapter: PeraTensors, base: BaseFiles, head: Container[str]) -> None:
    for key, name in plan.layers.items():
        shape = (adapter.tensors[f"{name}.pera_B"].shape[0], adapter.tensors[f"{name}.pera_A"].shape[1])
        _check_shape(key, shape[::-1] if transposed(adapter.manifest, name) else shape, base)
    for key, name in plan.saved.items():
        # A head for other classes is replaced as a whole.
        if name not in head:
            _check_shape(key, tuple(adapter.tensors[name].shape), base)
    for key, name in plan.rows.items():
        found = base.tensors[key].shape
        rows = max(found[0], adapter.manifest.tokens[name].ids[-1] + 1)
        _check_shape(key, (rows, adapter.tensors[f"{name}.token_rows.delta"].shape[1]), base)


def _check_shape(key: str, wanted: tuple[int, ...], base: BaseFiles) -> None:
    if base.tensors[key].shape != wanted:
        raise ExportError(
            "A tensor of the base model has another shape than the adapter was trained on.",
            got=f"{key!r} of shape {base.tensors[key].shape} in {base.folder}",
            expected=f"{wanted}",
            fix=f"name the right base; if it is (resized embeddings, a head of its own), {IN_MEMORY}",
        )


def _refuse_copies(plan: MergePlan, base: BaseFiles) -> None:
    """Refuse a matrix trained whole that the files hold twice: it may be tied, and only one would change."""
    for key in plan.saved:
        shape = base.tensors[key].shape
        others = [other for other, tensor in base.tensors.items() if other != key and tensor.shape == shape]
        copies = [other for other in others if len(shape) > 1 and torch.equal(base.read(other), base.read(key))]
        if not set(copies) <= plan.saved.keys():
            raise ExportError(
                "A weight that was trained whole seems to be tied to another one.",
                got=f"{key!r} and {copies[0]!r} with the same values in {base.folder}",
                expected="weights of their own",
                fix=IN_MEMORY,
            )


def _check_sample(plan: MergePlan, manifest: Manifest, base: BaseFiles) -> None:
    def read(key: str, name: str) -> Tensor:
        weight = base.read(key)
        return weight.T if transposed(manifest, name) else weight

    weights = {name: partial(read, key, name) for key, name in plan.layers.items()}
    difference = file_difference(manifest, weights, floating=True)
    if difference:
        raise ConfigError(
            "The adapter was trained on another base than this one.",
            got=f"{base.folder}: {difference}",
            expected=f"the weights of {manifest.base_model or 'the model it was trained on'}",
            fix=f"name that model with base=...; if its files store the weights in another form, {IN_MEMORY}",
        )
