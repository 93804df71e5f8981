"""What goes wrong while the Trainer restores its state from a checkpoint, as an error that names the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from pera_lightning.callback.resume.restored_callbacks import callback_problem
from pera_lightning.callback.resume.restored_optimizers import optimizer_problem, own_groups
from pera_lightning.callback.resume.restored_training import EARLIER, check_training_state, refuse_optimizer
from pera_lightning.checkpoint.training.checkpoint_archive import refuse_other_files
from pera_lightning.errors import CheckpointError, PeraError, one_line, shown
from pera_lightning.storage.recognition.found_instead import found_instead
from pera_lightning.storage.remote import Place, place

_MOST = 1 << 62
"""Batches, steps or epochs."""
_STEPS = ("_restore_modules_and_callbacks", "restore_training_state")
"""Of the Trainer's connector, in which it reads a checkpoint and hands its parts out."""
_READ = "resume_start"
"""Of the same, within the first step: reads the file, and hands nothing out."""


def name_checkpoint(trainer: pl.Trainer) -> None:
    """Have the Trainer's errors while it restores a checkpoint say which file, and what can be done.

    Lightning takes a checkpoint apart without looking whether it is whole, so that damage shows as any error. Functions
    are put in the way of the two steps of this Trainer; without a checkpoint they change nothing.
    """
    connector = trainer._checkpoint_connector
    for step in _STEPS:
        # That of the class: one that was put in the way before is replaced.
        vars(connector)[step] = partial(_restored, trainer, partial(getattr(type(connector), step), connector))
    vars(connector)[_READ] = partial(_read, trainer, partial(getattr(type(connector), _READ), connector))


def stop_naming(trainer: pl.Trainer) -> None:
    """Take away what `name_checkpoint` put in the way."""
    for step in (*_STEPS, _READ):
        vars(trainer._checkpoint_connector).pop(step, None)


def _read(trainer: pl.Trainer, read: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Read the file, and look at what is in it before anything of it is handed out."""
    try:
        read(*args, **options)
    except (PeraError, torch.OutOfMemoryError):
        raise
    # Any: files of every kind are taken for checkpoints.
    except Exception as error:
        found = found_instead(place(args[0])) if args and args[0] else None
        if found is None:
            raise
        raise _no_checkpoint(f"{args[0]}, which is {found.what}", found.cure) from error
    held = trainer._checkpoint_connector._loaded_checkpoint
    problem = callback_problem(trainer, held["callbacks"]) if "callbacks" in held else None
    if problem is not None:
        raise CheckpointError(
            "A callback cannot go on from the checkpoint.",
            got=f"{trainer.ckpt_path}: {problem}",
            expected="the states as Lightning writes them, with paths in the folder of the checkpoints",
            fix="go on from an earlier one; a file from others may name files of yours, which would be removed",
        )


def _restored(trainer: pl.Trainer, restore: Callable[..., Any], *args: Any, **options: Any) -> Any:
    # Given to the first step. The second has what the first read: the file may be gone by then, as the tuner's are.
    if args and args[0]:
        _refuse_missing(place(args[0]))
        refuse_other_files(place(args[0]))
    path = args[0] if args else trainer._checkpoint_connector._loaded_checkpoint and trainer.ckpt_path
    if not path:
        return restore(*args, **options)
    # DeepSpeed's are none of torch's, and keep their state in other forms.
    before = {optimizer: own_groups(optimizer) for optimizer in trainer.optimizers if isinstance(optimizer, Optimizer)}
    with restoring(path):
        if not args:
            check_training_state(trainer, path)
        result = restore(*args, **options)
    # Some strategies load the optimizers' states themselves.
    problems = (optimizer_problem(optimizer, groups) for optimizer, groups in before.items())
    refuse_optimizer(next(filter(None, problems), None), path)
    return result


def _refuse_missing(path: Place) -> None:
    # At a URL it would take the network to know; there Lightning says it.
    if isinstance(path, Path) and not path.exists():
        nothing = "a link to nothing" if path.is_symlink() else "nothing"
        raise _no_checkpoint(f"{path}, which is {nothing}", "correct the path")


def _no_checkpoint(got: str, fix: str) -> CheckpointError:
    return CheckpointError(
        "There is no checkpoint of a Trainer here.",
        got=got,
        expected="a .ckpt file, or the folder that several processes wrote",
        fix=fix,
    )


@contextmanager
def restoring(path: str | Path | None) -> Iterator[None]:
    """Within this context a state is restored from a checkpoint: whatever goes wrong, the error names the file.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointError: In place of what was raised within, but for errors that say enough.
    """
    try:
        yield
    except (PeraError, MisconfigurationException, torch.OutOfMemoryError):
        raise
    # Any: the values in the file are used before anything asks what they are.
    except Exception as error:
        raise CheckpointError(
            "The Trainer cannot restore its state from the checkpoint.",
            got=f"{path}: {one_line(error)}",
            expected="a whole file of a run with the same module, optimizers and callbacks",
            fix="if it is damaged, take an earlier one; else make them as in the run that wrote it; "
            "`consolidate` makes a folder of its adapter alone",
        ) from error


def check_loops(trainer: pl.Trainer, checkpoint: Mapping[str, Any]) -> None:
    """Raise CheckpointError if the progress of the fit in a checkpoint has another form than the Trainer's own."""
    loops = checkpoint.get("loops")
    problem: str | None
    if not isinstance(loops, dict) or not isinstance(loops.get("fit_loop"), dict):
        problem = "it has no part 'loops'" if loops is None else "its part 'loops' has no 'fit_loop'"
    else:
        problem = next(_differences(trainer.fit_loop.state_dict(), loops["fit_loop"], "progress"), None)
    if problem is not None:
        raise CheckpointError(
            "The checkpoint does not say how far its fit has come.",
            got=f"{trainer.ckpt_path}: {problem}",
            expected="counts as the Trainer's own",
            fix=EARLIER,
        )


def _differences(own: Any, held: Any, where: str) -> Iterator[str]:
    if type(held) is not type(own) or (isinstance(held, int) and not 0 <= held < _MOST):
        usual = "a part with these counts: " + ", ".join(own) if isinstance(own, dict) else shown(own)
        yield f"{where} is {shown(held)}, where the Trainer has {usual}"
        return
    # Of other things, such as the states of loaders, their owners know the form.
    for key in own.keys() & held.keys() if isinstance(own, dict) else ():
        yield from _differences(own[key], held[key], f"{where}.{key}")
