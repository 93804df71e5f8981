"""Pinned: what a training step keeps for its backward pass. A regression here costs every user memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pera_lightning import PeraConfig, inject_adapter
from tests.support.models import tiny_llama, token_ids


def saved_bytes(model: nn.Module, ids: torch.Tensor) -> int:
    """Bytes of the distinct storages kept that are no parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        # An alias keeps the storage alive; the tensor itself, if an output, would keep its own graph alive for ever.
        return value.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = model(input_ids=ids, labels=ids).loss
    # Alive until here: a storage freed early could give its address to another one.
    del loss
    return sum(kept.values())


TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def adapters_part(model: nn.Module, ids: torch.Tensor, config: PeraConfig) -> int:
    """What the adapters add to the frozen model's own bytes."""
    model.requires_grad_(False).train()
    # Makes the gradient flow through the frozen model as it does through an adapted one.
    handle = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())
    base = saved_bytes(model, ids)
    inject_adapter(model, config)
    total = saved_bytes(model, ids)
    handle.remove()
    return total - base


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("rank", [4, 16])
def test_tiny_llama(rank: int, dropout: float) -> None:
    tokens, hidden, inner, layers = 3 * 7, 32, 48, 2
    config = PeraConfig(rank, dropout=dropout, target_modules=TARGETS)
    # The input of q, k and v, that of up and that of down; the adapters' own tensors are parameters.
    inputs = tokens * (2 * hidden + inner)
    assert adapters_part(tiny_llama(), token_ids(), config) == 4 * layers * inputs


@pytest.mark.real_model
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_smollm2(smollm2_folder: Path, dropout: float) -> None:
    """4 x 64 tokens, rank 8, float32; PEFT's LoRA keeps 83.2 MB without dropout and 234.8 MB with it."""
    from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm

    source = PretrainedSource(str(smollm2_folder), "SmolLM2-135M-Instruct.Q4_1.gguf")
    model = load_causal_lm(source, dtype="float32")
    config = PeraConfig(8, dropout=dropout, target_modules=TARGETS)
    tokens, hidden, inner, layers, columns = 256, 576, 1536, 30, 44
    # down_proj is wide enough to keep its middle (tokens, K).
    expected = 4 * layers * (tokens * (2 * hidden + inner) + tokens * columns)
    assert adapters_part(model, torch.randint(0, 40_000, (4, 64)), config) == expected == 83_927_040
