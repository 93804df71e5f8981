from __future__ import annotations

import torch

from pera_lightning.data.collate import PaddingCollator, collate_packs, lay_end_to_end


def example(*ids: int) -> dict[str, torch.Tensor]:
    tokens = torch.tensor(ids)
    return {"input_ids": tokens, "labels": torch.where(torch.arange(len(ids)) == 0, -100, tokens)}


def test_padding_is_on_the_right_and_takes_no_part() -> None:
    batch = PaddingCollator(pad_id=2)([example(5, 2), example(6, 7, 8, 2)])
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 2, 2, 2], [6, 7, 8, 2]],
        "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 1]],
        "labels": [[-100, 2, -100, -100], [-100, 7, 8, 2]],
    }
    assert all(values.dtype == torch.int64 for values in batch.values())


def test_packs_become_one_row_whose_positions_restart() -> None:
    batch = collate_packs([[example(5, 2), example(6)], [example(7, 8, 9)]])
    assert {name: values.tolist() for name, values in batch.items()} == {
        "input_ids": [[5, 2, 6, 7, 8, 9]],
        "position_ids": [[0, 1, 0, 0, 1, 2]],
        "labels": [[-100, 2, -100, -100, 8, 9]],
    }
    assert all(values.dtype == torch.int64 for values in batch.values())


def test_rows_end_to_end_do_not_predict_one_another() -> None:
    """Whatever the first label of a row says: no token of the row predicts it."""
    rows = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)} for ids in ([5, 2], [6, 7, 8])]
    expected = {
        "input_ids": [[5, 2, 6, 7, 8]],
        "position_ids": [[0, 1, 0, 1, 2]],
        "labels": [[-100, 2, -100, 7, 8]],
    }
    for batch in (lay_end_to_end(rows), collate_packs([rows[:1], rows[1:]])):
        assert {name: values.tolist() for name, values in batch.items()} == expected
    assert rows[1]["labels"].tolist() == [6, 7, 8]
