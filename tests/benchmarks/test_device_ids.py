"""The generation task of the study: facts that are shared by splits whose wordings are not."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.quality.device_ids import FACTS, STATES, TEMPLATES, write_device_ids


def test_splits_share_facts_and_no_wording(tmp_path: Path) -> None:
    write_device_ids(tmp_path, tmp_path / "once")
    write_device_ids(tmp_path, tmp_path / "again")
    prompts: dict[str, set[str]] = {}
    known: dict[str, set[str]] = {}
    for split, templates in TEMPLATES.items():
        text = (tmp_path / "once" / f"{split}.jsonl").read_text()
        assert text == (tmp_path / "again" / f"{split}.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        assert len(rows) == FACTS * len(templates) * len(STATES)
        prompts[split] = {row["prompt"] for row in rows}
        assert len(prompts[split]) == len(rows)
        answers = [json.loads(row["completion"]) for row in rows]
        known[split] = {str(number) for answer in answers for number in answer.values()}
        assert {state for answer in answers for state in answer} == set(STATES)
    assert known["train"] == known["val"] == known["test"]
    assert len(known["train"]) == FACTS
    assert not prompts["train"] & (prompts["val"] | prompts["test"])
    assert not prompts["val"] & prompts["test"]
