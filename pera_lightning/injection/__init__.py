"""Putting adapters into a model and taking them out again."""

from pera_lightning.injection.disabled import adapter_disabled
from pera_lightning.injection.inject import (
    InjectionReport,
    adapter_parameters,
    freeze_base,
    inject_adapter,
    inject_plan,
    remove_adapter,
)
from pera_lightning.injection.names import adapted_layers, clean_name
from pera_lightning.injection.plan import InjectionPlan, LayerPlan, plan_injection
from pera_lightning.injection.saved_modules import saved_modules

__all__ = [
    "InjectionPlan",
    "InjectionReport",
    "LayerPlan",
    "adapted_layers",
    "adapter_disabled",
    "adapter_parameters",
    "clean_name",
    "freeze_base",
    "inject_adapter",
    "inject_plan",
    "plan_injection",
    "remove_adapter",
    "saved_modules",
]
