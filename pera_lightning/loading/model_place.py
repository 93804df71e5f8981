"""Whether there is a model of a name, here or on the hub: asked before transformers, which tries for a minute.

Knows neither torch nor transformers: the command line asks before it imports them.
"""

from __future__ import annotations

import os
from pathlib import Path

from pera_lightning.did_you_mean import did_you_mean, near_paths
from pera_lightning.errors import ConfigError

_PATIENCE = 3.0
"""Seconds for the one question to the hub."""


def check_model_place(pretrained: str) -> None:
    """Refuse a name that is no folder and cannot be meant for the hub, or is probably not.

    The hub is asked, once and for seconds at most, where something here has a name near the given one: a misspelt
    folder is then told at once, with what it was meant for.

    Args:
        pretrained: A hub id or a folder, as a user gave it.

    Raises:
        ConfigError: There is no such folder, and none such on the hub where it could be meant.
    """
    path = Path(pretrained)
    if path.exists():
        return
    meant = near_paths(path)
    if is_path(pretrained):
        raise ConfigError(
            "The folder of the pretrained model does not exist.",
            got=f"{pretrained} (from {Path.cwd()})",
            expected="an existing folder, or a hub id of the form org/model",
            fix=did_you_mean(meant, "correct the path"),
        )
    problem = _problem_of_hub(pretrained) if meant else None
    if problem is not None:
        raise ConfigError(
            "There is no such model.",
            got=f"{pretrained}: no folder (from {Path.cwd()}), and {problem}",
            expected="an existing folder, or a hub id of the form org/model",
            fix=did_you_mean(meant, "correct the name"),
        )


def is_path(name: str) -> bool:
    """Whether a name that is no folder was meant as one: hub ids have at most one slash and no leading one."""
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def _problem_of_hub(name: str) -> str | None:
    """Why the hub has no such model, or cannot say; None if it has, or a copy of it is here."""
    from huggingface_hub import constants, model_info, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        if any(try_to_load_from_cache(name, file) for file in ("config.json", "tokenizer_config.json")):
            return None
        if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE"):
            return "the hub may not be asked (HF_HUB_OFFLINE)"
        model_info(name, timeout=_PATIENCE)
    except GatedRepoError:
        return None
    except (HFValidationError, RepositoryNotFoundError):
        return "the hub has none of this name"
    # Any: what a network makes of a question, and the library of that.
    except Exception:
        return "the hub cannot be reached"
    return None
