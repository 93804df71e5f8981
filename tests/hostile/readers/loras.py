"""LoRA folders of PEFT, from which an adapter starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.hostile.kinds import Case, Kind
from tests.hostile.mutations.pickles import damage_checkpoint
from tests.hostile.mutations.tensors import damage_tensors, read_tensors
from tests.hostile.mutations.values import damage_json
from tests.hostile.outcomes import Wrong
from tests.hostile.readers.adapters import IDS, llama, unchanged_if_refused
from tests.hostile.readers.equations import check_close

CONFIG, WEIGHTS, OLD_WEIGHTS = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_FORMS: dict[str, dict[str, Any]] = {
    "plain": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]},
    "patterns": {
        "r": 3,
        "use_rslora": True,
        "target_modules": ["q_proj", "up_proj"],
        "rank_pattern": {"up_proj": 2},
        "alpha_pattern": {".*layers.1.*": 5},
        "modules_to_save": ["lm_head"],
    },
    "old": {"r": 2, "lora_alpha": 2, "target_modules": ["v_proj"]},
}


def prepare(folder: Path) -> None:
    from tests.support.lora_folders import peft_lora

    for name, options in _FORMS.items():
        peft_lora(llama(), folder / name, task_type="CAUSAL_LM", **options)
        if name == "old":
            torch.save(read_tensors(folder / name / WEIGHTS), folder / name / OLD_WEIGHTS)
            (folder / name / WEIGHTS).unlink()


def damage(case: Case) -> str:
    if case.random.random() < 0.5:
        return damage_json(case.random, case.given / CONFIG)
    if case.variant == "old":
        return damage_checkpoint_of_tensors(case)
    return damage_tensors(case.random, case.given / WEIGHTS)


def damage_checkpoint_of_tensors(case: Case) -> str:
    return damage_checkpoint(case.random, case.given / OLD_WEIGHTS, case.canary)


def start(case: Case) -> None:
    """`inject_lora`: the model computes what the LoRA says, or stays as it was."""
    from pera_lightning import inject_lora

    model = llama()
    with unchanged_if_refused(model):
        inject_lora(model, case.given)
    _check(case, model)


def fit(case: Case) -> None:
    """A fit that starts from it; no step is made."""
    import lightning.pytorch as pl

    from pera_lightning import PeraCallback
    from tests.support.callback_fits import make_trainer

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = llama()

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.0)

    module = Module()
    callback = PeraCallback(init_from=str(case.given), skip_checks=["learning_rate", "head"])
    loader = torch.utils.data.DataLoader([IDS[0] + 3], batch_size=1)
    trainer = make_trainer(case.out, callback, max_epochs=1, enable_checkpointing=False)
    trainer.fit(module, loader)
    _check(case, module.model.eval())


def _check(case: Case, model: Any) -> None:
    plain = llama().double()
    plain.load_state_dict(_state(case.given, plain))
    with torch.no_grad():
        check_close(model(input_ids=IDS + 3).logits, plain(input_ids=IDS + 3).logits)


def _state(folder: Path, base: Any) -> dict[str, Tensor]:
    """The base's state dict with the LoRA added, as PEFT's documentation says."""
    import re

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = _read(folder)
        state = {name: value.clone() for name, value in base.state_dict().items()}
        for key, value in tensors.items():
            name = key.removeprefix("base_model.model.")
            if name.endswith(".lora_A.weight"):
                layer = name.removesuffix(".lora_A.weight")
                up = tensors[key.replace("lora_A", "lora_B")].double()
                alpha = config["lora_alpha"]
                for pattern, entry in (config.get("alpha_pattern") or {}).items():
                    if re.fullmatch(rf"(.*\.)?({pattern})", layer):
                        alpha = entry
                        break
                rank = value.shape[0]
                scaling = alpha / (rank**0.5 if config.get("use_rslora") else rank)
                state[f"{layer}.weight"] += scaling * up @ value.double()
            elif ".lora_" not in name:
                state[name] = value.double()
    except Exception as error:
        raise Wrong(f"accepted, though its files say nothing: {type(error).__name__}: {error}") from error
    return state


def _read(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    return read_tensors(path) if path.is_file() else torch.load(folder / OLD_WEIGHTS, weights_only=True)


def warm() -> None:
    import pera_lightning
    import tests.support.callback_fits
    import tests.support.lora_folders

    pera_lightning.PeraCallback  # noqa: B018 - imported late
    llama()(input_ids=IDS)
    assert tests.support


READS = {"inject_lora": start, "fit": fit}
LORA = Kind("LoRA folder", prepare, damage, READS, None, warm, refused=frozenset(("old", read) for read in READS))
