"""A plain LoRA as PEFT writes it: what PEFT, vLLM, SGLang and most other servers load."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from pera_lightning.checkpoint import Manifest
from pera_lightning.checkpoint.lora.peft_lora import read_peft_lora
from pera_lightning.checkpoint.lora.saved_names import PREFIX
from pera_lightning.checkpoint.manifest.layer_traits import CONV1D, EMBEDDING, ENDS_ANOTHER, expert_parts
from pera_lightning.export.lora.lora_factors import LoraFactors, StoredLora
from pera_lightning.export.lora.plain_lora import PlainLora
from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE, WEIGHTS_FILE

_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForSequenceClassification": "SEQ_CLS"}
_HEADS = frozenset({"classifier", "score"})
"""What PEFT expects in the file of a SEQ_CLS adapter, whether or not it is in modules_to_save."""


def write_peft(lora: PlainLora, folder: Path) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json`.

    One rank, one alpha and no patterns, because servers read no more than that.

    Args:
        lora: The LoRA.
        folder: Where to.
    """
    save_file(peft_tensors(lora), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(peft_config(lora), indent=2) + "\n", encoding="utf-8")


def peft_tensors(lora: PlainLora) -> dict[str, Tensor]:
    """The tensors under PEFT's names, on the CPU."""
    found = {}
    for name, (down, up) in lora.factors.items():
        embedding = EMBEDDING in lora.manifest.traits.get(name, ())
        form = "lora_embedding_{}" if embedding else "lora_{}.weight"
        found[f"{PREFIX}{name}.{form.format('A')}"] = down
        found[f"{PREFIX}{name}.{form.format('B')}"] = up
    found |= {PREFIX + name: value for name, value in lora.saved.items()}
    # A clone each: tied tensors share memory, which safetensors refuses.
    return {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}


def read_peft(folder: Path) -> StoredLora:
    """What a PEFT adapter holds."""
    lora = read_peft_lora(folder)
    return StoredLora({name: LoraFactors(*factors) for name, factors in lora.factors.items()}, lora.saved)


def peft_config(lora: PlainLora) -> dict[str, Any]:
    """The content of `adapter_config.json`."""
    manifest = lora.manifest
    # PEFT rewrites these targets to the fused experts, and would drop the factors; their weights it leaves alone.
    parts = expert_parts(lora.factors, manifest.traits, manifest.architecture)
    return {
        "peft_type": "LORA",
        "task_type": _task(manifest),
        "base_model_name_or_path": manifest.base_model,
        "r": lora.rank,
        "lora_alpha": lora.rank,
        "target_modules": [name for name in lora.factors if name not in set(parts)],
        **({"target_parameters": [f"{name}.weight" for name in parts]} if parts else {}),
        "modules_to_save": [_saved_name(name, manifest) for name in manifest.saved] or None,
        "bias": "none",
        "fan_in_fan_out": _all_transposed(lora),
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "inference_mode": True,
    }


def _saved_name(name: str, manifest: Manifest) -> str:
    """What PEFT finds one module by: it takes all whose names end so, without looking for a dot before it."""
    return PREFIX + name if ENDS_ANOTHER in manifest.traits.get(name, ()) else name


def _task(manifest: Manifest) -> str | None:
    architecture = manifest.architecture or ""
    task = next((task for end, task in _TASKS.items() if architecture.endswith(end)), None)
    # With SEQ_CLS, PEFT adds these names to modules_to_save itself.
    found = {_saved_name(name, manifest) for name in manifest.saved}
    return None if task == "SEQ_CLS" and _HEADS.isdisjoint(found) else task


def _all_transposed(lora: PlainLora) -> bool:
    kinds: Iterable[tuple[str, ...]] = (lora.manifest.traits.get(name, ()) for name in lora.factors)
    return all(CONV1D in traits for traits in kinds)
