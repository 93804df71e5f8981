"""Reading a LoRA as PEFT writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from pera_lightning.checkpoint.adapter_folder import read_weights
from pera_lightning.checkpoint.adapter_tensors import STORED, dtype_name
from pera_lightning.checkpoint.lora.peft_config import as_pera_config, read_config
from pera_lightning.checkpoint.lora.saved_names import PREFIX, saved_modules
from pera_lightning.config import PeraConfig
from pera_lightning.errors import AdapterFileError
from pera_lightning.injection import LayerPlan
from pera_lightning.injection.targets.names import parents
from pera_lightning.patterns import LONGEST_PATTERN
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE, WEIGHTS_FILE
from pera_lightning.storage.remote import Place, place

_EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
_DEEPEST = 100
"""Parts of a tensor's name."""
_ENDS = ((".lora_A.weight", ".lora_B.weight"), _EMBEDDING)


class LayerFactors(NamedTuple):
    """The factors of one layer as they are in the file: without alpha / r."""

    A: Tensor
    """Shape (rank, in)."""
    B: Tensor
    """Shape (out, rank)."""


@dataclass(frozen=True)
class PeftLora:
    """A LoRA in PEFT's format, by the names of the model it was trained on.

    Attributes:
        folder: Where it was read from.
        config: What it says in the terms of PERA, as an adapter of order 1 without dropout.
        layers: Layer name -> rank and alpha.
        factors: Layer name -> factors.
        embeddings: Which of the layers are embeddings.
        saved: The tensors of the modules that it holds whole.
        base: Other tensors: PEFT writes embeddings of the base along where it adapts or resized them.
        keeps_ties: Whether what was tied in the base was trained as one.
    """

    folder: Place
    config: PeraConfig
    layers: dict[str, LayerPlan]
    factors: dict[str, LayerFactors]
    embeddings: frozenset[str]
    saved: dict[str, Tensor]
    base: dict[str, Tensor]
    keeps_ties: bool


def read_peft_lora(directory: str | Place) -> PeftLora:
    """Read `adapter_config.json` and `adapter_model.safetensors` of a LoRA.

    The layers are those that the tensors name; PEFT's patterns of targets are not looked at.

    Raises:
        AdapterFileError: A file is missing or damaged, or it is no plain LoRA.
    """
    folder = place(directory)
    values = read_config(folder)
    tensors = _read_tensors(folder)
    factors = _factors(tensors, folder)
    _refuse_parameters(values.get("target_parameters") or (), factors, folder)
    rest = _beside_factors(tensors, factors, folder)
    modules = saved_modules(rest, values.get("modules_to_save") or ())
    config, layers = as_pera_config(values, factors, modules, folder)
    _check_ranks(factors, layers, folder)
    owners = set(modules)
    saved = {key: value for key, value in rest.items() if not owners.isdisjoint((*parents(key), key))}
    return PeftLora(
        folder=folder,
        config=config,
        layers=layers,
        factors=factors,
        embeddings=frozenset(name for name in factors if name + _EMBEDDING[0] in tensors),
        saved=saved,
        base={key: value for key, value in rest.items() if key not in saved},
        keeps_ties=bool(values.get("ensure_weight_tying")),
    )


def _read_tensors(folder: Place) -> dict[str, Tensor]:
    """The tensors of a LoRA without PEFT's prefix."""
    _refuse_pickle(folder)
    tensors = {key.removeprefix(PREFIX): value for key, value in read_weights(folder / WEIGHTS_FILE).items()}
    _refuse_long_names(tensors, folder)
    _refuse_dtypes(tensors, folder)
    return tensors


def _refuse_parameters(targets: Iterable[str], factors: Iterable[str], folder: Place) -> None:
    """Refuse LoRAs of tensors that are no layer's weight; the weight of a layer is that layer's LoRA."""
    layers = set(factors)
    others = [target for target in targets if target.removesuffix(".weight") not in layers]
    if others:
        raise AdapterFileError(
            "The LoRA adapts tensors that are no layer by themselves.",
            got=f"{folder} with target_parameters {others[0]!r}",
            expected="a plain LoRA, with rslora or patterns if need be",
            fix="merge it into the base with PEFT (merge_and_unload) and train a new adapter on that",
        )


