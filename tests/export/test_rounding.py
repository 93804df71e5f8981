from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.export.rounding import measured_rounding, row_differences
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_gpt2, tiny_llama, token_ids


def rows(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids).logits.float().flatten(0, -2)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_what_rounding_the_weights_does(make: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, ids = make(), token_ids(4, 16)
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    wanted = rows(model, ids)
    found = measured_rounding(model, [lambda: rows(model, ids)], [wanted], dtype)
    assert found.dtype == dtype
    # Rounded for good, by torch.
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            layer.merge()
            weight = layer.base_layer.weight
            weight.copy_(weight.to(dtype))
        assert 0.4 < found.count(row_differences(rows(model, ids), wanted)) < 2


def test_a_coarser_computation_counts() -> None:
    model, ids = tiny_llama().to(torch.bfloat16), token_ids()
    inject_adapter(model, PeraConfig(2))
    found = measured_rounding(model, [lambda: rows(model, ids)], [rows(model, ids)])
    assert (found.dtype, found.limit) == (torch.bfloat16, 4)


def test_hooks_are_taken_off_and_random_numbers_left_alone() -> None:
    model, ids = tiny_llama(), token_ids()
    inject_adapter(model, PeraConfig(2))
    wanted, state = rows(model, ids), torch.get_rng_state()
    measured_rounding(model, [lambda: rows(model, ids)], [wanted])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(rows(model, ids), wanted)


def test_nan_is_more_than_any_number_of_roundings() -> None:
    model, ids = tiny_llama(), token_ids()
    inject_adapter(model, PeraConfig(2))
    wanted = rows(model, ids)
    found = measured_rounding(model, [lambda: rows(model, ids)], [wanted])
    broken = wanted.clone()
    broken[3, 5] = float("nan")
    assert not found.count(row_differences(broken, wanted)) <= found.limit
    assert found.count(row_differences(wanted, wanted)) == 0


def test_one_position_far_off_is_no_rounding() -> None:
    model, ids = tiny_llama(), token_ids()
    inject_adapter(model, PeraConfig(2))
    wanted = rows(model, ids)
    found = measured_rounding(model, [lambda: rows(model, ids)], [wanted])
    broken = wanted.clone()
    broken[3] += 0.01
    assert found.count(row_differences(broken, wanted)) > found.limit
