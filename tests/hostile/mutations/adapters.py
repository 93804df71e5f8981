"""Damage to adapter folders, with the checksums that whoever made it would write."""

from __future__ import annotations

import contextlib
import json

from pera_lightning.checkpoint.checksums import with_checksums
from tests.hostile.kinds import Case
from tests.hostile.mutations.files import swap_files
from tests.hostile.mutations.tensors import damage_tensors, read_tensors
from tests.hostile.mutations.values import damage_json, written

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def damage_config(case: Case) -> str:
    done = damage_json(case.random, case.given / CONFIG)
    return done + _fit_checksums(case)


def damage_weights(case: Case) -> str:
    path = case.given / WEIGHTS
    if case.random.random() < 0.05:
        other = case.random.choice(sorted(case.good.parent.iterdir()))
        swap_files(path, other / WEIGHTS)
        return f"weights of {other.name}"
    return damage_tensors(case.random, path) + _fit_checksums(case)


def _fit_checksums(case: Case) -> str:
    """Who writes an evil folder writes the checksums that belong to it, or none; damage leaves them as they are."""
    choice = case.random.random()
    config, weights = case.given / CONFIG, case.given / WEIGHTS
    if choice < 0.3 or not all(path.is_file() and not path.is_symlink() for path in (config, weights)):
        return ""
    # What cannot be read has none.
    with contextlib.suppress(Exception):
        values = json.loads(config.read_text(encoding="utf-8"))
        del values["checksums"]
        if choice > 0.65:
            values = with_checksums(values, read_tensors(weights))
        config.write_text(written(values), encoding="utf-8")
        return f", {'with its' if choice > 0.65 else 'without'} checksums"
    return ""
