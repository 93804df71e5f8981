"""Leaving PERA behind: plain models."""

from pera_lightning.export.merge import merge_adapter

__all__ = ["merge_adapter"]
