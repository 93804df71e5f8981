"""Changes of a model beside calls of it in other threads: every call sees one state from beginning to end."""

from pera_lightning.concurrency.blocks import kept
from pera_lightning.concurrency.turns import changing, in_turn

__all__ = ["changing", "in_turn", "kept"]
