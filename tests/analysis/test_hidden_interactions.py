"""Eq. 12 against Hessians of autograd in float64, and by hand."""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.functional import hessian
from torch.nn.attention import SDPBackend, sdpa_kernel

from pera_lightning import PeraConfig, inject_adapter, merge_adapter, quantize_model
from pera_lightning.analysis import hidden_interactions, hidden_states
from pera_lightning.analysis.hidden_interactions import first_adapted_block, measure_all
from pera_lightning.analysis.hidden_table import mixed_share, relative_distance, write_matrices
from pera_lightning.analysis.plots import plot_hidden_interactions
from pera_lightning.errors import ConfigError
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_bert_classifier, tiny_llama, token_ids

TEXTS = 2


def adapted(model: nn.Module, config: PeraConfig) -> Any:
    inject_adapter(model, config)
    randomise_adapter(model)
    return model.double().eval()


def texts(length: int = 7) -> list[dict[str, Tensor]]:
    return [{"input_ids": ids[None]} for ids in token_ids(TEXTS, length)]


def after_blocks(model: Any, block: int) -> Any:
    """A plain Llama of the later blocks alone, with the adapter in its weights."""
    rest = merge_adapter(copy.deepcopy(model)) if list(adapted_layers(model)) else copy.deepcopy(model)
    rest.model.layers = rest.model.layers[block:]
    for index, layer in enumerate(rest.model.layers):
        layer.self_attn.layer_idx = index
    return rest.requires_grad_(False)


def absolute_hessian(output: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    # Fused attention has no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        return hessian(output, h).abs()


def llama_reference(model: Any, calls: list[dict[str, Tensor]], outputs: list[int], block: int) -> Tensor:
    """Whole Hessians of autograd, by the embedding of the last token that a model of the later blocks is given."""
    rest, total = after_blocks(model, block), torch.zeros(())
    for call, output in zip(calls, outputs, strict=True):
        states = model(**call, output_hidden_states=True).hidden_states[block].detach()

        def logit(h: Tensor, states: Tensor = states, output: int = output) -> Tensor:
            embeddings = torch.cat([states[:, :-1], h[None, None]], dim=1)
            return rest(inputs_embeds=embeddings, use_cache=False).logits[0, -1, output]

        total = total + absolute_hessian(logit, states[0, -1])
    return total / len(calls)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_is_the_mean_absolute_hessian_of_a_language_model(block: int, attention: str) -> None:
    model = adapted(tiny_llama(initializer_range=0.3, attn_implementation=attention), PeraConfig(3, alpha=9))
    calls, layer = texts(), f"model.layers.{block}"
    states = hidden_states(model, calls, layer)
    assert [state.token for state in states] == [6] * TEXTS
    outputs = [state.output for state in states]
    assert outputs == [int(model(**call).logits[0, -1].argmax()) for call in calls]
    expected = llama_reference(model, calls, outputs, block)
    assert expected.max() > 1e-3
    for entries in (5, 99):
        found = hidden_interactions(model, states, layer, entries)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected[:entries, :entries], rtol=1e-8, atol=1e-11)


def test_of_a_classifier_by_the_token_that_it_reads() -> None:
    model = adapted(tiny_bert_classifier(), PeraConfig(2, target_modules=["query", "output.dense"]))
    plain: Any = merge_adapter(copy.deepcopy(model)).requires_grad_(False)
    calls, layer = texts(), "bert.encoder.layer.1"
    states = hidden_states(model, calls, layer)
    total: Any = 0
    for call, state in zip(calls, states, strict=True):
        entering = plain.bert(**call, output_hidden_states=True).hidden_states[1].requires_grad_()

        def logits(entering: Tensor) -> Tensor:
            return plain.classifier(plain.bert.pooler(plain.bert.encoder.layer[1](entering)))[0]

        assert state.output == int(logits(entering).argmax())
        [gradient] = torch.autograd.grad(logits(entering)[state.output], entering)
        # [CLS], which BERT's pooler reads.
        assert state.token == int(gradient.norm(dim=-1).argmax()) == 0

        others = entering.detach()

        def logit(h: Tensor, others: Tensor = others, output: int = state.output) -> Tensor:
            return logits(torch.cat([h[None, None], others[:, 1:]], dim=1))[output]

        total = total + absolute_hessian(logit, others[0, 0])
    found = hidden_interactions(model, states, layer)
    torch.testing.assert_close(found, total[:32, :32] / TEXTS, rtol=1e-8, atol=1e-12)


def test_base_lora_and_pera_are_what_they_are_called() -> None:
    plain = tiny_llama(initializer_range=0.3).double()
    model = adapted(copy.deepcopy(plain), PeraConfig(3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    calls = texts()
    states, found = measure_all(model, calls, "model.layers.0")
    assert list(found) == ["base", "LoRA (h = 0)", "PERA"]
    outputs = [state.output for state in states]
    lora = copy.deepcopy(model).eval()
    for _, layer in adapted_layers(lora):
        nn.init.zeros_(layer.pera_h)
    for name, one in (("base", plain), ("LoRA (h = 0)", lora), ("PERA", model.eval())):
        expected = llama_reference(one, calls, outputs, 0)
        torch.testing.assert_close(found[name], expected, rtol=1e-8, atol=1e-11)
    assert relative_distance(found["PERA"], found["LoRA (h = 0)"]) > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name for name, value in model.named_parameters() if value.requires_grad} == trained
    order_one = adapted(copy.deepcopy(plain), PeraConfig(3, 1))
    assert list(measure_all(order_one, calls, "model.layers.0", 2)[1]) == ["base", "LoRA"]


def test_over_a_base_in_four_bits() -> None:
    model = tiny_llama(initializer_range=0.3, hidden_size=64, intermediate_size=64)
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(2))
    randomise_adapter(model)
    calls, layer = texts(), "model.layers.0"
    states = hidden_states(model.eval(), calls, layer)
    found = hidden_interactions(model, states, layer)
    expected = llama_reference(model, calls, [state.output for state in states], 0)
    assert expected.max() > 1e-2
    torch.testing.assert_close(found, expected[:32, :32], rtol=1e-2, atol=1e-3 * expected.mean().item())


