"""The benchmark that counts padding."""

from __future__ import annotations

import pytest
import torch

from benchmarks.padding import LINEAR, WIDTH, count_work


def test_counts_padding_and_work() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    work = count_work([{"input_ids": torch.zeros_like(mask), "attention_mask": mask}])
    assert (work.tokens, work.padded_tokens, work.padding) == (6, 8, 0.25)
    padded = 8 * LINEAR + 2 * WIDTH * 2 * 16
    assert work.with_mask == pytest.approx((6 * LINEAR + 2 * WIDTH * 36) / padded)
    assert work.with_lengths == pytest.approx((6 * LINEAR + 2 * WIDTH * (16 + 4)) / padded)
