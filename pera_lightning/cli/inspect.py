"""`inspect`: what training made of an adapter, in numbers and pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pera_lightning.checkpoint.manifest.manifest import read_manifest, versions
from pera_lightning.cli.screen import show, show_table, tell
from pera_lightning.errors import ConfigError, PeraError
from pera_lightning.storage.folder_kind import FolderKind, check_ours, listed_files
from pera_lightning.storage.out_folder import check_out_folder
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
from pera_lightning.storage.remote import Place, local_path, place
from pera_lightning.storage.whole_folder import whole_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pera_lightning.analysis import AdapterInspection, HiddenState, Interactions

PICTURES = ("spectrum", "parts", "coefficients", "interactions", "hidden_interactions")
"""Names of all pictures; not every adapter has all."""
TABLES = ("layers.csv", "hidden_interactions.csv")
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
    hidden_interactions: bool = False,
    layer: str | None = None,
    against: str | None = None,
    prompts: list[str] | None = None,
    base: str | None = None,
    gguf_file: str | None = None,
    overwrite: bool = False,
) -> None:
    """Print a table of an adapter's layers, and write it and pictures.

    They show how large each layer's weight change is, of what rank, and how much of it the polynomial terms hold.
    Writes layers.csv, spectrum.png, parts.png, coefficients.png (from order 2) and interactions.png, and
    inspection.json, which lists them. Only the last picture needs the base model; without one it is left out. With
    --hidden_interactions true also hidden_interactions.png and hidden_interactions.csv. How to read them:
    docs/inspect.md.

    Args:
        adapter: Folder of the adapter, as the fit wrote it.
        out: Folder to write to; by default the adapter's with "-inspect" after its name (of one at a URL, in the
            working directory). It is new, empty, or an earlier inspection, which is replaced.
        interactions: Load the base model and measure how strongly the rank components act together on prompts.
        hidden_interactions: Measure how strongly the first 32 entries of a hidden state act together on the model's
            output (paper Eq. 12), of the base, of the adapter with its coefficients h at zero (a LoRA) and of the
            adapter, on the prompts. Takes minutes.
        layer: For --hidden_interactions: the layer that the hidden state enters; by default the first block with an
            adapter.
        against: For --hidden_interactions: folder of another adapter of the same base to set beside them, such as a
            LoRA (order 1).
        prompts: These prompts, as plain text (--prompts "one" "another"); some sentences by default.
        base: Hub id or folder of the base model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        overwrite: Write into a folder with other files too, and replace those of the same names. The folder then
            holds an inspection of ours: later calls replace that without this option.
    """
    import torch
    from rich import get_console

    from pera_lightning.analysis import inspect_adapter
    from pera_lightning.analysis.hidden_table import as_table as as_hidden_table
    from pera_lightning.analysis.inspection_table import as_table, write_table

    _refuse_idle(hidden_interactions, layer, against)
    source = place(adapter)
    folder = _beside(source) if out is None else local_path(out, "--out")
    names = (*TABLES, *(f"{name}.png" for name in PICTURES))
    check_out_folder(folder, names=names)
    check_ours(folder, INSPECTION, overwrite=overwrite, names=names)
    threads = torch.get_num_threads()
    # The matrices are so small that threads cost more than they bring.
    torch.set_num_threads(1)
    try:
        found = inspect_adapter(source)
    finally:
        torch.set_num_threads(threads)
    loading = {"base": base, "gguf_file": gguf_file}
    strengths: Interactions | str | None = None
    hidden: _Hidden | None = None
    if hidden_interactions:
        strengths, hidden = _on_hidden_states(source, against, layer, prompts, loading, interactions=interactions)
    elif interactions:
        strengths = _strengths(found, source, prompts, loading)
    show_table(as_table(found, get_console().width))
    for words in found.others:
        show(f"also trained, in no row: {words}")
    if isinstance(strengths, str):
        show(strengths)
        strengths = None
    if hidden is not None:
        show(f"\nInteraction strength of the entries of a hidden state (paper Eq. 12); {hidden.words}")
        show_table(as_hidden_table(hidden.found))
    with whole_folder(folder, INSPECTION, overwrite=overwrite) as new:
        write_table(found, new / "layers.csv")
        written = ["layers.csv", *_draw(found, strengths, hidden, new)]
        about = {"adapter": str(source), "files": [INSPECTION.marker, *written], "versions": versions()}
        about |= {} if hidden is None else {"hidden_interactions": hidden.about()}
        (new / INSPECTION.marker).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    show(*(folder / name for name in written))


def _refuse_idle(hidden_interactions: bool, layer: str | None, against: str | None) -> None:
    for option, value in (("--layer", layer), ("--against", against)):
        if value is not None and not hidden_interactions:
            raise ConfigError(
                f"{option} would do nothing here.",
                got=f"{option} {value}",
                expected=f"{option} with --hidden_interactions true",
                fix=f"add --hidden_interactions true, or leave {option} out",
            )


def _beside(adapter: Place) -> Path:
    """Where an inspection goes by default: beside the adapter, of a URL into the working directory."""
    folder = adapter.resolve() if isinstance(adapter, Path) else Path.cwd() / adapter.name
    return folder.with_name(f"{folder.name}-inspect")


def _strengths(
    found: AdapterInspection, source: Place, prompts: list[str] | None, loading: dict[str, Any]
) -> Interactions | str:
    """Interaction strengths of rank components, or a line on why there are none."""
    from pera_lightning.analysis import interaction_strength
    from pera_lightning.export.export_check import sentence_inputs
    from pera_lightning.loading.adapted_model import load_adapted_model

    if all(row.coefficients is None for row in found.layers):
        return "No interactions: the adapter has no products of rank components."
    try:
        model, tokenizer = load_adapted_model(source, **loading)
    except PeraError as error:
        # Who names a base wants it.
        if loading["base"] is not None:
            raise
        return f"No interactions.png, which needs the base model (--base names one): {error.in_short}."
    return interaction_strength(model, sentence_inputs(tokenizer, prompts))


@dataclass(frozen=True)
class _Hidden:
    """Interactions of the entries of a hidden state.

    Args:
        layer: That the state enters.
        states: One of each text.
        found: What was measured -> its matrix.
    """

    layer: str
    states: list[HiddenState]
    found: dict[str, Tensor]

    @property
    def words(self) -> str:
        return f"h enters {self.layer}, f is a logit, mean over {len(self.states)} texts"

    def about(self) -> dict[str, Any]:
        places = [{"token": state.token, "output": state.output} for state in self.states]
        return {"layer": self.layer, "states": places}


def _on_hidden_states(
    source: Place,
    against: str | None,
    layer: str | None,
    prompts: list[str] | None,
    loading: dict[str, Any],
    *,
    interactions: bool,
) -> tuple[Interactions | None, _Hidden]:
    """Interactions of rank components, where asked for, and those of a hidden state's entries."""
    from pera_lightning.analysis import interaction_strength
    from pera_lightning.analysis.hidden_interactions import first_adapted_block, measure_all, measure_other
    from pera_lightning.export.export_check import sentence_inputs

    if against is not None:
        # What is wrong with it is said before the minutes.
        read_manifest(place(against) / CONFIG_FILE)
    model, tokenizer = _load(source, loading)
    inputs = [
        {name: values.to(model.device) for name, values in call.items()} for call in sentence_inputs(tokenizer, prompts)
    ]
    layer = first_adapted_block(model) if layer is None else layer
    tell(f"Second derivatives of {len(inputs)} texts, by the state that enters {layer}; minutes on a CPU ...")
    strengths = interaction_strength(model, inputs) if interactions else None
    states, found = measure_all(model, inputs, layer)
    if against is not None:
        del model
        other, _ = _load(place(against), loading)
        found |= {f"{name} (--against)": matrix for name, matrix in measure_other(other, states, layer).items()}
    return strengths, _Hidden(layer, states, found)


def _load(source: Place, loading: dict[str, Any]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """In float32, as second derivatives need it, on the GPU if there is one."""
    import torch

    from pera_lightning.loading.adapted_model import load_adapted_model

    model, tokenizer = load_adapted_model(source, dtype="float32", **loading)
    # The type of `to` is for other uses.
    moved: Any = model
    return moved.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def _draw(found: AdapterInspection, strengths: Interactions | None, hidden: _Hidden | None, folder: Path) -> list[str]:
    """Write all files but layers.csv; returns their names."""
    from pera_lightning.analysis.hidden_table import write_matrices
    from pera_lightning.analysis.plots import plot_hidden_interactions, plot_inspection, plot_interactions
    from pera_lightning.analysis.plots.figure import save_figure

    figures = plot_inspection(found)
    picture = None if strengths is None else plot_interactions(strengths)
    if picture is not None:
        figures["interactions"] = picture
    if hidden is not None:
        figures["hidden_interactions"] = plot_hidden_interactions(hidden.found, hidden.words)
        write_matrices(hidden.found, folder / "hidden_interactions.csv")
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [*(f"{name}.png" for name in figures), *([] if hidden is None else ["hidden_interactions.csv"])]
