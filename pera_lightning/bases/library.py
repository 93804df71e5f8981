"""bitsandbytes, imported on first use: it takes seconds, and most users have no quantised model."""

from __future__ import annotations

import sys
from types import ModuleType

from pera_lightning.errors import ConfigError


def bitsandbytes() -> ModuleType:
    """The library.

    Raises:
        ConfigError: It is not installed, or cannot be imported.
    """
    try:
        import bitsandbytes as library
    except ImportError as error:
        raise ConfigError(
            "Quantised bases and 8-bit optimizers need bitsandbytes.",
            got=f"{type(error).__name__}: {error}",
            expected="bitsandbytes 0.49 or newer",
            fix='pip install "pera-lightning[quant]"',
        ) from error
    return library


def loaded_bitsandbytes() -> ModuleType | None:
    """The library if something has imported it; a model can hold its layers only then."""
    library = sys.modules.get("bitsandbytes")
    # Half imported, it has no layers yet.
    return library if hasattr(library, "nn") else None
