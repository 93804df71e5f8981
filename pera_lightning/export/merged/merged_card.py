"""The README.md beside a merged model."""

from __future__ import annotations

from pathlib import Path

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.base_code import auto_class
from pera_lightning.checkpoint.model_card import hub_header, prompt_rows
from pera_lightning.export.export_report import ExportReport
from pera_lightning.storage.card_text import in_markdown
from pera_lightning.storage.recognition.adapter_kind import CARD_FILE


def write_merged_card(folder: Path, manifest: Manifest, report: ExportReport) -> None:
    """Write the card of base and adapter in one model.

    Args:
        folder: Of the export.
        manifest: Of the PERA adapter.
        report: Of the export.
    """
    loader = auto_class(manifest.architecture) or "AutoModel"
    text = [
        *hub_header(manifest, "transformers", ["pera", "merged"]),
        "",
        "# A model with a PERA adapter in its weights",
        "",
        f"{in_markdown(manifest.base_model or 'A base model')} with a PERA adapter (arXiv 2604.11841; rank "
        f"{manifest.config.rank}, order {manifest.config.order}) merged into it; it needs neither PERA nor PEFT. Terms "
        "of the base model's licence go on.",
        "",
        *(f"- {in_markdown(line)}" for line in str(report).splitlines()),
        *(f"- trained with {name}: {in_markdown(text)}" for name, text in prompt_rows(manifest).items()),
        "",
        "```python",
        f"from transformers import {loader}",
        "",
        f"model = {loader}.from_pretrained('this folder')",
        "```",
        "",
    ]
    (folder / CARD_FILE).write_text("\n".join(text), encoding="utf-8")
