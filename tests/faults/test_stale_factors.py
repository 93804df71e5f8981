"""An adapter in eval mode answered with factors that it had before they were changed."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pera_lightning import AdapterSet, PeraConfig, PeraLinear, inject_adapter, save_adapter
from pera_lightning.functional import expanded_rank, pera_linear
from pera_lightning.layers import PeraEmbedding, TokenRows, TokenRowsEmbedding
from tests.support.models import randomise_adapter
from tests.support.reference import reference_delta_weight

RANK, IN, OUT = 3, 10, 7


def adapted(order: int = 2, dtype: torch.dtype = torch.float32) -> PeraLinear:
    layer = PeraLinear(nn.Linear(IN, OUT, dtype=dtype).requires_grad_(False), PeraConfig(RANK, order)).eval()
    for factor in layer.adapter().values():
        nn.init.normal_(factor)
    return layer


def exact(layer: PeraLinear, x: Tensor) -> Tensor:
    """By the equation, from the factors as they are now."""
    A, B = layer.pera_A.detach(), layer.pera_B.detach()
    h = None if layer.pera_h is None else layer.pera_h.detach()
    change = reference_delta_weight(A, B, h, layer.config.order, "full", layer.scaling)
    return x.double() @ (layer.base_layer.weight.double() + change).T + layer.base_layer.bias.double()


def right(layer: PeraLinear, tokens: int = 2) -> None:
    x = torch.randn(tokens, IN, dtype=layer.base_layer.weight.dtype)
    torch.testing.assert_close(layer(x).double(), exact(layer, x), rtol=2e-4, atol=2e-4)


def with_other_values(layer: PeraLinear) -> PeraLinear:
    other = copy.deepcopy(layer)
    for factor in other.adapter().values():
        nn.init.normal_(factor)
    return other


def factors(layer: PeraLinear) -> list[nn.Parameter]:
    return list(layer.adapter().values())


def data_in_place(layer: PeraLinear) -> None:
    for factor in factors(layer):
        factor.data.mul_(2)


def one_entry_of_data(layer: PeraLinear) -> None:
    factors(layer)[-1].data.view(-1)[-1] += 3


def data_copied(layer: PeraLinear) -> None:
    for factor in factors(layer):
        factor.data.copy_(torch.randn_like(factor))


def data_exchanged(layer: PeraLinear) -> None:
    for factor in factors(layer):
        factor.data = torch.randn_like(factor)


def interpolation(layer: PeraLinear) -> None:
    for factor in factors(layer):
        factor.data = torch.lerp(factor.data, torch.randn_like(factor), 0.5)


def foreach(layer: PeraLinear) -> None:
    torch._foreach_mul_([factor.data for factor in factors(layer)], 1.5)


def detached(layer: PeraLinear) -> None:
    layer.pera_B.detach().add_(1)


def set_to_other_memory(layer: PeraLinear) -> None:
    for factor in factors(layer):
        factor.set_(torch.randn_like(factor))  # type: ignore[call-overload]


def swapped(layer: PeraLinear) -> None:
    for factor in factors(layer):
        torch.utils.swap_tensors(factor, nn.Parameter(torch.randn_like(factor)))


def from_a_vector(layer: PeraLinear) -> None:
    vector_to_parameters(parameters_to_vector(factors(layer)) * 2, factors(layer))


def by_numpy(layer: PeraLinear) -> None:
    for factor in factors(layer):
        factor.detach().numpy()[...] *= 3


def by_the_storage(layer: PeraLinear) -> None:
    other = torch.randn_like(layer.pera_B)
    layer.pera_B.untyped_storage().copy_(other.untyped_storage())


def by_a_slice_of_shared_memory(layer: PeraLinear) -> None:
    vector = torch.cat([factor.detach().flatten() for factor in factors(layer)])
    places = vector.split([factor.numel() for factor in factors(layer)])
    for factor, place in zip(factors(layer), places, strict=True):
        factor.data = place.view_as(factor)
    right(layer)
    vector.mul_(2)


def by_another_thread(layer: PeraLinear) -> None:
    thread = threading.Thread(target=lambda: layer.pera_A.data.neg_())
    thread.start()
    thread.join()


def in_inference_mode(layer: PeraLinear) -> None:
    with torch.inference_mode():
        layer.pera_B.data.mul_(2)


def assigned(layer: PeraLinear) -> None:
    layer.load_state_dict(with_other_values(layer).state_dict(), assign=True)


def loaded(layer: PeraLinear) -> None:
    layer.load_state_dict(with_other_values(layer).state_dict())


def through_another_dtype(layer: PeraLinear) -> None:
    layer.bfloat16().float()


def of_another_dtype(layer: PeraLinear) -> None:
    for factor in factors(layer):
        factor.data = factor.data.double() * 2


def moving_average(layer: PeraLinear) -> None:
    averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(with_other_values(layer))
    averaged.update_parameters(with_other_values(layer))
    for average, current in zip(averaged.module.parameters(), layer.parameters(), strict=True):
        # As Lightning's WeightAveraging does before and after a validation.
        kept = average.data.clone()
        average.data.copy_(current.data)
        current.data.copy_(kept)
    right(averaged.module)


def averaged_itself(layer: PeraLinear) -> None:
    """The average answers between its updates."""
    averaged = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.5)).eval()
    for _ in range(3):
        averaged.update_parameters(with_other_values(layer))
        right(averaged.module)


def fused_step(layer: PeraLinear) -> None:
    for factor in factors(layer):
        factor.grad = torch.ones_like(factor)
    torch.optim.AdamW(factors(layer), lr=0.3, fused=True).step()


def not_a_number(layer: PeraLinear) -> None:
    layer.pera_A.data.fill_(float("nan"))
    assert layer(torch.ones(1, IN)).isnan().all()
    layer.pera_A.data.fill_(0.5)


CHANGES = [value for name, value in list(globals().items()) if getattr(value, "__annotations__", {}).get("layer")]
CHANGES = [change for change in CHANGES if change not in (exact, right, with_other_values, factors)]

# In inference mode these make tensors that may not be changed there.
OWN_TENSORS = (in_inference_mode, moving_average, averaged_itself)
CASES = [(change, torch.no_grad) for change in CHANGES]
CASES += [(change, torch.inference_mode) for change in CHANGES if change not in OWN_TENSORS]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(("change", "mode"), CASES, ids=lambda value: value.__name__)
def test_a_change_between_two_calls(change: Callable[[PeraLinear], None], order: int, mode: type) -> None:
    layer, x = adapted(order), torch.ones(2, IN)
    with mode():
        right(layer)
        before = layer(x)
        change(layer)
        right(layer)
        assert change in (assigned, averaged_itself) or not torch.allclose(before, layer(x), atol=1e-5)
    with torch.no_grad():
        layer.pera_B.data += 1
        right(layer)


def test_every_call_of_a_loop_of_fused_steps() -> None:
    """What a validation between steps sees, without a change of mode."""
    layer = adapted()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for _ in range(3):
        for factor in factors(layer):
            factor.grad = torch.randn_like(factor)
        optimizer.step()
        with torch.no_grad():
            right(layer)


@pytest.mark.parametrize("tokens", [1, 5, 64, 65])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_tokens(dtype: torch.dtype, tokens: int) -> None:
    layer = adapted(dtype=dtype)
    with torch.no_grad():
        for _ in range(3):
            right(layer, tokens)
            data_in_place(layer)


def test_through_the_local_part_of_a_distributed_tensor(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel

    from pera_lightning.layers.parallelize import parallelize_adapted

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        layer = adapted()
        whole = copy.deepcopy(layer)
        split = parallelize_adapted(nn.Sequential(layer), init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})
        x = torch.randn(2, IN)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(split(x).double(), exact(whole, x), rtol=1e-4, atol=1e-4)
                layer.pera_B.to_local().data.mul_(2)
                whole.pera_B.mul_(2)
    finally:
        distributed.destroy_process_group()


def test_adapters_of_a_set(tmp_path: Path) -> None:
    x, folders = torch.randn(2, IN), []
    base = nn.Sequential(nn.Linear(IN, OUT)).eval()
    for name in ("one", "two"):
        model = copy.deepcopy(base)
        inject_adapter(model, PeraConfig(RANK, target_modules=["0"]))
        randomise_adapter(model, 1.0)
        save_adapter(model, tmp_path / name)
        folders.append((name, model[0]))
    adapters = AdapterSet(base)
    for name, _ in folders:
        adapters.load(name, tmp_path / name)
    with torch.no_grad():
        for name, layer in [*folders, *folders]:
            adapters.switch(name)
            torch.testing.assert_close(base(x).double(), exact(layer, x), rtol=1e-4, atol=1e-4)
        adapters.replace("two", tmp_path / "one")
        torch.testing.assert_close(base(x).double(), exact(folders[0][1], x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_embeddings(order: int) -> None:
    layer, ids = PeraEmbedding(nn.Embedding(IN, OUT), PeraConfig(RANK, order)).eval(), torch.tensor([1, 4, 4])
    with torch.no_grad():
        for _ in range(3):
            for factor in factors(layer):
                factor.data.normal_()
            h = None if layer.pera_h is None else layer.pera_h
            table = (
                layer.base_layer.weight + reference_delta_weight(layer.pera_A, layer.pera_B, h, order, "full", 1.0).T
            )
            torch.testing.assert_close(layer(ids).double(), table[ids], rtol=1e-5, atol=1e-5)


def test_token_rows() -> None:
    table = nn.Embedding(IN, OUT)
    layer, ids = TokenRowsEmbedding(table, TokenRows([2, 4], table.weight)).eval(), torch.tensor([1, 2, 4])
    with torch.no_grad():
        for _ in range(2):
            layer.token_rows.delta.data.normal_()
            expected = table.weight.clone()
            expected[[2, 4]] += layer.token_rows.delta
            torch.testing.assert_close(layer(ids), expected[ids])


def test_a_fake_mode_leaves_nothing_in_a_layer() -> None:
    layer = adapted()
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        layer(mode.from_tensor(torch.randn(2, IN)))
    with torch.no_grad():
        right(layer)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_transforms_of_functions_see_the_present_factors() -> None:
    layer, x = adapted(), torch.randn(4, IN)
    with torch.no_grad():
        right(layer)
        layer.pera_A.data.neg_()
        torch.testing.assert_close(torch.vmap(layer)(x).double(), exact(layer, x), rtol=1e-4, atol=1e-4)
        layer.pera_A.data.mul_(0.5)
        traced = torch.jit.trace(layer, x[:1])
        layer.pera_A.data.mul_(3.0)
        torch.testing.assert_close(traced(x[:1]).double(), exact(layer, x[:1]), rtol=1e-4, atol=1e-4)


def test_the_function_keeps_nothing() -> None:
    A, B = torch.randn(RANK, IN), torch.randn(OUT, RANK)
    h, x = torch.randn(expanded_rank(RANK) - RANK), torch.randn(2, IN)
    for _ in range(2):
        weight = reference_delta_weight(A, B, h, 2, "full", 1.0)
        torch.testing.assert_close(pera_linear(x, A, B, h).double(), x.double() @ weight.T, rtol=1e-4, atol=1e-4)
        A.data.neg_()
