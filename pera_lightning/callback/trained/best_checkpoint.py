"""The adapter of the best checkpoint of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from pera_lightning.checkpoint.adapter_mismatch import shapes
from pera_lightning.checkpoint.finite_values import describe_infinite, not_finite
from pera_lightning.checkpoint.training.training_checkpoint import read_checkpoint
from pera_lightning.errors import one_line
from pera_lightning.run_log.messages import rank_zero_warn
from pera_lightning.storage.remote import place

_LONGEST = 300
"""Characters of a reason in the model card."""


@dataclass(frozen=True)
class WrittenWeights:
    """Which weights an adapter folder gets.

    Attributes:
        tensors: The adapter.
        origin: Step and checkpoint that they are of, in words.
        step: The step, if it is known.
        score: The metric that they are the best by, and its value; None for the last ones.
    """

    tensors: dict[str, Tensor]
    origin: str
    step: int | None = None
    score: tuple[str, float] | None = None


class EarlierBests:
    """The best checkpoints that ModelCheckpoints knew of before a fit that has nothing to do with them."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def note(self, trainer: pl.Trainer) -> None:
        """At the begin of a fit from new adapters: what a ModelCheckpoint knows is of another run."""
        self._known = {id(callback): callback.best_model_path for callback in monitoring(trainer)}

    def forget(self) -> None:
        """The fit goes on with the run that those checkpoints are of."""
        self._known = {}

    def has(self, callback: ModelCheckpoint) -> bool:
        """Whether the best checkpoint is still that of another run."""
        return bool(callback.best_model_path) and self._known.get(id(callback)) == callback.best_model_path


class StepsOfBests:
    """At which steps of this fit the best checkpoints were written, which their files alone would not prove."""

    def __init__(self) -> None:
        self._steps: dict[tuple[int, str, float], int | None] = {}

    def note(self, trainer: pl.Trainer, step: int | None) -> None:
        """While any checkpoint is written: a new best one is known before its own file is."""
        for callback in monitoring(trainer):
            # Files of weights only are written without a word to callbacks.
            if callback.best_model_score is not None and not callback.save_weights_only:
                self._steps.setdefault(_key(callback), step)

    def of(self, callback: ModelCheckpoint) -> int | None:
        """The step of its best checkpoint; None if that was not seen."""
        return None if callback.best_model_score is None else self._steps.get(_key(callback))


def _key(callback: ModelCheckpoint) -> tuple[int, str, float]:
    return id(callback), callback.best_model_path, float(callback.best_model_score)  # type: ignore[arg-type]


def best_weights(
    trainer: pl.Trainer, prefix: str, present: dict[str, Tensor], earlier: EarlierBests, steps: StepsOfBests
) -> WrittenWeights | str:
    """The adapter of the best checkpoint, of the first ModelCheckpoint that monitors a metric and has one.

    Best is best of the whole run, also of the part before it was resumed, but only where the metric was computed in
    this fit: otherwise nothing says that what it has learned since is worse. What keeps a best checkpoint from being
    written, such as damage of whatever kind, is said in a warning and returned.

    Args:
        trainer: The Trainer at the end of its fit.
        prefix: What stands in the module's names before the adapter's.
        present: The present adapter, whose names and shapes a checkpoint must have.
        earlier: Best checkpoints of other runs.
        steps: When those of this one were written.

    Returns:
        The adapter, or why it is not that of any best checkpoint; no text if there is none.
    """
    reasons = []
    for callback in monitoring(trainer):
        path = callback.best_model_path
        if not path:
            continue
        try:
            found = _unfit(trainer, callback, earlier) or _weights(callback, prefix, present, steps)
        # Any: a remote file system has errors of its own, and the last step's adapter must not be lost by one.
        except Exception as error:
            found = one_line(error)
        if isinstance(found, WrittenWeights):
            return found
        rank_zero_warn(f"PERA: the best checkpoint {path} is not what the adapter folder gets: {found}.")
        reasons.append(f"the best checkpoint {path} is not used: {shorten(found, _LONGEST, placeholder=' ...')}")
    return "; ".join(reasons)


def monitoring(trainer: pl.Trainer) -> Iterator[ModelCheckpoint]:
    """The ModelCheckpoints that keep the best by a metric."""
    for callback in trainer.checkpoint_callbacks:
        # By these, which ModelCheckpoint adds to the metrics, the last checkpoint is kept.
        if isinstance(callback, ModelCheckpoint) and callback.monitor not in (None, "epoch", "step"):
            yield callback


def _unfit(trainer: pl.Trainer, callback: ModelCheckpoint, earlier: EarlierBests) -> str | None:
    """Why what a ModelCheckpoint calls its best checkpoint is none of this fit; None if it is."""
    path = callback.best_model_path
    if earlier.has(callback):
        return "it is of another run, whose ModelCheckpoint is used again"
    if callback.monitor not in trainer.callback_metrics:
        return (
            f"{callback.monitor} was not computed in this fit, so nothing says that the last step is worse "
            f"(consolidate --checkpoint {path} --out FOLDER makes a folder of it)"
        )
    if callback.best_model_score is not None and not callback.best_model_score.isfinite():
        return f"{callback.monitor} was never a finite number, by which it could be the best"
    if path not in callback.best_k_models:
        return f"it is of another run, with another value of {callback.monitor} or none"
    return None if place(path).exists() else "it is not there any more"


def _weights(
    callback: ModelCheckpoint, prefix: str, wanted: dict[str, Tensor], steps: StepsOfBests
) -> WrittenWeights | str:
    """The adapter in the best checkpoint, or why it is not what is wanted."""
    path, held = callback.best_model_path, read_checkpoint(callback.best_model_path)
    if {key: held.shapes.get(prefix + key) for key in wanted} != shapes(wanted):
        return "it holds another adapter (is the ModelCheckpoint of an earlier run used again?)"
    state: Any = held.callbacks.get(callback.state_key)
    # Without the states of callbacks (save_weights_only) there is nothing to compare.
    scores = state.get("best_k_models") if isinstance(state, dict) else None
    if isinstance(scores, dict) and scores.get(path) != callback.best_model_score:
        return "another run has written over it"
    if steps.of(callback) not in (None, held.step):
        return f"step {held.step} has written over it, and the best was step {steps.of(callback)}"
    tensors = held.tensors()
    best = {key: tensors[prefix + key] for key in wanted}
    spoiled = {key: count for key, count in not_finite(best).items() if wanted[key].isfinite().all()}
    if spoiled:
        return f"it holds {describe_infinite(spoiled)} that are not finite"
    step = "" if held.step is None else f"step {held.step}, "
    score = float(callback.best_model_score)  # type: ignore[arg-type]
    return WrittenWeights(
        best,
        f"{step}the best checkpoint {path} ({callback.monitor} {score:.4g})",
        held.step,
        (str(callback.monitor), score),
    )
