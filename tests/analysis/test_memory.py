"""Every part of the memory estimate against bytes measured on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.analysis.memory import (
    Growth,
    HeldMemory,
    held_memory,
    largest_expansion,
    largest_unpacked,
    needed,
    optimizer_bytes,
    quantizable_layers,
)
from pera_lightning.analysis.step_memory import StepMemory, measure_forward, measure_step
from pera_lightning.functional import linear
from pera_lightning.functional.cross_entropy import chunked_cross_entropy
from pera_lightning.injection import adapted_layers, adapter_parameters, quantize_model
from pera_lightning.models.gradient_checkpointing import enable_gradient_checkpointing
from pera_lightning.requirements import is_outdated
from tests.conftest import OLD_KERNELS
from tests.support.models import tiny_llama


@pytest.fixture(autouse=True)
def _plain_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without oneDNN, whose bfloat16 products take working memory of their own, and with one thread.

    The steps here are too small for more: threads that wait for each other take most of the time. On the meta device
    adapters are computed as the CPU beside it does, without kernels.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(linear, "_kernels_serve", lambda x, options: False)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    yield
    torch.set_num_threads(threads)


SIZES = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 512}
QUANTIZATIONS = ["nf4", "nf4-dq", "fp4", "int8"]


def llama(device: str = "cpu", attention: str = "eager", checkpointing: bool = False, **options: Any) -> Any:
    """A small adapted model in train mode."""
    with torch.device(device):
        model: Any = tiny_llama(**{**SIZES, "attn_implementation": attention, **options})
    if checkpointing:
        enable_gradient_checkpointing(model)
    inject_adapter(model, PeraConfig(4))
    return model.train()


def parts(model: Any, rows: int, length: int, masked: bool) -> tuple[Callable[[], Tensor], Callable[[Tensor], Tensor]]:
    """Body and loss of a step on the model's device."""
    device = model.lm_head.weight.device

    def body() -> Tensor:
        ids = torch.zeros(rows, length, dtype=torch.int64, device=device)
        mask = torch.ones_like(ids)
        mask[0, -1] = 0 if masked else 1
        return model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]

    def loss(hidden: Tensor) -> Tensor:
        targets = torch.zeros(rows * (length - 1), dtype=torch.int64, device=device)
        return chunked_cross_entropy(hidden.flatten(0, 1).clone(), model.lm_head.weight, None, targets)

    return body, loss


def estimated(model: Any, rows: int, length: int, masked: bool, **options: Any) -> StepMemory:
    return measure_step(model, *parts(model, rows, length, masked), checks_hold=not masked, **options)


