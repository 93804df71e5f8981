"""What the data modules need of the Trainer that runs them."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from pera_lightning.data.model_limits import ModelLimits
from pera_lightning.errors import ConfigError
from pera_lightning.loading.pretrained import PretrainedSource
from pera_lightning.loading.pretrained_tokenizer import read_tokenizer


def find_tokenizer(data: LightningDataModule, given: Any) -> Any:
    """The tokenizer that a data module was given, as an object or by name, or that of the module being run.

    Raises:
        ConfigError: There is none, or it cannot be loaded.
    """
    if isinstance(given, str | os.PathLike):
        return _named_tokenizer(os.fspath(given))
    if given is not None:
        return given
    module = data.trainer.lightning_module if data.trainer is not None else None
    tokenizer = getattr(module, "tokenizer", None)
    if tokenizer is None:
        raise ConfigError(
            f"{type(data).__name__} has no tokenizer.",
            got="no trainer" if module is None else f"a {type(module).__name__} without the attribute tokenizer",
            expected="a tokenizer of transformers",
            fix="set tokenizer to its name or folder, or train a module that has one, such as PeraCausalLM",
        )
    return tokenizer


@cache
def _named_tokenizer(name: str) -> Any:
    """Once for each name: a data module keeps the rows that it has tokenised while its tokenizer is the same."""
    return read_tokenizer(PretrainedSource(name))


def check_against_model(
    data: LightningDataModule,
    split: str,
    *,
    largest_id: int,
    longest: int,
    option: str = "max_length",
    packed: bool = False,
) -> None:
    """Compares the rows of a split with the model that is to read them, if there is one.

    Args:
        data: The data module.
        split: Name of the split.
        largest_id: Of all token ids, that of the padding included.
        longest: Tokens of the longest row.
        option: Which option of the data module makes rows shorter.
        packed: Whether rows will stand end to end.

    Raises:
        ConfigError: An id is not in the model's embedding, a row is longer than it has positions, or rows of a pack
            would change each other.
    """
    limits = ModelLimits.of(getattr(data.trainer, "lightning_module", None))
    if limits is not None:
        shorter = f"lower {option}"
        limits.check_rows(f"{split} split", largest_id=largest_id, longest=longest, shorter=shorter, packed=packed)


def loader_options(num_workers: int) -> dict[str, Any]:
    """What every DataLoader here is made with."""
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }


def distributed_processes(data: LightningDataModule) -> dict[str, Any]:
    """The arguments `num_replicas` and `rank` of a `DistributedSampler`."""
    # Not the world size: under tensor parallelism some processes share their data.
    kwargs = data.trainer.distributed_sampler_kwargs if data.trainer is not None else None
    return kwargs or {"num_replicas": 1, "rank": 0}
