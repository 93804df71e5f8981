"""Latency of one generated token, batch 1, with a cache: base, merged, and with adapters left apart."""

from __future__ import annotations

import copy
from typing import Any

import torch

from benchmarks.decode import TOKENS, Decoding
from benchmarks.gpu.random_models import adapted
from benchmarks.gpu.rounds import median, ratio, timed
from benchmarks.gpu.session import Session
from benchmarks.models import trained
from pera_lightning import merge_adapter


def measure(session: Session, settings: dict[str, Any]) -> dict[str, Any]:
    """One row: each in turn with the others."""
    quant = settings["quant"]
    session.check_fits(session.architecture(settings["shape"]), quant)
    base = session.base(settings["shape"], quant)
    models = {kind: trained(adapted(base, kind, settings)) for kind in ("base", "lora", "pera")}
    # Merging writes into the weights: they are to be its own.
    models["merged"] = merge_adapter(copy.deepcopy(models["pera"]))
    with torch.device(session.device):
        runs = {kind: Decoding(model.eval()) for kind, model in models.items()}
    for run in runs.values():
        run()
    times = timed(session.device, runs, session.seconds)
    figures: dict[str, Any] = {
        "rounds": len(times["pera"]),
        "merged_over_base": ratio(times, "merged", "base"),
        "pera_over_lora": ratio(times, "pera", "lora"),
        "pera_over_base": ratio(times, "pera", "base"),
    }
    return figures | {f"ms_per_token_{kind}": round(1e3 * median(times, kind) / TOKENS, 3) for kind in runs}
