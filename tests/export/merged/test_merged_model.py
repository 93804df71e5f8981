"""`export_merged`: both ways, and what transformers makes of the result."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from pera_lightning import PeraConfig, export_merged, inject_adapter, save_adapter
from pera_lightning.errors import AdapterFileError, ConfigError, ExportError, PeraError
from pera_lightning.export.merged import merged_model
from pera_lightning.export.merged.merged_model import local_folder
from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
from tests.support.base_folders import SHARD, adapt_and_save, digests, save_base_and_adapter
from tests.support.gguf_files import save_gguf
from tests.support.models import tiny_bert_classifier, tiny_gpt2, tiny_llama
from tests.support.pretrained import character_tokenizer

IDS = torch.arange(3, 24).view(3, 7)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def loaded_logits(folder: Path) -> Tensor:
    return logits(AutoModelForCausalLM.from_pretrained(folder))


def base_with_tokenizer(model: nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size=SHARD)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("case", ["untied", "tied with token rows", "GPT-2"])
def test_the_merged_model_computes_what_the_adapted_one_does(tmp_path: Path, case: str, in_memory: bool) -> None:
    tied = case == "tied with token rows"
    model = tiny_gpt2() if case == "GPT-2" else tiny_llama(tie_word_embeddings=tied)
    base = base_with_tokenizer(model, tmp_path / "base")
    config = PeraConfig(2, trainable_tokens=[3, 9] if tied else None)
    adapter = adapt_and_save(model, tmp_path / "adapter", config, base)
    before, out = digests(base), tmp_path / "out"
    report = export_merged(adapter, out, in_memory=in_memory)
    torch.testing.assert_close(loaded_logits(out), logits(model), rtol=1e-4, atol=1e-5)
    assert report.certificate.route.startswith("transformers 5")
    assert report.certificate.max_difference < 1e-5 < 1e-2 < report.certificate.max_change
    assert report.certificate.agreement == 1
    assert report.certificate.positions > 300
    assert json.loads((out / "export_report.json").read_text())["certificate"]["agreement"] == 1
    assert str(report).startswith("merged model, float32: merged ")
    assert report.worst == report.merge.worst_layer
    assert AutoTokenizer.from_pretrained(out)("abc")["input_ids"] == character_tokenizer()("abc")["input_ids"]
    assert (out / "generation_config.json").is_file()
    assert digests(base) == before
    tensors = [key for key in AutoModelForCausalLM.from_pretrained(out).state_dict() if "base_layer" in key]
    assert not tensors
    if tied:
        loaded = AutoModelForCausalLM.from_pretrained(out)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_files_of_the_base_are_never_loaded_as_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    monkeypatch.setattr(merged_model, "load_base", None)
    report = export_merged(adapter, tmp_path / "out", compare=False)
    assert report.certificate is None
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(list(base.glob("*.safetensors")))


def test_not_from_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)a model \(LlamaForCausalLM\).*merge_adapter\(model\)"):
        export_merged(tiny_llama(), tmp_path / "out")  # type: ignore[arg-type]


def test_a_tied_head_saved_whole_is_merged_in_memory(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    base = base_with_tokenizer(model, tmp_path / "base")
    inject_adapter(model, PeraConfig(2, modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.lm_head.weight.normal_()
    save_adapter(model, tmp_path / "adapter", base_model=str(base))
    report = export_merged(tmp_path / "adapter", tmp_path / "out", in_memory=True)
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), logits(model), rtol=1e-4, atol=1e-5)
    assert report.certificate.max_change > 1


def test_size_of_files_in_memory(tmp_path: Path) -> None:
    _, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    export_merged(adapter, tmp_path / "out", in_memory=True, max_shard_size=SHARD, compare=False)
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 25_000 for file in files)


@pytest.mark.parametrize("in_memory", [False, True])
def test_another_dtype(tmp_path: Path, in_memory: bool) -> None:
    _, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    report = export_merged(adapter, tmp_path / "out", dtype="bfloat16", in_memory=in_memory)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert {value.dtype for value in loaded.parameters()} == {torch.bfloat16}
    assert report.dtype == "bfloat16"
    assert 1e-4 < report.merge.weight_error < 5e-3
    assert report.certificate.max_difference < 0.05


@pytest.fixture
def quantized(tmp_path: Path) -> tuple[Path, nn.Module]:
    """Folder of an adapter trained on a 4-bit base, and its model."""
    base = base_with_tokenizer(tiny_llama(), tmp_path / "base")
    model = load_causal_lm(PretrainedSource(str(base)), quantization="nf4")
    return adapt_and_save(model, tmp_path / "adapter", PeraConfig(2), base), model


@pytest.mark.parametrize("into", ["auto", "dequantized"])
def test_an_adapter_of_a_4_bit_base_keeps_what_was_trained(
    tmp_path: Path, quantized: tuple[Path, nn.Module], into: Any
) -> None:
    adapter, model = quantized
    report = export_merged(adapter, tmp_path / "out", into=into)
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), logits(model), rtol=1e-4, atol=1e-5)
    assert report.merge.into == "dequantized"
    assert report.certificate.max_difference < 1e-5
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_adapter_of_a_4_bit_base_onto_the_original(
    tmp_path: Path, quantized: tuple[Path, nn.Module], in_memory: bool
) -> None:
    adapter, model = quantized
    changes = {name: layer.delta_weight() for name, layer in model.named_modules() if hasattr(layer, "delta_weight")}
    report = export_merged(adapter, tmp_path / "out", into="original", in_memory=in_memory)
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for name, change in changes.items():
        wanted = original.get_submodule(name).weight + change
        torch.testing.assert_close(loaded.get_submodule(name).weight, wanted, rtol=0, atol=1e-6)
    assert report.merge.into == "original"
    # Compared with what was trained, which the error of quantisation sets apart.
    difference = (logits(loaded) - logits(model)).abs().max().item()
    assert report.certificate.max_difference == pytest.approx(difference, rel=1)
    assert report.certificate.max_difference > 1e-3


def test_16_bits_of_a_4_bit_base_are_reported(tmp_path: Path) -> None:
    base = base_with_tokenizer(tiny_llama().to(torch.bfloat16), tmp_path / "base")
    model = load_causal_lm(PretrainedSource(str(base)), quantization="nf4")
    adapter = adapt_and_save(model, tmp_path / "adapter", PeraConfig(2), base)
    report = export_merged(adapter, tmp_path / "out")
    assert {value.dtype for value in AutoModelForCausalLM.from_pretrained(tmp_path / "out").parameters()} == {
        torch.bfloat16
    }
    assert report.dtype == "bfloat16"
    assert report.merge.layers == 14
    assert 1e-4 < report.merge.weight_error < 5e-3
    assert report.certificate.max_difference < 0.05


def test_a_base_whose_files_are_in_4_bits(tmp_path: Path, quantized: tuple[Path, nn.Module]) -> None:
    _, model = quantized
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config)
    packed.save_pretrained(tmp_path / "packed")
    export_merged(tmp_path / "adapter", tmp_path / "out", base=str(tmp_path / "packed"))
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), logits(model), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="files are quantised"):
        export_merged(tmp_path / "adapter", tmp_path / "o", base=str(tmp_path / "packed"), into="original")


def test_a_gguf_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    save_gguf(tiny_llama(), tmp_path / "base" / "tiny.gguf")
    source = PretrainedSource(str(tmp_path / "base"), "tiny.gguf")
    model = load_causal_lm(source, dtype="float32")
    adapter = adapt_and_save(model, tmp_path / "adapter", PeraConfig(2), tmp_path / "base" / "tiny.gguf")
    report = export_merged(adapter, tmp_path / "out", dtype="float32", prompts=["abab"])
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), logits(model), rtol=1e-4, atol=1e-5)
    # "ab" is one token there.
    assert report.certificate.positions == 2
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("abab")["input_ids"] == [32, 32]


def test_a_hub_id_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, commit = tiny_llama(), "a" * 40
    repository = tmp_path / "cache" / "models--org--tiny"
    base_with_tokenizer(model, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert local_folder(PretrainedSource("org/tiny")) == repository / "snapshots" / commit
    assert local_folder(PretrainedSource("org/other")) is None
    adapter = adapt_and_save(model, tmp_path / "adapter", PeraConfig(2), Path("org/tiny"))
    report = export_merged(adapter, tmp_path / "out")
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), logits(model), rtol=1e-4, atol=1e-5)
    assert report.certificate.positions > 300
    next((repository / "snapshots" / commit).glob("*-00002-*")).unlink()
    assert local_folder(PretrainedSource("org/tiny")) is None


def test_another_kind_of_model(tmp_path: Path) -> None:
    model = tiny_bert_classifier()
    _, adapter = save_base_and_adapter(model, tmp_path, PeraConfig(2, modules_to_save=["classifier"]))
    report = export_merged(adapter, tmp_path / "out")
    assert report.certificate.positions == 1
    assert report.certificate.max_difference < 1e-6
    torch.testing.assert_close(
        logits(type(model).from_pretrained(tmp_path / "out")), logits(model), rtol=1e-4, atol=1e-5
    )


def test_an_adapter_of_somebody_elses_module(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama()
    model.save_pretrained(tmp_path / "base", max_shard_size=SHARD)
    adapter = adapt_and_save(nn.ModuleDict({"net": model}), tmp_path / "adapter", PeraConfig(2), tmp_path / "base")
    with caplog.at_level(logging.WARNING, logger="pera_lightning"):
        report = export_merged(adapter, tmp_path / "out")
    assert "not compared" in caplog.text
    assert report.certificate is None
    torch.testing.assert_close(loaded_logits(tmp_path / "out"), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("moment", ["merge", "certify"])
def test_a_crash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool, moment: str) -> None:
    base, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    before, seen = digests(base), []

    def crash(*arguments: Any, **options: Any) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise KeyboardInterrupt

    where = "certify" if moment == "certify" else "merge_and_report" if in_memory else "merge_shards"
    monkeypatch.setattr(merged_model, where, crash)
    with pytest.raises(KeyboardInterrupt):
        export_merged(adapter, tmp_path / "out", in_memory=in_memory)
    assert "out" not in seen
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    assert digests(base) == before


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dtype": "int8"}, ConfigError, "dtype"),
        ({"into": "requantized"}, ConfigError, "into"),
        ({"base": "/nowhere"}, ConfigError, "/nowhere"),
        ({"prompts": ["hello"]}, ConfigError, "no tokenizer to read the prompts"),
    ],
)
def test_refused_options(tmp_path: Path, options: Any, error: type[PeraError], words: str) -> None:
    _, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    with pytest.raises(error, match=words):
        export_merged(adapter, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_refused_places(tmp_path: Path) -> None:
    base, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    (tmp_path / "link").symlink_to(base)
    export_merged(adapter, tmp_path / "merged", compare=False)
    (tmp_path / "merged/export_report.json").unlink()
    for place, words in (
        (base, "place of its base model"),
        (tmp_path / "link", "place of its base model"),
        (adapter, "PERA adapter"),
        (base / "config.json", "is a file"),
        (tmp_path / "merged", "The folder is not ours"),
    ):
        before = digests(base) | digests(adapter)
        with pytest.raises(ExportError, match=words):
            export_merged(adapter, place, overwrite=words != "The folder is not ours")
        assert digests(base) | digests(adapter) == before
    (tmp_path / "empty").mkdir()
    export_merged(adapter, tmp_path / "empty", compare=False)
    assert (tmp_path / "empty" / "model.safetensors.index.json").is_file()


def test_refused_bases(tmp_path: Path) -> None:
    model = tiny_llama()
    _, adapter = save_base_and_adapter(model, tmp_path)
    tiny_llama().save_pretrained(tmp_path / "other")
    for in_memory, error in ((False, ConfigError), (True, AdapterFileError)):
        with pytest.raises(error, match="trained on another base"):
            export_merged(adapter, tmp_path / "out", base=str(tmp_path / "other"), in_memory=in_memory)
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="does not say which base"):
        export_merged(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_merged(adapter, tmp_path / "out", base=str(tmp_path / "base"), compare=False)


def test_the_folder_is_as_open_as_others(tmp_path: Path) -> None:
    _, adapter = save_base_and_adapter(tiny_llama(), tmp_path)
    export_merged(adapter, tmp_path / "deep" / "out", compare=False)
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "deep" / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode
