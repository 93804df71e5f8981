"""The schema of those fields of PEFT's LoRA config that are read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pera_lightning.form_bounds import LEAST_SCALE, MAX_RANK, MOST_SCALE
from pera_lightning.storage.schema import fields, flag, list_of, mapping_of, number, or_none, text, whole

_MOST = 200_000
# How long a pattern may be is said where patterns are matched.
_pattern = text(1_000_000, least=0)
_rank, _alpha = whole(1, MAX_RANK), number(LEAST_SCALE, MOST_SCALE)
_LORA = fields(
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


def checked_lora(values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a LoRA's config; those that are read here are checked.

    Raises:
        SchemaError: One of them is wrong.
    """
    return {**values, **_LORA(values, "")}
