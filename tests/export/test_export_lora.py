from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from pera_lightning import (
    PeraConfig,
    adapter_disabled,
    export_lora,
    inject_adapter,
    inject_lora,
    remove_adapter,
    save_adapter,
)
from pera_lightning.errors import AdapterFileError, ConfigError, ExportError, InjectionError
from pera_lightning.export.certificate import Reference, lora_applied
from pera_lightning.export.factors_format import read_factors
from pera_lightning.export.peft_format import read_peft
from pera_lightning.functional import expanded_rank
from pera_lightning.injection import adapted_layers
from tests.support.models import randomise_adapter, tiny_bert_classifier, tiny_gpt2, tiny_llama, token_ids

# PEFT looks at an attribute of transformers that is about to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def adapted(make: Callable[..., nn.Module] = tiny_llama, scale: float = 0.3, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    model = make()
    inject_adapter(model, PeraConfig(**{"rank": 4, **options}))
    randomise_adapter(model, scale)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


def by_peft(model: nn.Module, folder: Path, ids: Tensor) -> Tensor:
    return logits(PeftModel.from_pretrained(remove_adapter(model), folder), ids)


def tied_llama() -> nn.Module:
    return tiny_llama(tie_word_embeddings=True)


def huge_norm() -> nn.Module:
    model = adapted(modules_to_save=["model.norm"])
    with torch.no_grad():
        model.model.norm.weight.fill_(1e5)
    return model


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny_llama, {}),
        (tiny_llama, {"order": 1, "alpha": 9.0}),
        (tiny_llama, {"order": 3, "rank": 2, "use_rslora": True, "alpha": 3.0}),
        (tiny_llama, {"terms": "square", "coefficient_scale": "auto"}),
        (tiny_llama, {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}, "alpha_pattern": {"v_proj": 16.0}}),
        (tiny_llama, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        (tiny_gpt2, {}),
        (tiny_bert_classifier, {"modules_to_save": ["classifier"]}),
    ],
)
def test_peft_computes_the_same(make: Callable[..., nn.Module], options: dict[str, Any], tmp_path: Path) -> None:
    model, ids = adapted(make, **options), token_ids()
    if "modules_to_save" in options:
        with torch.no_grad():
            model.classifier.weight.normal_()
    expected = logits(model, ids)
    report = export_lora(model, tmp_path)
    assert report.exact
    assert report.rank == max(fit.expanded_rank for fit in report.layers.values())
    # The adapter is left as it was.
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=0)
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


def test_what_servers_read(tmp_path: Path) -> None:
    model = adapted(rank_pattern={"q_proj": 2})
    export_lora(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    rank = expanded_rank(4, 2)
    assert (config["peft_type"], config["task_type"], config["r"], config["lora_alpha"]) == (
        "LORA",
        "CAUSAL_LM",
        rank,
        rank,
    )
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]
    assert not config["use_rslora"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.split(".lora_")[0].removeprefix("base_model.model.") for key in tensors} == {
        name for name, _ in adapted_layers(model)
    }
    # One rank for all: servers know no other.
    assert all(value.shape[0 if ".lora_A." in key else 1] == rank for key, value in tensors.items())
    assert {value.dtype for value in tensors.values()} == {torch.float32}


def test_the_card_tells_where_it_comes_from(tmp_path: Path) -> None:
    save_adapter(adapted(), tmp_path / "pera", base_model="org/base")
    report = export_lora(tmp_path / "pera", tmp_path / "lora", 5)
    card = (tmp_path / "lora/README.md").read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "base_model: org/base\n---" in card
    assert str(report) in card
    assert 'AutoModelForCausalLM.from_pretrained("org/base")' in card


def test_a_folder_is_exported_without_its_model(tmp_path: Path) -> None:
    model = adapted(tiny_gpt2, target_modules=["c_attn", "wte"], coefficient_scale=30.0)
    save_adapter(model, tmp_path / "pera")
    export_lora(model, tmp_path / "model")
    report = export_lora(tmp_path / "pera", tmp_path / "folder")
    assert report.certificate is None
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = adapted(scale=1e-3)
    report = export_lora(model, tmp_path, dtype=dtype)
    assert {value.dtype for value in load_file(tmp_path / "adapter_model.safetensors").values()} == {dtype}
    bound = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]  # half a unit in the last place, of either factor
    assert 0 < max(fit.rounding for fit in report.layers.values()) < 2 * bound


