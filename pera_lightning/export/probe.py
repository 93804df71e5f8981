"""Outputs of a model on a probe, to tell what a change of its weights did."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from pera_lightning.injection import adapted_layers
from pera_lightning.models.evaluation_mode import evaluation_mode

PROBE_LENGTH = 64
"""Tokens of the probe that language models get by default."""


def probe_outputs(model: nn.Module, probe: Any = None) -> Tensor | None:
    """`model_outputs` for a probe; None is `token_probe(model)`.

    Returns:
        None if there is no probe, or tokens do not make one.
    """
    if probe is not None:
        return model_outputs(model, probe)
    tokens = token_probe(model)
    try:
        return None if tokens is None else model_outputs(model, tokens)
    except Exception:  # a model that wants more than tokens: only its user can say what
        return None


@torch.no_grad()
def model_outputs(model: nn.Module, probe: Any) -> Tensor:
    """What a model computes for a probe, in eval mode.

    Args:
        model: Any module.
        probe: A tensor, a tuple of arguments or a dict of keyword arguments.

    Returns:
        The output's first tensor (logits), float32 on the CPU.
    """
    with evaluation_mode(model):
        if isinstance(probe, dict):
            output = model(**probe)
        else:
            output = model(*probe) if isinstance(probe, tuple) else model(probe)
    return first_tensor(output).float().cpu()


def token_probe(model: nn.Module) -> dict[str, Tensor] | None:
    """Tokens drawn evenly from the vocabulary, always the same ones; None unless the model embeds tokens."""
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    if not isinstance(vocabulary, int) or not hasattr(model, "get_output_embeddings"):
        return None
    positions = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa has a few positions less than it says.
    length = min(PROBE_LENGTH, max(1, positions - 4)) if isinstance(positions, int) else PROBE_LENGTH
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, length), generator=generator)
    return {"input_ids": tokens.to(next(model.parameters()).device)}


def uncalled_layers(model: nn.Module, inputs: Sequence[Any]) -> list[str]:
    """Adapted layers that a model does not call for these inputs."""
    called: set[str] = set()
    with ExitStack() as hooks:
        for name, layer in adapted_layers(model):
            hooks.enter_context(layer.register_forward_hook(lambda *_, name=name: called.add(name)))
        for values in inputs:
            model_outputs(model, values)
    return [name for name, _ in adapted_layers(model) if name not in called]


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """`|found - wanted| / |wanted|`, Frobenius norm."""
    return (torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted).clamp_min(1e-30)).item()


def first_tensor(output: Any) -> Tensor:
    """The first tensor of what a model returns; of those of transformers without labels, the logits."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, dict) else output
    return next(value for value in values if isinstance(value, Tensor))
