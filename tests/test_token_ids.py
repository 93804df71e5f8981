"""`trainable_tokens` in a config: plain types, refused where they are no token ids."""

from __future__ import annotations

import json

import pytest

from pera_lightning import PeraConfig
from pera_lightning.errors import ConfigError


@pytest.mark.parametrize("tokens", [None, [3, 1], (1, 3), {"embed_tokens": [3, 1], "lm_head": (7,)}])
def test_round_trip_through_json(tokens: object) -> None:
    config = PeraConfig(trainable_tokens=tokens)
    assert PeraConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_order_of_the_ids_makes_no_difference() -> None:
    assert PeraConfig(trainable_tokens=[3, 1]).trainable_tokens == (1, 3)
    assert PeraConfig(trainable_tokens={"wte": [3, 1]}).trainable_tokens == {"wte": (1, 3)}


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([], "list of token ids"),
        ("<tool>", "list of token ids"),
        (7, "list of token ids"),
        ([-1], "no token id"),
        ([1.0], "no token id"),
        ([True], "no token id"),
        (["<tool>"], "no token id"),
        ([4, 2, 4], "4 more than once"),
        ({}, "an empty mapping"),
        ({"": [1]}, "names of embeddings"),
        ({3: [1]}, "names of embeddings"),
        ({"wte": []}, r"trainable_tokens\['wte'\] is a list"),
        ({"wte": [1, 1]}, r"trainable_tokens\['wte'\] names a token twice"),
    ],
)
def test_refused(tokens: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        PeraConfig(trainable_tokens=tokens)
