"""Adapter tensors of a model, adapter folders on disk, and adapter-only state dicts.

May import injection and storage; knows neither lightning nor transformers. Open `adapter_files.py` first; `manifest/`
is the config of a folder, `training/` reads checkpoints of a Trainer, `lora/` those of PEFT, `several/` puts adapters
together.
"""

from pera_lightning.checkpoint.adapter_files import load_adapter, save_adapter, write_adapter
from pera_lightning.checkpoint.adapter_state import adapter_state_dict
from pera_lightning.checkpoint.lora.lora_start import inject_lora
from pera_lightning.checkpoint.manifest.manifest import Manifest, manifest_of
from pera_lightning.checkpoint.several.adapter_comparison import AdapterComparison, LayerComparison
from pera_lightning.checkpoint.several.adapter_set import AdapterSet
from pera_lightning.checkpoint.state_hooks import install_state_hooks

__all__ = [
    "AdapterComparison",
    "AdapterSet",
    "LayerComparison",
    "Manifest",
    "adapter_state_dict",
    "inject_lora",
    "install_state_hooks",
    "load_adapter",
    "manifest_of",
    "save_adapter",
    "write_adapter",
]
