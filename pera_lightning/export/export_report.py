"""`export_report.json`: what an export lost, and what the comparison with its adapter found."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pera_lightning.checkpoint.atomic import replacing
from pera_lightning.checkpoint.manifest import versions
from pera_lightning.export.certificate import Certificate
from pera_lightning.export.plain_lora import LayerFit

REPORT_FILE = "export_report.json"


@dataclass(frozen=True)
class ExportReport:
    """What came out of an export.

    Attributes:
        to: Where it is to be loaded.
        rank: Of the LoRA; its alpha is the same.
        dtype: Of its factors.
        exact: Whether nothing but rounding to the dtype was lost.
        layers: Layer name -> ranks, kept energy and rounding.
        certificate: The comparison of outputs; None where there was no model or no input to compare with.
    """

    to: str
    rank: int
    dtype: str
    exact: bool
    layers: dict[str, LayerFit]
    certificate: Certificate | None = None

    @property
    def worst(self) -> str:
        """The layer that lost most."""
        return min(self.layers, key=lambda name: self.layers[name].kept_energy)

    def write(self, folder: Path) -> None:
        """Write `export_report.json`."""
        with replacing(folder / REPORT_FILE) as path:
            path.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {**dataclasses.asdict(self), "versions": versions()}

    def __str__(self) -> str:
        lines = [f"LoRA of rank {self.rank} over {len(self.layers)} layers, {self.dtype}: {self._energy()}"]
        if self.certificate is not None:
            lines.append(str(self.certificate))
        return "\n".join(lines)

    def _energy(self) -> str:
        if self.exact:
            return f"exact but for rounding ({max(fit.rounding for fit in self.layers.values()):.1e} of dW)"
        kept = [fit.kept_energy for fit in self.layers.values()]
        return f"{sum(kept) / len(kept):.4%} of the energy kept, at least {min(kept):.4%} ({self.worst})"
