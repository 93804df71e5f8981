"""What the names of layers say: their kind, and which block they are in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Place(NamedTuple):
    """Where a layer stands in its model."""

    kind: str
    """The name after the number of the block, e.g. "self_attn.q_proj"; the whole name without such a number."""
    block: str
    """The first number in the name; empty without one."""

    def __str__(self) -> str:
        return f"{self.block} {self.kind}".strip()


def place_of(layer: str) -> Place:
    """Take a layer's name apart."""
    words = layer.split(".")
    at = next((index for index, word in enumerate(words) if word.isdecimal()), None)
    if at is None:
        return Place(layer, "")
    return Place(".".join(words[at + 1 :]) or words[at], words[at])


def places_of(layers: Sequence[str]) -> list[Place]:
    """Where layers stand; by whole names if the numbers do not tell them apart (encoder and decoder, for example)."""
    places = [place_of(layer) for layer in layers]
    return places if len(set(places)) == len(places) else [Place(layer, "") for layer in layers]
