"""A training step of a small model: dropout under checkpointing, the CPU's numbers, the compiler, no waiting."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter, merge_adapter
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from tests.support.models import randomise_adapter, tiny_llama

WAITS = "called a synchronizing CUDA operation"
SIZES = {"vocab_size": 97, "hidden_size": 128, "intermediate_size": 224}


def model_of(config: PeraConfig | None, device: torch.device) -> Any:
    """A small Llama, frozen but for an adapter that does something; the same on every device."""
    torch.manual_seed(0)
    model = tiny_llama(**SIZES).requires_grad_(False)
    if config is not None:
        inject_adapter(model, config)
        randomise_adapter(model, 0.1)
    return model.to(device).train()


def ids_on(device: torch.device, rows: int = 2, length: int = 24) -> Tensor:
    return torch.arange(rows * length, device=device).reshape(rows, length) % SIZES["vocab_size"]


def gradients(model: Any, seed: int = 5) -> Tensor:
    """Of a step with this seed, in one row."""
    torch.manual_seed(seed)
    ids = ids_on(model.device)
    model(input_ids=ids, labels=ids).loss.backward()
    found = torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])
    model.zero_grad(set_to_none=True)
    return found.cpu()


@pytest.mark.parametrize("reentrant", [False, True])
def test_dropout_is_the_same_under_checkpointing(device: torch.device, reentrant: bool) -> None:
    model = model_of(PeraConfig(4, dropout=0.3), device)
    model.enable_input_require_grads()
    expected = gradients(model)
    # transformers renamed it; both take the options of torch.utils.checkpoint first.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    torch.testing.assert_close(gradients(model), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(gradients(model, seed=6), expected, rtol=1e-2)


@pytest.mark.parametrize("config", [PeraConfig(8), PeraConfig(4, 3), PeraConfig(8, terms="square")], ids=str)
def test_equals_the_cpu(device: torch.device, config: PeraConfig) -> None:
    there, here = model_of(config, device), model_of(config, torch.device("cpu"))
    torch.testing.assert_close(gradients(there), gradients(here), rtol=1e-3, atol=1e-5)
    ids = ids_on(device, 4, 64)
    with torch.no_grad():
        found, expected = there.eval()(ids).logits, here.eval()(ids.cpu()).logits
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
        # A token alone, as in generation, is computed in another way.
        torch.testing.assert_close(there(ids[:1, :1]).logits, found[:1, :1], rtol=1e-4, atol=1e-5)
        merge_adapter(there)
        torch.testing.assert_close(there(ids).logits, found, rtol=1e-4, atol=1e-5)


@pytest.fixture
def backend(device: torch.device) -> Iterator[str]:
    torch._dynamo.reset()
    # Compiling for a CPU takes long, and is none of this.
    yield "inductor" if device.type == "cuda" else "aot_eager"
    torch._dynamo.reset()


# Of the compiler, about the card and about its own workers.
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiles_as_one_graph(device: torch.device, backend: str, dropout: float) -> None:
    model = model_of(PeraConfig(8, dropout=dropout), device)
    ids = ids_on(device, 4, 32)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    loss = compiled(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(value.grad.isfinite().all() for value in model.parameters() if value.requires_grad)
    if dropout == 0.0:
        torch.testing.assert_close(loss, model(input_ids=ids, labels=ids).loss, rtol=1e-4, atol=1e-5)


def waits(step: Callable[[], Any]) -> list[str]:
    """Where a call waits for the GPU; it has been called before."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [str(warning.message) for warning in caught if WAITS in str(warning.message)]


def training_step(model: Any, device: torch.device) -> Callable[[], None]:
    ids = ids_on(device)
    with torch.no_grad():
        embedded = model.get_input_embeddings()(ids)
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=device.type == "cuda") if trained else None

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(inputs_embeds=embedded.clone().requires_grad_(), labels=ids, use_cache=False).loss
        loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_adapter_never_waits_for_the_gpu(cuda: torch.device, checkpointing: bool, dropout: float) -> None:
    found = []
    for config in (None, PeraConfig(8, dropout=dropout)):
        model = model_of(config, cuda)
        if checkpointing:
            enable_gradient_checkpointing(model)
        step = training_step(model, cuda)
        for _ in range(2):
            step()
        found.append(waits(step))
    base, adapted = found
    assert len(adapted) == len(base), adapted


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize("config", [PeraConfig(8, dropout=0.1), PeraConfig(4, 3), PeraConfig(8, 1)], ids=str)
def test_a_layer_never_waits_for_the_gpu(cuda: torch.device, config: PeraConfig) -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 32)).to(cuda).train()
    inject_adapter(model, replace(config, target_modules=["0", "2"]))
    optimizer = torch.optim.AdamW((value for value in model.parameters() if value.requires_grad), fused=True)
    x = torch.randn(8, 64, device=cuda)

    def step() -> None:
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_step_of_a_test_runs(device: torch.device) -> None:
    """The step whose waiting is counted, also where nothing counts."""
    model = model_of(PeraConfig(8), device)
    before = [value.clone() for value in model.parameters() if value.requires_grad]
    training_step(model, device)()
    after = [value for value in model.parameters() if value.requires_grad]
    assert any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
