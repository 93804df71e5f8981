"""Pictures of inspected adapters; needs matplotlib, and no window system.

May import inspections and the names of layers. Open `figure.py` for how a picture is made, `parts.py` for one.
"""

from matplotlib.figure import Figure

from pera_lightning.analysis.inspection import AdapterInspection
from pera_lightning.analysis.plots.matrices import plot_coefficients, plot_hidden_interactions, plot_interactions
from pera_lightning.analysis.plots.parts import plot_parts
from pera_lightning.analysis.plots.spectrum import plot_spectrum

__all__ = [
    "plot_coefficients",
    "plot_hidden_interactions",
    "plot_inspection",
    "plot_interactions",
    "plot_parts",
    "plot_spectrum",
]


def plot_inspection(found: AdapterInspection) -> dict[str, Figure]:
    """All pictures of an adapter that need no model, by name; without "coefficients" at order 1."""
    figures = {"spectrum": plot_spectrum(found), "parts": plot_parts(found), "coefficients": plot_coefficients(found)}
    return {name: figure for name, figure in figures.items() if figure is not None}
