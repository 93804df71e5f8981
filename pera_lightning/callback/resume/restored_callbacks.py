"""Whether Lightning's own callbacks can go on with the states that a checkpoint has for them; they take what is there.

ModelCheckpoint removes the files that its state names when it has written the next ones. It asks whether they are in
its folder by their names alone, and of those on other file systems not at all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from pera_lightning.callback.resume.restored_options import is_single
from pera_lightning.errors import shown

_BEST, _PATHS = "best_model_path", ("kth_best_model_path", "last_model_path")
_SCORES = ("best_model_score", "current_score", "kth_value")
_COUNTS = ("wait_count", "stopped_epoch", "patience")
_MOST = 1 << 62
_WITHOUT_SAVING = (TrainerFn.VALIDATING, TrainerFn.TESTING, TrainerFn.PREDICTING)


def callback_problem(trainer: pl.Trainer, states: Any) -> str | None:
    """In words, what of the callbacks' states is not as Lightning writes it; None if they can be handed out.

    Args:
        trainer: With the callbacks, after their `setup`.
        states: `checkpoint["callbacks"]`. Of the states of others their owners know the form.
    """
    if not isinstance(states, Mapping):
        return f"callbacks is {shown(states)}"
    for callback in getattr(trainer, "callbacks", ()):
        problems = next((look for kind, look in _KINDS.items() if isinstance(callback, kind)), None)
        if problems is None:
            continue
        # As Lightning finds them; what is empty it leaves out.
        state = states.get(callback.state_key, states.get(callback._legacy_state_key))
        problem = next(problems(callback, state), None) if state else None
        # Validations, tests and predictions save nothing, and so remove nothing.
        if state and isinstance(callback, ModelCheckpoint) and trainer.state.fn not in _WITHOUT_SAVING:
            problem = problem or _removal(callback, state)
        if problem is not None:
            return f"the state of {type(callback).__name__}: {problem}"
    return None


def _of_model_checkpoint(callback: ModelCheckpoint, state: Any) -> Iterator[str]:
    if not isinstance(state, Mapping):
        yield f"it is {shown(state)}"
        return
    dirpath = state.get("dirpath", callback.dirpath)
    if type(dirpath) is not str:
        yield f"dirpath is {shown(dirpath)}"
        return
    yield from _scores_and_models(state)
    # Lightning takes all of it where the folder is the same, and else the best path alone.
    moved = dirpath != callback.dirpath
    named = {_BEST: state.get(_BEST), **{name: state.get(name, "") for name in _PATHS}}
    models = state.get("best_k_models", {})
    for name, path in [*named.items(), *(("best_k_models", path) for path in models)]:
        why = None if path == "" and name in named else _path_problem(path, dirpath, callback.FILE_EXTENSION)
        if why and not (name == _BEST and _stays_outside(path, callback)):
            yield f"{name} is {shown(path)}, {why}"
    kth = named["kth_best_model_path"]
    full = not moved and 0 < callback.save_top_k <= len(models)
    if kth not in models and (kth or full):
        yield f"kth_best_model_path is {shown(kth)}, which is not among its best_k_models"


def _removal(callback: ModelCheckpoint, state: Mapping[str, Any]) -> str | None:
    """What the first save of a run in another folder would remove."""
    path, dirpath = state[_BEST], state.get("dirpath", callback.dirpath)
    if dirpath == callback.dirpath or not _would_be_removed(path, callback):
        return None
    return f"{_BEST} is {shown(path)} of {dirpath}, and the first save would remove it"


def _scores_and_models(state: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"it has no {name}" for name in (_BEST, "best_model_score") if name not in state)
    models = state.get("best_k_models", {})
    if not isinstance(models, dict):
        yield f"best_k_models is {shown(models)}"
        return
    scores = [(name, state.get(name)) for name in _SCORES]
    for name, score in [*scores, *(("a score in best_k_models", score) for score in models.values())]:
        if not _is_score(score) and (score is not None or name not in _SCORES):
            yield f"{name} is {shown(score)}, where a number is usual"


def _path_problem(path: Any, dirpath: str, ending: str) -> str | None:
    """Why a path is none that ModelCheckpoint has written into a folder; None if it may be."""
    if type(path) is not str:
        return "which is no text"
    if not path.endswith(ending):
        return f"which does not end with {ending}"
    return None if _is_within(path, dirpath) else f"which is not in {dirpath}"


def _is_within(path: str, dirpath: str) -> bool:
    """Whether a path leads into a folder for whoever opens or removes it: through links, `..` and URLs."""
    if not _is_local_file_protocol(dirpath):
        inner = path.removeprefix(f"{dirpath.rstrip('/')}/")
        return inner != path and not {"", ".", ".."} & set(inner.split("/"))
    if not _is_plain(path) or os.path.isabs(path) != os.path.isabs(dirpath):
        return False
    try:
        # The last part may be a link, which is removed itself.
        return Path(path).parent.resolve().is_relative_to(Path(dirpath).resolve())
    except (OSError, ValueError, RuntimeError):
        return False


def _is_plain(path: str) -> bool:
    # fsspec, with which Lightning removes, reads these as the local file system's too.
    return "://" not in path and "::" not in path and not path.startswith("~") and "\0" not in path


def _stays_outside(path: Any, callback: ModelCheckpoint) -> bool:
    """Whether the best path is of an earlier folder of the run, as a moved run keeps it until it has a better one."""
    if type(path) is not str or not path.endswith(callback.FILE_EXTENSION):
        return False
    return _is_plain(path) and ".." not in Path(path).parts and not _would_be_removed(path, callback)


def _would_be_removed(path: str, callback: ModelCheckpoint) -> bool:
    """Whether ModelCheckpoint would remove a best path that is not in its folder."""
    dirpath = str(callback.dirpath)
    if not path or _is_within(path, dirpath):
        return False
    if not _is_local_file_protocol(path):
        return callback.monitor is None
    return Path(dirpath).absolute() in Path(path).absolute().parents


def _of_early_stopping(callback: EarlyStopping, state: Any) -> Iterator[str]:
    if not isinstance(state, Mapping):
        yield f"it is {shown(state)}"
        return
    for name in _COUNTS:
        value = state.get(name)
        if type(value) is not int or not 0 <= value < _MOST:
            yield f"{name} is {shown(value)}, where a count is usual"
    score = state.get("best_score")
    if not isinstance(score, Tensor) or not _is_score(score):
        yield f"best_score is {shown(score)}, where a tensor of one number is usual"
    own = callback.state_dict()
    for name in ("stopping_reason", "stopping_reason_message"):
        value = state.get(name, own.get(name))
        if name in own and type(value) not in (type(own[name]), *((str, type(None)) if "message" in name else ())):
            yield f"{name} is {shown(value)}, where Lightning has {shown(own[name])}"


def _is_score(value: Any) -> bool:
    if isinstance(value, Tensor):
        return is_single(value) and not value.is_complex() and not bool(value.isnan())
    return type(value) in (int, float) and not math.isnan(value)


_KINDS: dict[type[pl.Callback], Any] = {ModelCheckpoint: _of_model_checkpoint, EarlyStopping: _of_early_stopping}
