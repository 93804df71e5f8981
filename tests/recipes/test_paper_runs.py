"""Rows of the paper's tables run from end to end on tiny random models, and end with the comparison."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.paper.__main__ import _keep_overrides, main
from benchmarks.paper.generated_answers import GeneratedAnswers
from benchmarks.paper.report import Cell, cells
from benchmarks.paper.rows import TABLES, Column
from benchmarks.paper.settings import LAYERS
from benchmarks.paper.tables import RANKS, TABLE_2, TABLE_2_QUOTED, TABLE_6
from pera_lightning.analysis.method_comparison import ComparedRun
from pera_lightning.cli.estimate.parsed_fit import parse_fit
from pera_lightning.evaluation import Evaluation, Prediction
from tests.recipes.test_commonsense_recipes import tiny
from tests.support.classifiers import write_task
from tests.support.commonsense import write_commonsense
from tests.support.pretrained import save_pretrained
from tests.support.transformers_models import SETTINGS

ON_A_CPU = ("--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1")
SHORT_ANSWERS = ("--trainer.callbacks.max_new_tokens", "3", "--trainer.callbacks.limit", "1")
SHORT = {
    "roberta": ON_A_CPU,
    "llama": (
        *(*ON_A_CPU, "--trainer.val_check_interval", "1", "--trainer.limit_val_batches", "1"),
        *("--trainer.limit_test_batches", "1", *SHORT_ANSWERS),
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of both kinds, and data in the folders in which they are looked for."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    folder = tmp_path_factory.mktemp("paper")
    torch.manual_seed(0)
    save_pretrained(
        folder / "roberta", RobertaForMaskedLM(RobertaConfig(**SETTINGS["RobertaForSequenceClassification"]))
    )
    save_pretrained(folder / "llama", tiny("llama_3_8b"))
    (folder / "data" / "glue").mkdir(parents=True)
    write_task(folder / "data" / "glue" / "CoLA", "cola", rows=24)
    commonsense = write_commonsense(folder / "data" / "commonsense", rows=1, train_rows=150)
    (commonsense / "train.json").rename(commonsense / "commonsense_170k.json")
    return folder


@pytest.fixture(autouse=True)
def _without_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each method before its first run, which take as long as these runs (`tests/cli/compare`)."""
    monkeypatch.setattr("pera_lightning.cli.compare.trial.minutes_of", lambda cell: math.nan)


def paper(project: Path, kind: str, *words: object, out: str = "out") -> None:
    """Run rows; the runs of all calls with one `out` are in one folder, where the second finds those of the first."""
    options = ("--pretrained", project / kind, "--data", project / "data", "--out", project / f"{out}_{kind}")
    main([str(word) for word in ("run", *words, *options, "--", *SHORT[kind])])