class Blocks(nn.Module):
    """Calls blocks one after another; the last token's features are the outputs."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return SimpleNamespace(logits=x).__dict__


class Quadratic(nn.Module):
    """Gives `(0, h^T Q h / 2 + 100)` for each token's state h."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, hidden: Tensor) -> Tensor:
        value = torch.einsum("bti,ij,btj->bt", hidden, self.matrix, hidden) / 2 + 100
        return torch.stack([torch.zeros_like(value), value], dim=-1)


def test_of_a_quadratic_by_hand() -> None:
    matrix = torch.tensor([[1.0, -2.0, 0.0], [-2.0, 3.0, 0.5], [0.0, 0.5, -4.0]])
    model, calls = Blocks(Quadratic(matrix)), [{"x": torch.randn(1, 4, 3)} for _ in range(2)]
    states = hidden_states(model, calls, "blocks.0")
    assert [(state.token, state.output) for state in states] == [(3, 1)] * 2
    found = hidden_interactions(model, states, "blocks.0")
    torch.testing.assert_close(found, matrix.abs())
    assert mixed_share(found) == pytest.approx(5 / 13)


def test_linear_layers_and_relu_have_none() -> None:
    for middle in (nn.ReLU(), nn.Identity()):
        model = Blocks(nn.Linear(6, 8), middle, nn.Linear(8, 3))
        adapted(model, PeraConfig(2))
        calls = [{"x": torch.randn(1, 4, 6, dtype=torch.float64)}]
        found = hidden_interactions(model, hidden_states(model, calls, "blocks.0"), "blocks.0")
        assert found.shape == (6, 6)
        assert not found.any()
        assert mixed_share(found) == relative_distance(found, found) == 0
        assert first_adapted_block(model) == "blocks.0"


def test_a_block_that_is_called_again_is_entered_once() -> None:
    class Squared(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden + hidden**2

    block = Squared()
    model, x = Blocks(block, block), torch.rand(1, 2, 3) + 1
    states = hidden_states(model, [{"x": x}], "blocks.0")
    found = hidden_interactions(model, states, "blocks.0")
    chosen = states[0].output
    expected = hessian(lambda h: block(block(h))[chosen], x[0, -1]).abs()
    torch.testing.assert_close(found, expected)


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class OnceLayer(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return torch.tanh(Once.apply(hidden))


def test_what_cannot_be_measured() -> None:
    model = adapted(tiny_llama(), PeraConfig(2))
    calls = texts()
    with pytest.raises(ConfigError, match=r"no such layer[\s\S]*did you mean model\.layers\.1"):
        hidden_states(model, calls, "model.layer.1")
    with pytest.raises(ConfigError, match=r"torch\.int64"):
        hidden_states(model, calls, "model.embed_tokens")
    with pytest.raises(ConfigError, match=r"\(2, 7, 32\)[\s\S]*one text at a time"):
        hidden_states(model, [{"input_ids": token_ids(2)}], "model.layers.0")
    with pytest.raises(ConfigError, match="give more texts"):
        hidden_interactions(model, [], "model.layers.0")
    with pytest.raises(ConfigError, match="no block"):
        first_adapted_block(adapted(nn.Sequential(nn.Linear(3, 3)), PeraConfig(1)))
    once, call = Blocks(nn.Linear(3, 3), OnceLayer()), [{"x": torch.randn(1, 2, 3)}]
    states = hidden_states(once, call, "blocks.0")
    with pytest.raises(ConfigError, match="without a second derivative"):
        hidden_interactions(once, states, "blocks.0")
    assert all(parameter.requires_grad for parameter in once.parameters())


def test_the_first_adapted_block() -> None:
    model = adapted(tiny_llama(), PeraConfig(2, exclude_modules=r"model\.layers\.0\..*"))
    assert first_adapted_block(model) == "model.layers.1"


def test_one_scale_for_all_and_all_numbers(tmp_path: Path) -> None:
    found = {"base": torch.tensor([[0.0, 1.0], [1.0, 0.25]]), "LoRA": torch.full((2, 2), 2.0)}
    figure = plot_hidden_interactions(found, "about")
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert [image.get_clim() for image in images] == [(0, 2)] * 2
    assert [image.get_array().max() for image in images] == [1, 2]
    write_matrices(found, tmp_path / "x.csv")
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [float(row["base"]) for row in rows] == [0, 1, 1, 0.25]
    assert rows[1] == {"i": "0", "j": "1", "base": "1.0", "LoRA": "2.0"}
