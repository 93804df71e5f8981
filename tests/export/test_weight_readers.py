"""Layers whose weight the model reads instead of calling them: a LoRA of PEFT would do nothing there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn

from pera_lightning import PeraConfig, export_lora, inject_adapter, load_adapter, remove_adapter, save_adapter
from pera_lightning.checkpoint.manifest.layer_traits import READ, layer_traits
from pera_lightning.errors import ExportError
from pera_lightning.export.lora.factors_format import read_factors
from tests.support.models import randomise_adapter
from tests.support.torch_models import WIDTH, encoder

READERS = ("self_attn.out_proj", "linear1", "linear2")


class ReadsItself(nn.Module):
    """Calls one layer and reads the weight of another, as attention written by hand does."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        # What looks at the weight alone is no reader of it.
        x = self.called(x.to(self.called.weight.dtype))
        return F.linear(x, self.read.weight, self.read.bias)


class ReadsItsTable(nn.Module):
    """An embedding whose table is the output head, as in models that tie them by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.table(tokens), self.table.weight)


def adapted(model: nn.Module, **options: object) -> nn.Module:
    inject_adapter(model, PeraConfig(rank=4, **options))  # type: ignore[arg-type]
    randomise_adapter(model, 0.05)
    return model.eval()


def learn(model: nn.Module, x: Tensor) -> None:
    model.train()
    model(x).square().mean().backward()
    model.eval()


def readers(model: nn.Module) -> set[str]:
    return {name for name, traits in layer_traits(model).items() if READ in traits}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))


def test_torchs_attention_and_encoder_layers_are_known(x: Tensor, tmp_path: Path) -> None:
    model = adapted(encoder())
    wanted = {f"layers.{layer}.{name}" for layer in (0, 1) for name in READERS}
    assert readers(model) == wanted
    folder = save_adapter(model, tmp_path / "adapter")
    for source in (model, folder):
        for to in ("peft", "vllm"):
            with pytest.raises(
                ExportError,
                match=r"(?s)would leave out a part.*got: .*the model reads instead of calling them: "
                r"layers.0.self_attn.out_proj.*merge_adapter",
            ):
                export_lora(source, tmp_path / "out", to=to, inputs=[x] if source is model else None)
            assert not (tmp_path / "out").exists()


def test_without_them_peft_computes_the_same(x: Tensor, tmp_path: Path) -> None:
    model = adapted(ReadsItself(), target_modules=["called"])
    learn(model, x)
    assert not readers(model)
    with torch.no_grad():
        wanted = model(x)
    export_lora(model, tmp_path / "lora", inputs=[x])
    loaded = PeftModel.from_pretrained(remove_adapter(model), tmp_path / "lora").eval()
    with torch.no_grad():
        # float32, two roundings of another order.
        torch.testing.assert_close(loaded(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("make", "names"), [(encoder, READERS), (ReadsItself, ("called", "read"))])
def test_factors_for_ones_own_code_are_compared_in_the_weight(
    make: Callable[[], nn.Module], names: tuple[str, ...], x: Tensor, tmp_path: Path
) -> None:
    model = adapted(make(), target_modules=list(names))
    learn(model, x)
    with torch.no_grad():
        wanted = model(x)
    report = export_lora(model, tmp_path / "own", to="safetensors", inputs=[x])
    assert report.certificate is not None
    assert report.certificate.max_change > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(model(x), wanted, rtol=0, atol=0)
    lora = read_factors(tmp_path / "own")
    base = remove_adapter(model)
    with torch.no_grad():
        for name, (down, up) in lora.factors.items():
            base.get_submodule(name).weight += up @ down  # type: ignore[operator]
        torch.testing.assert_close(base(x), wanted, rtol=1e-5, atol=1e-5)


def test_training_sees_who_reads(x: Tensor, tmp_path: Path) -> None:
    base = ReadsItself()
    fresh = copy.deepcopy(base)
    model = adapted(base, target_modules=["called", "read"])
    assert not readers(model)
    learn(model, x)
    assert readers(model) == {"read"}
    folder = save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ExportError, match=r"the model reads instead of calling them: read\n"):
        export_lora(folder, tmp_path / "out")
    load_adapter(fresh, folder)
    assert readers(fresh) == {"read"}


def test_training_sees_who_reads_a_table(tmp_path: Path) -> None:
    model = adapted(ReadsItsTable(), target_modules=["table"])
    learn(model, torch.arange(6).view(2, 3))
    with pytest.raises(ExportError, match="the model reads instead of calling them: table"):
        export_lora(model, tmp_path / "out")
    tokens = torch.arange(6).view(2, 3)
    assert export_lora(model, tmp_path / "own", to="safetensors", inputs=[tokens]).certificate is not None


def test_without_training_the_comparison_says_which_layers_are_not_called(x: Tensor, tmp_path: Path) -> None:
    model = adapted(ReadsItself(), target_modules=["called", "read"])
    with pytest.raises(ExportError, match=r"(?s)that the model does not call: read\n.*reads a layer's weight itself"):
        export_lora(model, tmp_path / "out", inputs=[x])
    assert not (tmp_path / "out").exists()


def test_wavlm_reads_its_attention(tmp_path: Path) -> None:
    from transformers import WavLMConfig, WavLMModel

    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8,),
        conv_stride=(5,),
        conv_kernel=(10,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    model = adapted(WavLMModel(config), target_modules=["q_proj", "intermediate_dense"])
    model(torch.randn(1, 200)).last_hidden_state.square().mean().backward()
    (name,) = readers(model)
    assert name.endswith("q_proj")
    with pytest.raises(ExportError, match="the model reads instead of calling them"):
        export_lora(model, tmp_path / "out")
