from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from pera_lightning import PeraCallback
from pera_lightning.analysis.memory import CONTEXT, GB, SLACK
from pera_lightning.cli.estimate import what_fits
from pera_lightning.cli.estimate.command import estimate
from pera_lightning.cli.estimate.fit_on_meta import FitOnMeta
from pera_lightning.cli.estimate.fit_options import FitOptions
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from pera_lightning.errors import ConfigError
from pera_lightning.models.causal_lm import PeraCausalLM
from tests.analysis.test_memory import measured
from tests.cli.test_main import run
from tests.support.models import tiny_llama
from tests.support.pretrained import save_pretrained

IN_ONE_ROW = ("packing", "padding_free")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a fit whose model folder holds nothing but its config.json, and whose data do not exist."""
    folder = tmp_path_factory.mktemp("fit")
    (folder / "model").mkdir()
    tiny_llama(hidden_size=64, max_position_embeddings=4096).config.save_pretrained(folder / "model")
    written = {
        "trainer": {"accelerator": "gpu", "devices": 1},
        "pera": {"rank": 4, "exclude_modules": r"model\.model\.layers\.0"},
        "model": {
            "class_path": "PeraCausalLM",
            "init_args": {
                "pretrained": str(folder / "model"),
                "dtype": "bfloat16",
                "quantization": "nf4-dq",
                "gradient_checkpointing": True,
                "optimizer": "paged_adamw_8bit",
            },
        },
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"dataset": "nobody/nothing", "max_length": 64, "batch_size": 2, "eval_batch_size": 1},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(written))
    return folder / "config.yaml"


def options(config: Path, *words: str) -> FitOptions:
    return FitOptions.of(parse_fit("estimate", ["--config", str(config), *words]))


def gigabytes(printed: str) -> dict[str, float]:
    """The figures of the first table by the names of its rows."""
    rows = re.findall(r"│ +(\S[^│]*?) +│ +([\d,.]+) │", printed)
    return {name: float(size.replace(",", "")) for name, size in rows}


def test_prints_parts_that_add_up(config: Path) -> None:
    printed = run("estimate", "--config", config, "--trainer.devices", "2", "--cards", "4", "8")
    assert "their gradients, and DDP buckets" in printed
    sizes = gigabytes(printed)
    held = sum(sizes[name] for name in sizes if name.startswith(("base: nf4-dq", "adapter", "their", "optimizer")))
    step = sizes["activations, checkpointing on"] + sizes["working memory at the peak"]
    total = held + step * (1 + SLACK) + CONTEXT / GB
    # Each of its parts is rounded.
    assert sizes["a training step needs"] == pytest.approx(total, abs=4e-3)
    assert sizes["a validation step needs"] <= round(total, 3)
    assert "rule of thumb" in printed
    assert re.search(r"│ 4 GB +│ +[\d,]+ │ +[\d,]+ │ +4,096", printed)
    assert "│ 12 GB" not in printed


def test_answers_first_in_one_unit(config: Path) -> None:
    printed = run("estimate", "--config", config, "--cards", "0.5", "8")
    lines = printed.strip().splitlines()
    assert re.fullmatch(r"fits in 0.5 GB: no, 0.\d of 0.5 GB", lines[0])
    assert re.fullmatch(r"fits in 8 GB: yes, 0.\d of 8.0 GB", lines[1])
    needed = float(lines[0].split()[5])
    # Rounded up, so that what is a little too much looks so.
    assert 0 <= needed - gigabytes(printed)["a training step needs"] < 0.101
    assert "MiB" not in printed


def test_a_card_that_is_a_little_too_small(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(what_fits, "needed", lambda held, step: 8.01 * GB)
    assert what_fits.answers(FitOnMeta(options(config)), (8, 12)) == [
        "fits in 8 GB: no, 8.1 of 8.0 GB",
        "fits in 12 GB: yes, 8.1 of 12.0 GB",
    ]


def test_what_is_said_to_fit_does_and_more_does_not(config: Path) -> None:
    """Within 5 %, measured at the very batch and length."""
    printed = run("estimate", "--config", config, "--cards", "0.7")
    [row] = re.findall(r"│ 0.7 GB +│ +([\d,]+) │ +([\d,]+) │ +([\d,]+)[^│]*│ +([\d,]+)", printed)
    batches, lengths = [[int(number.replace(",", "")) for number in row[start : start + 2]] for start in (0, 2)]
    fit = FitOnMeta(options(config))
    for place, checkpointing in enumerate((True, False)):
        for rows, length in ((batches[place], 64), (2, lengths[place])):
            step = fit.step(checkpointing, rows, length).peak
            needed = fit.held(checkpointing).total + step * (1 + SLACK) + CONTEXT
            if length < 4096:
                assert needed == pytest.approx(0.7 * GB, rel=0.05)
            assert needed < 0.735 * GB


def test_overrides_count(config: Path) -> None:
    base = options(config)
    assert (base.quantization, base.batch_size, base.eval_batch_size, base.pera.rank) == ("nf4-dq", 2, 1, 4)
    changed = options(
        config,
        *("--model.init_args.quantization", "int8", "--data.init_args.batch_size", "8", "--pera.rank", "2"),
        *("--model.init_args.dtype", "float16", "--model.init_args.attn_implementation", "eager"),
    )
    assert (changed.quantization, changed.batch_size, changed.pera.rank) == ("int8", 8, 2)
    assert (changed.dtype, changed.attention) == (torch.float16, "eager")
    packed = options(config, "--data.init_args.packing", "true", "--data.init_args.pack_length", "256")
    assert (packed.length, packed.eval_length) == (256, 64)


def test_blocks_of_text_are_full_and_need_no_mask(config: Path) -> None:
    text = {"class_path": "TextDataModule", "init_args": {"train_files": "a.txt", "block_length": 64, "batch_size": 2}}
    written = {**yaml.safe_load(config.read_text()), "data": text}
    (config.parent / "text.yaml").write_text(yaml.safe_dump(written))
    blocks = options(config.parent / "text.yaml")
    assert (blocks.length, blocks.eval_length, blocks.in_one_row, blocks.eval_batch_size) == (64, 64, False, None)
    assert options(config.parent / "text.yaml", "--data.init_args.val_files", "b.txt").eval_batch_size == 2
    fit, padded = FitOnMeta(blocks), FitOnMeta(options(config))
    assert (fit.is_masked(2), padded.is_masked(2)) == (False, True)
    assert fit.held(True) == padded.held(True)
    assert 0.8 < fit.step(True, 2, 64).peak / padded.step(True, 2, 64).peak < 1


def test_patterns_see_the_names_of_a_fit(config: Path) -> None:
    """`model.model.layers.0` is excluded: seven of fourteen layers are left."""
    fit = FitOnMeta(options(config))
    everywhere = FitOnMeta(options(config, "--pera.exclude_modules", "[]"))
    assert everywhere.held(True).trained == 2 * fit.held(True).trained


def test_quantisation_and_optimizer_make_the_fit_smaller(config: Path) -> None:
    four, eight, dense = [
        FitOnMeta(options(config, "--model.init_args.quantization", name)).held(True)
        for name in ("nf4", "int8", "null")
    ]
    assert four.base < eight.base < dense.base
    # Factors large enough for 8 bits.
    large = ("--pera.rank", "64")
    plain = FitOnMeta(options(config, *large, "--model.init_args.optimizer", "adamw")).held(True)
    assert plain.optimizer == 2 * plain.trained
    assert FitOnMeta(options(config, *large)).held(True).optimizer < 0.6 * plain.optimizer


@pytest.mark.parametrize(
    ("words", "several"),
    [
        ((), False),
        (("--trainer.strategy", "ddp"), True),
        (("--trainer.strategy", "lightning.pytorch.strategies.DDPStrategy"), True),
        (("--trainer.devices", "8"), True),
        (("--trainer.devices", "[0]"), False),
        (("--trainer.devices", "auto"), False),
        (("--trainer.devices", "0,1"), True),
        (("--trainer.devices", "[1, 2]"), True),
        (("--trainer.num_nodes", "2"), True),
    ],
)
def test_several_gpus_have_buckets_for_gradients(config: Path, words: tuple[str, ...], several: bool) -> None:
    assert options(config, *words).reduces_gradients is several


def test_buckets_hold_each_gradient_once_more(config: Path) -> None:
    one, several = (FitOnMeta(options(config, *words)).held(True) for words in ((), ("--trainer.strategy", "ddp")))
    assert several == replace(one, gradients=2 * one.gradients)


def test_checkpointing_attention_and_packing(config: Path) -> None:
    fit = FitOnMeta(options(config))
    assert fit.step(True, 2, 256).kept < 0.5 * fit.step(False, 2, 256).kept
    eager = FitOnMeta(options(config, "--model.init_args.attn_implementation", "eager"))
    flash = FitOnMeta(options(config, "--model.init_args.attn_implementation", "flash_attention_2"))
    kept = [each.step(False, 2, 512).kept for each in (eager, fit, flash)]
    assert kept == sorted(kept, reverse=True)
    # Without padding sdpa needs no mask either.
    assert fit.step(False, 1, 512) == flash.step(False, 1, 512)
    packed, end_to_end = (FitOnMeta(options(config, f"--data.init_args.{name}", "true")) for name in IN_ONE_ROW)
    assert packed.step(False, 2, 256).kept > 1.2 * fit.step(False, 2, 256).kept
    assert end_to_end.step(False, 2, 256) == packed.step(False, 2, 256)


@pytest.mark.parametrize("checkpointing", [True, False])
def test_offloaded_activations_are_not_on_the_gpu(config: Path, checkpointing: bool) -> None:
    plain, moving = (
        FitOnMeta(options(config, "--model.init_args.activation_offloading", word)) for word in ("false", "true")
    )
    # A layer's input takes 2 MiB. There are two, of which the first, a leaf of the graph, stays.
    size = (64, 256)
    before, after = plain.step(checkpointing, *size), moving.step(checkpointing, *size)
    assert moving.offloaded(checkpointing, *size) == before.kept - after.kept
    assert before.kept - after.kept > (0.4 if checkpointing else 0.9) * before.kept
    assert after.peak < before.peak
    assert plain.offloaded(checkpointing, *size) == 0


def test_prints_what_is_offloaded(config: Path) -> None:
    words = ("--config", config, "--data.init_args.batch_size", "8", "--data.init_args.max_length", "2048")
    plain, moving = (
        run("estimate", *words, "--model.init_args.activation_offloading", word) for word in ("false", "true")
    )
    name = "in pinned CPU memory instead"
    assert name not in plain
    assert "CPU memory" not in plain
    assert "nor the CPU memory" in " ".join(moving.split())
    assert gigabytes(moving)[name] >= 2e-3
    assert gigabytes(moving)["a training step needs"] < gigabytes(plain)["a training step needs"]


def test_a_trained_head_has_whole_logits(config: Path) -> None:
    many = ("--data.init_args.batch_size", "4")
    frozen = FitOnMeta(options(config, *many)).step(True, 4, 64)
    trained = FitOnMeta(options(config, *many, "--pera.modules_to_save", "[lm_head]")).step(True, 4, 64)
    # 64 words, in the model's 16 bits and in 32.
    assert trained.kept - frozen.kept >= 4 * 63 * 64 * 4


def test_trained_rows_of_a_tied_head_leave_the_logits_in_chunks(config: Path, tmp_path: Path) -> None:
    tiny_llama(vocab_size=40_000, tie_word_embeddings=True).config.save_pretrained(tmp_path)
    words = ("--model.init_args.pretrained", str(tmp_path))
    plain, rows = (FitOnMeta(options(config, *words, *more)) for more in ((), ("--pera.trainable_tokens", "[5, 9]")))
    assert rows._model(True).chunks_loss
    assert rows.held(True).trained - plain.held(True).trained == 2 * 32 * 4
    assert rows.step(True, 4, 64).peak < 1.01 * plain.step(True, 4, 64).peak


def test_scaled_logits_are_whole(config: Path, tmp_path: Path) -> None:
    from transformers import GraniteConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    GraniteConfig(**sizes, **heads, logits_scaling=2.0, dtype="bfloat16").save_pretrained(tmp_path)
    words = ("--model.init_args.pretrained", str(tmp_path), "--pera.exclude_modules", "[]")
    assert not FitOnMeta(options(config, *words))._model(True).chunks_loss
    assert FitOnMeta(options(config))._model(True).chunks_loss


def test_a_validation_step_against_measured_bytes(config: Path, tmp_path: Path) -> None:
    """Its logits are whole: kept in the model's dtype and twice in float32."""
    rows, length, vocabulary = 3, 96, 4000
    model = tiny_llama(vocab_size=vocabulary).to(torch.bfloat16)
    folder = save_pretrained(tmp_path, model)
    words = ("--model.init_args.pretrained", folder, "--model.init_args.quantization", "null")
    sizes = ("--data.init_args.max_length", str(length), "--data.init_args.eval_batch_size", str(rows))
    ids = torch.ones(rows, length, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    labels = torch.cat([torch.full((rows, 1), -100), ids[:, 1:]], dim=1)
    loader = DataLoader([{"input_ids": ids, "labels": labels, "attention_mask": mask}], batch_size=None)  # type: ignore[arg-type, var-annotated]
    module = PeraCausalLM(folder, dtype="bfloat16")
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[PeraCallback(skip_checks=["untrained"])],
    )
    trainer.validate(module, loader, verbose=False)
    _, peak = measured(lambda: trainer.validate(module, loader, verbose=False))
    assert FitOnMeta(options(config, *words, *sizes)).validation_peak(False) == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize(("stored", "expected"), [("float16", torch.float16), (None, torch.float32)])