def _refuse_pickle(folder: Place) -> None:
    if not (folder / WEIGHTS_FILE).exists() and (folder / "adapter_model.bin").exists():
        raise AdapterFileError(
            "The LoRA's weights are a pickle, which can run any code when it is read.",
            got=folder / "adapter_model.bin",
            expected=WEIGHTS_FILE,
            fix="convert it, if you trust it, with PEFT: PeftModel.from_pretrained(base, folder).save_pretrained(new)",
        )


def _factors(tensors: Mapping[str, Tensor], folder: Place) -> dict[str, LayerFactors]:
    found = {}
    names = {key.removesuffix(end): ends for key in tensors for ends in _ENDS for end in ends if key.endswith(end)}
    for name, (down, up) in names.items():
        A, B = tensors.get(name + down), tensors.get(name + up)
        if A is None or B is None:
            raise AdapterFileError(
                "A factor of the LoRA is missing.",
                got=f"{folder}: no {name + (down if A is None else up)!r}",
                expected="A and B of every layer",
                fix="copy or save the LoRA again",
            )
        found[name] = LayerFactors(A, B)
    if not found:
        raise AdapterFileError(
            "The LoRA adapts no layer.",
            got=f"{folder} without factors",
            expected="lora_A and lora_B of at least one layer",
            fix="copy or save the LoRA again",
        )
    return found


def _refuse_long_names(names: Iterable[str], folder: Place) -> None:
    long = next((name for name in names if len(name) > LONGEST_PATTERN or name.count(".") > _DEEPEST), None)
    if long is not None:
        raise AdapterFileError(
            "The LoRA names a tensor as no model does.",
            got=f"{folder}: {len(long):,} characters in {long.count('.') + 1:,} parts, which begin {long[:40]!r}",
            expected=f"at most {LONGEST_PATTERN:,} characters in at most {_DEEPEST} parts",
            fix="copy or save the LoRA again",
        )


def _refuse_dtypes(tensors: Mapping[str, Tensor], folder: Place) -> None:
    unknown = [key for key, value in tensors.items() if value.dtype not in STORED]
    if unknown:
        raise AdapterFileError(
            "The LoRA holds a tensor of a dtype that no model can take.",
            got=f"{folder}: {unknown[0]!r} of dtype {dtype_name(tensors[unknown[0]])}",
            expected="float32, float16 or bfloat16; in buffers also whole numbers",
            fix="convert the tensor",
        )


def _beside_factors(tensors: Mapping[str, Tensor], layers: Iterable[str], folder: Place) -> dict[str, Tensor]:
    """The tensors that are no factors: of modules saved whole, or of the base."""
    used = {name + end for name in layers for ends in _ENDS for end in ends}
    rest = {key: value for key, value in tensors.items() if key not in used}
    unknown = [key for key in rest if ".lora_" in key or "trainable_tokens_" in key]
    if unknown:
        raise AdapterFileError(
            "The LoRA holds tensors that a plain one does not have.",
            got=f"{folder}: {unknown[0]!r}",
            expected=f"names that end in {', '.join((*_ENDS[0], *_ENDS[1]))}",
            fix="merge it into the base with PEFT (merge_and_unload) and train a new adapter on that",
        )
    return rest


def _check_ranks(factors: Mapping[str, LayerFactors], layers: Mapping[str, LayerPlan], folder: Place) -> None:
    for name, (A, B) in factors.items():
        rank = layers[name].rank
        if A.ndim != 2 or B.ndim != 2 or not A.shape[0] == B.shape[1] == rank:
            raise AdapterFileError(
                "The LoRA's files do not belong together.",
                got=f"{folder}: factors of shapes {tuple(A.shape)} and {tuple(B.shape)} for layer {name!r}",
                expected=f"(rank, in) and (out, rank) of rank {rank}, as {CONFIG_FILE} says",
                fix="copy or save the LoRA again; LoRAs of convolutions cannot be taken over",
            )
