from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForCausalLM

from pera_lightning import PeraConfig, inject_adapter, save_adapter
from tests.cli.test_main import run
from tests.support.models import randomise_adapter
from tests.support.pretrained import save_pretrained


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and two adapters for it."""
    folder = tmp_path_factory.mktemp("inspect")
    torch.manual_seed(0)
    save_pretrained(folder / "model")
    for name, order in (("adapter", 2), ("lora", 1)):
        model = AutoModelForCausalLM.from_pretrained(folder / "model")
        inject_adapter(model, PeraConfig(4, order, modules_to_save=["lm_head"]))
        randomise_adapter(model)
        save_adapter(model, folder / name, base_model="model")
    return folder


def pictures(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.png"))


def test_table_and_pictures(project: Path) -> None:
    printed = run("inspect", "--adapter", "adapter", "--prompts", '["hello", "2 + 2"]', folder=project)
    assert "all 14 layers" in printed
    assert "in no row: 1 modules or biases saved whole (lm_head)" in printed
    out = project / "adapter-inspect"
    assert pictures(out) == ["coefficients", "interactions", "parts", "spectrum"]
    for path in out.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 250
    assert len(list(csv.DictReader((out / "layers.csv").read_text().splitlines()))) == 14
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


def test_without_the_base_model(project: Path) -> None:
    printed = run("inspect", "--adapter", "adapter", "--out", "new/x", "--interactions", "false", folder=project)
    assert "x/parts.png" in printed
    assert pictures(project / "new/x") == ["coefficients", "parts", "spectrum"]
    model = nn.Sequential(nn.Linear(6, 5))
    inject_adapter(model, PeraConfig(2))
    save_adapter(model, project / "unnamed")
    printed = run("inspect", "--adapter", "unnamed", folder=project)
    assert "No interactions.png, which needs the base model (--base names one): " in printed
    assert "unnamed-inspect/spectrum.png" in printed


def test_plain_lora(project: Path) -> None:
    printed = run("inspect", "--adapter", "lora", "--out", "y", folder=project)
    assert "no products of rank components" in printed
    assert pictures(project / "y") == ["parts", "spectrum"]


def test_interactions_of_a_hidden_state(project: Path) -> None:
    words = ("--hidden_interactions", "true", "--prompts", '["hello", "2 + 2"]', "--out", "hidden")
    printed = run("inspect", "--adapter", "adapter", *words, "--against", "lora", folder=project)
    out = project / "hidden"
    assert "hidden_interactions.png" in printed
    assert "hidden_interactions.csv" in printed
    assert pictures(out) == ["coefficients", "hidden_interactions", "interactions", "parts", "spectrum"]
    with Image.open(out / "hidden_interactions.png") as image:
        assert min(image.size) > 250
    rows = list(csv.DictReader((out / "hidden_interactions.csv").read_text().splitlines()))
    names = ["base", "LoRA (h = 0)", "PERA", "LoRA (--against)"]
    assert list(rows[0]) == ["i", "j", *names]
    assert len(rows) == 32 * 32
    table = {
        name: next(line for line in printed.splitlines() if line.startswith(f" {name} ")).split() for name in names
    }
    values = {name: [float(row[name]) for row in rows] for name in names}
    for name, cells in table.items():
        assert f"{statistics.fmean(values[name]):.4g}" in cells
        assert f"{max(values[name]):.4g}" in cells
    assert table[names[-1]][-1] == "-"
    about = json.loads((out / "inspection.json").read_text())["hidden_interactions"]
    assert about["layer"] == "model.layers.0"
    assert [state["token"] for state in about["states"]] == [4, 4]

    printed = run(
        "inspect", "--adapter", "lora", *words, "--layer", "model.layers.1", "--interactions", "false", folder=project
    )
    assert "h enters model.layers.1" in printed
    [heading, *_] = (out / "hidden_interactions.csv").read_text().splitlines()
    assert heading == "i,j,base,LoRA"
    # Those of the former inspection, which this one was not asked for.
    run("inspect", "--adapter", "lora", "--interactions", "false", "--out", "hidden", folder=project)
    assert sorted(path.name for path in out.iterdir()) == ["inspection.json", "layers.csv", "parts.png", "spectrum.png"]


def test_pictures_of_another_adapter_are_gone(project: Path) -> None:
    words = ("--interactions", "false", "--out", "again")
    run("inspect", "--adapter", "adapter", *words, folder=project)
    (project / "again/mine.png").touch()
    run("inspect", "--adapter", "lora", *words, folder=project)
    assert pictures(project / "again") == ["mine", "parts", "spectrum"]
    # Not among those of that inspection.
    (project / "again/coefficients.png").write_text("mine")
    run("inspect", "--adapter", "lora", *words, folder=project, ok=False)
    assert (project / "again/coefficients.png").read_text() == "mine"


def test_pictures_of_others_stay(project: Path) -> None:
    words = ("inspect", "--adapter", "adapter", "--interactions", "false", "--out", ".")
    theirs = project / "theirs"
    theirs.mkdir()
    for name in ("parts.png", "interactions.png", "layers.csv"):
        (theirs / name).write_text("mine")
    (theirs / "adapter").symlink_to(project / "adapter")
    assert "The folder is not ours" in run(*words, folder=theirs, ok=False)
    assert {path.read_text() for path in theirs.iterdir() if path.is_file()} == {"mine"}
    run(*words, "--overwrite", "true", folder=theirs)
    # What no picture of this adapter replaces.
    assert (theirs / "interactions.png").read_text() == "mine"
    assert pictures(theirs) == ["coefficients", "interactions", "parts", "spectrum"]
    with Image.open(theirs / "parts.png") as image:
        assert image.format == "PNG"


def test_a_folder_named_from_within_has_its_pictures_beside_it(project: Path) -> None:
    (project / "adapter/below").mkdir()
    run("inspect", "--adapter", "..", "--interactions", "false", folder=project / "adapter/below")
    assert (project / "adapter-inspect/layers.csv").is_file()
    assert [path.name for path in (project / "adapter/below").iterdir()] == []


def test_what_a_user_gets_wrong(project: Path) -> None:
    (project / "file").touch()
    (project / "empty").mkdir()
    for words, message in (
        (("--adapter", "nowhere"), "There is no such adapter"),
        (("--adapter", "adapter", "--out", "file"), "which is a file"),
        (("--adapter", "adapter", "--out", "file/below"), "which is a file"),
        (("--adapter", "adapter", "--prompts", '[""]'), "without a token"),
        (("--adapter", "adapter", "--base", "empty"), "empty"),
        (("--adapter", "adapter", "--layer", "model.layers.0"), "--layer would do nothing"),
        (("--adapter", "adapter", "--against", "lora"), "--against would do nothing"),
        (("--adapter", "adapter", "--hidden_interactions", "true", "--layer", "model.layer.1"), "mean model.layers.1"),
        (("--adapter", "adapter", "--hidden_interactions", "true", "--against", "nowhere"), "There is no such adapter"),
    ):
        assert message in run("inspect", *words, folder=project, ok=False)


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        (("--prompts", "hello", "2 + 2"), ["hello", "2 + 2"]),
        (("--prompts", "hello"), ["hello"]),
        (("--prompts=2",), ["2"]),
        (("--prompts", '["hello", "[x]"]'), ["hello", "[x]"]),
    ],
)
def test_prompts_are_words_or_a_list(
    project: Path, words: tuple[str, ...], prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []
    monkeypatch.setattr("pera_lightning.cli.inspect._strengths", lambda *args: given.append(args[2]))
    run("inspect", "--adapter", "adapter", *words, "--out", "prompted", folder=project)
    assert given == [prompts]
