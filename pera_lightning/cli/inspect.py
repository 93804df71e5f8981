"""`inspect`: what training made of an adapter, in numbers and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pera_lightning.checkpoint.out_folder import check_out_folder
from pera_lightning.checkpoint.remote import Place, local_path, place
from pera_lightning.cli.screen import show, show_table
from pera_lightning.errors import PeraError

if TYPE_CHECKING:
    from pera_lightning.analysis import AdapterInspection, Interactions

PICTURES = {"spectrum", "parts", "coefficients", "interactions"}
"""Names of all pictures; not every adapter has all."""


def inspect(
    adapter: str,
    out: str | None = None,
    interactions: bool = True,
    prompts: list[str] | None = None,
    base: str | None = None,
    gguf_file: str | None = None,
) -> None:
    """Print a table of an adapter's layers, and write it and pictures.

    They show how large each layer's weight change is, of what rank, and how much of it the polynomial terms hold.
    Writes layers.csv, spectrum.png, parts.png, coefficients.png (from order 2) and interactions.png. Only the last one
    needs the base model; without one it is left out. How to read them: docs/inspect.md.

    Args:
        adapter: Folder of the adapter, as the fit wrote it.
        out: Folder to write to; by default the adapter's with "-inspect" after its name (of one at a URL, in the
            working directory).
        interactions: Load the base model and measure how strongly the rank components act together on prompts.
        prompts: These prompts, as plain text; some sentences by default.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
    """
    import torch
    from rich import get_console

    from pera_lightning.analysis import inspect_adapter
    from pera_lightning.analysis.inspection_table import as_table, write_table

    source = place(adapter)
    folder = _beside(source) if out is None else local_path(out, "--out")
    check_out_folder(folder)
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
    folder.mkdir(parents=True, exist_ok=True)
    write_table(found, folder / "layers.csv")
    show(folder / "layers.csv", *_draw(found, strengths, folder))


def _beside(adapter: Place) -> Path:
    """Where an inspection goes by default: beside the adapter, of a URL into the working directory."""
    folder = adapter.resolve() if isinstance(adapter, Path) else Path.cwd() / adapter.name
    return folder.with_name(f"{folder.name}-inspect")


def _strengths(
    found: AdapterInspection, source: Place, base: str | None, gguf_file: str | None, prompts: list[str] | None
) -> Interactions | None:
    """Interaction strengths; None, with a word about it, where there are none or the base is not at hand."""
    from pera_lightning.analysis import interaction_strength
    from pera_lightning.integration.adapted_model import load_adapted_model
    from pera_lightning.integration.export_check import sentence_inputs

    if all(row.coefficients is None for row in found.layers):
        show("No interactions: the adapter has no products of rank components.")
        return None
    try:
        model, tokenizer = load_adapted_model(source, base=base, gguf_file=gguf_file)
    except PeraError as error:
        # Who names a base wants it.
        if base is not None:
            raise
        show("No interactions: the base model cannot be loaded (--base names another).", error)
        return None
    return interaction_strength(model, sentence_inputs(tokenizer, prompts))


def _draw(found: AdapterInspection, strengths: Interactions | None, folder: Path) -> list[Path]:
    from pera_lightning.analysis.plots import plot_inspection, plot_interactions
    from pera_lightning.analysis.plots.figure import save_figure

    figures = plot_inspection(found)
    picture = None if strengths is None else plot_interactions(strengths)
    if picture is not None:
        figures["interactions"] = picture
    for name in PICTURES - figures.keys():
        # Of another adapter, or of another call.
        (folder / f"{name}.png").unlink(missing_ok=True)
    written = []
    for name, figure in figures.items():
        written.append(folder / f"{name}.png")
        save_figure(figure, written[-1])
    return written