def test_cut_to_a_rank(tmp_path: Path) -> None:
    model = adapted()
    changes = {name: layer.delta_weight().detach().double() for name, layer in adapted_layers(model)}
    report = export_lora(model, tmp_path, 5)
    assert (report.rank, report.exact) == (5, False)
    for name, factors in read_peft(tmp_path).factors.items():
        error = (factors.up.double() @ factors.down.double() - changes[name]).norm() / changes[name].norm()
        dense = torch.linalg.svdvals(changes[name])
        torch.testing.assert_close(error, dense[5:].norm() / dense.norm(), rtol=1e-3, atol=1e-6)
        assert report.layers[name].kept_energy == pytest.approx(1 - error.item() ** 2, rel=1e-5)


def test_a_rank_above_the_expanded_one_is_exact(tmp_path: Path) -> None:
    report = export_lora(adapted(), tmp_path, 64)
    assert (report.rank, report.exact) == (expanded_rank(4, 2), True)


def test_the_smallest_rank_that_holds_an_error(tmp_path: Path) -> None:
    model = adapted(rank_pattern={"q_proj": 1})  # layers that need different ranks
    changes = [torch.linalg.svdvals(layer.delta_weight().detach().double()) for _, layer in adapted_layers(model)]
    report = export_lora(model, tmp_path, max_error=0.05)
    lost = [max((values[rank:].norm() / values.norm()).item() for values in changes) for rank in range(15)]
    assert lost[report.rank] <= 0.05 < lost[report.rank - 1]


def test_the_certificate_tells_good_from_bad(tmp_path: Path) -> None:
    model = adapted()
    good, bad = export_lora(model, tmp_path / "good").certificate, export_lora(model, tmp_path / "bad", 1).certificate
    assert good is not None
    assert bad is not None
    assert good.positions == bad.positions == 64
    assert good.max_difference < 1e-5 < 0.1 < good.max_change
    assert bad.max_difference > 0.01
    assert good.agreement == 1 > bad.agreement
    stored = json.loads((tmp_path / "bad/export_report.json").read_text())
    assert stored["certificate"]["max_difference"] == bad.max_difference
    assert stored["layers"].keys() == {name for name, _ in adapted_layers(model)}


def test_the_certificate_is_of_the_files(tmp_path: Path) -> None:
    model, ids = adapted(), token_ids()
    export_lora(model, tmp_path)
    reference = Reference.of(model, [{"input_ids": ids}])
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "1.mlp.down_proj.lora_B" in key)
    save_file({**tensors, key: tensors[key].roll(1, 0)}, file)
    with lora_applied(model, read_peft(tmp_path)):
        damaged = reference.compare(model, "damaged")
    assert damaged.max_difference > 1e-3
    # And the adapter is back.
    assert reference.compare(model, "itself").max_difference == 0


def test_the_certificate_reads_modules_saved_whole_from_the_files(tmp_path: Path) -> None:
    model, ids = adapted(modules_to_save=["model.norm"]), token_ids()
    with torch.no_grad():
        model.model.norm.weight.normal_()
    reference = Reference.of(model, [{"input_ids": ids}])
    report = export_lora(model, tmp_path, dtype=torch.bfloat16)
    assert 0 < report.saved["model.norm.weight"] < 2**-8
    assert "1 tensors saved whole, rounded by at most" in str(report)
    stored = read_peft(tmp_path)
    stored.saved["model.norm.weight"].zero_()
    with lora_applied(model, stored):
        assert reference.compare(model, "damaged").max_difference > 0.1
    assert reference.compare(model, "itself").max_difference == 0
    del stored.saved["model.norm.weight"]
    with (
        pytest.raises(AdapterFileError, match=r"(?s)not hold all of the adapter.*model\.norm\.weight"),
        lora_applied(model, stored),
    ):
        pass


@pytest.mark.parametrize(("options", "task"), [({}, None), ({"modules_to_save": ["classifier"]}, "SEQ_CLS")])
def test_task_of_a_classifier(options: dict[str, Any], task: str | None, tmp_path: Path) -> None:
    # With SEQ_CLS, PEFT wants a head in the file.
    model, ids = adapted(tiny_bert_classifier, **options), token_ids()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == task
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_both_sides_of_a_tie_may_be_saved_whole(tmp_path: Path) -> None:
    model, ids = adapted(tied_llama, modules_to_save=["embed_tokens", "lm_head"]), token_ids()
    with torch.no_grad():
        model.lm_head.weight.normal_()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


def tiny_distilbert() -> nn.Module:
    config = DistilBertConfig(vocab_size=64, dim=32, hidden_dim=48, n_layers=2, n_heads=4, num_labels=3)
    return DistilBertForSequenceClassification(config)


