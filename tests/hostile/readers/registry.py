"""All kinds of hostile input."""

from __future__ import annotations

from tests.hostile.readers.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.hostile.readers.bases import BASE
from tests.hostile.readers.checkpoints import CHECKPOINT, SHARDED
from tests.hostile.readers.ggufs import GGUF
from tests.hostile.readers.loras import LORA
from tests.hostile.readers.rows import ROWS
from tests.hostile.readers.templates import TEMPLATE

KINDS = {
    kind.name: kind for kind in (ADAPTER_CONFIG, ADAPTER_WEIGHTS, CHECKPOINT, SHARDED, LORA, GGUF, TEMPLATE, ROWS, BASE)
}
