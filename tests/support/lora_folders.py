"""LoRAs that PEFT has made, as folders."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.models import token_ids

CLOSE = {"rtol": 0, "atol": 1e-5}


def make(build: Callable[[], nn.Module]) -> nn.Module:
    """The same base every time, as if it were pretrained."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return build()


def logits(model: nn.Module) -> Tensor:
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(2)
        return model(input_ids=token_ids()).logits


def peft_lora(model: nn.Module, folder: Path, **options: Any) -> nn.Module:
    """A LoRA that PEFT made and saved, with values as training would give them."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        # Remarks about embeddings that are saved along, tied layers and Conv1D.
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model, LoraConfig(**options)).eval()
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(3)
            for name, value in wrapped.named_parameters():
                if value.requires_grad:
                    value.normal_(std=0.3) if "lora_" in name else value.add_(0.3 * torch.randn_like(value))
        wrapped.save_pretrained(folder)
    return wrapped
