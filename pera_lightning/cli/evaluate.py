"""`evaluate`: results on the commonsense tasks and on those of lm-eval, with an adapter or without one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal

from pera_lightning.cli.options.tool_places import task_names
from pera_lightning.cli.screen import show_table
from pera_lightning.errors import ConfigError
from pera_lightning.storage.remote import local_path, place

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pera_lightning.evaluation import Evaluation
    from pera_lightning.evaluation.harness_run import HarnessEvaluation


def evaluate(
    tasks: str,
    adapter: str | None = None,
    base: str | None = None,
    gguf_file: str | None = None,
    data: str | None = None,
    include_path: str | None = None,
    how: Literal["generate", "rank"] = "generate",
    template: Literal["alpaca", "chat"] | None = None,
    system_prompt: str | None = None,
    limit: int | None = None,
    batch_size: int = 16,
    num_beams: int = 1,
    max_new_tokens: int = 32,
    merged: bool = False,
    dtype: Literal["auto", "native", "float32", "bfloat16", "float16"] = "auto",
    out: str | None = None,
    overwrite: bool = False,
) -> None:
    """Put tasks to an adapted, plain or merged model; print accuracies.

    A folder of test sets, or names with --data: the eight commonsense tasks of LLM-Adapters, as the papers ask them.
    Names alone: the tasks of EleutherAI's lm-evaluation-harness, where that is installed (pip install "lm_eval[hf]"),
    with its prompts, examples and metrics. Both know piqa, for example, and measure other numbers.

    Args:
        tasks: Folder with `<task>/test.json` for one or more of boolq, piqa, social_i_qa, hellaswag, winogrande,
            ARC-Easy, ARC-Challenge and openbookqa; or names, such as piqa,gsm8k (`*` stands for anything).
        adapter: Folder of the adapter, as the fit wrote it; without one, `base` is evaluated as it is.
        base: Hub id or folder of the base (or merged) model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        data: Folder of the test sets, where `tasks` names some of the eight.
        include_path: For lm-eval: folder with YAML files of your own tasks. Their files may run code: take only those
            that you trust.
        how: "generate" an answer and take the first option it names (the papers' way), or "rank" the options by their
            log-likelihood.
        template: How a question becomes a prompt; by default as in the adapter's training, without one "alpaca". Tasks
            of lm-eval have prompts of their own, which "chat" puts into the chat template.
        system_prompt: Another system message than that of the training; "" is the chat template's own.
        limit: Most questions of a task, from the beginning.
        batch_size: Questions generated for, or options ranked, at a time.
        num_beams: Beams of generation (the papers: 4); 1 is greedy decoding.
        max_new_tokens: Longest generated answer, in tokens.
        merged: Merge the adapter into the base first, which makes an answer cost what the base's costs.
        dtype: Dtype of the base's weights; that of the training (`model.init_args.dtype`) is the best choice.
        out: Folder for results.json and one file of predictions (JSONL) for each task: new, empty, or with those of an
            earlier evaluation, which are replaced.
        overwrite: Write into a folder with other files too, and replace those of the same names. The folder then
            holds an evaluation of ours: later calls replace that without this option.
    """
    from pera_lightning.checkpoint.manifest.manifest import read_manifest
    from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE

    names = task_names(tasks)
    trained = {} if adapter is None else read_manifest(place(adapter) / CONFIG_FILE).chat
    options: dict[str, Any] = {"limit": limit, "batch_size": batch_size}
    if names and data is None:
        _refuse_idle(how=how, num_beams=num_beams, max_new_tokens=max_new_tokens, template=template)
        run = _of_harness(names, include_path, trained, template, system_prompt, options)
    else:
        _refuse_places(tasks, names, data, include_path)
        options |= {"how": how, "num_beams": num_beams, "max_new_tokens": max_new_tokens}
        run = _of_llm_adapters(tasks, names, data, trained, template, system_prompt, options)
    if out is not None:
        _check_out(out, run.tasks, overwrite=overwrite)
    model, tokenizer = _load(adapter, base, gguf_file, merged, dtype)
    evaluation = run.evaluate(_placed(model), tokenizer)
    show_table(evaluation.table())
    if out is not None:
        about = {"adapter": adapter, "base": base, **run.about, "limit": limit, "merged": merged}
        evaluation.write(out, about, overwrite=overwrite)


@dataclass(frozen=True)
class _Run:
    """An evaluation that waits for its model.

    Args:
        tasks: Names of the tasks.
        evaluate: Puts them to a model with a tokenizer.
        about: Further entries of `results.json`.
    """

    tasks: Sequence[str]
    evaluate: Callable[[Any, PreTrainedTokenizerBase], Evaluation | HarnessEvaluation]
    about: dict[str, Any]


def _of_llm_adapters(
    tasks: str,
    names: list[str],
    data: str | None,
    trained: Mapping[str, Any],
    template: str | None,
    system_prompt: str | None,
    options: dict[str, Any],
) -> _Run:
    from pera_lightning.data.chat.as_trained import system_prompt_as_trained
    from pera_lightning.evaluation import evaluate_commonsense
    from pera_lightning.evaluation.questions import check_names

    check_names(names)
    questions = local_path(tasks, "--tasks") if data is None else local_path(data, "--data")
    asked = names or [path.parent.name for path in questions.glob("*/test.json")]
    # Trained on other conversations it knows its chat template.
    about: dict[str, Any] = {
        "template": template or trained.get("template", "chat" if trained else "alpaca"),
        "system_prompt": system_prompt_as_trained(trained, system_prompt),
    }
    options |= {"tasks": questions, "names": names or None, "progress": True}
    beams = {"num_beams": options["num_beams"]}
    return _Run(asked, partial(evaluate_commonsense, **options, **about), about | beams)


def _of_harness(
    names: list[str],
    include_path: str | None,
    trained: Mapping[str, Any],
    template: str | None,
    system_prompt: str | None,
    options: dict[str, Any],
) -> _Run:
    from pera_lightning.data.chat.as_trained import system_prompt_as_trained
    from pera_lightning.evaluation.harness_run import evaluate_harness
    from pera_lightning.evaluation.harness_tasks import HarnessTasks

    found = HarnessTasks(names, None if include_path is None else str(local_path(include_path, "--include_path")))
    uses_template = template == "chat"
    about: dict[str, Any] = {
        "use_chat_template": uses_template,
        "system_prompt": system_prompt_as_trained(trained if uses_template else {}, system_prompt),
    }
    return _Run(found.leaves, partial(evaluate_harness, tasks=found, **options, **about), about)


def _refuse_idle(**given: Any) -> None:
    """Refuse options of the commonsense tasks beside tasks that bring their own."""
    own = {name: parameter.default for name, parameter in signature(evaluate).parameters.items()}
    for name, value in given.items():
        if value != own[name] and value != "chat":
            raise ConfigError(
                f"--{name} would do nothing here.",
                got=f"--{name} {value} with tasks of lm-evaluation-harness, which say themselves how they are asked",
                expected=f"--{name} with the test sets of LLM-Adapters (a folder, or names and --data)",
                fix=f"leave --{name} out",
            )


def _refuse_places(tasks: str, names: list[str], data: str | None, include_path: str | None) -> None:
    """Refuse folders that would not be read."""
    if include_path is not None:
        option, value, where = "--include_path", include_path, "names of lm-evaluation-harness's tasks, without --data"
    elif data is not None and not names:
        option, value, where = "--data", data, "names of tasks, such as --tasks piqa,boolq"
    else:
        return
    raise ConfigError(
        f"{option} would do nothing here.",
        got=f"{option} {value} with --tasks {tasks}"
        + ("" if data is None or option == "--data" else f" --data {data}"),
        expected=f"{option} with {where}",
        fix=f"leave {option} out",
    )


def _check_out(out: str, tasks: Sequence[str], *, overwrite: bool) -> None:
    from pera_lightning.evaluation.results import RESULTS, rows_file
    from pera_lightning.storage.folder_kind import check_ours
    from pera_lightning.storage.out_folder import check_out_folder

    folder, files = local_path(out, "--out"), [rows_file(task) for task in tasks]
    check_out_folder(folder, names=files)
    check_ours(folder, RESULTS, overwrite=overwrite, names=files)


def _placed(model: Any) -> Any:
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _load(
    adapter: str | None, base: str | None, gguf_file: str | None, merged: bool, dtype: str
) -> tuple[Any, PreTrainedTokenizerBase]:
    from pera_lightning.export import merge_adapter
    from pera_lightning.loading.adapted_model import check_language_model, load_adapted_model
    from pera_lightning.loading.pretrained import PretrainedSource, load_causal_lm
    from pera_lightning.loading.pretrained_tokenizer import load_tokenizer

    if adapter is not None:
        check_language_model(adapter)
        model, tokenizer = load_adapted_model(adapter, base=base, gguf_file=gguf_file, dtype=dtype)
        return (merge_adapter(model) if merged else model), tokenizer
    if base is None:
        raise ConfigError(
            "There is nothing to evaluate.",
            got="neither adapter nor base",
            expected="an adapter, a model, or an adapter for a model",
            fix="name --adapter or --base",
        )
    if merged:
        raise ConfigError(
            "Without an adapter there is nothing to merge.", got="merged", expected="an adapter", fix="leave merged out"
        )
    source = PretrainedSource(base, gguf_file)
    return load_causal_lm(source, dtype=dtype), load_tokenizer(source)
