from __future__ import annotations

import pytest
import torch

from pera_lightning.errors import ConfigError
from pera_lightning.models.generation import generate_answers
from pera_lightning.models.token_sampling import Sampling
from tests.support.models import tiny_llama
from tests.support.pretrained import character_tokenizer

PROMPT = torch.tensor([5, 6, 7])


def answer(**options: float) -> str:
    torch.manual_seed(0)
    model, tokenizer = tiny_llama(), character_tokenizer()
    [text] = generate_answers(model, tokenizer, [PROMPT], 12, sampling=Sampling(**options))
    return text


def test_greedy_is_the_default_and_temperature_0() -> None:
    assert Sampling().is_greedy
    assert answer() == answer(temperature=0) == answer(temperature=1e-4, seed=1) == answer(top_k=1, seed=3)


def test_a_seed_gives_the_same_answer_and_leaves_other_draws_alone() -> None:
    hot = {"temperature": 5.0}
    assert answer(**hot, seed=1) == answer(**hot, seed=1)
    assert len({answer(**hot, seed=seed) for seed in range(4)}) == 4
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with Sampling(seed=1, **hot).seeded():
        torch.rand(1)
    assert torch.rand(1) == expected


def test_draws_are_among_the_likeliest() -> None:
    assert answer(temperature=5.0, top_p=1e-6, seed=1) == answer()
    # All tokens take part where nothing is said of top_k.
    assert Sampling(temperature=0.7).options() == {"do_sample": True, "temperature": 0.7, "top_k": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature cannot have this value"),
        ({"temperature": float("nan")}, "temperature cannot have this value"),
        ({"top_p": 0}, "top_p cannot have this value"),
        ({"top_p": 1.5}, "top_p cannot have this value"),
        ({"top_k": 0}, "top_k cannot have this value"),
        ({"temperature": 1, "seed": -1}, "seed cannot have this value"),
        ({"seed": 1}, "seed does nothing"),
        ({"temperature": 0, "top_p": 0.5}, "top_p does nothing"),
    ],
)
def test_what_cannot_be(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**options)
