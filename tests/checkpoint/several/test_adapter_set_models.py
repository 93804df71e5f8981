"""`AdapterSet` over quantised bases and models of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pera_lightning import (
    AdapterSet,
    PeraConfig,
    inject_adapter,
    quantize_model,
    save_adapter,
)
from pera_lightning.checkpoint import manifest_of
from pera_lightning.errors import AdapterFileError
from tests.support.models import randomise_adapter, tiny_llama, token_ids
from tests.support.quantized import bits, same_bits
from tests.support.several_adapters import IDS, network
from tests.support.transformers_models import transformers_model


def saved_llama(kind: str | None, folder: Path, seed: int, **options: Any) -> nn.Module:
    model = llama(kind)
    inject_adapter(model, PeraConfig(2, **options))
    torch.manual_seed(seed)
    randomise_adapter(model)
    save_adapter(model, folder)
    return model


def llama(kind: str | None) -> nn.Module:
    torch.manual_seed(3)
    model = tiny_llama()
    if kind is not None:
        quantize_model(model, kind)
    return model


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_bases(tmp_path: Path, kind: str) -> None:
    ids = token_ids()
    alone = {name: saved_llama(kind, tmp_path / name, seed)(ids).logits for seed, name in enumerate("ab")}
    saved_llama(None, tmp_path / "floating", 0)
    model = llama(kind)
    expected, stored = model(ids).logits, bits(model)
    adapters = AdapterSet(model)
    adapters.load("a", tmp_path / "a")
    adapters.load("b", tmp_path / "b")
    with pytest.raises(AdapterFileError, match=f"not quantised; this one is {kind}"):
        adapters.load("floating", tmp_path / "floating")
    adapters.load("floating", tmp_path / "floating", allow_other_quantization=True)
    adapters.mix("both", {"a": 0.5, "b": 0.5})
    for name in ("b", "a", "floating", "both", "a", "b"):
        adapters.switch(name)
        output = model(ids).logits
        assert name not in alone or torch.equal(output, alone[name])
    save_adapter(model, tmp_path / "again")
    assert manifest_of(model).quantization == (kind,)
    adapters.switch(None)
    assert same_bits(bits(model), stored)
    assert torch.equal(model(ids).logits, expected)


def test_bases_of_their_own_are_refused(tmp_path: Path) -> None:
    model = llama("nf4")
    inject_adapter(model, PeraConfig(2, init="loftq", loftq_steps=2), float_model=llama(None))
    save_adapter(model, tmp_path)
    adapters = AdapterSet(llama("nf4"))
    with pytest.raises(AdapterFileError, match="base of this adapter was changed"):
        adapters.load("loftq", tmp_path)
    assert adapters.names == ()


def test_a_language_model_generates_with_each(tmp_path: Path) -> None:
    """GPT-2: Conv1D layers, an adapted embedding tied to the head."""

    def base() -> Any:
        torch.manual_seed(4)
        return transformers_model("GPT2LMHeadModel").eval()

    ids, options = token_ids(2, 5), {"max_new_tokens": 6, "do_sample": False}
    expected = {}
    for seed, name in enumerate("ab"):
        model = base()
        inject_adapter(model, PeraConfig(2, target_modules=["wte", "c_attn", "c_fc"], bias="adapted"))
        torch.manual_seed(seed)
        randomise_adapter(model, 1.0)
        save_adapter(model, tmp_path / name)
        expected[name] = model.generate(ids, **options)
    adapters = AdapterSet(base())
    for name in expected:
        adapters.load(name, tmp_path / name)
    adapters.mix("one", {"a": 1.0})
    for name in ("a", "b", "a", "one"):
        adapters.switch(name)
        assert torch.equal(adapters.model.generate(ids, **options), expected["a" if name == "one" else name])
    adapters.switch(None)
    assert torch.equal(adapters.model.generate(ids, **options), base().generate(ids, **options))
    assert not torch.equal(expected["a"], expected["b"])


def test_a_compiled_model_computes_with_what_is_in_place(folders: dict[str, Path]) -> None:
    compiled = torch.compile(network(), backend="aot_eager")
    adapters = AdapterSet(compiled)
    for name, folder in folders.items():
        adapters.load(name, folder)
    with torch.no_grad():
        for name in ("weather", None, "lora", "weather"):
            adapters.switch(name)
            plain = adapters.model._orig_mod
            torch.testing.assert_close(compiled(IDS), plain(IDS), rtol=1e-12, atol=1e-12)
