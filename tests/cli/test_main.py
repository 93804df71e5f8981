from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import rich
import torch
import yaml

from pera_lightning import PeraCausalLM, load_adapter
from pera_lightning.cli.main import main
from tests.conftest import ROOT
from tests.support.models import tiny_llama
from tests.support.pretrained import save_pretrained

# The runs of this file share one folder.
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning")


def run(*words: object, folder: Path = ROOT, ok: bool = True) -> str:
    """Run a command line in this process, which saves the seconds of importing; returns what it printed."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pera_lightning", *map(str, words)])
        patch.setenv("COLUMNS", "120")
        # Its console is made once in a process, as wide as the screen was for whichever test came first.
        rich.reconfigure(width=120)
        try:
            main()
            code: object = 0
        except SystemExit as stop:
            code = stop.code
            if isinstance(code, str):
                print(code)
    assert (code in (0, None)) == ok, printed.getvalue()
    return printed.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, data and a config, after a fit."""
    folder = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    # Rows of whole blocks for the quantised runs: others are unpacked wrongly on some CPUs (bases/narrow_rows.py).
    save_pretrained(folder / "model", tiny_llama(hidden_size=64, intermediate_size=64))
    rows = [{"prompt": f"say {word}", "completion": word} for word in ("a", "b", "c", "d") * 4]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "runs", "name": "tiny", "version": "fit"},
            },
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": "runs/tiny/fit/checkpoints", "filename": "best", "monitor": "val_loss"},
                }
            ],
        },
        "pera": {"rank": 2},
        "model": {
            "class_path": "PeraCausalLM",
            "init_args": {"pretrained": "model", "learning_rate": 0.01, "max_new_tokens": 4},
        },
        "data": {
            "class_path": "InstructionDataModule",
            "init_args": {"train_files": "rows.jsonl", "val_split": 0.25, "test_files": "rows.jsonl", "batch_size": 4},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run("fit", "--config", "config.yaml", folder=folder)
    return folder


def test_fit_leaves_everything_beside_the_run(project: Path) -> None:
    made = project / "runs" / "tiny" / "fit"
    for name in ("config.yaml", "metrics.csv", "loss_curve.png", "checkpoints/best.ckpt", "adapter/README.md"):
        assert (made / name).is_file(), name
    saved = yaml.safe_load((made / "config.yaml").read_text())
    assert saved["pera"]["rank"] == 2
    state = torch.load(made / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert state
    assert all(key.rsplit(".", 1)[-1].startswith("pera_") for key in state)


def test_the_adapter_loads_into_the_plain_model(project: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(project / "model")
    assert len(load_adapter(model, project / "runs" / "tiny" / "fit" / "adapter").adapted) == 14


def test_a_flag_after_the_checkpoint_counts(project: Path) -> None:
    """Hyperparameters stored in the checkpoint must not override what the user says now."""
    printed = run(
        *("test", "--config", "config.yaml", "--ckpt_path", "runs/tiny/fit/checkpoints/best.ckpt"),
        *("--model.init_args.generate_in_test", "true", "--trainer.logger.init_args.version", "test"),
        folder=project,
    )
    assert "test_exact_match" in printed


def test_compares_with_the_base(project: Path) -> None:
    printed = run(
        *("test", "--config", "config.yaml", "--ckpt_path", "runs/tiny/fit/checkpoints/best.ckpt"),
        *("--compare_base", "true", "--trainer.logger.init_args.version", "compared"),
        folder=project,
    )
    assert "Test without and with the adapter" in printed
    with (project / "runs/tiny/compared/comparison.csv").open() as file:
        rows = {row["metric"]: (float(row["base"]), float(row["adapted"])) for row in csv.DictReader(file)}
    base_loss, adapted_loss = rows["test_loss"]
    assert adapted_loss < base_loss
    words = ("test", "--config", "config.yaml", "--trainer.logger.init_args.version", "fresh")
    run(*words, "--pera.skip_checks", "[untrained]", folder=project)
    with (project / "runs/tiny/fresh/metrics.csv").open() as file:
        # A fresh adapter is the base.
        assert float(next(csv.DictReader(file))["test_loss"]) == pytest.approx(base_loss, rel=1e-5)


CHECKPOINT = ("--ckpt_path", "runs/tiny/fit/checkpoints/best.ckpt")


@pytest.mark.parametrize("subcommand", ["validate", "predict"])
def test_other_subcommands(project: Path, subcommand: str) -> None:
    run(subcommand, "--config", "config.yaml", *CHECKPOINT, "--trainer.logger", "false", folder=project)


@pytest.mark.parametrize("subcommand", ["validate", "predict"])
def test_the_metrics_of_a_fit_stay(project: Path, subcommand: str) -> None:
    fit = project / "runs/tiny/fit"
    before = (fit / "metrics.csv").read_bytes()
    run(subcommand, "--config", "config.yaml", *CHECKPOINT, folder=project)
    assert (fit / "metrics.csv").read_bytes() == before
    assert fit.with_name(subcommand).is_dir()


@pytest.mark.parametrize("name", ["tiny", None])
def test_the_metrics_of_a_numbered_version_stay(project: Path, name: str | None) -> None:
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "numbered", "name": name, "version": 3}}
    (project / "numbered.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    metrics = project / "numbered" / (name or "") / "version_3/metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("mine")
    run("validate", "--config", "config.yaml", "--config", "numbered.yaml", *CHECKPOINT, folder=project)
    assert metrics.read_text() == "mine"


@pytest.mark.filterwarnings("ignore:Experiment logs directory .* exists and is not empty:UserWarning")
@pytest.mark.parametrize(
    "words", [("--pera.target_modules", "[nope]"), ("--data.init_args.train_files", "nope.jsonl"), ("--ckpt_path", "e")]
)
def test_a_refused_fit_leaves_the_files_of_the_one_before(project: Path, words: tuple[str, str]) -> None:
    paths = [project / "runs/tiny/fit" / name for name in ("metrics.csv", "config.yaml")]
    before = [path.read_bytes() for path in paths]
    (project / "e").touch()
    assert "fix:" in run("fit", "--config", "config.yaml", *words, folder=project, ok=False)
    assert [path.read_bytes() for path in paths] == before


def test_predictions_that_are_no_rows_are_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PeraCausalLM, "predict_step", lambda *_: (1, 2))
    words = ("predict", "--config", "config.yaml", "--trainer.logger", "false", "--trainer.default_root_dir", "none")
    assert "tuple from predict_step" in run(*words, *CHECKPOINT, folder=project)
    assert not (project / "none/predictions.jsonl").exists()


def test_predictions_are_a_file(project: Path) -> None:
    words = ("predict", "--config", "config.yaml", "--trainer.logger", "false", "--trainer.default_root_dir", "found")
    printed = run(*words, *CHECKPOINT, folder=project)
    rows = [json.loads(line) for line in (project / "found/predictions.jsonl").read_text().splitlines()]
    assert f"{len(rows)} predictions written to found/predictions.jsonl" in printed
    assert len(rows) > 0
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert all(row.keys() == {"index", "prompt", "expected", "answer"} for row in rows)


def test_fit_resumes(project: Path) -> None:
    run(
        *("fit", "--config", "config.yaml", "--ckpt_path", "runs/tiny/fit/checkpoints/best.ckpt"),
        *("--trainer.max_epochs", "3", "--trainer.logger.init_args.version", "resumed"),
        folder=project,
    )
    # Three batches an epoch: a run from the start would log steps 0 to 8.
    with (project / "runs/tiny/resumed/metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file)]
    assert steps
    assert min(map(int, steps)) >= 3


def test_generate(project: Path) -> None:
    words = ("generate", "--adapter", "runs/tiny/fit/adapter", "--prompt", "say a", "--max_new_tokens", 3)
    adapted, plain = run(*words, folder=project), run(*words, "--without_adapter", "true", folder=project)
    assert adapted != plain
    printed = run("generate", "--adapter", "nowhere", "--prompt", "x", folder=project, ok=False)
    assert "There is no such adapter" in printed


def test_quantised_fit_test_and_generate(project: Path) -> None:
    """The same folder, over a 4-bit base: the command quantises as the adapter says."""
    options = ("--model.init_args.quantization", "nf4-dq", "--trainer.logger.init_args.name", "nf4")
    callbacks = ("--trainer.callbacks.init_args.dirpath", "runs/nf4/fit/checkpoints")
    run("fit", "--config", "config.yaml", *options, *callbacks, folder=project)
    config = json.loads((project / "runs/nf4/fit/adapter/adapter_config.json").read_text())
    assert config["base_quantization"] == ["nf4-dq"]
    words = ("generate", "--adapter", "runs/nf4/fit/adapter", "--prompt", "say a", "--max_new_tokens", 3)
    assert run(*words, folder=project)
    # Another base is refused, whoever loads it.
    checkpoint = next((project / "runs/nf4/fit").rglob("*.ckpt"))
    version = ("--trainer.logger.init_args.name", "nf4", "--trainer.logger.init_args.version", "test")
    printed = run(
        "test", "--config", "config.yaml", "--ckpt_path", checkpoint, *version, *callbacks, folder=project, ok=False
    )
    assert "trained on a base that is nf4-dq; this one is not quantised" in printed


def test_generate_over_a_base_it_cannot_make(project: Path) -> None:
    folder = project / "runs" / "other"
    shutil.copytree(project / "runs/tiny/fit/adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_quantization"] = ["nf4, blocks of 128"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    printed = run("generate", "--adapter", folder, "--prompt", "x", folder=project, ok=False)
    assert "quantised in a way that this command cannot load" in printed


def test_print_config_names_every_option() -> None:
    config = yaml.safe_load(run("fit", "--print_config"))
    assert config["pera"]["target_modules"] == "all-linear"
    assert config["pera"]["coefficient_scale"] == 1.0


def test_help_explains_the_options() -> None:
    text = run("fit", "--help")
    assert "--pera.rank RANK" in text
    assert "Highest degree of the monomials" in text
    assert "generate" in run("--help")
    text = run("fit", "--model.help", "PeraCausalLM")
    assert "Peak learning rate of AdamW" in text
    assert "pera_A" not in text


def test_a_misspelt_key_is_named(project: Path) -> None:
    assert "rnak" in run("fit", "--config", "config.yaml", "--pera.rnak", "4", folder=project, ok=False)
    config = (project / "config.yaml").read_text().replace("learning_rate", "learnin_rate")
    (project / "misspelt.yaml").write_text(config)
    assert "learnin_rate" in run("fit", "--config", "misspelt.yaml", folder=project, ok=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pera.rank", "0"), "rank cannot have this value"),
        (("--pera.target_modules", "[q_porj]"), "q_proj"),
        (("--model.init_args.pretrained", "nowhere/at/all"), "nowhere"),
        (("--data.init_args.train_files", "missing.jsonl"), "missing.jsonl"),
        (("--ckpt_path", "runs/nowhere.ckpt"), "There is no such checkpoint"),
        (("--ckpt_path", ""), "There is no such checkpoint"),
        (("--ckpt_path", "best"), "Which checkpoint is the best one"),
        (("--model.init_args.learning_rate", "0"), "learning_rate cannot have this value"),
    ],
)
def test_user_errors_say_what_to_do(project: Path, words: tuple[str, ...], message: str) -> None:
    printed = run("fit", "--config", "config.yaml", "--trainer.logger", "false", *words, folder=project, ok=False)
    assert message in printed
    assert "fix:" in printed


def test_the_users_own_config_is_not_overwritten(project: Path) -> None:
    before = (project / "config.yaml").read_bytes()
    run("fit", "--config", "config.yaml", "--trainer.logger", "false", "--trainer.fast_dev_run", "1", folder=project)
    assert (project / "config.yaml").read_bytes() == before


def test_as_a_process_user_errors_come_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pera_lightning", "generate", "--adapter", "nowhere", "--prompt", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "fix:" in done.stderr
    assert "Traceback" not in done.stderr
