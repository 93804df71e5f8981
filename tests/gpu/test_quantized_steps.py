"""A 4-bit or 8-bit model trains and merges."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pera_lightning import PeraConfig, inject_adapter, merge_adapter, quantize_model
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from tests.support.models import tiny_llama

STEPS = 40


@pytest.mark.parametrize("quantization", ["nf4", "nf4-dq", "fp4", "int8"])
def test_trains_and_merges(device: torch.device, quantization: Any) -> None:
    torch.manual_seed(0)
    model: Any = tiny_llama(hidden_size=128, intermediate_size=192).requires_grad_(False)
    model = model.to(device, torch.float16 if quantization == "int8" else torch.bfloat16)
    quantize_model(model, quantization)
    inject_adapter(model, PeraConfig(4, dropout=0.05))
    enable_gradient_checkpointing(model.train())
    optimizer = torch.optim.AdamW((value for value in model.parameters() if value.requires_grad), 3e-3)
    ids = torch.arange(96, device=device).reshape(4, 24) % 64
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    # Not in eval mode, in which 8-bit layers round their inputs and some CPUs repack 4-bit ones.
    with torch.no_grad():
        for layer in model.modules():
            layer.training = layer.training and not hasattr(layer, "pera_A")
        expected = model(ids).logits.float()
        merge_adapter(model)
        found = model(ids).logits.float()
    assert (found - expected).norm() < 0.05 * expected.norm()
