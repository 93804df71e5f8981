"""Injecting at the one moment at which every LightningModule has built its model."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import LightningModule


def inject_after_configure_model(module: LightningModule, inject: Callable[[], None]) -> None:
    """Call `inject` right after Lightning has called the module's own `configure_model`.

    Models are built in `__init__`, `setup()` or `configure_model()`; a callback's `setup` runs before the last
    two. So a function is put in the way of `setup`, on this instance, for one call, which then puts one in the way of
    `configure_model`. Not at once: WeightAveraging calls `configure_model` before the module's `setup`.

    Args:
        module: The module whose hooks are intercepted.
        inject: Called without arguments after the module's own `configure_model`.
    """

    # Plain functions, not bound methods or functools.wraps: Lightning compares code objects to find out whether a
    # hook is overridden, and calls it only then.
    def setup(stage: str) -> None:
        cancel_late_injection(module)
        module.setup(stage)
        module.__dict__["configure_model"] = configure_model

    def configure_model() -> None:
        cancel_late_injection(module)
        module.configure_model()
        inject()

    module.__dict__["setup"] = setup


def cancel_late_injection(module: LightningModule) -> None:
    """Take the interception away again; left on the instance it would break pickling."""
    for hook in ("setup", "configure_model"):
        module.__dict__.pop(hook, None)
