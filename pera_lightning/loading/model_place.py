"""Whether there is a model of a name, here or on the hub: asked before transformers, which tries for a minute.

Knows neither torch nor transformers: the command line asks before it imports them.
"""

from __future__ import annotations

import os
from pathlib import Path

from pera_lightning.did_you_mean import did_you_mean, near_paths
from pera_lightning.errors import ConfigError, one_line

_PATIENCE = 3.0
"""Seconds for the one question to the hub, where a folder was probably meant; else those that the hub's library has."""

_MOST_NAMES = 5


def check_model_place(pretrained: str) -> None:
    """Refuse a name that is no folder and cannot be meant for the hub, or is probably not.

    The hub is asked once where it is not told to be left alone: transformers would ask for each file, six times.

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
    folder = path.parent if path.parent.name and path.parent.is_dir() else None
    problem = _problem_of_hub(pretrained, is_folder_meant=bool(meant or folder))
    if problem is not None:
        raise ConfigError(
            "There is no such model.",
            got=f"{pretrained}: no folder (from {Path.cwd()}), and {problem}",
            expected="an existing folder, or a hub id of the form org/model",
            fix=did_you_mean(meant, _what_else(pretrained, folder)),
        )


def _what_else(pretrained: str, folder: Path | None) -> str:
    """What can be done where nothing has a near name."""
    if folder is not None:
        found = sorted(str(path) for path in folder.iterdir() if path.is_dir())[:_MOST_NAMES]
        return f"name a folder there: {', '.join(found)}" if found else f"bring the model: {folder} holds no folder"
    if pretrained.startswith("models/"):
        return "`make models`, in a clone of the project, brings the models that its configs name"
    return "correct the name, or the connection; HF_HUB_OFFLINE=1 uses what was downloaded before"


def is_path(name: str) -> bool:
    """Whether a name that is no folder was meant as one: hub ids have at most one slash and no leading one."""
    return name.startswith(("/", ".", "~")) or "\\" in name or name.count("/") > 1


def _problem_of_hub(name: str, *, is_folder_meant: bool) -> str | None:
    """Why the hub has no such model, or cannot say; None if it may have, or a copy of it is here."""
    from huggingface_hub import constants, model_info
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.file_download import repo_folder_name

    # Of any revision.
    if Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots").is_dir():
        return None
    if constants.HF_HUB_OFFLINE or os.environ.get("TRANSFORMERS_OFFLINE"):
        return "the hub may not be asked (HF_HUB_OFFLINE)" if is_folder_meant else None
    try:
        model_info(name, timeout=_PATIENCE if is_folder_meant else constants.HF_HUB_ETAG_TIMEOUT)
    except GatedRepoError:
        return None
    except (HFValidationError, RepositoryNotFoundError):
        return "the hub has none of this name"
    except HfHubHTTPError as error:
        # A mirror need not answer this question, and still have the files.
        return f"the hub answers: {one_line(error)}" if is_folder_meant else None
    # Any: what a network makes of a question, and the library of that.
    except Exception:
        return "the hub cannot be reached"
    return None
