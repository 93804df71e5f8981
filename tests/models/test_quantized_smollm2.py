"""A real pretrained language model in 4 bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pera_lightning import PeraCausalLM, PeraConfig, inject_adapter
from pera_lightning.injection import parameter_count, remove_adapter, stored_bytes

pytestmark = pytest.mark.real_model

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
TEXT = "The capital of France is Paris. Water boils at a hundred degrees, and the sun rises in the east."


def test_memory_and_loftq_start(smollm2_folder: Path) -> None:
    module = PeraCausalLM(str(smollm2_folder), gguf_file=GGUF, dtype="bfloat16", quantization="nf4")
    module.configure_model()
    model = module.model.eval()
    assert parameter_count(model) == 134_515_008
    assert stored_bytes(model) <= 0.30 * 4 * parameter_count(model)

    floating = module.float_model().float().eval()
    ids = module.tokenizer(TEXT, return_tensors="pt")["input_ids"]

    @torch.no_grad()
    def distance() -> float:
        wanted = floating(input_ids=ids).logits
        return ((model(input_ids=ids).logits - wanted).norm() / wanted.norm()).item()

    # An adapter that does nothing: without any, bitsandbytes would repack the weights on some CPUs.
    inject_adapter(model, PeraConfig(1, 1))
    plain = distance()
    remove_adapter(model)
    inject_adapter(model, PeraConfig(16, init="loftq", loftq_steps=3), float_model=floating)
    assert distance() < 0.9 * plain
