"""`save_adapter` and `load_adapter`: an adapter as a folder of files."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pera_lightning.checkpoint.adapter_fit import check_fit, check_sizes
from pera_lightning.checkpoint.adapter_folder import check_adapter_place, read_both, refuse_damage, stored_tensors
from pera_lightning.checkpoint.adapter_mismatch import (
    base_difference,
    form_difference,
    quantization_difference,
)
from pera_lightning.checkpoint.adapter_state import adapter_state_dict, copy_into, refuse_merged
from pera_lightning.checkpoint.adapter_tensors import check_tensors
from pera_lightning.checkpoint.checksums import with_checksums
from pera_lightning.checkpoint.finite_values import describe_infinite, not_finite
from pera_lightning.checkpoint.manifest.class_names import are_named, name_classes
from pera_lightning.checkpoint.manifest.layer_traits import READ
from pera_lightning.checkpoint.manifest.manifest import Manifest, manifest_of
from pera_lightning.checkpoint.model_card import model_card
from pera_lightning.concurrency import changing, reading
from pera_lightning.errors import AdapterFileError, ConfigError, InjectionError, TargetError, one_line, shown
from pera_lightning.functional.distributed import is_distributed, whole
from pera_lightning.injection import InjectionReport, init_loftq, inject_plan, is_adapted, remove_adapter
from pera_lightning.injection.inject import OWN_MODEL
from pera_lightning.injection.saved_modules import kept_infinities
from pera_lightning.injection.targets.names import fitting_place, original_names
from pera_lightning.layers import PeraLinear
from pera_lightning.option_checks import check_flags
from pera_lightning.storage.recognition.adapter_kind import ADAPTER, CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from pera_lightning.storage.remote import Place, place
from pera_lightning.storage.whole_folder import whole_folder


def save_adapter(
    model: nn.Module, directory: str | Path, *, base_model: str | None = None, overwrite: bool = False
) -> Path | str:
    """Write the adapter of a model: `adapter_model.safetensors`, `adapter_config.json` and a model card.

    Changes that other threads make (`AdapterSet.switch`, `load_adapter`) wait for the end, or are waited for.

    Args:
        model: A model with adapters; names in the files are relative to it. One that is sharded over processes is
            saved by all of them together: each calls this, the first one writes.
        directory: Folder to write to, here or at a URL that fsspec can open (`s3://bucket/folder`); it is made if
            needed. It is new, empty, or holds the adapter of an earlier save, which is replaced as a whole.
        base_model: Name or path of the base model; by default what the model's own config says.
        overwrite: Write into a folder with other things too, and replace what has the names of these three files.

    Returns:
        The folder; of a URL, the URL.

    Raises:
        InjectionError: The model holds no adapter.
        AdapterFileError: A value of it is not finite; the folder is as it was.
        FolderError: The folder is somebody else's, or cannot be written to; it is as it was.
    """
    check_flags(overwrite=overwrite)
    # To the end: the tensors are the model's own.
    with reading(model):
        tensors, manifest = adapter_state_dict(model), manifest_of(model, base_model)
        sharded = any(map(is_distributed, tensors.values()))
        tensors = {key: whole(value) for key, value in tensors.items()}
        if sharded and torch.distributed.get_rank() > 0:
            return _named(place(directory))
        return write_adapter(directory, tensors, manifest, constants=kept_infinities(model), overwrite=overwrite)


def write_adapter(
    directory: str | Place,
    tensors: dict[str, Tensor],
    manifest: Manifest,
    *,
    run: Mapping[str, str] | None = None,
    constants: Collection[str] = (),
    overwrite: bool = False,
) -> Path | str:
    """Write an adapter folder from tensors that are not (or no longer) in a model.

    The folder is written as a whole (`whole_folder`): whenever the process is killed, the earlier adapter is there or
    the new one. At a URL the files come there together, where its file system has transactions.

    Args:
        directory: Folder to write to, here or at a URL; it is made if needed.
        tensors: As `adapter_state_dict` names them.
        manifest: Of the adapter.
        run: Rows of the model card about its training.
        constants: Buffers of modules saved whole that may be infinite.
        overwrite: Whether the folder may hold other things too.

    Raises:
        AdapterFileError: A value is not finite; the folder is as it was.
        FolderError: The folder is somebody else's, or cannot be written to; it is as it was.
    """
    target = place(directory)
    check_adapter_place(target, manifest.base_model, overwrite=overwrite)
    refuse_infinite({key: value for key, value in tensors.items() if key not in constants}, target)
    size = sum(value.nbytes for value in tensors.values())
    with whole_folder(target, ADAPTER, overwrite=overwrite, bytes_needed=size) as folder:
        _write_files(folder, tensors, manifest, run or {})
    return _named(target)


def _write_files(folder: Path, tensors: dict[str, Tensor], manifest: Manifest, run: Mapping[str, str]) -> None:
    stored = stored_tensors(tensors)
    save_file(stored, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    values = with_checksums(manifest.to_dict(), stored)
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    parameters = sum(value.numel() for value in tensors.values())
    (folder / CARD_FILE).write_text(model_card(manifest, parameters, run), encoding="utf-8")


def _named(folder: Place) -> Path | str:
    return folder if isinstance(folder, Path) else str(folder)


def load_adapter(
    model: nn.Module,
    directory: str | Place,
    *,
    allow_other_quantization: bool = False,
    allow_other_base: bool = False,
    float_model: nn.Module | None = None,
) -> InjectionReport | None:
    """Load an adapter folder into a model. All or nothing.

    A model without adapters gets them injected at the layers that the folder lists. A model with adapters must
    have the same ones; only their values change.

    Args:
        model: The base model the adapter was trained on (the module whose names the folder uses). One that is sharded
            over processes has its adapters already; every process calls this.
        directory: Folder written by `save_adapter`, here or at a URL that fsspec can open.
        allow_other_quantization: Load it although the base is quantised otherwise than the one it was trained on, or
            only one of them is. The outputs then differ from the trained model's by the error of quantisation.
        allow_other_base: Load it although some weights of the base, which the folder keeps, are others here: another
            model of the same shape, or one that was trained on.
        float_model: For an adapter trained with `loftq_steps` > 1, whose base it is made of: a module with the floating
            weights under the same names.

    Returns:
        The report of the injection, or None when the model held the adapters already.

    Raises:
        AdapterFileError: A file is missing or damaged, or the adapter does not fit the model: then the message
            names the tensors, and the model is as it was.
        ConfigError: `float_model` is needed and does not fit.
        InjectionError: The model's adapters are merged, or other threads' calls of it do not end (which is seen of a
            model in an `AdapterSet`; with others, no thread may compute meanwhile).
    """
    check_flags(allow_other_quantization=allow_other_quantization, allow_other_base=allow_other_base)
    folder = place(directory)
    manifest, tensors, problem = read_both(folder)

    def check_base(present: Manifest) -> None:
        _check_quantization(manifest, present, folder, allow_other_quantization)
        _check_base(manifest, present, folder, allow_other_base)
        refuse_damage(problem)

    # Not before: calls of the model in other threads wait for what follows.
    with changing(model):
        originals = check_tensors(manifest, tensors, folder)
        report = None
        if is_adapted(model):
            refuse_merged(model, InjectionError)
            present = manifest_of(model)
            _check_same_form(manifest, present, folder)
            _check_labels(manifest, present, folder)
            check_fit(tensors, model, folder)
            check_base(present)
        else:
            _check_steps(manifest, float_model, folder)
            check_sizes(manifest, originals, model, folder)
            report = _inject(model, manifest, folder)
            try:
                check_fit(tensors, model, folder)
                if manifest.config.base_steps > 1 and float_model is not None:
                    init_loftq(model, float_model, steps=manifest.config.base_steps)
                check_base(manifest_of(model))
            except BaseException:
                remove_adapter(model)
                raise
            if are_named(manifest.labels):
                name_classes(model, manifest.labels)
        copy_into(model, tensors)
        _note_reads(model, manifest)
        return report


def _note_reads(model: nn.Module, manifest: Manifest) -> None:
    """What training saw of layers that are read and not called; without a backward pass nobody sees it again."""
    for name, layer in original_names(model):
        if isinstance(layer, PeraLinear) and READ in manifest.traits.get(name, ()):
            layer.read_as_weight = True


def _inject(model: nn.Module, manifest: Manifest, folder: Place) -> InjectionReport:
    try:
        return inject_plan(model, manifest.plan)
    except (TargetError, ConfigError) as error:
        # Another object of the same model is the likeliest mistake: a LightningModule around it, or a part of it.
        fitting = fitting_place((*manifest.layers, *manifest.tokens), dict(model.named_modules()))
        base = manifest.base_model or "its own base model"
        own = fitting or f"load it into {base}, into the module it was saved from"
        raise AdapterFileError(
            "The adapter was made for another model.",
            got=f"{folder}: {one_line(error)}",
            expected="a model with the layers that the adapter lists",
            fix=own if error.cure in (OWN_MODEL, fitting) else f"{own}; if it is: {error.cure}",
        ) from error


def refuse_infinite(tensors: Mapping[str, Tensor], folder: Place) -> None:
    """Raise AdapterFileError if a value that is to be written is not finite.

    Args:
        tensors: By name.
        folder: Where they were to go, for the message.
    """
    found = not_finite(tensors)
    if found:
        raise AdapterFileError(
            "The adapter holds values that are not finite; nothing is written, and nothing replaced.",
            got=f"{describe_infinite(found)}, for {folder}",
            expected="finite values",
            fix="training has diverged: take an earlier checkpoint, of which `consolidate` makes a folder",
        )


def _check_same_form(stored: Manifest, present: Manifest, folder: Place) -> None:
    difference = form_difference(stored, present)
    if difference:
        raise AdapterFileError(
            "The adapter is of another form than the one in the model.",
            got=f"{folder}: {difference}",
            expected="the same options",
            fix="remove_adapter(model) first, then load (of an AdapterSet: remove(name))",
        )


def _check_labels(stored: Manifest, present: Manifest, folder: Place) -> None:
    both_named = are_named(stored.labels) and are_named(present.labels)
    if both_named and stored.labels != present.labels:
        raise AdapterFileError(
            "The adapter is of a classifier of other classes, or in another order.",
            got=f"{folder}: {shown(list(stored.labels))}",
            expected=shown(list(present.labels)),
            fix="set the data's labels to those of the adapter, or load it into the plain model",
        )


def _check_quantization(stored: Manifest, present: Manifest, folder: Place, allow_other: bool) -> None:
    difference = quantization_difference(stored, present)
    if difference and not allow_other:
        raise AdapterFileError(
            "The adapter was trained on a base that is quantised otherwise.",
            got=f"{folder}: {difference}",
            expected="a base quantised in the same way",
            fix="load the base as in training; or, if the error of quantisation does not matter, "
            "load_adapter(model, folder, allow_other_quantization=True)",
        )


def _check_base(stored: Manifest, present: Manifest, folder: Place, allow_other: bool) -> None:
    difference = base_difference(stored, present)
    if difference and not allow_other:
        raise AdapterFileError(
            "The adapter was trained on another base than this one.",
            got=f"{folder}: {difference}",
            expected=f"the weights of {stored.base_model or 'the model it was trained on'}",
            fix="load that model (where its weights are drawn at random, with the same seed); to put the adapter on "
            "another base on purpose, load_adapter(model, folder, allow_other_base=True)",
        )


def _check_steps(manifest: Manifest, float_model: nn.Module | None, folder: Place) -> None:
    if manifest.config.base_steps > 1 and float_model is None:
        raise AdapterFileError(
            "The base of this adapter was changed when its training began.",
            got=f"{folder}: loftq_steps={manifest.config.base_steps}, without float_model",
            expected="the floating weights, from which the same base is made again",
            fix="load_adapter(model, folder, float_model=...)",
        )
