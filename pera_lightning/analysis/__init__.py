"""A look inside trained adapters."""

from pera_lightning.analysis.energy import mean_energy, polynomial_energy

__all__ = ["mean_energy", "polynomial_energy"]
