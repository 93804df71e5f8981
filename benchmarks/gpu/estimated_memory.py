"""What a step of a config really allocates, beside what `estimate` counts for it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from benchmarks.gpu import card
from benchmarks.gpu.random_models import build, trained_parameters
from benchmarks.gpu.session import Session, SkippedError
from benchmarks.gpu.shapes import PUBLISHED, Architecture, tiny
from pera_lightning import inject_adapter
from pera_lightning.analysis.memory import needed
from pera_lightning.cli.estimate.fit_on_meta import FitOnMeta
from pera_lightning.cli.estimate.fit_options import FitOptions
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from pera_lightning.data.examples import IGNORE_INDEX
from pera_lightning.models.answer_loss import answer_logits, answer_loss, chunked_answer_loss, ends_in_frozen_head
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from pera_lightning.models.optimization import make_optimizer

# Tiny models have no tenth layer, where the adapter of one config begins.
TINY = ("--data.init_args.max_length", "32", "--pera.exclude_modules", "[]")


def measure(session: Session, settings: dict[str, Any]) -> dict[str, Any]:
    """One row: one config, with rows as long as they may be."""
    path = card.ROOT / settings["config"]
    architecture = known_architecture(path)
    if session.is_tiny:
        architecture = tiny(architecture)
    fit = fit_on_meta(path, architecture, TINY if session.is_tiny else ())
    session.forget()
    session.check_fits(architecture, fit.options.quantization)
    held = fit.held(fit.options.gradient_checkpointing)
    step = fit.step(fit.options.gradient_checkpointing, fit.options.batch_size, fit.options.length)
    measured = measured_bytes(session.device, fit.options, architecture, held.total)
    return {
        "rows": fit.options.batch_size,
        "length": fit.options.length,
        "estimated_mib": round((held.total + step.peak) / 2**20, 1),
        "measured_mib": round(measured / 2**20, 1),
        "measured_over_estimated": round(measured / (held.total + step.peak), 3),
        "needed_mib": round(needed(held, step.peak) / 2**20, 1),
    }


def known_architecture(path: Path) -> Architecture:
    """The sizes of the model that a config names.

    Raises:
        SkippedError: They are not known without a network.
    """
    name = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]["pretrained"]
    if name not in PUBLISHED:
        raise SkippedError(f"the shape of {name} is not known offline: add it to benchmarks/gpu/shapes.py")
    return PUBLISHED[name]


def fit_on_meta(path: Path, architecture: Architecture, overrides: Sequence[str] = ()) -> FitOnMeta:
    """The fit of a config whose model has this architecture."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(architecture), encoding="utf-8")
        words = ["--config", str(path), "--model.init_args.pretrained", folder]
        return FitOnMeta(FitOptions.of(parse_fit("estimate", [*words, *overrides])))


def measured_bytes(device: torch.device, options: FitOptions, architecture: Architecture, held: int) -> int:
    """Bytes at the peak of a training step whose gradients and optimizer states are there.

    On a CPU only what the step allocates is measured; `held` is what is there before.
    """
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    holder, step = training_step(device, options, architecture)
    step()
    peak = card.peak(device, step)
    if device.type == "cuda":
        held = torch.cuda.memory_allocated(device) - before
    del holder
    return held + peak


def training_step(
    device: torch.device, options: FitOptions, architecture: Architecture
) -> tuple[nn.Module, Callable[[], None]]:
    """The model, and its step as PeraCausalLM makes it; gradients are kept, as where batches are accumulated."""
    attention = "eager" if options.attention == "eager" else "sdpa"
    lm = build(architecture, device, quantization=options.quantization, dtype=options.dtype, attention=attention)
    if options.gradient_checkpointing:
        enable_gradient_checkpointing(lm)
    holder = nn.Module()
    # Patterns of a fit see the model under this name.
    holder.model = lm
    inject_adapter(holder, options.pera)
    holder.train()
    batch, chunks = full_batch(device, options, architecture["vocab_size"]), ends_in_frozen_head(lm)
    groups = [{"params": trained_parameters(holder)}]
    optimizer = make_optimizer(options.optimizer, groups, 1e-5)

    def step() -> None:
        loss = chunked_answer_loss(lm, batch) if chunks else answer_loss(*answer_logits(lm, batch))
        loss.backward()
        optimizer.step()

    return holder, step


def full_batch(device: torch.device, options: FitOptions, vocabulary: int) -> dict[str, Tensor]:
    """Rows of full length with every token to be learnt; one token is padding, so that attention has its mask."""
    shape = (options.batch_size, options.length)
    ids = torch.randint(0, vocabulary, shape, device=device)
    mask, labels = torch.ones_like(ids), ids.clone()
    if options.padding and options.batch_size > 1:
        mask[-1, -1], labels[-1, -1] = 0, IGNORE_INDEX
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
