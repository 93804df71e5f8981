"""Putting adapters into a model and taking them out again.

May import layers and what is below them. Open `inject.py` first; `targets/` chooses the layers, `quantization/` makes
the base small before.
"""

from pera_lightning.injection.detached import DetachedAdapter, attach_adapter, detach_adapter
from pera_lightning.injection.disabled import adapter_disabled
from pera_lightning.injection.inject import (
    adapter_parameters,
    freeze_base,
    inject_adapter,
    inject_plan,
    remove_adapter,
)
from pera_lightning.injection.injection_report import InjectionReport
from pera_lightning.injection.parameter_groups import parameter_groups
from pera_lightning.injection.quantization.loftq import LoftqReport, init_loftq
from pera_lightning.injection.quantization.quantize_model import QuantizationReport, layers_to_quantize, quantize_model
from pera_lightning.injection.quantization.stored_bytes import (
    adapter_bytes,
    describe_bytes,
    parameter_count,
    stored_bytes,
)
from pera_lightning.injection.saved_modules import marked_modules, saved_modules, saved_tensors
from pera_lightning.injection.targets.names import (
    adapted_layers,
    adapter_layers,
    clean_name,
    is_adapted,
    original_names,
    token_layers,
)
from pera_lightning.injection.targets.plan import InjectionPlan, LayerPlan, plan_injection
from pera_lightning.injection.targets.token_plan import TokenPlan, present_plans

__all__ = [
    "DetachedAdapter",
    "InjectionPlan",
    "InjectionReport",
    "LayerPlan",
    "LoftqReport",
    "QuantizationReport",
    "TokenPlan",
    "adapted_layers",
    "adapter_bytes",
    "adapter_disabled",
    "adapter_layers",
    "adapter_parameters",
    "attach_adapter",
    "clean_name",
    "describe_bytes",
    "detach_adapter",
    "freeze_base",
    "init_loftq",
    "inject_adapter",
    "inject_plan",
    "is_adapted",
    "layers_to_quantize",
    "marked_modules",
    "original_names",
    "parameter_count",
    "parameter_groups",
    "plan_injection",
    "present_plans",
    "quantize_model",
    "remove_adapter",
    "saved_modules",
    "saved_tensors",
    "stored_bytes",
    "token_layers",
]
