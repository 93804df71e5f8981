"""PERA in Lightning: the callback, LightningModules and DataModules."""

from pera_lightning.requirements import refuse_compromised_lightning

# Every import of lightning comes after that of this package.
refuse_compromised_lightning()
