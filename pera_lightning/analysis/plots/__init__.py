"""Pictures of inspected adapters; needs matplotlib, and no window system."""

from pera_lightning.analysis.plots.matrices import plot_coefficients, plot_interactions
from pera_lightning.analysis.plots.parts import plot_parts
from pera_lightning.analysis.plots.spectrum import plot_spectrum

__all__ = ["plot_coefficients", "plot_interactions", "plot_parts", "plot_spectrum"]
