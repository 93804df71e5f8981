"""Reading a LoRA as PEFT writes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from pera_lightning.checkpoint.adapter_folder import read_weights
from pera_lightning.checkpoint.adapter_kind import CONFIG_FILE, PEFT_TYPE, WEIGHTS_FILE
from pera_lightning.checkpoint.adapter_tensors import STORED, dtype_name
from pera_lightning.checkpoint.lora.peft_schema import checked_lora
from pera_lightning.checkpoint.lora.saved_names import PREFIX, saved_modules
from pera_lightning.config import PeraConfig
from pera_lightning.errors import AdapterFileError, ConfigError, one_line, shown
from pera_lightning.injection import LayerPlan
from pera_lightning.injection.targets.names import parents
from pera_lightning.patterns import LONGEST_PATTERN, FirstMatch, LinearMatcher, literal
from pera_lightning.storage.bounded_json import JsonError, read_json
from pera_lightning.storage.remote import Place, place
from pera_lightning.storage.schema import SchemaError

_EMBEDDING = (".lora_embedding_A", ".lora_embedding_B")
_DEEPEST = 100
"""Parts of a tensor's name."""
_ENDS = ((".lora_A.weight", ".lora_B.weight"), _EMBEDDING)
# Fields of PEFT's LoraConfig that make more of an adapter than `base(x) + scaling * B A x`.
_OTHER_FORMS = (
    "use_dora",
    "lora_bias",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "layer_replication",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
# Starts that take from the base's weights what they put into the factors.
_OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")


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
    values = _read_config(folder)
    _refuse_other_forms(values, folder)
    _refuse_pickle(folder)
    tensors = {key.removeprefix(PREFIX): value for key, value in read_weights(folder / WEIGHTS_FILE).items()}
    _refuse_long_names(tensors, folder)
    _refuse_dtypes(tensors, folder)
    factors = dict(_factors(tensors, folder))
    if not factors:
        raise AdapterFileError(
            "The LoRA adapts no layer.",
            got=f"{folder} without factors",
            expected="lora_A and lora_B of at least one layer",
            fix="copy or save the LoRA again",
        )
    _refuse_parameters(values.get("target_parameters") or (), factors, folder)
    used = {name + end for name in factors for ends in _ENDS for end in ends}
    rest = {key: value for key, value in tensors.items() if key not in used}
    _refuse_unknown(rest, folder)
    modules = saved_modules(rest, values.get("modules_to_save") or ())
    try:
        config, layers = _config(values, factors, modules)
    except ConfigError as error:
        raise AdapterFileError(
            "The LoRA's config is damaged.",
            got=f"{folder / CONFIG_FILE}: {one_line(error)}",
            expected="r, lora_alpha and patterns as PEFT writes them",
            fix="copy or save the LoRA again",
        ) from error
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


def _read_config(folder: Place) -> dict[str, Any]:
    try:
        values = read_json(folder / CONFIG_FILE)
    except OSError as error:
        raise AdapterFileError(
            "The LoRA's config is missing.",
            got=f"no file {folder / CONFIG_FILE} ({type(error).__name__})",
            expected="a local folder that PEFT's save_pretrained wrote",
            fix="check the path; download a LoRA of the hub first (huggingface_hub.snapshot_download). A fit that was "
            "started from it can be tested and resumed without it: give PeraCallback the config that is in the "
            f"{CONFIG_FILE} of its own adapter",
        ) from None
    except JsonError as error:
        raise AdapterFileError(
            "The LoRA's config is no JSON.",
            got=f"{folder / CONFIG_FILE}: {error}",
            expected="JSON in UTF-8: an object with each name once and finite numbers",
            fix="copy or save the LoRA again",
        ) from None
    kind = values.get("peft_type") if isinstance(values, dict) else None
    if kind != "LORA":
        raise AdapterFileError(
            "This is no LoRA.",
            got=f"{folder} of peft_type {shown(kind)}",
            expected="peft_type 'LORA'",
            fix="load it with load_adapter"
            if kind == PEFT_TYPE
            else "start from a LoRA; no other kind is one of rank r",
        )
    try:
        return checked_lora(values)
    except SchemaError as error:
        raise AdapterFileError(
            "The LoRA's config is damaged.",
            got=f"{folder / CONFIG_FILE}: {error}",
            expected=error.expected,
            fix="copy or save the LoRA again",
        ) from None


def _refuse_other_forms(values: Mapping[str, Any], folder: Place) -> None:
    used = [field for field in _OTHER_FORMS if values.get(field)]
    if used:
        raise AdapterFileError(
            "The LoRA computes more than its two factors.",
            got=f"{folder} with {used[0]}={shown(values[used[0]])}",
            expected="a plain LoRA, with rslora or patterns if need be",
            fix="merge it into the base with PEFT (merge_and_unload) and train a new adapter on that",
        )
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_OTHER_BASES):
        raise AdapterFileError(
            "The LoRA belongs to a base that was changed when its training began.",
            got=f"{folder} with init_lora_weights={shown(start)}",
            expected="a LoRA for the base as it is",
            fix="convert it with PEFT: save_pretrained(folder, path_initial_model_for_weight_conversion=...); or merge "
            "it (merge_and_unload) and train a new adapter on that",
        )


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


def _factors(tensors: Mapping[str, Tensor], folder: Place) -> Iterator[tuple[str, LayerFactors]]:
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
        yield name, LayerFactors(A, B)


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


def _refuse_unknown(rest: Mapping[str, Tensor], folder: Place) -> None:
    unknown = [key for key in rest if ".lora_" in key or "trainable_tokens_" in key]
    if unknown:
        raise AdapterFileError(
            "The LoRA holds tensors that a plain one does not have.",
            got=f"{folder}: {unknown[0]!r}",
            expected=f"names that end in {', '.join((*_ENDS[0], *_ENDS[1]))}",
            fix="merge it into the base with PEFT (merge_and_unload) and train a new adapter on that",
        )


def _config(
    values: Mapping[str, Any], factors: Iterable[str], modules: list[str]
) -> tuple[PeraConfig, dict[str, LayerPlan]]:
    rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)
    if alpha is None:
        raise ConfigError("A LoRA needs its alpha.", got="lora_alpha null", expected="a number", fix="set lora_alpha")
    matcher = LinearMatcher()
    own_ranks = FirstMatch(values.get("rank_pattern") or {}, matcher)
    own_alphas = FirstMatch(values.get("alpha_pattern") or {}, matcher)
    ranks = {name: own_ranks.value(name, rank) for name in factors}
    alphas = {name: own_alphas.value(name, alpha) for name in factors}
    config = PeraConfig(
        rank,
        1,
        alpha=alpha,
        use_rslora=values.get("use_rslora") or False,
        target_modules=tuple(ranks),
        modules_to_save=modules,
        rank_pattern={literal(name): own for name, own in ranks.items() if own != rank} or None,
        alpha_pattern={literal(name): own for name, own in alphas.items() if own != alpha} or None,
    )
    return config, {name: LayerPlan(ranks[name], alphas[name]) for name in ranks}


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
