"""`inspect`: what training made of an adapter, in numbers and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from pera_lightning.checkpoint.manifest.manifest import versions
from pera_lightning.cli.screen import show, show_table
from pera_lightning.errors import PeraError
from pera_lightning.storage.folder_kind import FolderKind, check_ours, listed_files
from pera_lightning.storage.out_folder import check_out_folder
from pera_lightning.storage.remote import Place, local_path, place
from pera_lightning.storage.whole_folder import whole_folder

if TYPE_CHECKING:
    from pera_lightning.analysis import AdapterInspection, Interactions

PICTURES = ("spectrum", "parts", "coefficients", "interactions")
"""Names of all pictures; not every adapter has all."""
INSPECTION = FolderKind(
    "the pictures and the table of an inspection",
    marker="inspection.json",
    recognise=lambda values: "adapter" in values and "layers.csv" in listed_files(values),
    listed=listed_files,
)


def inspect(
    adapter: str,
    out: str | None = None,
    interactions: bool = True,
    prompts: list[str] | None = None,
    base: str | None = None,
    gguf_file: str | None = None,
    overwrite: bool = False,
) -> None:
    """Print a table of an adapter's layers, and write it and pictures.

    They show how large each layer's weight change is, of what rank, and how much of it the polynomial terms hold.
    Writes layers.csv, spectrum.png, parts.png, coefficients.png (from order 2) and interactions.png, and
    inspection.json, which lists them. Only the last picture needs the base model; without one it is left out. How to
    read them: docs/inspect.md.

    Args:
        adapter: Folder of the adapter, as the fit wrote it.
        out: Folder to write to; by default the adapter's with "-inspect" after its name (of one at a URL, in the
            working directory). It is new, empty, or an earlier inspection, which is replaced.
        interactions: Load the base model and measure how strongly the rank components act together on prompts.
        prompts: These prompts, as plain text (--prompts "one" "another"); some sentences by default.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        overwrite: Write into a folder with other files too, and replace those of the same names. The folder then
            holds an inspection of ours: later calls replace that without this option.
    """
    import torch
    from rich import get_console

    from pera_lightning.analysis import inspect_adapter
    from pera_lightning.analysis.inspection_table import as_table, write_table

    source = place(adapter)
    folder = _beside(source) if out is None else local_path(out, "--out")
    names = ("layers.csv", *(f"{name}.png" for name in PICTURES))
    check_out_folder(folder, names=names)
    check_ours(folder, INSPECTION, overwrite=overwrite, names=names)
    threads = torch.get_num_threads()
    # The matrices are so small that threads cost more than they bring.
    torch.set_num_threads(1)
    try:
        found = inspect_adapter(source)
    finally:
        torch.set_num_threads(threads)
    strengths = _strengths(found, source, base, gguf_file, prompts) if interactions else None
    show_table(as_table(found, get_console().width))
    for words in found.others:
        show(f"also trained, in no row: {words}")
    if isinstance(strengths, str):
        show(strengths)
        strengths = None
    with whole_folder(folder, INSPECTION, overwrite=overwrite) as new:
        write_table(found, new / "layers.csv")
        written = ["layers.csv", *_draw(found, strengths, new)]
        about = {"adapter": str(source), "files": [INSPECTION.marker, *written], "versions": versions()}
        (new / INSPECTION.marker).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    show(*(folder / name for name in written))


def _beside(adapter: Place) -> Path:
    """Where an inspection goes by default: beside the adapter, of a URL into the working directory."""
    folder = adapter.resolve() if isinstance(adapter, Path) else Path.cwd() / adapter.name
    return folder.with_name(f"{folder.name}-inspect")


def _strengths(
    found: AdapterInspection, source: Place, base: str | None, gguf_file: str | None, prompts: list[str] | None
) -> Interactions | str:
    """Interaction strengths, or a line on why there are none."""
    from pera_lightning.analysis import interaction_strength
    from pera_lightning.export.export_check import sentence_inputs
    from pera_lightning.loading.adapted_model import load_adapted_model

    if all(row.coefficients is None for row in found.layers):
        return "No interactions: the adapter has no products of rank components."
    try:
        model, tokenizer = load_adapted_model(source, base=base, gguf_file=gguf_file)
    except PeraError as error:
        # Who names a base wants it.
        if base is not None:
            raise
        return f"No interactions.png, which needs the base model (--base names one): {error.in_short}."
    return interaction_strength(model, sentence_inputs(tokenizer, prompts))


def _draw(found: AdapterInspection, strengths: Interactions | None, folder: Path) -> list[str]:
    from pera_lightning.analysis.plots import plot_inspection, plot_interactions
    from pera_lightning.analysis.plots.figure import save_figure

    figures = plot_inspection(found)
    picture = None if strengths is None else plot_interactions(strengths)
    if picture is not None:
        figures["interactions"] = picture
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [f"{name}.png" for name in figures]
