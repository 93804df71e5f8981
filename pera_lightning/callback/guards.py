"""What a run is refused for: that training goes on only where it makes sense."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from pera_lightning.callback.adapter_root import adapter_root, chat_options, prefix_of
from pera_lightning.checkpoint import Manifest, manifest_of
from pera_lightning.checkpoint.adapter_mismatch import (
    PLAIN_MODEL_CURE,
    base_difference,
    form_difference,
    is_of_plain_model,
    quantization_difference,
)
from pera_lightning.config import PeraConfig
from pera_lightning.errors import CheckpointError, ConfigError
from pera_lightning.injection import InjectionReport, clean_name


class CheckpointOrigin:
    """Adapter and base of this run, as its checkpoints name them, and those of the run that wrote the one it loads."""

    def __init__(self) -> None:
        self._present: Manifest | None = None
        # Of the adapter's names in the module.
        self._prefix = ""
        # Until the bases are compared.
        self._stored: Manifest | None = None

    def describe(self, pl_module: pl.LightningModule, *, has_shapes: bool) -> Manifest:
        """The adapter and the base of this run.

        Args:
            pl_module: The module with its adapters.
            has_shapes: Whether its weights have their shapes; what has been taken apart was described before.
        """
        if self._present is None or has_shapes:
            root = adapter_root(pl_module)
            self._prefix = clean_name(prefix_of(pl_module, root))
            self._present = manifest_of(root, getattr(pl_module, "base_model_name", None), chat=chat_options(pl_module))
        return self._present

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint gets; nothing before there is an adapter."""
        return {} if self._present is None else {"adapter": self._present.to_dict(), "prefix": self._prefix}

    def receive(self, state: dict[str, Any]) -> None:
        """Before a checkpoint is loaded.

        Args:
            state: What `state_dict` gave in the run that wrote it.

        Raises:
            CheckpointError: The adapter is of another form.
        """
        if self._present is not None and "adapter" in state:
            self._stored = Manifest.from_dict(state["adapter"])
            refuse_other_form(self._stored, self._present)

    @property
    def waits(self) -> bool:
        """Whether a base is still to be compared."""
        return self._stored is not None

    def compare_base(self, present: Manifest) -> None:
        """When the base is as the run uses it, which may have quantised it.

        Raises:
            CheckpointError: It is another base.
        """
        stored, self._stored = self._stored, None
        if stored is not None:
            refuse_other_base(stored, present)


def refuse_unknown_origin(checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Raise CheckpointError if a checkpoint with the state of a fit does not say of what adapter and base it is."""
    states = checkpoint.get("callbacks")
    known = isinstance(states, Mapping) and any(
        isinstance(state, dict) and "adapter" in state for state in states.values()
    )
    # Without the states of optimizers, as ModelCheckpoint(save_weights_only=True) writes it, Lightning refuses it.
    if not known and "optimizer_states" in checkpoint:
        if is_of_plain_model(checkpoint.get("state_dict") or ()):
            raise CheckpointError(
                "The checkpoint holds no adapter to go on with.",
                got=f"{path}, which looks like a checkpoint of the plain model",
                expected="a checkpoint of a run with PeraCallback",
                fix=PLAIN_MODEL_CURE,
            )
        raise CheckpointError(
            "The checkpoint does not say on what base its adapter was trained.",
            got=f"{path} without the state of PeraCallback",
            expected="a whole file of a run with PeraCallback",
            fix="go on from another checkpoint of the run; to start from its weights alone, read them by "
            "validate, test or predict(ckpt_path=...), and then fit the module without ckpt_path",
        )


def refuse_other_form(stored: Manifest, present: Manifest) -> None:
    """Raise CheckpointError if a checkpoint holds an adapter of other options, layers or ranks."""
    difference = form_difference(stored, present)
    if difference:
        raise CheckpointError(
            "The checkpoint was written with other adapter options.",
            got=difference,
            expected="the options of the run that wrote it",
            fix="set them in PeraCallback, or start a new run",
        )


def refuse_other_base(stored: Manifest, present: Manifest) -> None:
    """Raise CheckpointError if a checkpoint holds an adapter of another base."""
    difference = quantization_difference(stored, present) or base_difference(stored, present)
    if difference:
        raise CheckpointError(
            "The checkpoint was written with another base.",
            got=difference,
            expected="the base of the run that wrote it",
            fix="load the base as in that run (where it is drawn at random, with the same seed); to put an "
            "adapter on another base on purpose, load_adapter(model, folder, allow_other_base=True)",
        )


def refuse_other_options(given: PeraConfig, present: PeraConfig) -> None:
    """Raise ConfigError for a module with adapters, of an earlier run or the user's own, of other options."""
    if present != given:
        raise ConfigError(
            "The module already has adapters of other options.",
            got=f"{given}",
            expected=f"{present}",
            fix="give the callback the same options, or remove_adapter(module) (or merge_adapter) first",
        )


def refuse_lost_adapters(report: InjectionReport | None) -> None:
    """Raise CheckpointError if the adapters that `report` tells of would be injected once more."""
    if report is not None:
        raise CheckpointError(
            "The trained adapters are gone: the model was built anew.",
            got="a model without adapters in a second run of the same callback",
            expected="the model of the first run",
            fix="build the model only once: `if self.model is None:` in setup() or configure_model(); "
            "for another module make another PeraCallback",
        )