class Module(nn.Module):
    """As a LightningModule keeps its model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = model


def test_a_module_around_the_model(tmp_path: Path) -> None:
    # PEFT would not find the layers under these names, and say nothing.
    module = Module(adapted())
    with pytest.raises(
        ExportError, match=r"(?s)a Module with the model in its 'net'.*export_lora\(module\.net, \.\.\.\)"
    ):
        export_lora(module, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert export_lora(module, tmp_path / "own", to="safetensors").exact


class WithHead(Module):
    """A head beside the model."""

    def __init__(self) -> None:
        super().__init__(tiny_llama())
        self.head = nn.Linear(64, 3)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.net(input_ids).logits))


def test_what_is_trained_beside_the_model_belongs_to_the_module_around_it(tmp_path: Path) -> None:
    model, ids = adapted(WithHead, modules_to_save=["head"], target_modules=["q_proj"]), token_ids()
    with torch.no_grad():
        model.head.weight.normal_()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    # PEFT takes `head` for `lm_head` too unless it is told more.
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)
    model = WithHead()
    inject_lora(model, tmp_path)
    assert torch.equal(model.head.weight, read_peft(tmp_path).saved["head.weight"])


def test_a_head_whose_name_ends_another(tmp_path: Path) -> None:
    # DistilBERT's pre_classifier beside its classifier.
    model, ids = adapted(tiny_distilbert, modules_to_save=["classifier"]), token_ids()
    with torch.no_grad():
        model.classifier.weight.normal_()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


def test_padding_takes_no_part(tmp_path: Path) -> None:
    model, ids = adapted(), token_ids()
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    report = export_lora(model, tmp_path, inputs=[{"input_ids": ids, "attention_mask": mask}])
    assert report.certificate is not None
    assert report.certificate.positions == int(mask.sum())


def test_modules_saved_whole_keep_their_trained_values_in_the_comparison(tmp_path: Path) -> None:
    model = adapted(tiny_bert_classifier, modules_to_save=["classifier"])
    with torch.no_grad():
        model.classifier.weight.normal_()
    report = export_lora(model, tmp_path, inputs=[{"input_ids": token_ids()}])
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-5


def test_factors_under_the_layers_own_names(tmp_path: Path) -> None:
    model = adapted()
    report = export_lora(model, tmp_path, to="safetensors")
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-5
    factors = read_factors(tmp_path).factors
    for name, layer in adapted_layers(model):
        torch.testing.assert_close(factors[name].up @ factors[name].down, layer.delta_weight(), rtol=1e-5, atol=1e-6)
    assert not (tmp_path / "adapter_config.json").exists()


def test_over_a_quantised_base(tmp_path: Path) -> None:
    from pera_lightning import quantize_model

    model = tiny_llama()
    quantize_model(model, "nf4")
    inject_adapter(model, PeraConfig(4))
    randomise_adapter(model)
    ids = token_ids()
    expected = logits(model, ids)
    report = export_lora(model.eval(), tmp_path)
    assert report.certificate is not None
    assert report.certificate.max_difference < 1e-4
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-4, atol=1e-4)


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "biases": (lambda: adapted(tiny_gpt2, bias="adapted"), {}, "PEFT would leave out a part .*trained biases"),
    "tokens": (lambda: adapted(trainable_tokens=[5, 7]), {}, "PEFT would leave out .*trained rows of tokens"),
    "embedding": (
        lambda: adapted(target_modules=["q_proj", "embed_tokens"]),
        {"to": "vllm"},
        "vLLM would leave out .*adapted embeddings: model.embed_tokens",
    ),
    "tied head": (
        lambda: adapted(lambda: tiny_llama(tie_word_embeddings=True), target_modules=["q_proj", "lm_head"]),
        {"to": "vllm"},
        "vLLM would leave out .*tied to the embedding: lm_head",
    ),
    "saved": (lambda: adapted(modules_to_save=["norm"]), {"to": "vllm"}, "vLLM would leave out .*modules saved whole"),
    "saved head, tied": (
        lambda: adapted(tied_llama, modules_to_save=["lm_head"]),
        {},
        "PEFT would leave out .*the tie between a module saved whole and another module: lm_head",
    ),
    "saved embedding, tied": (
        lambda: adapted(tied_llama, modules_to_save=["embed_tokens"]),
        {"to": "safetensors"},
        "A file of factors would leave out .*the tie .*: model.embed_tokens",
    ),
    "overflow of what is saved": (huge_norm, {"dtype": torch.float16}, "'model.norm.weight' beyond torch.float16"),
    "rank": (lambda: adapted(rank=31), {"to": "vllm"}, "vLLM takes no LoRA of this rank.*527"),
    "overflow": (lambda: adapted(scale=3e5), {"dtype": torch.float16}, "does not fit the dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    make, options, message = REFUSED[name]
    with pytest.raises(ExportError, match=f"(?s){message}"):
        export_lora(make(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_vllm_takes_a_cut_one(tmp_path: Path) -> None:
    assert export_lora(adapted(rank=31), tmp_path, 16, to="vllm").rank == 16


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_tied_heads_are_no_obstacle_for_peft(tmp_path: Path) -> None:
    model = adapted(lambda: tiny_llama(tie_word_embeddings=True), target_modules=["q_proj", "lm_head"])
    ids = token_ids()
    expected = logits(model, ids)
    export_lora(model, tmp_path)
    torch.testing.assert_close(by_peft(model, tmp_path, ids), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be positive"),
        ({"rank": 3, "max_error": 0.1}, "Either the rank or the error"),
        ({"max_error": 1.5}, "max_error is the relative error"),
        ({"max_error": float("nan")}, "max_error is the relative error"),
        ({"dtype": torch.float64}, "floating dtype that servers read"),
        ({"to": "ollama"}, "no such target of an export"),
        ({"inputs": token_ids()}, r"(?s)one call of the model after the other.*a Tensor.*inputs=\[\.\.\.\]"),
        ({"inputs": {"input_ids": token_ids()}}, "(?s)one call of the model after the other.*a dict"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export_lora(adapted(), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_not_over_a_pera_adapter(tmp_path: Path) -> None:
    model = adapted()
    save_adapter(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ExportError, match="take the place of a PERA adapter"):
        export_lora(model, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="needs a folder"):
        export_lora(model, tmp_path / "file")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_again_into_its_own_folder(tmp_path: Path) -> None:
    model = adapted()
    export_lora(model, tmp_path / "out", 3)
    (tmp_path / "out/notes.txt").write_text("mine")
    assert export_lora(model, tmp_path / "out").rank == expanded_rank(4, 2)
    assert {factors.rank for factors in read_peft(tmp_path / "out").factors.values()} == {expanded_rank(4, 2)}
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_not_among_other_files(tmp_path: Path) -> None:
    model = adapted()
    model.save_pretrained(tmp_path / "base")
    export_lora(model, tmp_path / "factors", to="safetensors")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/README.md").write_text("mine")
    for name, got in (
        ("base", "which is not empty"),
        ("factors", "but an export to 'safetensors'"),
        ("notes", "not empty"),
    ):
        before = contents(tmp_path / name)
        with pytest.raises(ExportError, match=f"(?s)mix with other files.*{got}"):
            export_lora(model, tmp_path / name)
        assert contents(tmp_path / name) == before


def test_places_that_can_be_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, got in (("file/below", "file, which is a file"), ("link", "link, which is a link to nothing")):
        with pytest.raises(ExportError, match=f"(?s)needs a folder.*{got}"):
            export_lora(adapted(), tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"(?s)cannot be written.*too long"):
        export_lora(adapted(), tmp_path / ("x" * 300))
    beside: list[Path] = []
    make = tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix, dir: beside.append(dir) or make(prefix=prefix, dir=dir))
    (tmp_path / "mounted").mkdir()
    export_lora(adapted(), tmp_path / "mounted")
    # What is beside a mounted folder is on another file system.
    assert beside == [tmp_path / "mounted"]
    assert sorted(path.name for path in (tmp_path / "mounted").iterdir()) == sorted(
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "export_report.json"]
    )


def test_a_comparison_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def check(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    model = adapted()
    export_lora(model, tmp_path / "out", 3)
    before = contents(tmp_path / "out")
    for name in ("out", "new"):
        with pytest.raises(RuntimeError, match="out of memory"):
            export_lora(model, tmp_path / name, check=check)
    assert contents(tmp_path / "out") == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sources_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(InjectionError, match="holds no adapter"):
        export_lora(tiny_llama(), tmp_path / "out")
    with pytest.raises(AdapterFileError, match="config is missing"):
        export_lora(tmp_path / "nowhere", tmp_path / "out")
    model = adapted()
    next(iter(adapted_layers(model)))[1].merge()
    with pytest.raises(InjectionError, match=r"(?s)beside its base.*1 merged layers"):
        export_lora(model, tmp_path / "out")
    model = adapted()
    with (
        adapter_disabled(model),
        pytest.raises(InjectionError, match=r"(?s)14 disabled layers.*outside of adapter_disabled"),
    ):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_two_adapters(tmp_path: Path) -> None:
    save_adapter(adapted(target_modules=["q_proj"]), tmp_path / "one")
    save_adapter(adapted(target_modules=["v_proj"]), tmp_path / "other")
    (tmp_path / "one/adapter_model.safetensors").replace(tmp_path / "other/adapter_model.safetensors")
    with pytest.raises(AdapterFileError, match="do not belong together"):
        export_lora(tmp_path / "other", tmp_path / "out")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    model = adapted()
    with torch.no_grad():
        next(iter(adapted_layers(model)))[1].pera_B[0, 0] = float("nan")
    with pytest.raises(ExportError, match="not finite"):
        export_lora(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
