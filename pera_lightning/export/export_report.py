"""`export_report.json`: what an export lost, and what the comparison with its adapter found."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pera_lightning.checkpoint.manifest.manifest import versions
from pera_lightning.export.certificate import Certificate
from pera_lightning.export.lora.plain_lora import LayerFit, SmallerRank
from pera_lightning.export.merged.merge_report import MergeReport

REPORT_FILE = "export_report.json"


@dataclass(frozen=True)
class ExportReport:
    """What came out of an export.

    Attributes:
        to: Where it is to be loaded.
        rank: Of the LoRA; its alpha is the same. None for a merged model.
        dtype: Of its factors, or of the merged weights.
        exact: Whether nothing but rounding to the dtype was lost.
        layers: Layer name -> ranks, kept energy and rounding; empty for a merged model.
        saved: Name of a tensor saved whole -> relative rounding error (Frobenius norm); empty for a merged model.
        certificate: The comparison of outputs; None where there was no model or no input to compare with.
        merge: For a merged model: the errors of its weights.
        smaller: Of an exact LoRA: a smaller rank that would do.
    """

    to: str
    rank: int | None
    dtype: str
    exact: bool
    layers: dict[str, LayerFit]
    saved: dict[str, float] = field(default_factory=dict)
    certificate: Certificate | None = None
    merge: MergeReport | None = None
    smaller: SmallerRank | None = None

    @property
    def worst(self) -> str:
        """The layer that lost most."""
        if self.merge is not None:
            return self.merge.worst_layer
        return min(self.layers, key=lambda name: self.layers[name].kept_energy)

    def write(self, folder: Path) -> None:
        """Write `export_report.json`, with the names of all that is in the folder: the next export replaces these."""
        values = {**self.to_dict(), "files": sorted({*os.listdir(folder), REPORT_FILE})}
        (folder / REPORT_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {**dataclasses.asdict(self), "versions": versions()}

    def __str__(self) -> str:
        if self.merge is not None:
            lines = [f"merged model, {self.dtype}: {self.merge}"]
        else:
            lines = [f"LoRA of rank {self.rank} over {len(self.layers)} layers, {self.dtype}: {self._energy()}"]
        if self.smaller is not None:
            lines.append(
                f"rank {self.smaller.rank} instead of {self.rank}: error of dW {self.smaller.error:.0e}, less than "
                "rounding to 16 bits"
            )
        if self.saved:
            lines.append(f"{len(self.saved)} tensors saved whole, rounded by at most {max(self.saved.values()):.1e}")
        if self.certificate is not None:
            lines.append(str(self.certificate))
        return "\n".join(lines)

    def _energy(self) -> str:
        if self.exact:
            return f"exact but for rounding ({max(fit.rounding for fit in self.layers.values()):.1e} of dW)"
        kept = [fit.kept_energy for fit in self.layers.values()]
        return f"{sum(kept) / len(kept):.4%} of the energy kept, at least {min(kept):.4%} ({self.worst})"
