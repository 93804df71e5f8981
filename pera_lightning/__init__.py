"""PERA (Polynomial Expansion Rank Adaptation) adapters for PyTorch and Lightning.

Every public name is imported on first use: the command line answers without waiting for torch, and what needs no
lightning works without it.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from pera_lightning.version import __version__ as __version__

if TYPE_CHECKING:
    from pera_lightning.callback.adapter_pictures import AdapterPictures
    from pera_lightning.callback.callback import PeraCallback
    from pera_lightning.callback.resume.exact_resume import ExactResume
    from pera_lightning.checkpoint import AdapterSet, adapter_state_dict, inject_lora, load_adapter, save_adapter
    from pera_lightning.config import PeraConfig
    from pera_lightning.data.classification import ClassificationDataModule
    from pera_lightning.data.commonsense import CommonsenseDataModule
    from pera_lightning.data.glue import GlueDataModule
    from pera_lightning.data.instruction import InstructionDataModule
    from pera_lightning.data.text import TextDataModule
    from pera_lightning.errors import PeraError
    from pera_lightning.export import export_lora, merge_adapter
    from pera_lightning.export.merged.merged_model import export_merged
    from pera_lightning.injection import (
        InjectionReport,
        adapter_disabled,
        inject_adapter,
        parameter_groups,
        quantize_model,
        remove_adapter,
    )
    from pera_lightning.layers import PeraLinear
    from pera_lightning.layers.parallelize import parallelize_adapted
    from pera_lightning.loading.adapted_model import load_adapted_model
    from pera_lightning.models.accumulation.weighted_accumulation import WeightedAccumulation
    from pera_lightning.models.causal_lm import PeraCausalLM
    from pera_lightning.models.parallel.fsdp2 import FSDP2Strategy
    from pera_lightning.models.sequence_classifier import PeraSequenceClassifier

__all__ = [
    "AdapterPictures",
    "AdapterSet",
    "ClassificationDataModule",
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

_HOMES = {
    "AdapterPictures": "pera_lightning.callback.adapter_pictures",
    "AdapterSet": "pera_lightning.checkpoint",
    "ClassificationDataModule": "pera_lightning.data.classification",
    "CommonsenseDataModule": "pera_lightning.data.commonsense",
    "ExactResume": "pera_lightning.callback.resume.exact_resume",
    "FSDP2Strategy": "pera_lightning.models.parallel.fsdp2",
    "GlueDataModule": "pera_lightning.data.glue",
    "InjectionReport": "pera_lightning.injection",
    "InstructionDataModule": "pera_lightning.data.instruction",
    "PeraCallback": "pera_lightning.callback.callback",
    "PeraCausalLM": "pera_lightning.models.causal_lm",
    "PeraConfig": "pera_lightning.config",
    "PeraError": "pera_lightning.errors",
    "PeraLinear": "pera_lightning.layers",
    "PeraSequenceClassifier": "pera_lightning.models.sequence_classifier",
    "TextDataModule": "pera_lightning.data.text",
    "WeightedAccumulation": "pera_lightning.models.accumulation.weighted_accumulation",
    "adapter_disabled": "pera_lightning.injection",
    "adapter_state_dict": "pera_lightning.checkpoint",
    "export_lora": "pera_lightning.export",
    "export_merged": "pera_lightning.export.merged.merged_model",
    "inject_adapter": "pera_lightning.injection",
    "inject_lora": "pera_lightning.checkpoint",
    "load_adapted_model": "pera_lightning.loading.adapted_model",
    "load_adapter": "pera_lightning.checkpoint",
    "merge_adapter": "pera_lightning.export",
    "parallelize_adapted": "pera_lightning.layers.parallelize",
    "parameter_groups": "pera_lightning.injection",
    "quantize_model": "pera_lightning.injection",
    "remove_adapter": "pera_lightning.injection",
    "save_adapter": "pera_lightning.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