def measured(run: Callable[[], Any]) -> tuple[int, int]:
    """Bytes on the CPU that are there when `run` is over, while its result lives, and the most there were."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = run()
    held = peak = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return held, peak


def measured_step(model: Any, rows: int, length: int, masked: bool) -> tuple[int, int]:
    """What a step on the CPU keeps for its backward pass, and the most it takes; gradients are there already."""
    body, loss = parts(model, rows, length, masked)
    loss(body()).backward()
    kept, _ = measured(lambda: loss(body()))
    _, peak = measured(lambda: loss(body()).backward())
    return kept, peak


WAYS = [("eager", torch.float32, False), ("sdpa", torch.bfloat16, False), ("sdpa", torch.float32, True)]
"""On the CPU float32 without a mask has a fused kernel that GPUs do not have for grouped heads."""


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("attention", "dtype", "masked"), WAYS)
def test_a_step(attention: str, dtype: torch.dtype, masked: bool, checkpointing: bool) -> None:
    if dtype == torch.bfloat16 and is_outdated("torch", {"torch": "2.9.0"}):
        pytest.skip(OLD_KERNELS)
    rows, length = 2, 128
    guess = estimated(llama("meta", attention, checkpointing).to(dtype), rows, length, masked)
    kept, peak = measured_step(llama("cpu", attention, checkpointing).to(dtype), rows, length, masked)
    # To the byte, but for the generator states that checkpointing keeps on the CPU.
    states = SIZES["num_hidden_layers"] * torch.get_rng_state().numel() if checkpointing else 0
    assert guess.kept == pytest.approx(kept - states, rel=0.001)
    assert guess.peak == pytest.approx(peak - states, rel=0.01)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_a_step_on_a_quantised_base(quantization: str, checkpointing: bool) -> None:
    sizes = {**SIZES, "hidden_size": 128, "intermediate_size": 512}
    with torch.device("meta"):
        dense = tiny_llama(**sizes).to(torch.bfloat16)
    real = tiny_llama(**sizes).to(torch.bfloat16)
    quantized = quantizable_layers(dense)
    quantize_model(real, quantization)  # type: ignore[arg-type]
    for model in (dense, real):
        if checkpointing:
            enable_gradient_checkpointing(model)  # type: ignore[arg-type]
        inject_adapter(model, PeraConfig(4))
        model.train()
    guess = estimated(dense, 2, 64, True, quantized=quantized, packed=quantization != "int8")
    kept, peak = measured_step(real, 2, 64, True)
    states = SIZES["num_hidden_layers"] * torch.get_rng_state().numel() if checkpointing else 0
    assert guess.kept == pytest.approx(kept - states, rel=0.01)
    # The CPU multiplies 8-bit numbers as floats, a GPU does not.
    if quantization != "int8":
        assert guess.peak == pytest.approx(peak - states, rel=0.02)


def test_kernels_keep_and_take_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the seeds of dropout masks, eight bytes a layer."""
    found = []
    for serve in (False, True):
        monkeypatch.setattr(linear, "_kernels_serve", lambda x, options, serve=serve: serve)
        with torch.device("meta"):
            model = tiny_llama(**SIZES)
        inject_adapter(model, PeraConfig(4, dropout=0.1))
        found.append(estimated(model.train(), 2, 64, True))
    seeds = 8 * len(list(adapted_layers(model)))
    assert found[1].kept <= found[0].kept + seeds
    assert found[1].peak <= found[0].peak + seeds


def test_the_loss_with_whole_logits() -> None:
    """Where the head is trained, logits exist as a whole, in float32 and with their gradient."""
    peaks = []
    for device in ("meta", "cpu"):
        model = llama(device)

        def body(model: Any = model, device: str = device) -> Tensor:
            ids = torch.zeros(2, 32, dtype=torch.int64, device=device)
            return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits

        def loss(logits: Tensor, device: str = device) -> Tensor:
            return nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), torch.zeros(64, dtype=torch.int64, device=device)
            )

        if device == "meta":
            peaks.append(measure_step(model, body, loss).peak)
        else:
            loss(body()).backward()
            peaks.append(measured(lambda body=body, loss=loss: loss(body()).backward())[1])
    assert peaks[0] == pytest.approx(peaks[1], rel=0.01)


def test_a_step_without_a_backward_pass() -> None:
    dense, real = llama("meta"), llama()
    ids = torch.zeros(2, 64, dtype=torch.int64)
    guess = measure_forward(lambda: dense(input_ids=ids.to("meta"), attention_mask=ids.to("meta"), use_cache=False))
    with torch.no_grad():
        _, peak = measured(lambda: real(input_ids=ids, attention_mask=ids, use_cache=False))
    assert guess == pytest.approx(peak, rel=0.01)


