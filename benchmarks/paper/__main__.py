"""Runs rows of the PERA paper's tables with the paper's settings and seeds, LoRA at the same settings beside PERA.

    python -m benchmarks.paper --list
    python -m benchmarks.paper run --table 2 --model roberta-base --task CoLA --data data
    python -m benchmarks.paper run --table 9 --rank 4 8 -- --trainer.precision bf16-true

Runs that are there are not made again: the same command goes on after an interruption. Further options of `fit` follow
after `--`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.paper import report
from benchmarks.paper.listing import list_tables
from benchmarks.paper.rows import TABLES, Row, Table, table_of
from benchmarks.paper.settings import Setting
from pera_lightning.cli.compare.runs import run_comparison
from pera_lightning.cli.compare.settings import RESULT
from pera_lightning.cli.screen import show, show_table
from pera_lightning.errors import ConfigError, PeraError
from pera_lightning.storage.atomic import replacing

AXES = ("model", "rank", "task", "placement", "terms", "share", "method")


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    given = list(sys.argv[1:] if words is None else words)
    mine, overrides = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    parser = _parser()
    arguments = parser.parse_args(mine)
    try:
        wanted = {axis: labels for axis in AXES if (labels := getattr(arguments, axis))}
        if arguments.list:
            chosen = {name: table_of(name).select(wanted) for name in _named(arguments.table)}
            show_table(list_tables(chosen, arguments.out, arguments.seeds))
        elif arguments.command is None or arguments.table is None:
            parser.error("say run --table N, or --list")
        else:
            _run(table_of(arguments.table), table_of(arguments.table).select(wanted), arguments, overrides)
    except PeraError as error:
        sys.exit(str(error))


def _named(table: str | None) -> list[str]:
    return list(TABLES) if table is None else [table]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=["run"])
    parser.add_argument("--list", action="store_true", help="what can be run, what is there, and how long it takes")
    parser.add_argument("--table", help=f"one of {', '.join(TABLES)}")
    for axis in AXES:
        parser.add_argument(f"--{axis}", nargs="+", help=f"some of the rows, by their {axis}; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, help="other seeds than the paper's")
    parser.add_argument("--pretrained", help="another model in place of the paper's, as a folder or hub id")
    parser.add_argument("--data", type=Path, help="folder with glue/ and commonsense/ (GLUE's default: the hub)")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="folder of all runs (default: runs/paper)")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    return parser


def _run(table: Table, rows: Sequence[Row], arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Make the runs of the rows that are missing, and write the table after each setting."""
    methods: dict[Setting, list[str]] = {}
    for row in rows:
        for setting in row.settings:
            methods.setdefault(setting, []).append(row.method)
    if arguments.pretrained is not None:
        _check_one_model(methods, arguments.pretrained)
        overrides = [*overrides, "--model.init_args.pretrained", arguments.pretrained]
    _keep_overrides(arguments.out, overrides)
    note = f" Not the paper's: {' '.join(overrides)}." if overrides else ""
    for setting, names in methods.items():
        plan = setting.plan(
            names,
            arguments.out,
            seeds=arguments.seeds,
            data=arguments.data,
            overrides=overrides,
            workers=arguments.workers,
        )
        run_comparison(plan)
        found = report.cells(table, arguments.out, arguments.seeds)
        files = report.write(table, found, note, arguments.out)
    show_table(report.as_table(table, found, note))
    show(*files)


def _check_one_model(settings: dict[Setting, list[str]], pretrained: str) -> None:
    models = sorted({setting.model for setting in settings})
    if len(models) > 1:
        raise ConfigError(
            "Rows of several models would all get one.",
            got=f"--pretrained {pretrained} for {', '.join(models)}",
            expected="the rows of one model",
            fix=f"--model {models[0]}",
        )


def _keep_overrides(out: Path, overrides: Sequence[str]) -> None:
    """Write what is not the paper's into the folder of the runs, or refuse other runs than are there."""
    path = out / "overrides.json"
    # What failed before its first run leaves nothing to mix with.
    if path.is_file() and any(out.rglob(RESULT)):
        there = json.loads(path.read_text(encoding="utf-8"))
        if there != list(overrides):
            raise ConfigError(
                f"{out} holds runs with other options.",
                got=" ".join(overrides) or "none",
                expected=" ".join(there) or "none",
                fix="name another folder with --out",
            )
    else:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(list(overrides)), encoding="utf-8")


if __name__ == "__main__":
    main()