def test_auto_is_the_dtype_of_the_weights(config: Path, tmp_path: Path, stored: str | None, expected: Any) -> None:
    settings = {**tiny_llama().config.to_dict(), "dtype": stored}
    (tmp_path / "config.json").write_text(json.dumps({key: value for key, value in settings.items() if value}))
    words = ("--model.init_args.pretrained", str(tmp_path), "--model.init_args.dtype")
    assert options(config, *words, "auto").dtype == expected
    assert options(config, *words, "native").dtype == torch.bfloat16


@pytest.mark.real_model
def test_a_gguf_file(config: Path, smollm2_folder: Path) -> None:
    words = ("--model.init_args.pretrained", str(smollm2_folder), "--pera.exclude_modules", "[]")
    gguf = ("--model.init_args.gguf_file", "SmolLM2-135M-Instruct.Q4_1.gguf")
    fit = FitOnMeta(options(config, *words, *gguf))
    entries = fit.held(True).base
    # 106.2 million weights in 4 bits and 28.3 million of the tied embedding in 16.
    assert entries == pytest.approx(106.2e6 / 2 * 1.03 + 28.3e6 * 2, rel=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no --config"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--trainer.precision", "bf16-mixed"), "bf16-mixed"),
        (("--trainer.strategy", "lightning.pytorch.strategies.ModelParallelStrategy"), "ModelParallelStrategy"),
        (("--trainer.strategy", "fsdp"), "trainer.strategy: fsdp"),
        (("--trainer.strategy", "deepspeed_stage_2"), "deepspeed_stage_2"),
        (("--model.init_args.attn_implementation", "flex_attention"), "flex_attention"),
        (("--model.init_args.pretrained", "nowhere/at/all"), "nowhere/at/all"),
        (("--model.class_path", "lightning.pytorch.demos.boring_classes.BoringModel"), "BoringModel"),
        (("--data.class_path", "lightning.pytorch.demos.boring_classes.BoringDataModule"), "BoringDataModule"),
    ],
)
def test_errors_say_what_to_do(config: Path, words: tuple[str, ...], message: str) -> None:
    if words and words[0] != "--config":
        words = ("--config", str(config), *words)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        estimate(words)
    assert "fix:" in str(caught.value)


def test_a_misspelt_key_is_named(config: Path) -> None:
    assert "rnak" in run("estimate", "--config", config, "--pera.rnak", "4", ok=False)


def test_help() -> None:
    assert "--cards" in run("estimate", "--help")
