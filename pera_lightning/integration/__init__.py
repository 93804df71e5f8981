"""PERA in Lightning: the callback, LightningModules and DataModules."""
