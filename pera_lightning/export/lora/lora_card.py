"""The README.md beside an exported LoRA."""

from __future__ import annotations

from pathlib import Path

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.base_code import base_code
from pera_lightning.checkpoint.model_card import hub_header, prompt_rows
from pera_lightning.export.export_report import ExportReport
from pera_lightning.storage.card_text import in_markdown
from pera_lightning.storage.recognition.adapter_kind import CARD_FILE


def write_lora_card(folder: Path, manifest: Manifest, report: ExportReport) -> None:
    """Write the card: where it comes from, what was lost, how it is loaded.

    Args:
        folder: Of the export.
        manifest: Of the PERA adapter.
        report: Of the export.
    """
    base, config, code = manifest.base_model or "BASE", manifest.config, base_code(manifest)
    text = [
        *hub_header(manifest, "peft", ["pera", "lora"]),
        "",
        "# LoRA of a PERA adapter",
        "",
        f"A PERA adapter (arXiv 2604.11841; rank {config.rank}, order {config.order}) of "
        f"{in_markdown(base)}, written as the plain LoRA that it is.",
        "",
        *(f"- {in_markdown(line)}" for line in str(report).splitlines()),
        *(f"- trained with {name}: {in_markdown(text)}" for name, text in prompt_rows(manifest).items()),
        "",
        "```python",
        *(code.imports if code else ()),
        "from peft import PeftModel",
        "",
        f"model = {code.call}" if code else f"# model: {base!r}, already loaded",
        "model = PeftModel.from_pretrained(model, 'this folder')",
        "```",
        "",
    ]
    (folder / CARD_FILE).write_text("\n".join(text), encoding="utf-8")
