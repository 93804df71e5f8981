"""What no plain LoRA holds of an adapter, and what programs that load one would leave out without a word."""

from __future__ import annotations

from collections.abc import Iterable

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.manifest.layer_traits import EMBEDDING, READ, TIED
from pera_lightning.errors import ExportError

LLAMA_CPP = "llama.cpp"
"""The title of what loads GGUF files."""
MERGE = "export the merged model, which holds everything: --to merged, or merge_adapter(model) in Python"
"""The way out of every format that cannot hold an adapter."""


def refuse_losses(title: str, manifest: Manifest, *, linear_only: bool = False, in_calls: bool = False) -> None:
    """Raise if a program would not apply all of an adapter.

    Args:
        title: Of the program, for the message.
        manifest: Of the adapter.
        linear_only: Whether it takes adapters of linear layers and nothing else.
        in_calls: Whether it adds the LoRA where the model calls a layer.

    Raises:
        ExportError: Trained token rows or biases, which no LoRA format holds; modules saved whole that share a weight
            with others, which would keep the old one; and with `linear_only` adapted embeddings, adapted output heads
            that share the embedding's weight, and modules saved whole; with `in_calls` layers that are not called.
    """
    biases = [name for name in manifest.saved if name.rpartition(".")[2] == "bias"]
    _refuse(title, "trained biases", biases)
    _refuse(title, "trained rows of tokens", manifest.tokens)
    # PEFT gives a module saved whole a copy of its own: the other side of the tie would keep the base's weight.
    tied = [name for name in _with(manifest, TIED) if name in manifest.saved]
    _refuse(title, "the tie between a module saved whole and another module", tied)
    if in_calls:
        _refuse(title, "layers whose weight the model reads instead of calling them", _with(manifest, READ))
    if linear_only:
        _refuse(title, "adapted embeddings", _with(manifest, EMBEDDING))
        _refuse(title, "an adapted output head that is tied to the embedding", _with(manifest, TIED))
        _refuse(title, "modules saved whole", manifest.saved)


def _with(manifest: Manifest, trait: str) -> list[str]:
    return [name for name, traits in manifest.traits.items() if trait in traits]


def _refuse(server: str, what: str, names: Iterable[str]) -> None:
    found = list(names)
    if found:
        raise ExportError(
            f"{server} would leave out a part of this adapter.",
            got=f"{what}: {', '.join(found[:3])}{', ...' if len(found) > 3 else ''}",
            expected="what a LoRA for it can hold",
            fix=MERGE,
        )
