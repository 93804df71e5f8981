"""Data for instruction tuning, plain text and classification: reading, checking, prompting, packing and batching."""

from pera_lightning.integration.data.commonsense import CommonsenseDataModule
from pera_lightning.integration.data.glue import GlueDataModule
from pera_lightning.integration.data.instruction import InstructionDataModule
from pera_lightning.integration.data.text import TextDataModule

__all__ = ["CommonsenseDataModule", "GlueDataModule", "InstructionDataModule", "TextDataModule"]
