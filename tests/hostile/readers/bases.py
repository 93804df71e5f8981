"""The config.json of a base model."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.hostile.kinds import Case, Kind
from tests.hostile.mutations.tensors import read_tensors
from tests.hostile.mutations.values import damage_json
from tests.hostile.outcomes import Changed
from tests.hostile.readers.adapters import IDS, llama
from tests.hostile.readers.equations import check_close


def prepare(folder: Path) -> None:
    from pera_lightning import PeraConfig, inject_adapter, save_adapter
    from tests.support.models import randomise_adapter
    from tests.support.pretrained import save_pretrained

    save_pretrained(folder / "llama", llama())
    model = llama()
    inject_adapter(model, PeraConfig(2, target_modules=["q_proj", "down_proj"]))
    randomise_adapter(model)
    save_adapter(model, folder / "llama/adapter")


def damage(case: Case) -> str:
    return damage_json(case.random, case.given / "config.json")


def build(case: Case) -> None:
    """`PeraCausalLM`: what is accepted computes what plain transformers makes of the same folder."""
    from transformers import AutoModelForCausalLM

    from pera_lightning import PeraCausalLM

    module = PeraCausalLM(str(case.given), dtype="float32")
    module.configure_model()
    plain = AutoModelForCausalLM.from_pretrained(case.given, dtype=torch.float32).eval()
    with torch.no_grad():
        check_close(module.model(input_ids=IDS + 3).logits, plain(input_ids=IDS + 3).logits)


def merge(case: Case) -> None:
    """`export_merged` into the files of the base."""
    from pera_lightning import export_merged
    from pera_lightning.errors import PeraError
    from tests.hostile.readers.equations import state_of

    out = case.out / "merged"
    try:
        export_merged(case.given / "adapter", out, base=str(case.given), compare=case.random.random() < 0.5)
    except PeraError:
        if out.exists():
            raise Changed("files were written") from None
        raise
    state = state_of(llama(), case.given / "adapter")
    for name, value in read_tensors(out / "model.safetensors").items():
        check_close(value, state[name], name)


def warm() -> None:
    import pera_lightning.export.merged.merged_model

    pera_lightning.PeraCausalLM  # noqa: B018 - imported late
    llama()(input_ids=IDS)


BASE = Kind("base config", prepare, damage, {"PeraCausalLM": build, "export_merged": merge}, None, warm)
