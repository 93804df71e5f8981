"""A layer of another quantisation library takes a `Base` and a line in the registry, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from pera_lightning import PeraConfig, export_lora, inject_adapter, load_adapter, merge_adapter, save_adapter
from pera_lightning.base_layers import registry
from pera_lightning.base_layers.base import Base
from pera_lightning.errors import TargetError
from pera_lightning.injection import adapted_layers
from pera_lightning.injection.quantization.stored_bytes import parameter_count


class GridLinear(nn.Module):
    """Codes in a buffer and a scale for each row, as GPTQ has them: there is no weight."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.register_buffer("codes", torch.empty(plain.weight.shape, dtype=torch.int8))
        self.register_buffer("row_scales", torch.empty(plain.out_features))
        self.bias = plain.bias
        store(self, plain.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.codes * self.row_scales[:, None], self.bias)


def store(layer: Any, weight: Tensor) -> None:
    layer.row_scales.copy_(weight.abs().amax(1) / 127)
    layer.codes.copy_((weight / layer.row_scales[:, None]).round())


class GridBase(Base):
    name = "grid"

    def accepts(self, layer: nn.Module) -> bool:
        return isinstance(layer, GridLinear)

    def plain_forward(self) -> Callable[..., Any]:
        return GridLinear.forward

    def storage(self, layer: Any) -> Tensor:
        return layer.codes

    def weight(self, layer: Any) -> Tensor:
        return layer.codes * layer.row_scales[:, None]

    def write(self, layer: Any, weight: Tensor) -> None:
        store(layer, weight)

    def dtype(self, layer: Any) -> torch.dtype:
        return layer.row_scales.dtype

    def written_dtype(self, layer: Any) -> torch.dtype:
        return torch.float32

    def quantization(self, layer: nn.Module) -> str | None:
        return "grid"

    def scales(self, layer: Any) -> list[Tensor]:
        return [layer.row_scales]

    def snapshot(self, layer: Any) -> Any:
        return layer.codes.clone(), layer.row_scales.clone()

    def restore(self, layer: Any, snapshot: Any) -> None:
        layer.codes.copy_(snapshot[0])
        layer.row_scales.copy_(snapshot[1])


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "BASES", (GridBase(), *registry.BASES))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(GridLinear(nn.Linear(12, 8)), nn.ReLU(), GridLinear(nn.Linear(8, 3)))


def trained() -> nn.Module:
    model = network()
    inject_adapter(model, PeraConfig(2))
    optimizer = SGD([value for value in model.parameters() if value.requires_grad], 0.5)
    for _ in range(2):
        model(torch.randn(5, 12)).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.mark.usefixtures("registered")
def test_all_the_way(tmp_path: Path) -> None:
    model, x = trained(), torch.randn(6, 12)
    wanted = model(x)
    assert not torch.allclose(wanted, network()(x), atol=1e-4)
    assert parameter_count(network()) == 12 * 8 + 8 + 8 * 3 + 3
    save_adapter(model, tmp_path / "adapter")
    again = network()
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(again(x), wanted)
    certificate = export_lora(model, tmp_path / "lora", to="safetensors", inputs=[x]).certificate
    assert certificate is not None
    assert certificate.roundings < certificate.limit
    merged = merge_adapter(again)
    assert not any(isinstance(module, GridLinear) for module in merged.modules())
    torch.testing.assert_close(merged(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("into", ["dequantized", "requantized"])
def test_a_merge_is_undone_to_the_same_bits(into: Any) -> None:
    model, x = trained(), torch.randn(6, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wanted = model(x)
    for _, layer in adapted_layers(model):
        layer.merge(into)
    torch.testing.assert_close(model(x), wanted, rtol=0.02, atol=0.02)
    for _, layer in adapted_layers(model):
        layer.unmerge()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_it_is_refused_by_name_without_the_line() -> None:
    with pytest.raises(TargetError, match="GridLinear"):
        inject_adapter(network(), PeraConfig(2))


@pytest.mark.usefixtures("registered")
def test_a_forward_that_others_put_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GridLinear, "forward", F.linear)
    with pytest.raises(TargetError, match="has a forward of its own"):
        inject_adapter(network(), PeraConfig(2))
