"""The config of a LoRA as PEFT writes it, and what it says in the terms of PERA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pera_lightning.config import PeraConfig
from pera_lightning.errors import AdapterFileError, ConfigError, one_line, shown
from pera_lightning.form_bounds import LEAST_SCALE, MAX_RANK, MOST_SCALE
from pera_lightning.injection import LayerPlan
from pera_lightning.patterns import FirstMatch, LinearMatcher, literal
from pera_lightning.storage.bounded_json import JsonError, read_json
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE, PEFT_TYPE
from pera_lightning.storage.remote import Place
from pera_lightning.storage.schema import SchemaError, fields, flag, list_of, mapping_of, number, or_none, text, whole

_MOST = 200_000
# How long a pattern may be is said where patterns are matched.
_pattern = text(1_000_000, least=0)
_rank, _alpha = whole(1, MAX_RANK), number(LEAST_SCALE, MOST_SCALE)
_FIELDS = fields(
    {},
    {
        "r": _rank,
        "lora_alpha": or_none(_alpha),
        "use_rslora": or_none(flag),
        "rank_pattern": or_none(mapping_of(_rank, _MOST, name=_pattern)),
        "alpha_pattern": or_none(mapping_of(_alpha, _MOST, name=_pattern)),
        "modules_to_save": or_none(list_of(text(), _MOST)),
        "target_parameters": or_none(list_of(text(), _MOST)),
        "ensure_weight_tying": or_none(flag),
    },
)
"""Those fields that are read here; others may be anything."""
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


def read_config(folder: Place) -> dict[str, Any]:
    """All fields of a LoRA's config; those that are read here are checked.

    Raises:
        AdapterFileError: The file is missing or damaged, or it is not that of a plain LoRA.
    """
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
        values |= _FIELDS(values, "")
    except SchemaError as error:
        raise AdapterFileError(
            "The LoRA's config is damaged.",
            got=f"{folder / CONFIG_FILE}: {error}",
            expected=error.expected,
            fix="copy or save the LoRA again",
        ) from None
    _refuse_other_forms(values, folder)
    return values


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


def as_pera_config(
    values: Mapping[str, Any], layers: Iterable[str], modules: list[str], folder: Place
) -> tuple[PeraConfig, dict[str, LayerPlan]]:
    """What a LoRA's config says in the terms of PERA: the options, and rank and alpha of each layer.

    Args:
        values: The config.
        layers: Names of the layers that have factors.
        modules: Names of the modules that are saved whole.
        folder: Of the LoRA, for messages.

    Raises:
        AdapterFileError: No adapter can have these options.
    """
    try:
        return _pera_config(values, layers, modules)
    except ConfigError as error:
        raise AdapterFileError(
            "The LoRA's config is damaged.",
            got=f"{folder / CONFIG_FILE}: {one_line(error)}",
            expected="r, lora_alpha and patterns as PEFT writes them",
            fix="copy or save the LoRA again",
        ) from error


def _pera_config(
    values: Mapping[str, Any], layers: Iterable[str], modules: list[str]
) -> tuple[PeraConfig, dict[str, LayerPlan]]:
    rank, alpha = values.get("r", 8), values.get("lora_alpha", 8)
    if alpha is None:
        raise ConfigError("A LoRA needs its alpha.", got="lora_alpha null", expected="a number", fix="set lora_alpha")
    matcher = LinearMatcher()
    own_ranks = FirstMatch(values.get("rank_pattern") or {}, matcher)
    own_alphas = FirstMatch(values.get("alpha_pattern") or {}, matcher)
    ranks = {name: own_ranks.value(name, rank) for name in layers}
    alphas = {name: own_alphas.value(name, alpha) for name in layers}
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
