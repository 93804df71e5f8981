"""Tasks of lm-evaluation-harness by their names, read before a model is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from pera_lightning.data.commonsense import CommonsenseTask
from pera_lightning.did_you_mean import did_you_mean, near, near_paths
from pera_lightning.errors import ConfigError, DataError, one_line
from pera_lightning.evaluation.harness import FEATURE
from pera_lightning.requirements import is_installed, require
from pera_lightning.storage.remote import local_path

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

BUILT_IN: tuple[str, ...] = get_args(CommonsenseTask)


class HarnessTasks:
    """Tasks with their data, as `evaluate_harness` takes them.

    Args:
        names: Names of tasks, groups or tags of lm-eval; `*` stands for anything.
        include_path: Folder with YAML files of further tasks. They may call Python code that lies beside them.

    Attributes:
        manager: What knows all tasks.
        specs: The tasks and groups that were asked for.
        leaves: The names of all single tasks in them.

    Raises:
        ConfigError: lm-eval is missing or too old, there is no such task, or it runs code that the model writes, or
            asks about pictures.
        DataError: The data of a task cannot be loaded.
    """

    def __init__(self, names: Sequence[str], include_path: str | None = None) -> None:
        _require_harness(names)
        from lm_eval.tasks import TaskManager

        self.manager = TaskManager(include_path=include_path)
        self.specs: list[Any] = []
        self.leaves: list[str] = []
        for name in _matched(self.manager, names):
            loaded = _load(self.manager, name)
            group = loaded["groups"].get(name)
            self.specs += loaded["tasks"].values() if group is None else [group]
            self.leaves += loaded["tasks"]
            for leaf, task in loaded["tasks"].items():
                _refuse_unfit(leaf, task)


def _require_harness(names: Sequence[str]) -> None:
    if not is_installed("lm-eval"):
        own = [name for name in names if name in BUILT_IN]
        others = [name for name in names if name not in BUILT_IN]
        meant = [
            found
            for name in others
            for found in (*near(name, BUILT_IN, most=1), *near_paths(local_path(name, "--tasks")))
        ]
        hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
        raise ConfigError(
            f"{FEATURE} needs lm-eval, which is not installed.",
            got=f"the tasks {', '.join(names)}",
            expected="tasks of lm-evaluation-harness, or the eight of LLM-Adapters with their test sets: --data FOLDER "
            f"with <task>/test.json for {', '.join(own or BUILT_IN)}",
            fix=f'pip install "lm_eval[hf]"{hint}',
        )
    require(FEATURE, "lm-eval", extra="eval")


def _matched(manager: TaskManager, names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        matches = manager.match_tasks([name])
        if not matches:
            raise ConfigError(
                "There is no such task, and no folder of this name.",
                got=repr(name),
                expected="a task of lm-evaluation-harness, or a folder with <task>/test.json for the eight tasks",
                fix=did_you_mean(
                    [*near(name, manager.all_tasks), *near_paths(local_path(name, "--tasks"))],
                    "`lm-eval ls tasks` lists all tasks",
                ),
            )
        found += (match for match in matches if match not in found)
    return found


def _load(manager: TaskManager, name: str) -> Any:
    try:
        return manager.load([name])
    except Exception as error:  # whatever `datasets`, the hub and the Python code of tasks raise
        raise DataError(
            f"The task {name!r} cannot be loaded.",
            got=one_line(error),
            expected="a task whose data set is local, was loaded before, or is on the hub and can be reached",
            fix="check the network, and what else the task needs",
        ) from error


def _refuse_unfit(name: str, task: Any) -> None:
    unfit = "runs code that the model writes" if getattr(task, "UNSAFE_CODE", False) else None
    if getattr(task, "MULTIMODAL", False):
        unfit = "asks about more than text"
    if unfit is not None:
        raise ConfigError(
            "The task cannot be run here.",
            got=f"{name!r}, which {unfit}",
            expected="a task about text",
            fix="leave it out, or call lm_eval.simple_evaluate with lm_eval_model(model, tokenizer) yourself",
        )