def test_the_kernels_are_as_before_afterwards() -> None:
    before = nn.functional.linear, nn.functional.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError):
        measure_forward(lambda: 1 // 0)
    assert (nn.functional.linear, nn.functional.scaled_dot_product_attention) == before


def stored(model: nn.Module) -> int:
    """Bytes of the frozen parameters and buffers, with the scales and tables of every quantised layer."""
    total = sum(value.nbytes for value in [*model.parameters(), *model.buffers()] if not value.requires_grad)
    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        while state is not None:
            values = (state.absmax, state.code, getattr(state, "offset", None))
            total += sum(value.nbytes for value in values if value is not None)
            state = getattr(state, "state2", None)
        scales = getattr(getattr(layer, "weight", None), "SCB", None)
        total += 0 if scales is None else scales.nbytes
    return total


def smollm2(folder: Path, device: str) -> Any:
    """The first layers of SmolLM2-135M's architecture; its bytes do not depend on the values."""
    config = transformers.AutoConfig.from_pretrained(folder, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    config.num_hidden_layers = 3
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.parametrize("quantization", [None, *QUANTIZATIONS])
def test_base_and_adapter_of_a_tiny_model(quantization: str | None) -> None:
    with torch.device("meta"):
        dense = tiny_llama(**SIZES).to(torch.bfloat16)
    compare_held(dense, tiny_llama(**SIZES).to(torch.bfloat16), quantization)


@pytest.mark.real_model
def test_base_and_adapter_of_smollm2(smollm2_folder: Path) -> None:
    """Its head is tied to the embedding: counted once, and not quantised."""
    compare_held(smollm2(smollm2_folder, "meta"), smollm2(smollm2_folder, "cpu"), "nf4-dq")


def compare_held(dense: Any, real: Any, quantization: str | None) -> HeldMemory:
    """Counted on the meta device against what is there on the CPU."""
    quantized = quantizable_layers(dense) if quantization else []
    if quantization:
        quantize_model(real, quantization)  # type: ignore[arg-type]
    for model in (dense, real):
        inject_adapter(model, PeraConfig(8, modules_to_save=["embed_tokens"]))
    held = held_memory(dense, quantized=quantized, quantization=quantization, optimizer="adamw")
    assert held.base == pytest.approx(stored(real), rel=0.001)
    assert held.trained == held.gradients == sum(parameter.nbytes for parameter in adapter_parameters(real))
    return held


def test_the_optimizers_states() -> None:
    """After a step; tensors of fewer than 4096 entries stay in 32 bits, others have scales in blocks."""
    import bitsandbytes

    shapes = [(4096,), (4095,), (8, 1000), (3,)]
    for name, kind in (("adamw", torch.optim.AdamW), ("adamw_8bit", bitsandbytes.optim.AdamW8bit)):
        parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
        optimizer = kind(parameters, lr=1e-3)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        states = [state for values in optimizer.state.values() for key, state in values.items() if "qmap" not in key]
        real = sum(state.nbytes for state in states if isinstance(state, Tensor) and state.numel() > 1)
        assert optimizer_bytes(parameters, name) == real
    assert optimizer_bytes(parameters, "paged_adamw_8bit") == optimizer_bytes(parameters, "adamw_8bit")


def test_what_is_largest() -> None:
    with torch.device("meta"):
        model = tiny_llama(**SIZES).to(torch.bfloat16)
    quantized = quantizable_layers(model)
    assert largest_unpacked(quantized) == 160 * 64 * 2
    assert largest_unpacked([]) == 0
    inject_adapter(model, PeraConfig(4))
    assert largest_expansion(model) == 14 * (160 + 64) * 4


@pytest.mark.parametrize(("attention", "masked"), [("eager", False), ("sdpa", True), ("sdpa", False)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_growth(attention: str, masked: bool, checkpointing: bool) -> None:
    """Between and beyond the points that it goes through."""
    model = llama("meta", attention, checkpointing, num_hidden_layers=2).to(torch.bfloat16)

    def step(rows: int, length: int) -> StepMemory:
        return estimated(model, rows, length, masked)

    by_length = Growth.through([(length, step(2, length).peaks) for length in (64, 256, 1024)])
    by_rows = Growth.through([(rows, step(rows, 64).peaks) for rows in (2, 16)])
    for length in (64, 512, 4096):
        assert by_length.at(length) == pytest.approx(step(2, length).peak, rel=0.1)
    for rows in (4, 64):
        assert by_rows.at(rows) == pytest.approx(step(rows, 64).peak, rel=0.1)


def test_what_a_card_needs() -> None:
    """Rules of thumb come on top of what is counted."""
    held = HeldMemory(base=1000, trained=200, gradients=200, optimizer=400)
    assert needed(held, 5000) == 1800 + 5000 * 1.1 + 600 * 2**20
