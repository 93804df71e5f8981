"""Data for instruction tuning: reading, checking, prompting, packing and batching."""

from pera_lightning.integration.data.commonsense import CommonsenseDataModule
from pera_lightning.integration.data.instruction import InstructionDataModule

__all__ = ["CommonsenseDataModule", "InstructionDataModule"]
