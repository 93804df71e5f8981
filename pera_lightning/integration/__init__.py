"""Where some public names were in version 0.1: configs and scripts that say so go on working.

Nothing lives here: the table says where each is now. Open that file.
"""

import sys
from importlib import import_module

_MOVED = {
    "adapted_model": "pera_lightning.loading.adapted_model",
    "evaluation": "pera_lightning.evaluation",
    "fsdp2": "pera_lightning.models.parallel.fsdp2",
    "pretrained": "pera_lightning.loading.pretrained",
}
for _old, _new in _MOVED.items():
    # An import of `pera_lightning.integration.fsdp2` looks here when it has imported this package.
    sys.modules[f"{__name__}.{_old}"] = globals()[_old] = import_module(_new)
