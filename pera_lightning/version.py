"""The version of this package, written here alone: pyproject.toml reads it without importing anything."""

__version__ = "0.2.0"
