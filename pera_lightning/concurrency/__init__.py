"""Changes of a model beside calls of it in other threads: every call sees one state from beginning to end.

May import errors alone. Open `turns.py` first: who waits for whom; `call_guards.py` is how calls are counted,
`kept_blocks.py` how a block keeps its state.
"""

from pera_lightning.concurrency.call_guards import guard_calls
from pera_lightning.concurrency.kept_blocks import kept
from pera_lightning.concurrency.turns import changing, in_turn, reading

__all__ = ["changing", "guard_calls", "in_turn", "kept", "reading"]
