"""Changes of a model beside calls of it in other threads: every call sees one state from beginning to end.

May import errors alone. Open `turns.py` first: who waits for whom; `kept_blocks.py` is how a call keeps its state.
"""

from pera_lightning.concurrency.kept_blocks import kept
from pera_lightning.concurrency.turns import changing, in_turn

__all__ = ["changing", "in_turn", "kept"]
