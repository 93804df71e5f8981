"""`test` and `predict` without a trained adapter are refused: they would be the base's."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from pera_lightning.callback.callback import PeraCallback
from pera_lightning.errors import ConfigError
from pera_lightning.injection.untrained import is_untrained

_OWN = ("PeraCausalLM", "PeraSequenceClassifier")


def refuse_without_checkpoint(subcommand: str | None, options: Any) -> None:
    """Refuse before model and data are loaded.

    Args:
        subcommand: Of the command line.
        options: Its parsed options.

    Raises:
        ConfigError: Nothing could give the adapter other values than those of its start.
    """
    module, pera = getattr(options.model, "class_path", ""), options.pera
    # Anybody else's module may load an adapter itself.
    is_own = module.startswith("pera_lightning.") and module.rpartition(".")[2] in _OWN
    if subcommand not in ("test", "predict") or not is_own or "untrained" in pera.skip_checks:
        return
    if options.ckpt_path is None and pera.init_from is None:
        raise _untrained(subcommand, "no --ckpt_path")


class RefuseUntrained(pl.Callback):
    """Refuses when the run starts, where only then can be known what it has loaded."""

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        callbacks: Any = getattr(trainer, "callbacks", ())
        skipped = [part.skip_checks for part in callbacks if isinstance(part, PeraCallback)]
        if is_untrained(pl_module) and not any("untrained" in names for names in skipped):
            command: Any = trainer.state.fn
            raise _untrained(command.value, "adapters that nobody has trained or loaded")

    on_predict_start = on_test_start


def _untrained(command: str, got: str) -> ConfigError:
    return ConfigError(
        f"`{command}` would run the base, as if it had no adapter.",
        got=got,
        expected="a checkpoint that a fit has written",
        fix="--ckpt_path FILE.ckpt, from the folder `checkpoints` beside the fit's logs (`test --compare_base true` "
        "tests the base too); for the base alone --pera.skip_checks '[untrained]', or `validate`",
    )
