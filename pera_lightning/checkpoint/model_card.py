"""The README.md beside a saved adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pera_lightning.checkpoint.base_code import BaseCode, base_code
from pera_lightning.checkpoint.manifest.class_names import are_named
from pera_lightning.checkpoint.manifest.manifest import Manifest
from pera_lightning.storage.card_text import in_header, in_markdown

OWN_MODULE = (
    "To use it without this library, merge it into the weights, or write the plain LoRA that it is:",
    "",
    "```python",
    "from pera_lightning import export_lora, merge_adapter",
    "",
    "export_lora(model, 'lora', inputs=[...])  # to=\"safetensors\": factors for code of your own",
    "merge_adapter(model)",
    "torch.save(model.state_dict(), 'merged.pt')  # the module's own names, for load_state_dict",
    "```",
)
"""How an adapter is served whose base no hub knows."""


def model_card(manifest: Manifest, parameters: int, run: Mapping[str, str]) -> str:
    """Markdown text of the model card, with the YAML header that model hubs read.

    Args:
        manifest: What the adapter is made of.
        parameters: Number of numbers in the adapter.
        run: Further rows, of the run that trained it.
    """
    config = manifest.config
    base = manifest.base_model or "not recorded"
    header = hub_header(manifest, "pera-lightning", ["pera", "adapter"])
    tokens = manifest.tokens
    rows = {
        "base model": base,
        "quantisation of the base": ", ".join(manifest.quantization),
        "rank, order, terms": f"{config.rank}, {config.order}, {config.terms}",
        "alpha": "rank" if config.alpha is None else f"{config.alpha:g}",
        "coefficient scale": config.coefficient_scale,
        "adapted layers": len(manifest.layers),
        "trained token rows": ", ".join(f"{len(plan.ids)} of {name}" for name, plan in tokens.items()) or "none",
        "modules saved whole": ", ".join(manifest.saved) or "none",
        **({"classes": ", ".join(manifest.labels)} if are_named(manifest.labels) else {}),
        **prompt_rows(manifest),
        "parameters": f"{parameters:,}",
        **run,
        "written with": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
    }
    table = ["| | |", "|---|---|", *(f"| {in_markdown(name)} | {in_markdown(value)} |" for name, value in rows.items())]
    is_classifier = "ForSequenceClassification" in (manifest.architecture or "")
    usage = _usage(base_code(manifest), is_classifier=is_classifier)
    title = "# PERA adapter"
    text = "An adapter by Polynomial Expansion Rank Adaptation (arXiv 2604.11841): low-rank factors with products."
    return "\n".join([*header, "", title, "", text, "", *table, "", *usage, ""])


def _usage(code: BaseCode | None, *, is_classifier: bool) -> list[str]:
    return [
        "```python",
        *(code.imports if code else ()),
        "from pera_lightning import load_adapter",
        "",
        f"model = {code.call}" if code else "# model: the module that was adapted, with its base's weights",
        "load_adapter(model, 'this folder')" + ("  # also fills and names the head" if is_classifier else ""),
        "```",
        "",
        *(_served() if code else OWN_MODULE),
    ]


def _served() -> list[str]:
    return [
        "To serve it, export it as the plain LoRA that it is (PEFT, vLLM, SGLang; `--to llamacpp`) or merge it:",
        "",
        "```",
        "python -m pera_lightning export --adapter THIS_FOLDER --out lora --to peft",
        "python -m pera_lightning export --adapter THIS_FOLDER --out merged --to merged",
        "```",
    ]


def prompt_rows(manifest: Manifest) -> dict[str, str]:
    """What answers as in training need beside the tokenizer's chat template, for cards: what it is -> its text."""
    chat = manifest.chat
    prompt, different = chat.get("system_prompt"), chat.get("different_system_prompts")
    rows = {} if prompt is None else {"system prompt": prompt or "empty"}
    if different:
        rows["system prompt"] = f"{different:,} different ones in training" + (f", else: {prompt}" if prompt else "")
    if "template" in chat:
        rows["prompt template"] = chat["template"]
    elif chat.get("use_chat_template") is False:
        rows["prompt template"] = "headings (### User:, ### Assistant:)"
    return rows


def hub_header(manifest: Manifest, library: str, tags: list[str]) -> list[str]:
    """Lines of the YAML header that model hubs read."""
    values: dict[str, Any] = {"library_name": library, "tags": tags}
    base = manifest.base_model
    if base and "/" in base and not base.startswith((".", "/")):
        values["base_model"] = base
    return in_header(values)
