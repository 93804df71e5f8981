"""`evaluate`: accuracies on the commonsense tasks, with an adapter or without one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pera_lightning.cli.screen import show_table
from pera_lightning.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def evaluate(
    tasks: str,
    adapter: str | None = None,
    base: str | None = None,
    gguf_file: str | None = None,
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
    """Answer the commonsense tasks of LLM-Adapters with an adapter, or with a plain or merged model; print accuracies.

    Args:
        tasks: Folder with `<task>/test.json` for one or more of boolq, piqa, social_i_qa, hellaswag, winogrande,
            ARC-Easy, ARC-Challenge and openbookqa.
        adapter: Folder of the adapter, as the fit wrote it; without one, `base` is evaluated as it is.
        base: Hub id or folder of the base (or merged) model; by default the one that the adapter names.
        gguf_file: Name of a GGUF file in `base`.
        how: "generate" an answer and take the first option it names (the papers' way), or "rank" the options by their
            log-likelihood.
        template: How a question becomes a prompt; by default as in the adapter's training, without one "alpaca".
        system_prompt: Another system message than that of the training; "" is the chat template's own.
        limit: Most questions of a task, from the beginning of its file.
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
    import torch

    from pera_lightning.checkpoint.manifest.manifest import read_manifest
    from pera_lightning.data.chat.as_trained import system_prompt_as_trained
    from pera_lightning.evaluation import evaluate_commonsense
    from pera_lightning.evaluation.results import RESULTS
    from pera_lightning.storage.folder_kind import check_ours
    from pera_lightning.storage.out_folder import check_out_folder
    from pera_lightning.storage.recognition.adapter_kind import CONFIG_FILE
    from pera_lightning.storage.remote import local_path, place

    questions = local_path(tasks, "--tasks")
    if out is not None:
        folder = local_path(out, "--out")
        names = [f"{path.parent.name}.jsonl" for path in questions.glob("*/test.json")]
        check_out_folder(folder, names=names)
        check_ours(folder, RESULTS, overwrite=overwrite, names=names)
    trained = {} if adapter is None else read_manifest(place(adapter) / CONFIG_FILE).chat
    # Trained on other conversations it knows its chat template.
    template = template or trained.get("template", "chat" if trained else "alpaca")
    system_prompt = system_prompt_as_trained(trained, system_prompt)
    system_prompt = system_prompt_as_trained(trained, system_prompt)
    model, tokenizer = _load(adapter, base, gguf_file, merged, dtype)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    evaluation = evaluate_commonsense(
        model,
        tokenizer,
        questions,
        how=how,
        template=template,
        system_prompt=system_prompt,
        limit=limit,
        batch_size=batch_size,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
        progress=True,
    )
    show_table(evaluation.table())
    if out is not None:
        options = {
            "template": template,
            "system_prompt": system_prompt,
            "limit": limit,
            "num_beams": num_beams,
            "merged": merged,
        }
        evaluation.write(out, {"adapter": adapter, "base": base, **options}, overwrite=overwrite)


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
