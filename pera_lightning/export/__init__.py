"""Leaving PERA behind: plain models."""

from pera_lightning.export.merge import MergeReport, merge_adapter, merge_and_report

__all__ = ["MergeReport", "merge_adapter", "merge_and_report"]
