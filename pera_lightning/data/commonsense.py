"""The LightningDataModule of the commonsense mix: one training file, eight test sets (LLM-Adapters)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args

from typing_extensions import override

from pera_lightning.data.chat.conversations import OnBadRow
from pera_lightning.data.chat.prompts import ALPACA_TEMPLATE, ChatEncoder
from pera_lightning.data.instruction import InstructionDataModule
from pera_lightning.data.option_errors import check_choice
from pera_lightning.storage.remote import local_path

CommonsenseTask = Literal[
    "boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa"
]
Template = Literal["alpaca", "chat"]


class CommonsenseDataModule(InstructionDataModule):
    """Commonsense questions in the JSON format of LLM-Adapters (arXiv 2304.01933) as batches for a language model.

    Rows have the fields `instruction`, `input` (empty) and `output` ("the correct answer is answer2"). The loss is
    taken on the output only. Test and prediction run over the eight test sets one after another; accuracies are the
    matter of `python -m pera_lightning evaluate`.

    Args:
        train_file: Training rows of all tasks, such as commonsense_170k.json.
        test_folder: Folder with `<task>/test.json` for each of the eight tasks.
        fraction: Share of the training rows to train on, above 0 and up to 1. With one seed a smaller share is part
            of a larger one, and the validation rows are the same.
        val_rows: Training rows held out for validation (LLM-Adapters: 120); 0 holds out none.
        template: How a question becomes a prompt: "alpaca", as in LLM-Adapters, or "chat", by the chat template.
        tokenizer: Name, folder or object; by default the tokenizer of the LightningModule.
        max_length: Most tokens of an example; longer questions lose tokens on the left.
        batch_size: Examples (with packing: packs) of a training step on each device.
        eval_batch_size: Examples of a validation, test or prediction step; by default batch_size.
        packing: Put several training examples in one row, without attention from one to another.
        pack_length: Most tokens of a pack; by default max_length.
        padding_free: Lay the examples of a training batch end to end in one row instead of padding them.
        group_by_length: Make training batches of examples of similar length.
        on_bad_row: What happens at a row that cannot be used: error stops, skip counts and reports it.
        max_val_rows: Use only the first validation rows.
        max_test_rows: Use only the first test rows of each task.
        seed: Decides the rows held out and trained on, the packs and the order of every epoch.
        num_workers: Processes that prepare batches; rows are tokenised once, in setup, so 0 is usually best.

    Raises:
        ConfigError: If options contradict each other or cannot be.
    """

    def __init__(
        self,
        train_file: str | None = None,
        test_folder: str | None = None,
        *,
        fraction: float = 1.0,
        val_rows: int = 120,
        template: Template = "alpaca",
        tokenizer: Any = None,
        max_length: int = 256,
        batch_size: int = 16,
        eval_batch_size: int | None = None,
        packing: bool = False,
        pack_length: int | None = None,
        padding_free: bool = False,
        group_by_length: bool = False,
        on_bad_row: OnBadRow = "error",
        max_val_rows: int | None = None,
        max_test_rows: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        check_choice("template", template, Template)
        super().__init__(
            train_file,
            None,
            None if test_folder is None else [str(path) for path in task_files(test_folder).values()],
            format="alpaca",
            tokenizer=tokenizer,
            max_length=max_length,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            packing=packing,
            pack_length=pack_length,
            padding_free=padding_free,
            group_by_length=group_by_length,
            on_bad_row=on_bad_row,
            max_val_rows=max_val_rows,
            max_test_rows=max_test_rows,
            seed=seed,
            num_workers=num_workers,
        )
        self.template = template
        self.sources = dataclasses.replace(self.sources, val_rows=val_rows, fraction=fraction, limits_each=True)

    @property
    @override
    def chat_options(self) -> dict[str, Any]:
        return {"template": self.template}

    @override
    def _make_encoder(self, tokenizer: Any) -> ChatEncoder:
        return commonsense_encoder(tokenizer, template=self.template, max_length=self.max_length)


def commonsense_encoder(
    tokenizer: Any, *, template: Template, max_length: int, system_prompt: str | None = None
) -> ChatEncoder:
    """Makes the encoder that training and evaluation share.

    Args:
        tokenizer: A tokenizer of transformers.
        template: See `CommonsenseDataModule`.
        max_length: Most tokens of an example.
        system_prompt: System message, for the chat template.
    """
    fixed = ALPACA_TEMPLATE if template == "alpaca" else None
    return ChatEncoder(tokenizer, max_length=max_length, template=fixed, system_prompt=system_prompt)


def task_files(folder: str | Path) -> dict[str, Path]:
    """Returns where the test rows of every task are, by task; the files need not exist."""
    folder = local_path(folder, "the folder of tests")
    return {task: folder / task / "test.json" for task in get_args(CommonsenseTask)}
