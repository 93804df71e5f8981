"""A look inside trained adapters, and what a fit costs: energies, spectra, interactions, memory.

May import the exports and all below, no model of transformers. Open `inspection.py` first; `plots/` draws what it
finds.
"""

from pera_lightning.analysis.energy import mean_energy, polynomial_energy
from pera_lightning.analysis.hidden_interactions import HiddenState, hidden_interactions, hidden_states
from pera_lightning.analysis.inspection import AdapterInspection, LayerInspection, inspect_adapter
from pera_lightning.analysis.interactions import Interactions, interaction_strength

__all__ = [
    "AdapterInspection",
    "HiddenState",
    "Interactions",
    "LayerInspection",
    "hidden_interactions",
    "hidden_states",
    "inspect_adapter",
    "interaction_strength",
    "mean_energy",
    "polynomial_energy",
]
