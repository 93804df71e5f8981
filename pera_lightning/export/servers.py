"""What programs that serve LoRA adapters take, and what they would leave out without a word."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.manifest.layer_traits import EMBEDDING, TIED
from pera_lightning.errors import ExportError

Server = Literal["peft", "vllm", "llamacpp", "safetensors"]
SERVERS: tuple[Server, ...] = ("peft", "vllm", "llamacpp", "safetensors")
TITLES = {"peft": "PEFT", "vllm": "vLLM", "llamacpp": "llama.cpp", "safetensors": "A file of factors"}
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank can have."""
MERGE = "export the merged model, which holds everything: --to merged, or merge_adapter(model) in Python"
"""The way out of every format that cannot hold an adapter."""


def refuse_losses(to: Server, manifest: Manifest) -> None:
    """Raise if a server would not apply all of an adapter.

    Args:
        to: Where the export is to be loaded.
        manifest: Of the adapter.

    Raises:
        ExportError: Trained token rows or biases, which no LoRA format holds; modules saved whole that share a weight
            with others, which would keep the old one; and for vLLM and llama.cpp adapted embeddings, adapted output
            heads that share the embedding's weight, and modules saved whole.
    """
    server = TITLES[to]
    biases = [name for name in manifest.saved if name.rpartition(".")[2] == "bias"]
    _refuse(server, "trained biases", biases)
    _refuse(server, "trained rows of tokens", manifest.tokens)
    # PEFT gives a module saved whole a copy of its own: the other side of the tie would keep the base's weight.
    tied = [name for name in _with(manifest, TIED) if name in manifest.saved]
    _refuse(server, "the tie between a module saved whole and another module", tied)
    if to in ("vllm", "llamacpp"):
        _refuse(server, "adapted embeddings", _with(manifest, EMBEDDING))
        _refuse(server, "an adapted output head that is tied to the embedding", _with(manifest, TIED))
        _refuse(server, "modules saved whole", manifest.saved)


def refuse_rank(to: Server, rank: int) -> None:
    """Raise ExportError if a server takes no LoRA of this rank."""
    if to == "vllm" and rank > VLLM_RANKS[-1]:
        raise ExportError(
            "vLLM takes no LoRA of this rank.",
            got=f"rank {rank}, the expanded rank of the adapter",
            expected=f"at most {VLLM_RANKS[-1]}",
            fix=f"cut it by singular values: --rank {VLLM_RANKS[-1]} (rank={VLLM_RANKS[-1]} in Python) or less, "
            "or --max_error 0.01 for the smallest rank that keeps 99.99 % of each layer's energy",
        )


def max_lora_rank(rank: int) -> int:
    """The --max-lora-rank with which vLLM takes a LoRA of this rank, at most 512."""
    return next(limit for limit in VLLM_RANKS if limit >= rank)


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
