"""bitsandbytes, imported on first use: it takes seconds, and most users have no quantised model."""

from __future__ import annotations

import sys
from types import ModuleType

from pera_lightning.errors import ConfigError, one_line
from pera_lightning.requirements import OLDEST, own_extra, require

FEATURE = "A quantised base or an 8-bit optimizer"


def bitsandbytes() -> ModuleType:
    """The library.

    Raises:
        ConfigError: It is not installed, too old, or cannot be imported.
    """
    # Layers ask for it at every call.
    found = loaded_bitsandbytes()
    if found is not None:
        return found
    check_bitsandbytes()
    try:
        import bitsandbytes as library
    except ImportError as error:
        raise ConfigError(
            f"{FEATURE} needs bitsandbytes, which cannot be imported.",
            got=one_line(error),
            expected=f"bitsandbytes {OLDEST['bitsandbytes']} or newer, built for this machine",
            fix=f"pip install --upgrade {own_extra('quant')}",
        ) from error
    return library


def check_bitsandbytes() -> None:
    """Raise ConfigError unless the library is installed, and new enough."""
    require(FEATURE, "bitsandbytes", extra="quant")


def loaded_bitsandbytes() -> ModuleType | None:
    """The library if something has imported it; a model can hold its layers only then."""
    library = sys.modules.get("bitsandbytes")
    # Half imported, it has no layers yet.
    return library if hasattr(library, "nn") else None