def rows_of(project: Path, kind: str, name: str) -> list[dict[str, str]]:
    with (project / f"out_{kind}" / f"{name}.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_cell_of_glue(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper(project, "roberta", "--table", 2, "--model", "roberta-base", "--task", "cola", "--seeds", 42, 43)
    printed = capsys.readouterr().out
    assert "Table 2: GLUE, RoBERTa" in printed
    rows = rows_of(project, "roberta", "table_2")
    assert {(row["model"], row["task"], row["trained"], row["seed"]) for row in rows} == {
        ("roberta-base", "CoLA", trained, seed) for trained in ("ours", "lora") for seed in ("42", "43")
    }
    pera, quoted = (table["roberta-base"].tasks[2] for table in (TABLE_2, TABLE_2_QUOTED))
    markdown = (project / "out_roberta" / "table_2.md").read_text(encoding="utf-8")
    [line] = [line for line in markdown.splitlines() if line.startswith("| roberta-base | CoLA |")]
    spread = r"\S+ ± \S+"
    numbers = rf"{pera:.2f} \| {spread} \| {spread} \| \S+ \[\S+, \S+\] \| {quoted:.2f}"
    assert re.fullmatch(rf"\| roberta-base \| CoLA \| score \| {numbers} \|", line)
    runs = sorted((project / "out_roberta" / "roberta-base" / "cola" / "runs").glob("*/*/*/run.json"))
    found = {(run["method"], run["seed"]): run for run in map(json.loads, (path.read_text() for path in runs))}
    assert {run["learning_rate"] for run in found.values()} == {1e-3}
    for row in rows:
        run = found[{"ours": "full"}.get(row["trained"], "lora"), int(row["seed"])]
        assert float(row["value"]) == pytest.approx(100 * run["metrics"]["test_matthews"])


LLAMA_ROWS = {
    "1": {"model": "llama-3-8b", "rank": "16"},
    "3": {"placement": "QK"},
    "4": {"terms": "square"},
    "9": {"rank": "16"},
    "10": {"placement": "qk"},
    "11": {"share": "0.1"},
    "12": {"terms": "square"},
    "5": {"method": "dora"},
    "figure_6": {"method": "dora"},
}


def test_every_table_has_its_row_here() -> None:
    assert {"2", *LLAMA_ROWS} == set(TABLES)


@pytest.mark.parametrize("table", LLAMA_ROWS)
def test_a_row_of_each_table_of_language_models(table: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = LLAMA_ROWS[table]
    paper(
        project, "llama", "--table", table, *(word for axis, label in chosen.items() for word in (f"--{axis}", label))
    )
    name = table if table.startswith("figure") else f"table_{table}"
    assert f"{name}.md" in capsys.readouterr().out
    [row] = TABLES[table].select({axis: [label] for axis, label in chosen.items()})
    # Rows of other tests have the same settings in some tables.
    labels = row.labels.items()
    found = [line for line in rows_of(project, "llama", name) if labels <= line.items()]
    assert {(line["column"], line["trained"]) for line in found} == {
        # A CPU has no memory of its own to measure answers in.
        (column.name, trained)
        for column in row.columns
        for trained in ("ours", "lora")
        if column.name != "BoolQ GB"
    }
    for line in found:
        assert float(line["paper"]) == row.paper[line["column"]]
        assert 0 <= float(line["value"]) <= 100
    assert all(column.is_cost for column in row.columns) == (table == "5")


SETTINGS_OF = {
    "llama-3-8b/rank_16": {},
    "llama-3-8b/rank_16_QK": {"target_modules": ["q_proj", "k_proj"]},
    "llama-3-8b/rank_16_share_0.1": {"fraction": 0.1},
    "llama-3-8b/rank_4": {"rank": 4},
    "llama-2-7b/rank_4": {"rank": 4},
}


@pytest.mark.parametrize("name", SETTINGS_OF)
def test_rows_change_the_recipe_in_what_they_are_named_by(name: str, tmp_path: Path) -> None:
    [setting] = {
        setting for table in TABLES.values() for row in table.rows for setting in row.settings if setting.name == name
    }
    plan = setting.plan(["full", "square"], tmp_path, seeds=None, data=None, overrides=(), workers=1)
    assert (plan.learning_rates, plan.seeds) == ((TABLE_6.learning_rate,), (TABLE_6.seed,))
    expected = {"rank": 16, "target_modules": list(LAYERS.values()), "fraction": 1.0} | SETTINGS_OF[name]
    for method, form in {"lora": (1, "full"), "full": (2, "full"), "square": (2, "square")}.items():
        fit = parse_fit("compare", [*plan.words, *plan.methods[method].split()])
        pera, data = fit.pera, fit.data.init_args
        assert {"rank": pera.rank, "target_modules": pera.target_modules, "fraction": data.fraction} == expected
        assert (pera.order, pera.terms, pera.alpha, pera.coefficient_scale) == (*form, None, 1.0)
        [_, _, answers] = fit.trainer.callbacks
        assert (answers.init_args.num_beams, answers.init_args.max_new_tokens) == (TABLE_6.beams, 16)
        assert (answers.init_args.tasks, data.test_folder) == ("data/commonsense", "data/commonsense")


def test_runs_that_are_there_are_not_made_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--table", 2, "--model", "roberta-base", "--task", "CoLA", "--seeds", 42)
    paper(project, "roberta", *words)
    runs = sorted((project / "out_roberta").rglob("run.json"))
    before = {path: path.stat().st_mtime_ns for path in runs}
    markdown = project / "out_roberta" / "table_2.md"
    markdown.unlink()
    (runs[0]).unlink()
    paper(project, "roberta", *words, "--seeds", 42, 43)
    assert markdown.is_file()
    assert sorted((project / "out_roberta").rglob("run.json")) == runs
    assert {path for path in runs if path.stat().st_mtime_ns != before[path]} == {runs[0]}
    capsys.readouterr()
    main(["--list", "--table", "2", "--task", "CoLA", "--out", str(project / "out_roberta"), "--seeds", "42", "43"])
    listed = " ".join(capsys.readouterr().out.split())
    assert "--model roberta-base --task CoLA 4 of 4 -" in listed
    assert "--model roberta-large --task CoLA 0 of 4 unknown" in listed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--table", "13"), r"no such table.*\n.*13.*\n.*1, 2, 3"),
        (("--table", "8"), "tables 6 to 8 are settings, in configs/paper"),
        (("--table", "2", "--task", "colla"), r"no row with that task.*\n.*colla(.*\n)+.*did you mean CoLA\?"),
        (("--table", "1", "--model", "lama-3-8b"), r"did you mean llama-3-8b"),
        (("--table", "9", "--task", "BoolQ"), r"do not differ in that.*\n.*--task.*\n.*--rank"),
        (("--table", "1", "--model", "qwen2.5-7b", "--rank", "32"), r"no such row.*\n.*qwen2.5-7b, rank 32"),
        (("--table", "1", "--pretrained", "x"), r"several models.*\n.*llama-2-7b, llama-3-8b, qwen2.5-7b"),
    ],
)
def test_what_is_in_no_table_is_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        main(["run", *words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_runs_with_other_options_are_not_mixed(tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text('["--trainer.max_steps", "2"]')
    (tmp_path / "row").mkdir()
    (tmp_path / "row/run.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"holds runs with other options.*\n.*none.*\n.*--trainer.max_steps 2"):
        main(["run", "--table", "2", "--out", str(tmp_path)])


def test_a_start_that_failed_leaves_its_folder_free(tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text('["--trainer.max_steps", "2"]')
    _keep_overrides(tmp_path, ["--trainer.accelerator", "cpu"])
    assert json.loads((tmp_path / "overrides.json").read_text()) == ["--trainer.accelerator", "cpu"]


@pytest.mark.parametrize("words", [[], ["run"], ["--table", "2"]])
def test_something_has_to_be_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "say run --table N, or --list" in capsys.readouterr().err


def test_the_time_of_missing_runs_is_the_papers_where_it_measured_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--list", "--out", str(tmp_path)])
    listed = " ".join(capsys.readouterr().out.split())
    # 13 h 30 and LoRA's 12 h 27, of table 5.
    assert "--method pera 0 of 2 25 h 57" in listed
    for rank in RANKS:
        assert f"--rank {rank} 0 of 2 unknown" in listed


def test_answers_are_measured_task_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_commonsense(tmp_path / "data", rows=4)
    shutil.rmtree(data / "boolq")
    right = {"piqa": 3, "social_i_qa": 1}
    asked = []

    def evaluate(model: str, tokenizer: str, folder: str, **options: object) -> Evaluation:
        [path] = Path(folder).glob("*/test.json")
        asked.append((model, tokenizer, json.loads(path.read_text())[0]["answer"], options))
        task = path.parent.name
        rows = [Prediction("?", "yes", "yes" if number < right.get(task, 4) else None) for number in range(4)]
        return Evaluation("generate", {task: rows}, 1.0)

    monkeypatch.setattr("benchmarks.paper.generated_answers.evaluate_commonsense", evaluate)
    logged: dict[str, float] = {}
    module = SimpleNamespace(
        built_model=lambda: "model", tokenizer="tokenizer", device=torch.device("cpu"), log=logged.__setitem__
    )
    trainer = SimpleNamespace(datamodule=SimpleNamespace(template="alpaca"), limit_test_batches=1.0)
    GeneratedAnswers(str(data), limit=5).on_test_epoch_end(trainer, module)  # type: ignore[arg-type]
    options = {"template": "alpaca", "limit": 5, "num_beams": 4, "max_new_tokens": 16, "batch_size": 16}
    assert [(*names, given) for *names, _, given in asked] == [("model", "tokenizer", options)] * 7
    assert (logged["test_piqa"], logged["test_social_i_qa"], logged["test_winogrande"]) == (0.75, 0.25, 1.0)
    assert logged["test_mean_accuracy"] == pytest.approx((0.75 + 0.25 + 5) / 7)
    assert logged["test_piqa_seconds"] >= 0
    assert "test_boolq" not in logged
    # A trial of a comparison has a single batch.
    trainer.limit_test_batches = 1
    GeneratedAnswers(str(data), batch_size=3).on_test_epoch_end(trainer, module)  # type: ignore[arg-type]
    assert asked[-1][-1]["limit"] == 3


def test_cells_are_summarised_over_seeds() -> None:
    column = Column("score", "report")
    cell = Cell({}, column, 64.8, 59.7, {42: 61.0, 43: 64.0, 44: 65.0}, {42: 60.0, 43: 61.0, 45: 99.0}, 0)
    # Of the differences 1 and 3: 12.7062 is Student's t for one degree of freedom.
    low, high = 2 - 12.7062, 2 + 12.7062
    texts = ("64.80", "63.33\n± 2.08", "73.33\n± 22.23", f"+2.00\n[{low:+.2f}, {high:+.2f}]", "59.70")
    assert cell.texts() == texts
    cost = Cell({}, Column("minutes", "minutes", 1.0, 0, is_cost=True), 810.0, None, {36: 120.0}, {36: 100.0}, 0)
    assert cost.texts() == ("810", "120", "100", "1.200 x", "-")
    alone = Cell({}, column, None, None, {42: 61.0}, {}, 0)
    assert alone.texts() == ("-", "61.00", "-", "-", "-")


def test_means_over_tasks_need_all_of_them(tmp_path: Path) -> None:
    """A mean is one over settings of a seed, and a run that diverged has none."""
    [row] = TABLES["2"].select({"model": ["roberta-large"], "task": ["mean"]})
    assert len(row.settings) == 6
    for place, setting in enumerate(row.settings):
        for seed in (42, 43, 44):
            report = None if (place, seed) == (5, 44) else 0.1 * place
            if (place, seed) != (3, 43):
                keep_run(tmp_path, setting.name, setting.learning_rate, seed, report)
    [mean] = [cell for cell in cells(TABLES["2"], tmp_path) if cell.labels["task"] == "mean"]
    assert mean.ours == {42: pytest.approx(25.0)}
    assert mean.diverged == 1


def keep_run(out: Path, name: str, rate: float, seed: int, report: float | None) -> None:
    run = ComparedRun("full", rate, seed, report, report, {}, 0.5, 0.0, 10, 4, 1.0)
    folder = out / name / "runs" / "full" / f"lr_{rate:g}" / f"seed_{seed}"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(run.to_dict()))
