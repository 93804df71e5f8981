"""Weights of the base on other ways into a checkpoint than the module's state: hyperparameters, states of callbacks."""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from pera_lightning.checkpoint.training.training_checkpoint import PROCESSES
from pera_lightning.functional.distributed import own_part
from pera_lightning.injection import is_adapted
from pera_lightning.run_log.messages import rank_zero_warn

_ARGUMENTS = {
    pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY: "module",
    pl.LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY: "data module",
}
_INSTALLED = "_pera_keeps_base_out"
# The model is filtered by itself; optimizers have states of what is trained alone.
_KNOWN = {"state_dict", "optimizer_states", PROCESSES, *_ARGUMENTS}


def keep_base_out(strategy: Strategy) -> None:
    """Have every checkpoint looked through before it is written: also with `save_weights_only`, which calls no hook.

    Hyperparameters that hold weights are left out, with a warning. Of what others put into a checkpoint on purpose,
    such as the states of their callbacks, a warning tells.

    Args:
        strategy: What writes the checkpoints; the function in its way stays there.
    """
    if vars(strategy).get(_INSTALLED):
        return
    setattr(strategy, _INSTALLED, True)
    # Strategies travel to spawned processes, so no function made here. What else is in the way comes after it.
    own = vars(strategy).get("save_checkpoint")
    strategy.__dict__["save_checkpoint"] = partial(_save_checkpoint, strategy, own)


def _save_checkpoint(
    strategy: Strategy, own: Callable[..., None] | None, checkpoint: dict[str, Any], filepath: Any, **options: Any
) -> None:
    module = strategy.lightning_module
    if module is not None and is_adapted(module):
        base = _Base(module)
        for key, whose in _ARGUMENTS.items():
            _leave_out(checkpoint, key, whose, base)
        for name, value in _others(checkpoint):
            found = base.in_state(value)
            if found:
                rank_zero_warn(
                    f"PERA: the checkpoint holds weights of the base, which are not of the adapter: {found} in {name}."
                )
    (own or partial(type(strategy).save_checkpoint, strategy))(checkpoint, filepath, **options)


def _leave_out(checkpoint: dict[str, Any], key: str, whose: str, base: _Base) -> None:
    held = checkpoint.get(key)
    found = {name: words for name, value in dict(held or {}).items() if (words := base.in_argument(value))}
    if not found:
        return
    # Whole arguments: of one with a part missing nobody would know.
    checkpoint[key] = {name: value for name, value in dict(held or {}).items() if name not in found}
    arguments = ", ".join(f"{name}=..." for name in found)
    rank_zero_warn(
        f"PERA: of the {whose}'s hyperparameters {', '.join(f'{name!r} ({words})' for name, words in found.items())} "
        f"{'is' if len(found) == 1 else 'are'} not in the checkpoint, which holds no weights but the adapter's: "
        f"load_from_checkpoint(path, {arguments}) needs {'it' if len(found) == 1 else 'them'}. "
        f"save_hyperparameters(ignore={list(found)}) does the same without this warning."
    )


def _others(checkpoint: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in checkpoint.items():
        if key == "callbacks":
            yield from ((f"the state of the callback {name}", state) for name, state in value.items())
        elif key not in _KNOWN:
            yield f"the entry {key!r}", value


class _Base:
    """The frozen weights of a module, to recognise them by."""

    def __init__(self, module: nn.Module) -> None:
        frozen = [value for value in (*module.parameters(), *module.buffers()) if not value.requires_grad]
        self.memory = {place for value in frozen if (place := _memory(value))}
        self.shapes = {tuple(value.shape) for value in frozen if value.dim() > 1}
        self.largest = max((value.numel() for value in frozen), default=0)
        self.total = sum(value.numel() for value in frozen)

    def in_argument(self, value: object) -> str | None:
        """What of the base is in a hyperparameter; also copies, and what has the form of its weights."""
        return _Search(self, strict=True).in_(value)

    def in_state(self, value: object) -> str | None:
        """What of the base is in something that may well hold tensors."""
        return _Search(self, strict=False).in_(value)


class _Search(pickle.Pickler):
    """Goes where `torch.save` would go, through containers and objects of any kind, and writes nothing."""

    def __init__(self, base: _Base, *, strict: bool) -> None:
        super().__init__(io.BytesIO(), protocol=2)
        self._base = base
        self._strict = strict
        self._numbers = 0
        self._found: str | None = None
        numpy = sys.modules.get("numpy")
        self._arrays = (Tensor,) if numpy is None else (Tensor, numpy.ndarray)

    def in_(self, value: object) -> str | None:
        if value is None or isinstance(value, str | int | float):
            return None
        # What cannot be pickled ends the saving with its own error.
        with contextlib.suppress(Exception):
            self.dump(value)
        return self._found

    def persistent_id(self, value: Any) -> bool | None:
        """What is pickled by reference, and so not searched: tensors, and all that comes after something was found."""
        if self._found is None:
            self._found = self._weights(value)
        return True if self._found or isinstance(value, self._arrays) else None

    def _weights(self, value: Any) -> str | None:
        if isinstance(value, nn.Module) and any(True for _ in value.parameters()):
            return f"a {type(value).__name__}"
        if not isinstance(value, self._arrays):
            return None
        # Whole numbers in a state are those of random generators, of samplers, ...
        if self._strict or (isinstance(value, Tensor) and value.is_floating_point()):
            self._numbers += value.numel() if isinstance(value, Tensor) else value.size
        if isinstance(value, Tensor) and _memory(value) in self._base.memory:
            return "a weight of the module"
        if self._strict and (tuple(value.shape) in self._base.shapes or self._numbers >= self._base.largest):
            return f"a {type(value).__name__} of shape {tuple(value.shape)}"
        return f"tensors of {self._numbers:,} numbers" if self._numbers >= self._base.total else None


def _memory(value: Tensor) -> int:
    """Where the numbers are; 0 for tensors without any."""
    try:
        return own_part(value).untyped_storage().data_ptr()
    # Some kinds of tensors have no storage.
    except (NotImplementedError, RuntimeError):
        return 0
