"""How the tokens of an answer are chosen: the likeliest one each time, or drawn by chance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from pera_lightning.errors import ConfigError, shown
from pera_lightning.option_checks import count


@dataclass(frozen=True)
class Sampling:
    """Options of a draw; without a temperature, top_p or top_k decoding is greedy.

    Attributes:
        temperature: Divides the logits: below 1 likely tokens become likelier. 0 is greedy; None is 1 in a draw.
        top_p: Draw among the likeliest tokens that together have this probability.
        top_k: Draw among so many of the likeliest tokens.
        seed: The same seed gives the same answer to the same prompt; None is another one each time.

    Raises:
        ConfigError: A value is out of range, or would do nothing in greedy decoding.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 100:
            raise _refused("temperature", self.temperature, "a number from 0, which is greedy, to 100")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise _refused("top_p", self.top_p, "a probability above 0, at most 1")
        if self.top_k is not None:
            count("top_k", self.top_k, least=1)
        if self.seed is not None:
            count("seed", self.seed, least=0)
        idle = [name for name in ("top_p", "top_k", "seed") if getattr(self, name) is not None]
        if self.is_greedy and idle:
            raise ConfigError(
                f"{idle[0]} does nothing where the likeliest token is taken each time.",
                got=f"{idle[0]} with " + ("no temperature" if self.temperature is None else "temperature 0"),
                expected="a temperature above 0, or no such option",
                fix=f"--temperature 0.7, or leave {idle[0]} out",
            )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0 or (self.temperature, self.top_p, self.top_k) == (None, None, None)

    def options(self) -> dict[str, Any]:
        """The options of transformers' GenerationConfig."""
        if self.is_greedy:
            return {"do_sample": False}
        # transformers would draw among the 50 likeliest by itself; 0 is all of them.
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k or 0}
        return {"do_sample": True, **{name: value for name, value in chosen.items() if value is not None}}

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Draw from the seed within a block, and leave the random state of everything else alone."""
        if self.seed is None:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            yield


GREEDY = Sampling()


def _refused(name: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{name} cannot have this value.", got=shown(value), expected=expected, fix=f"change {name}")
