"""In-place operations on an adapted layer's output ended in "Output 0 of PeraFunction is a view"."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pera_lightning import PeraConfig, PeraLinear, inject_adapter
from pera_lightning.functional import linear
from pera_lightning.layers import PeraEmbedding, TokenRows, TokenRowsEmbedding, TokenRowsLinear
from tests.support.inplace import IN, OPERATIONS, OUT, RANK, adapted, check, expected, factors, several, weighed
from tests.support.models import randomise_adapter
from tests.support.quantized import int8_weight, nf4_weight


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("shape", [(IN,), (4, IN), (2, 3, IN), (2, 1, 3, IN)], ids=str)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_are_those_of_the_operation_out_of_place(operation: str, order: int, shape: tuple[int, ...]) -> None:
    layer = adapted(order)
    check(layer, layer.base_layer.weight, torch.randn(shape, requires_grad=True), operation)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(2, 3, IN),
        lambda: torch.randn(3, 2, IN, requires_grad=True).transpose(0, 1),
        lambda: torch.randn(2, 3, 2 * IN, requires_grad=True)[..., ::2],
        lambda: torch.randn(1, 1, IN, requires_grad=True).expand(2, 3, IN),
        lambda: torch.randn(2, 3, IN, requires_grad=True) * 2,
        lambda: torch.randn(0, 3, IN, requires_grad=True),
    ],
    ids=["without a gradient", "transposed", "strided", "expanded", "no leaf", "empty"],
)
def test_any_input(make: Callable[[], Tensor], order: int) -> None:
    layer, x = adapted(order), make()
    if x.numel():
        check(layer, layer.base_layer.weight, x, "relu")
    else:
        F.relu_(layer(x)).sum().backward()
        assert not layer.pera_A.grad.any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("training", [False, True])
def test_without_a_graph(training: bool, mode: type) -> None:
    """What was computed without a graph may join one later, which that of a plain linear layer may not."""
    layer, x = adapted().train(training).requires_grad_(False), torch.randn(2, 3, IN)
    with mode():
        y = layer(x)
        right = y.clone() + 1
        y += 1
    torch.testing.assert_close(y, right)
    scale = torch.ones(OUT, requires_grad=True)
    if mode is not torch.inference_mode:
        y.mul_(scale).sum().backward()
        torch.testing.assert_close(scale.grad, right.sum((0, 1)))


def test_merged_and_unmerged() -> None:
    layer, x = adapted().eval(), torch.randn(2, 3, IN, requires_grad=True)
    in_place, out_of_place = OPERATIONS["several"]
    right = expected(layer, layer.base_layer.weight, x, out_of_place)
    layer.merge()
    y = in_place(layer(x))
    torch.testing.assert_close(y.double(), right[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(weighed(y), x)[0].double(), right[1], rtol=1e-4, atol=1e-4)
    layer.unmerge()
    check(layer, layer.base_layer.weight, x, "several")


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("order", [1, 2])
def test_quantised_bases(order: int, kind: str) -> None:
    """Whose own output is a view that may not be changed in place."""
    from pera_lightning import quantize_model

    holder = nn.Sequential(nn.Linear(64, 64))
    quantize_model(holder, kind)
    layer = adapted(order, holder[0])
    layer(torch.randn(1, 64))
    weight = nf4_weight(holder[0]) if kind == "nf4" else int8_weight(holder[0])
    check(layer, weight, torch.randn(2, 3, 64, requires_grad=True), "relu", 0.02)


def test_transposed_bases() -> None:
    from transformers.pytorch_utils import Conv1D

    layer = adapted(base=Conv1D(OUT, IN).requires_grad_(False))
    check(layer, layer.base_layer.weight.T, torch.randn(2, 3, IN, requires_grad=True), "several")


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("order", [1, 2])
def test_dropout_of_the_adapter(order: int) -> None:
    """Against the same draw and the operation out of place."""
    layer, x = adapted(order, dropout=0.4), torch.randn(2, 3, IN, requires_grad=True)
    found = []
    for after in OPERATIONS["several"]:
        torch.manual_seed(5)
        y = after(layer(x))
        found.append([y, *torch.autograd.grad(weighed(y), [x, *factors(layer)])])
    for value, right in zip(*found, strict=True):
        torch.testing.assert_close(value, right)


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_autocast(base_dtype: torch.dtype) -> None:
    layer = adapted(base=nn.Linear(IN, OUT, dtype=base_dtype).requires_grad_(False))
    with torch.autocast("cpu", torch.bfloat16):
        # Linear operations: rounding is not to decide on which side of a corner a value lies.
        for operation in ("add", "part"):
            check(layer, layer.base_layer.weight, torch.randn(2, 3, IN, requires_grad=True), operation, 0.03)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    layer, x = adapted(), torch.randn(2, 3, IN, requires_grad=True)
    in_place, out_of_place = OPERATIONS["several"]
    y = checkpoint(lambda x: in_place(layer(x)), x, use_reentrant=reentrant)
    weighed(y).backward()
    right = expected(layer, layer.base_layer.weight, x, out_of_place)[1:]
    for value, gradient in zip((x, *factors(layer)), right, strict=True):
        torch.testing.assert_close(value.grad.double(), gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernels", [False, True])
def test_under_a_compiler(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels:
        monkeypatch.setattr(linear, "_kernels_serve", lambda x, options: True)
    layer = adapted()
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: several(layer(x)), backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 3, IN, requires_grad=True)
    weighed(compiled(x)).backward()
    right = expected(layer, layer.base_layer.weight, x, OPERATIONS["several"][1])[1:]
    for value, gradient in zip((x, *factors(layer)), right, strict=True):
        torch.testing.assert_close(value.grad.double(), gradient, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_the_operator_that_a_compiler_sees(dropout: float) -> None:
    layer, x = adapted(), torch.randn(2, 3, IN, requires_grad=True)
    call = (2, "full", 1.0, [1.0], torch.float32, dropout, "factored", "factored")
    seed = torch.tensor([5]) if dropout else None
    found = []
    for after in OPERATIONS["relu"]:
        y = after(torch.ops.pera_lightning.add_adapter(layer.base_layer(x), x, *factors(layer), seed, *call))
        found.append([y, *torch.autograd.grad(weighed(y), [x, *factors(layer)])])
    for value, right in zip(*found, strict=True):
        torch.testing.assert_close(value, right)


@pytest.mark.parametrize("style", ["columns", "rows"])
@pytest.mark.parametrize("with_graph", [True, False])
def test_tensor_parallelism(style: str, with_graph: bool, tmp_path: Path) -> None:
    """Where torch alone does not let the output be changed."""
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    from pera_lightning.functional.distributed import whole
    from pera_lightning.layers.parallelize import parallelize_adapted

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        layer, x = adapted(), torch.randn(2, 3, IN, requires_grad=True)
        right = expected(copy.deepcopy(layer), layer.base_layer.weight, x, OPERATIONS["several"][1])
        plan = {"0": ColwiseParallel() if style == "columns" else RowwiseParallel()}
        model = parallelize_adapted(nn.Sequential(layer), init_device_mesh("cpu", (1,)), plan)
        with torch.set_grad_enabled(with_graph):
            y = model(x if with_graph else x.detach())
        y = several(y)
        torch.testing.assert_close(y.double(), right[0], rtol=1e-4, atol=1e-4)
        if with_graph:
            weighed(y).backward()
            for value, gradient in zip((x, *factors(layer)), right[1:], strict=True):
                torch.testing.assert_close(whole(value.grad).double(), gradient, rtol=1e-4, atol=1e-4)
        else:
            y.mul_(torch.ones(OUT, requires_grad=True)).sum().backward()
    finally:
        distributed.destroy_process_group()


def test_embeddings_and_token_rows() -> None:
    ids = torch.tensor([[1, 4], [4, 0]])
    layers: list[Any] = [PeraEmbedding(nn.Embedding(IN, OUT).requires_grad_(False), PeraConfig(RANK))]
    table, head = nn.Embedding(IN, OUT).requires_grad_(False), nn.Linear(OUT, IN).requires_grad_(False)
    layers += [TokenRowsEmbedding(table, TokenRows([1, 4], table.weight))]
    layers += [TokenRowsLinear(head, TokenRows([1, 4], head.weight))]
    for layer in layers:
        given = torch.randn(2, 3, OUT, requires_grad=True) if layer is layers[-1] else ids
        parameters = [parameter.normal_() for parameter in map(nn.Parameter.detach, layer.adapter().values())]
        assert parameters
        found = []
        for after in OPERATIONS["several"]:
            y = after(layer(given))
            found.append([y, *torch.autograd.grad(weighed(y), list(layer.adapter().values()))])
        for value, right in zip(*found, strict=True):
            torch.testing.assert_close(value, right)


def models() -> dict[str, Callable[[], tuple[nn.Module, dict[str, Tensor]]]]:
    import transformers

    ids, sound = torch.randint(3, 60, (2, 6)), torch.randn(2, 400)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}

    def falcon(**options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
        config = transformers.FalconConfig(vocab_size=64, **sizes, **options)
        return transformers.FalconForCausalLM(config), {"input_ids": ids, "labels": ids}

    def wav2vec2() -> tuple[nn.Module, dict[str, Tensor]]:
        convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 4), "conv_kernel": (10, 8)}
        places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "layerdrop": 0.0}
        config = transformers.Wav2Vec2Config(intermediate_size=37, **sizes, **convolutions, **places)
        config.mask_time_prob = 0.0
        return transformers.Wav2Vec2Model(config), {"input_values": sound}

    def vgg() -> tuple[nn.Module, dict[str, Tensor]]:
        """As of torchvision's classifiers."""
        after: list[nn.Module] = [nn.ReLU(True), nn.Dropout(0.5, True), nn.ReLU6(True)]
        layers = [part for number, last in enumerate(after) for part in (nn.Linear(8 if number else IN, 8), last)]
        return nn.Sequential(*layers, nn.Linear(8, 3)), {"input": torch.randn(2, 4, IN)}

    found: dict[str, Any] = {"falcon": falcon, "wav2vec2": wav2vec2, "vgg": vgg}
    return found | {"older falcon": lambda: falcon(parallel_attn=False, alibi=True, hidden_dropout=0.1)}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["falcon", "older falcon", "wav2vec2", "vgg"])
def test_models_train(name: str, order: int) -> None:
    """Each adapted layer's gradient, against the same model with copies put around every output."""
    model, inputs = models()[name]()
    inject_adapter(model, PeraConfig(RANK, order, target_modules="all-linear"))
    randomise_adapter(model)
    other, found = copy.deepcopy(model), []
    for layer in other.modules():
        if isinstance(layer, PeraLinear):
            layer.register_forward_hook(lambda module, inputs, output: output.clone())
    for each in (model, other):
        torch.manual_seed(0)
        output = each.train()(**inputs)
        output = output if isinstance(output, Tensor) else output[0]
        output.double().square().sum().backward()
        found.append({key: value.grad for key, value in each.named_parameters() if value.requires_grad})
    assert len(found[0]) >= 6
    for key, gradient in found[0].items():
        assert gradient.abs().sum() > 0, key
        torch.testing.assert_close(gradient, found[1][key])
