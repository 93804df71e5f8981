"""Training the upper layers of a model at the cost of the upper layers, for comparisons that a CPU can repeat often."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, PreTrainedModel
from typing_extensions import override

from pera_lightning.storage.atomic import replacing

States = dict[tuple[int, ...], Tensor]
"""Token ids and token types of a row -> what it is after the frozen layers (tokens, width)."""

_STATES: dict[Path, States] = {}
"""Of this process, by the file that keeps them for others."""


class FrozenLayers(Callback):
    """Computes what the lowest layers make of a row once, and remembers it.

    For encoders and decoders whose adapters are all in higher layers. A row's states are computed alone and without
    dropout, so that they depend on nothing else. A test that generates answers has all its layers: what they make of a
    token that is generated nobody could remember.

    Args:
        count: How many layers, from the lowest.
        folder: Where the states are kept for later runs.
        of_all_seeds: Whether runs of all seeds share them, for data whose rows are the same ones with each.
    """

    def __init__(self, count: int, folder: str = "runs/quality/frozen", of_all_seeds: bool = False) -> None:
        self.count = count
        self.folder = Path(folder)
        self.of_all_seeds = of_all_seeds

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        model, data = pl_module.built_model(), trainer.datamodule
        name = f"{model.name_or_path} {self.count} {data.train_source}{'' if self.of_all_seeds else f' {data.seed}'}"
        self._path = self.folder / f"{re.sub(r'[^a-zA-Z0-9.]+', '_', name)}.pt"
        if self._path not in _STATES:
            _STATES[self._path] = torch.load(self._path, weights_only=True) if self._path.is_file() else {}
        self._known = len(_STATES[self._path])
        self._restore = remember_layers(model, self.count, _STATES[self._path])

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if getattr(pl_module, "generate_in_test", False):
            self._restore()

    @override
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(_STATES[self._path]) > self._known:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as temporary:
                torch.save(_STATES[self._path], temporary)


def remember_layers(model: PreTrainedModel, count: int, states: States) -> Callable[[], None]:
    """Replace the embeddings by what comes out of the lowest layers, and these by nothing; returns what undoes it.

    Args:
        model: An encoder or decoder of transformers with a head, from a local folder.
        count: How many layers.
        states: What is known already; grows.
    """
    body = model.base_model
    layers = body.encoder.layer if hasattr(body, "encoder") else body.layers
    lowest = AutoModel.from_pretrained(model.name_or_path, num_hidden_layers=count, dtype=model.dtype)
    lowest.eval().requires_grad_(False)
    if hasattr(lowest, "norm"):
        # That of a decoder belongs after its last layer.
        lowest.norm = nn.Identity()
    name = "embeddings" if hasattr(body, "embeddings") else "embed_tokens"
    embeddings, replaced = getattr(body, name), list(layers[:count])
    setattr(body, name, _RememberedStates(lowest, states, model.config.pad_token_id))
    for place in range(count):
        layers[place] = _PassOn()

    def restore() -> None:
        setattr(body, name, embeddings)
        for place, layer in enumerate(replaced):
            layers[place] = layer

    return restore


class _PassOn(nn.Module):
    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


class _RememberedStates(nn.Module):
    def __init__(self, lowest: PreTrainedModel, states: States, pad_token_id: int | None) -> None:
        super().__init__()
        # In a tuple, because its parameters are none of this model.
        self._lowest = (lowest,)
        self._pad_token_id = pad_token_id
        self._states = states

    def forward(self, input_ids: Tensor, token_type_ids: Tensor | None = None, **kwargs: Any) -> Tensor:
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        rows = [self._of_row(*row, typed=token_type_ids is not None) for row in zip(input_ids, types, strict=True)]
        states = pad_sequence(rows, batch_first=True)
        return nn.functional.pad(states, (0, 0, 0, input_ids.shape[1] - states.shape[1]))

    @torch.no_grad()
    def _of_row(self, ids: Tensor, types: Tensor, typed: bool) -> Tensor:
        length = int((ids != self._pad_token_id).nonzero()[-1]) + 1
        key = (*ids[:length].tolist(), *types[:length].tolist())
        if key not in self._states:
            inputs = {"input_ids": ids[None, :length]} | ({"token_type_ids": types[None, :length]} if typed else {})
            self._states[key] = self._lowest[0](**inputs)[0][0]
        return self._states[key]
