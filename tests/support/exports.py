"""Adapted models to export, and what PEFT makes of the export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter, remove_adapter
from tests.support.models import randomise_adapter, tiny_llama


def adapted(make: Callable[..., nn.Module] = tiny_llama, scale: float = 0.3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    inject_adapter(model, PeraConfig(**{"rank": 4, **options}))
    randomise_adapter(model, scale)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def by_peft(model: nn.Module, folder: Path, ids: Tensor) -> Tensor:
    return logits(PeftModel.from_pretrained(remove_adapter(model), folder), ids)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
