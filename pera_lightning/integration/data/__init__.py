"""Data for instruction tuning and for classification: reading, checking, prompting, packing and batching."""

from pera_lightning.integration.data.commonsense import CommonsenseDataModule
from pera_lightning.integration.data.glue import GlueDataModule
from pera_lightning.integration.data.instruction import InstructionDataModule

__all__ = ["CommonsenseDataModule", "GlueDataModule", "InstructionDataModule"]
