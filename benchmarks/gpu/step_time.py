"""Time and peak memory of a training step: PERA beside PEFT's LoRA of the same rank and beside the frozen base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.gpu import card
from benchmarks.gpu.random_models import adapted, trained_parameters
from benchmarks.gpu.rounds import median, ratio, timed
from benchmarks.gpu.session import Session
from pera_lightning.injection import stored_bytes

KINDS = ("base", "lora", "pera")
Figures = dict[str, Any]


class Step:
    """Forward and backward pass in bfloat16 and a step of AdamW; gradients go through the model to its input.

    Args:
        model: Frozen but for an adapter, on its device.
        batch: Rows and tokens of a row.
        backend: Of torch.compile, which takes the model as a whole; None: it is not compiled.
    """

    def __init__(self, model: Any, batch: tuple[int, int], *, backend: str | None = None) -> None:
        # PEFT's outer model is no language model: what is compiled is the one in it.
        inner = model.base_model.model if hasattr(model, "peft_config") else model
        self.embedding = inner.get_input_embeddings()
        self.device = self.embedding.weight.device
        self.ids = torch.randint(0, inner.config.vocab_size, batch, device=self.device)
        self.run: Callable[..., Any] = (
            model if backend is None else torch.compile(inner, fullgraph=True, backend=backend)
        )
        self.trained = trained_parameters(model)
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(self.trained, 1e-5, fused=fused) if self.trained else None

    def __call__(self) -> None:
        """One step."""
        with torch.autocast(self.device.type, torch.bfloat16):
            loss = self.run(inputs_embeds=self._input(), labels=self.ids, use_cache=False).loss
        loss.backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def _input(self) -> torch.Tensor:
        # As `enable_input_require_grads`, without the hook, which a compiler stops at.
        with torch.no_grad():
            found = self.embedding(self.ids)
        return found.requires_grad_()


def measure(session: Session, settings: dict[str, Any]) -> Figures:
    """One row: the three in turns, on the weights of one base."""
    shape, quant, batch = settings["shape"], settings["quant"], (settings["batch"], settings["length"])
    session.check_fits(session.architecture(shape), quant, batch[0] * batch[1])
    base = session.base(shape, quant)
    steps = {kind: Step(adapted(base, kind, settings), batch) for kind in KINDS}
    figures: Figures = {"base_mb": round(stored_bytes(base) / 1e6, 1)}
    for kind, step in steps.items():
        step()
        figures[f"params_{kind}"] = sum(value.numel() for value in step.trained)
        figures[f"peak_mb_{kind}"] = round(card.peak(session.device, step) / 1e6, 1)
    times = timed(session.device, steps, session.seconds)
    figures |= {f"s_{kind}": median(times, kind) for kind in KINDS}
    figures |= {
        "rounds": len(times["pera"]),
        "ratio": ratio(times, "pera", "lora"),
        "lora_over_base": ratio(times, "lora", "base"),
        "pera_over_base": ratio(times, "pera", "base"),
    }
    whole = {kind: figures["base_mb"] + figures[f"peak_mb_{kind}"] for kind in KINDS}
    return figures | {"peak_ratio": round(whole["pera"] / whole["lora"], 4)}


def measure_compiled(session: Session, settings: dict[str, Any]) -> Figures:
    """One row: LoRA and PERA, each eager and compiled, in turns; of the first layers, for compiling takes long."""
    changes = {"num_hidden_layers": settings["layers"]}
    batch = (settings["batch"], settings["length"])
    session.check_fits(session.architecture(settings["shape"], **changes), None, batch[0] * batch[1])
    base = session.base(settings["shape"], None, **changes)
    steps = {}
    for kind in ("lora", "pera"):
        model: nn.Module = adapted(base, kind, settings)
        steps[kind] = Step(model, batch)
        steps[f"{kind}_compiled"] = Step(model, batch, backend=settings["backend"])
    figures: Figures = {}
    for name, step in steps.items():
        # The second time it may be compiled again, for gradients that are there or not.
        step()
        step()
        figures[f"peak_mb_{name}"] = round(card.peak(session.device, step) / 1e6, 1)
    times = timed(session.device, steps, session.seconds)
    figures |= {f"s_{name}": median(times, name) for name in steps}
    return figures | {
        "rounds": len(times["pera"]),
        "ratio": ratio(times, "pera", "lora"),
        "ratio_compiled": ratio(times, "pera_compiled", "lora_compiled"),
        "pera_compiled_over_eager": ratio(times, "pera_compiled", "pera"),
        "lora_compiled_over_eager": ratio(times, "lora_compiled", "lora"),
    }
