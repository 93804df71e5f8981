"""PERA (Polynomial Expansion Rank Adaptation) adapters for PyTorch and Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pera_lightning.checkpoint import AdapterSet, adapter_state_dict, inject_lora, load_adapter, save_adapter
from pera_lightning.config import PeraConfig
from pera_lightning.errors import PeraError
from pera_lightning.export import export_lora, merge_adapter
from pera_lightning.injection import (
    InjectionReport,
    adapter_disabled,
    inject_adapter,
    parameter_groups,
    quantize_model,
    remove_adapter,
)
from pera_lightning.layers import PeraLinear

if TYPE_CHECKING:
    from pera_lightning.callback.adapter_pictures import AdapterPictures
    from pera_lightning.callback.callback import PeraCallback
    from pera_lightning.callback.resume.exact_resume import ExactResume
    from pera_lightning.data.commonsense import CommonsenseDataModule
    from pera_lightning.data.glue import GlueDataModule
    from pera_lightning.data.instruction import InstructionDataModule
    from pera_lightning.data.text import TextDataModule
    from pera_lightning.export.merged.merged_model import export_merged
    from pera_lightning.layers.parallelize import parallelize_adapted
    from pera_lightning.loading.adapted_model import load_adapted_model
    from pera_lightning.models.accumulation.weighted_accumulation import WeightedAccumulation
    from pera_lightning.models.causal_lm import PeraCausalLM
    from pera_lightning.models.parallel.fsdp2 import FSDP2Strategy
    from pera_lightning.models.sequence_classifier import PeraSequenceClassifier

__version__ = "0.1.0"

__all__ = [
    "AdapterPictures",
    "AdapterSet",
    "CommonsenseDataModule",
    "ExactResume",
    "FSDP2Strategy",
    "GlueDataModule",
    "InjectionReport",
    "InstructionDataModule",
    "PeraCallback",
    "PeraCausalLM",
    "PeraConfig",
    "PeraError",
    "PeraLinear",
    "PeraSequenceClassifier",
    "TextDataModule",
    "WeightedAccumulation",
    "adapter_disabled",
    "adapter_state_dict",
    "export_lora",
    "export_merged",
    "inject_adapter",
    "inject_lora",
    "load_adapted_model",
    "load_adapter",
    "merge_adapter",
    "parallelize_adapted",
    "parameter_groups",
    "quantize_model",
    "remove_adapter",
    "save_adapter",
]

# Everything that needs lightning (or torch's tensor parallelism) is imported on first use: the adapters work without
# it, and importing it takes seconds.
_LATE = {
    "AdapterPictures": "pera_lightning.callback.adapter_pictures",
    "PeraCallback": "pera_lightning.callback.callback",
    "PeraCausalLM": "pera_lightning.models.causal_lm",
    "ExactResume": "pera_lightning.callback.resume.exact_resume",
    "FSDP2Strategy": "pera_lightning.models.parallel.fsdp2",
    "CommonsenseDataModule": "pera_lightning.data.commonsense",
    "PeraSequenceClassifier": "pera_lightning.models.sequence_classifier",
    "GlueDataModule": "pera_lightning.data.glue",
    "InstructionDataModule": "pera_lightning.data.instruction",
    "TextDataModule": "pera_lightning.data.text",
    "WeightedAccumulation": "pera_lightning.models.accumulation.weighted_accumulation",
    "export_merged": "pera_lightning.export.merged.merged_model",
    "load_adapted_model": "pera_lightning.loading.adapted_model",
    "parallelize_adapted": "pera_lightning.layers.parallelize",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATE[name]), name)
