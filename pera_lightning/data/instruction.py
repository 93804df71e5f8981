"""The LightningDataModule for instruction tuning of causal language models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader

from pera_lightning.data.chat.conversations import OnBadRow
from pera_lightning.data.chat.prompts import ChatEncoder
from pera_lightning.data.chat.row_formats import RowFormat
from pera_lightning.data.chat.system_prompts import SystemPrompts
from pera_lightning.data.collate import PaddingCollator, collate_packs, lay_end_to_end
from pera_lightning.data.data_module import Batch, Collate, TokenisedDataModule
from pera_lightning.data.examples import last_answer
from pera_lightning.data.option_errors import check_at_least_one, contradiction
from pera_lightning.data.packing import PackedDataset
from pera_lightning.data.reading.split_sources import Split, as_paths
from pera_lightning.data.reading.splits import SplitRows, SplitSources
from pera_lightning.data.tokenised import TokenisedSplit, tokenise_split
from pera_lightning.loading.tokenizer_trial import while_tokenising
from pera_lightning.option_checks import check_flags
from pera_lightning.run_log.messages import rank_zero_info


class InstructionDataModule(TokenisedDataModule):
    """Rows of questions and answers as batches for a causal language model.

    Files are JSON (an array of objects), JSON Lines, CSV or parquet. Every row becomes a conversation, which
    the tokenizer's chat template renders; the loss is taken on the assistant's turns only. What does not
    fit into `max_length` is cut from the prompt's left; an answer is cut only if it does not fit by
    itself, and in long chats the oldest exchanges are left out. Both are counted in a line after setup.

    Padded batches are dicts of int64 tensors `input_ids`, `attention_mask` and `labels` (B, T), padded on the
    right; labels are not shifted and -100 where no loss is taken. Packed and padding-free ones hold `input_ids`,
    `position_ids` and `labels` (1, T); call the model with `use_cache=False`, else examples see each other. Not every
    model keeps them apart even then: PeraCausalLM refuses those that do not. Prediction runs over the test split.

    Nothing of a row is left out without a word. What messages have beside role and content (`reasoning_content`,
    `tool_calls`, ...) and the fields `tools`, `documents` and `chat_template_kwargs` of a row go to the chat template;
    what it does not write is a bad row. Other fields of rows, such as an id, are named in the log.

    Args:
        train_files: Path or paths of the training rows.
        val_files: Path or paths of the validation rows.
        test_files: Path or paths of the test rows.
        dataset: Data set of the hub (or a folder) with the splits train, validation and test, instead of files.
        dataset_config: Configuration (subset) of that data set.
        val_split: Share of the training rows held out for validation where there are no val_files, e.g. 0.05.
        format: Fields of the rows: prompt_completion (prompt, completion), alpaca (instruction, input, output),
            messages (a list of {role, content}); auto finds out from the first rows of every file.
        use_chat_template: Use the tokenizer's chat template where it has one; else a plain template of
            "### User:" and "### Assistant:" headings.
        system_prompt: System message of rows that have none, in place of the template's default one. The adapter's
            folder keeps it, or the one that all training rows have, for generate, chat and evaluate.
        tokenizer: Name, folder or object; by default the tokenizer of the LightningModule.
        max_length: Most tokens of an example.
        batch_size: Examples (with packing: packs) of a training step on each device.
        eval_batch_size: Examples of a validation, test or prediction step; by default batch_size.
        packing: Put several training examples in one row, without attention from one to another.
        pack_length: Most tokens of a pack; by default max_length.
        padding_free: Lay the examples of a training batch end to end in one row instead of padding them: the same
            batches and the same loss, without the third to half of their tokens that padding mostly is.
        group_by_length: Make training batches of examples of similar length.
        on_bad_row: What happens at a row that cannot be used: error stops, skip counts and reports it.
        ignore_fields: Fields of messages and rows to leave out on purpose, such as reasoning_content.
        max_train_rows: Use only the first training rows.
        max_val_rows: Use only the first validation rows.
        max_test_rows: Use only the first test rows.
        seed: Decides the rows held out, the packs and the order of every epoch.
        num_workers: Processes that prepare batches; rows are tokenised once, in setup, so 0 is usually best.

    Raises:
        ConfigError: If options contradict each other or cannot be.
    """

    sources: SplitSources

    def __init__(
        self,
        train_files: str | list[str] | None = None,
        val_files: str | list[str] | None = None,
        test_files: str | list[str] | None = None,
        *,
        dataset: str | None = None,
        dataset_config: str | None = None,
        val_split: float = 0.0,
        format: RowFormat = "auto",
        use_chat_template: bool = True,
        system_prompt: str | None = None,
        tokenizer: Any = None,
        max_length: int = 1024,
        batch_size: int = 8,
        eval_batch_size: int | None = None,
        packing: bool = False,
        pack_length: int | None = None,
        padding_free: bool = False,
        group_by_length: bool = False,
        on_bad_row: OnBadRow = "error",
        ignore_fields: list[str] | None = None,
        max_train_rows: int | None = None,
        max_val_rows: int | None = None,
        max_test_rows: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        sources = SplitSources(
            files={"train": as_paths(train_files), "val": as_paths(val_files), "test": as_paths(test_files)},
            dataset=dataset,
            dataset_config=dataset_config,
            val_split=val_split,
            row_format=format,
            on_bad_row=on_bad_row,
            ignore_fields=ignore_fields or (),
            limits={"train": max_train_rows, "val": max_val_rows, "test": max_test_rows},
            seed=seed,
        )
        super().__init__(
            sources,
            tokenizer=tokenizer,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            group_by_length=group_by_length,
            seed=seed,
            num_workers=num_workers,
        )
        self.use_chat_template = use_chat_template
        self.system_prompt = system_prompt
        self.max_length = max_length
        self.packing = packing
        self.pack_length = max_length if pack_length is None else pack_length
        self.padding_free = padding_free
        self._end_to_end = packing or padding_free
        self._packs: PackedDataset | None = None
        # Until the training rows are read.
        self._system_prompts = SystemPrompts((), system_prompt)
        self._check_options()

    @property
    def chat_options(self) -> dict[str, Any]:
        """How conversations become text, for the folder of the adapter that is trained on them."""
        return {"use_chat_template": self.use_chat_template, **self._system_prompts.kept()}

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The same batches as in a test."""
        return self.test_dataloader()

    def described(self, number: int) -> dict[str, Any]:
        """The prompt as the model reads it, without special tokens, and the true answer."""
        example = self._splits["test"][number]
        start, end = last_answer(example["labels"])
        with while_tokenising("A prediction"):
            texts = [
                self._tokenizer.decode(ids, skip_special_tokens=True).strip()
                for ids in (example["input_ids"][:start], example["input_ids"][start:end])
            ]
        return {"index": number, "prompt": texts[0], "expected": texts[1]}

    def _use_tokenizer(self, tokenizer: Any) -> None:
        self._encoder = self._make_encoder(tokenizer)
        self._end_id = self._encoder.stop_id

    def _make_encoder(self, tokenizer: Any) -> ChatEncoder:
        return ChatEncoder(
            tokenizer,
            max_length=self.max_length,
            use_chat_template=self.use_chat_template,
            system_prompt=self.system_prompt,
        )

    def _tokenised(self, splits: Sequence[Split]) -> dict[Split, TokenisedSplit]:
        return {split: self._tokenise(split, rows) for split, rows in self.sources.read(splits).items()}

    def _tokenise(self, split: Split, rows: SplitRows) -> TokenisedSplit:
        examples, packs = tokenise_split(split, rows, self._encoder), ""
        if split == "train" and self.packing:
            self._packs = PackedDataset(examples, self.pack_length, self.seed)
            packs = f", {len(self._packs):,} packs"
        rank_zero_info(f"{split}: {examples.summary}{packs}")
        if split == "train":
            self._system_prompts = SystemPrompts(rows.conversations, self.system_prompt)
            if told := str(self._system_prompts):
                rank_zero_info(f"{split}: {told}")
        return examples

    def _training_rows(self) -> Any:
        examples = super()._training_rows()
        return self._packs if self.packing else examples

    def _collate(self, split: Split) -> Collate:
        if split == "train" and self._end_to_end:
            return collate_packs if self.packing else lay_end_to_end
        return PaddingCollator(self._pad_id)

    def _check_options(self) -> None:
        check_flags(
            use_chat_template=self.use_chat_template,
            packing=self.packing,
            padding_free=self.padding_free,
        )
        check_at_least_one("max_length", self.max_length)
        if self.packing and self.group_by_length:
            raise contradiction("packing and group_by_length", "one of the two (packs have similar lengths)")
        if self.packing and self.padding_free:
            raise contradiction("packing and padding_free", "one of the two (packs have no padding either)")
        if self.padding_free and self.group_by_length:
            raise contradiction("padding_free and group_by_length", "one of the two (either saves the padding)")
        if self.padding_free and self.pack_length != self.max_length:
            raise contradiction("padding_free and pack_length", "packing, whose packs have a length")
        if self.pack_length < self.max_length:
            raise contradiction(
                f"max_length {self.max_length} and pack_length {self.pack_length}",
                "a pack_length of at least max_length",
            )
