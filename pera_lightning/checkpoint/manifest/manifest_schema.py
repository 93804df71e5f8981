"""The schema of `adapter_config.json`: every field is checked here, and nowhere else, before anything is built."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from pera_lightning.checkpoint.manifest.base_record import LayerRecord
from pera_lightning.config import PeraConfig
from pera_lightning.form_bounds import LEAST_SCALE, MAX_RANK, MAX_TOKEN, MOST_SCALE
from pera_lightning.injection import clean_name
from pera_lightning.injection.targets.names import parents
from pera_lightning.storage.bounded_json import check_plain
from pera_lightning.storage.schema import (
    SchemaError,
    fields,
    flag,
    list_of,
    mapping_of,
    module_name,
    number,
    or_none,
    text,
    whole,
)

FORMAT_VERSION = 1
MOST_LAYERS = 200_000
MOST_IDS = 1_000_000
MOST_LABELS = 100_000
MOST_ROWS = 10**12
_FLOAT32 = 3.5e38
_LONGEST_PROMPT = 1_000_000


def checked_manifest(values: Any) -> dict[str, Any]:
    """The fields of an adapter's config, checked one by one and against each other.

    Args:
        values: As `Manifest.to_dict` gives them, of this or an earlier version.

    Returns:
        Name of a field -> its value: a `PeraConfig` for "config", tuples for lists. Fields that the file does not have
        are missing.

    Raises:
        ValueError: A field is missing or wrong (`SchemaError`), or values are of no plain type.
        ConfigError: An option is out of range.
    """
    check_plain(values)
    found = _MANIFEST(values, "")
    _check_forms(found["config"], found["layers"])
    _check_names(found)
    return found


def _config(values: Any, where: str) -> PeraConfig:
    # Every version wrote these; what decides over outputs must not be guessed.
    lost = [name for name in ("rank", "order", "terms") if isinstance(values, Mapping) and name not in values]
    if lost:
        raise SchemaError(where, values, f"the entry {lost[0]!r} among others")
    return PeraConfig.from_dict(values)


def _clean(value: Any, where: str) -> str:
    name = module_name(value, where)
    if clean_name(name) != name:
        raise SchemaError(where, value, "a name without what wrappers add (_orig_mod)")
    return name


def _rising(values: Any, where: str) -> tuple[int, ...]:
    ids: tuple[int, ...] = list_of(whole(0, MAX_TOKEN), MOST_IDS, least=1)(values, where)
    if any(one >= other for one, other in pairwise(ids)):
        raise SchemaError(where, values, "token ids in rising order")
    return ids


def _record(value: Any, where: str) -> str:
    expected = "five parts with semicolons between them, as save_adapter writes them"
    try:
        record = LayerRecord.decode(text(100_000)(value, where))
    except (ValueError, KeyError):
        raise SchemaError(where, value, expected) from None
    if record.errors and (len(record.errors) != len(record.values) or not all(map(math.isfinite, record.errors))):
        raise SchemaError(where, value, expected)
    return record.encode()


_LAYER = fields({"rank": whole(1, MAX_RANK), "alpha": or_none(number(LEAST_SCALE, MOST_SCALE))})
_ROWS = fields({"ids": _rising, "tied": list_of(_clean, MOST_LAYERS)})
_PROMPT = text(_LONGEST_PROMPT, least=0)
_CHAT = fields(
    {},
    {
        "system_prompt": or_none(_PROMPT),
        "different_system_prompts": whole(2, MOST_ROWS),
        "most_frequent_system_prompt": _PROMPT,
        "use_chat_template": flag,
        "template": text(),
    },
)
_MANIFEST = fields(
    {
        "format_version": whole(1, FORMAT_VERSION),
        "config": _config,
        "layers": mapping_of(_LAYER, MOST_LAYERS, least=1, name=_clean),
        "saved_modules": list_of(_clean, MOST_LAYERS),
    },
    {
        "base_model_name_or_path": or_none(text(4096)),
        "token_rows": mapping_of(_ROWS, MOST_LAYERS, name=_clean),
        "base_quantization": list_of(text(), 16, least=1),
        "base_sample": mapping_of(list_of(number(-_FLOAT32, _FLOAT32), 1000), MOST_LAYERS),
        "base_record": mapping_of(_record, MOST_LAYERS),
        "layer_traits": mapping_of(list_of(text(), 16), MOST_LAYERS),
        "architecture": or_none(text()),
        "labels": list_of(text(), MOST_LABELS),
        "versions": mapping_of(text(), 100, name=text()),
        "chat": _CHAT,
    },
)


def _check_forms(config: PeraConfig, layers: Mapping[str, Mapping[str, Any]]) -> None:
    """Ranks and terms together, as for the ranks of a config."""
    for rank in {layer["rank"] for layer in layers.values()}:
        PeraConfig(rank, config.order, terms=config.terms)


def _check_names(found: Mapping[str, Any]) -> None:
    """No module may be treated in two ways."""
    saved: tuple[str, ...] = found["saved_modules"]
    rows: Mapping[str, Mapping[str, Any]] = found.get("token_rows", {})
    _refuse_twice("saved_modules", saved)
    tokens = [name for row, plan in rows.items() for name in (row, *plan["tied"])]
    _refuse_twice("token_rows", tokens)
    whole_modules = set(saved)
    for name in (*found["layers"], *tokens, *saved):
        within = [above for above in parents(name) if above in whole_modules]
        if within:
            raise SchemaError("saved_modules", within[0], f"no module that holds {name!r}, which is listed too")
    both = [name for name in (*found["layers"], *tokens) if name in whole_modules]
    both += [name for name in tokens if name in found["layers"]]
    if both:
        raise SchemaError("one module", both[0], "each layer or module in one list")


def _refuse_twice(where: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SchemaError(f"a name in {where}", name, "each name once")
        seen.add(name)
