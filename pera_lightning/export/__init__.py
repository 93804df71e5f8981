"""Leaving PERA behind: plain LoRAs (`lora/`), plain models (`merged/`), files of llama.cpp (`gguf/`).

May import models and loading, nothing of the callback. Open `forms.py` first, the table of what there is. A LoRA begins
as the one of `lora/plain_lora.py`; `certificate.py` compares what came out with the adapter.
"""

from pera_lightning.export.export_report import ExportReport
from pera_lightning.export.lora.export_lora import export_lora
from pera_lightning.export.merged.merge import merge_adapter, merge_and_report
from pera_lightning.export.merged.merge_report import MergeReport

__all__ = ["ExportReport", "MergeReport", "export_lora", "merge_adapter", "merge_and_report"]
