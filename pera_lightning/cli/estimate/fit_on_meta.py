"""A fit of `PeraCausalLM` without weights, data or a GPU: its model on the meta device and its steps' memory."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pera_lightning.analysis import memory
from pera_lightning.analysis.memory import HeldMemory
from pera_lightning.analysis.step_memory import StepMemory, measure_forward, measure_step
from pera_lightning.base_layers import QUANTIZATIONS
from pera_lightning.cli.estimate.fit_options import FitOptions
from pera_lightning.injection import inject_adapter
from pera_lightning.models.activation_offloading import ActivationOffloading
from pera_lightning.models.answer_loss import answer_loss, has_frozen_head, head_loss
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing


class MetaModel(NamedTuple):
    """The model of a fit without memory."""

    holder: nn.Module
    """The module that the adapter was injected into."""
    lm: Any
    """The language model in it."""
    quantized: list[nn.Module]
    """The layers that would be quantised."""
    chunks_loss: bool
    """Whether the loss does without the whole logits."""
    offloading: ActivationOffloading
    """Of its activations, if they are offloaded."""


class FitOnMeta:
    """Bytes of a fit. Everything is measured when it is asked for, and once.

    Args:
        options: Of the fit.
    """

    def __init__(self, options: FitOptions) -> None:
        self.options = options
        self._model = cache(self._build)
        self.held = cache(self._held)
        self.step = cache(self._step)

    def _held(self, checkpointing: bool) -> HeldMemory:
        """What is there all the time."""
        model = self._model(checkpointing)
        quantization, optimizer = self.options.quantization, self.options.optimizer
        held = memory.held_memory(
            model.holder, quantized=model.quantized, quantization=quantization, optimizer=optimizer
        )
        # DDP's buckets hold each gradient once more.
        return replace(held, gradients=2 * held.gradients) if self.options.reduces_gradients else held

    def _step(self, checkpointing: bool, batch_size: int, length: int) -> StepMemory:
        """What a training step allocates if every token is to be learnt."""
        model = self._model(checkpointing)
        rows, tokens = self.shape(batch_size, length)

        def body() -> Tensor:
            batch = _batch(rows, tokens)
            if model.chunks_loss:
                return model.lm.base_model(**batch).last_hidden_state[:, :-1]
            return model.lm(**batch).logits[:, :-1]

        def loss(out: Tensor) -> Tensor:
            targets = torch.zeros(out.shape[:2], dtype=torch.int64, device="meta")
            if not model.chunks_loss:
                return answer_loss(out, targets)
            # A real step selects the labelled positions, which copies them.
            return head_loss(model.lm, out.flatten(0, 1).clone(), targets.flatten())

        return measure_step(model.holder, body, loss, **self._kernels(model, self.is_masked(batch_size)))

    def offloaded(self, checkpointing: bool, batch_size: int, length: int) -> int:
        """Bytes that wait in CPU memory for a training step's backward pass."""
        # The last step that was measured may have been another one.
        self._step(checkpointing, batch_size, length)
        return self._model(checkpointing).offloading.moved

    def validation_peak(self, checkpointing: bool) -> int:
        """The most bytes that a validation step allocates; its metrics want the logits as a whole. 0 without any."""
        rows, model = self.options.eval_batch_size, self._model(checkpointing)
        if rows is None:
            return 0

        def run() -> None:
            logits = model.lm(**_batch(rows, self.options.eval_length)).logits
            # Indexed by the labelled positions: a copy.
            logits = logits.flatten(0, 1).clone().unsqueeze(0)
            answer_loss(logits, torch.zeros(logits.shape[:2], dtype=torch.int64, device="meta"))

        model.lm.eval()
        peak = measure_forward(run, **self._kernels(model, rows > 1 and self.options.attention == "sdpa"))
        model.lm.train()
        return peak

    def shape(self, batch_size: int, length: int) -> tuple[int, int]:
        """Rows, and tokens of a row, of a training batch."""
        return (1, batch_size * length) if self.options.in_one_row else (batch_size, length)

    def is_masked(self, batch_size: int) -> bool:
        """Whether attention has to have a mask: it has padding or several rows in one, and a kernel that needs one."""
        needs_mask = self.options.in_one_row or (self.options.padding and batch_size > 1)
        return self.options.attention == "sdpa" and needs_mask

    def largest_expansion(self) -> int:
        """Bytes of the expanded factors of the layer where they are largest."""
        return memory.largest_expansion(self._model(self.options.gradient_checkpointing).holder)

    def largest_unpacked(self) -> int:
        """Bytes of the largest quantised weight while it is unpacked."""
        return memory.largest_unpacked(self._model(self.options.gradient_checkpointing).quantized)

    def _build(self, checkpointing: bool) -> MetaModel:
        from transformers import AutoModelForCausalLM

        attention = "eager" if self.options.attention == "eager" else "sdpa"
        with torch.device("meta"):
            lm: Any = AutoModelForCausalLM.from_config(
                self.options.architecture,
                dtype=self.options.dtype,
                attn_implementation=attention,
                trust_remote_code=self.options.source.trust_remote_code,
            )
        if checkpointing:
            enable_gradient_checkpointing(lm)
        quantized = [] if self.options.quantization is None else memory.quantizable_layers(lm)
        holder = nn.Module()
        # Patterns of a fit see the model under this name.
        holder.model = lm
        inject_adapter(holder, self.options.pera)
        holder.train()
        chunks_loss = has_frozen_head(lm) and _ends_in_head(lm)
        offloading = ActivationOffloading()
        if self.options.activation_offloading:
            offloading.attach(lm.base_model)
        return MetaModel(holder, lm, quantized, chunks_loss, offloading)

    def _kernels(self, model: MetaModel, masked: bool) -> dict[str, Any]:
        kind = self.options.quantization
        packed = kind is not None and QUANTIZATIONS[kind].packed
        return {"quantized": model.quantized, "packed": packed, "checks_hold": not masked}


def _batch(rows: int, tokens: int) -> dict[str, Any]:
    ids = torch.zeros(rows, tokens, dtype=torch.int64, device="meta")
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def _ends_in_head(lm: Any) -> bool:
    """Whether the head gets the last hidden state and gives the logits, both untouched.

    `ends_in_frozen_head` compares values to find out; without values, the same memory tells.
    """
    seen: dict[str, Any] = {}

    def note_state(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["state"] = output.last_hidden_state.untyped_storage()._cdata

    def note_head(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["input"], seen["output"] = inputs[0].untyped_storage()._cdata, output

    def run() -> None:
        seen["logits"] = lm(**_batch(1, 2)).logits

    head = lm.get_output_embeddings()
    with lm.base_model.register_forward_hook(note_state), head.register_forward_hook(note_head):
        measure_forward(run)
    return seen["state"] == seen["input"] and seen["logits"] is seen["output"]
