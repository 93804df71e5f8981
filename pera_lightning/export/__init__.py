"""Leaving PERA behind: plain models and plain LoRAs."""

from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.lora.export_lora import export_lora
from pera_lightning.export.merged.merge import MergeReport, merge_adapter, merge_and_report

__all__ = ["ExportReport", "MergeReport", "export_lora", "merge_adapter", "merge_and_report"]
