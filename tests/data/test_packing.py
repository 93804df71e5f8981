from __future__ import annotations

import random

import pytest
import torch

from pera_lightning.data.collate import collate_packs
from pera_lightning.data.examples import Example, ExampleDataset
from pera_lightning.data.packing import PackedDataset, pack_examples
from tests.support.models import tiny_gpt2, tiny_llama


def test_every_example_is_in_one_pack_and_no_pack_is_too_long() -> None:
    lengths = random.Random(0).choices(range(1, 65), k=500)
    packs = pack_examples(lengths, 64, seed=0)
    assert sorted(index for pack in packs for index in pack) == list(range(500))
    assert max(sum(lengths[index] for index in pack) for pack in packs) <= 64
    assert len(packs) <= 1.05 * sum(lengths) / 64 + 1


def test_best_fit_decreasing_fills_the_tightest_pack() -> None:
    # 6 and 5 open packs; 4 fits both and goes to the 6; 3 goes to the 5.
    packs = pack_examples([3, 4, 5, 6, 2], 10, seed=0)
    assert sorted(map(sorted, packs)) == [[0, 2, 4], [1, 3]]


def test_the_seed_decides_among_equal_lengths() -> None:
    lengths = [4] * 40
    assert pack_examples(lengths, 8, seed=1) == pack_examples(lengths, 8, seed=1)
    assert pack_examples(lengths, 8, seed=1) != pack_examples(lengths, 8, seed=2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("model_of", [tiny_llama, tiny_gpt2])
def test_a_pack_gives_the_logits_of_its_examples_alone(model_of: object, attention: str) -> None:
    model = model_of()
    model.set_attn_implementation(attention)
    ids = [torch.randint(3, 64, (length,)).tolist() for length in (7, 1, 12, 5, 7)]
    dataset = PackedDataset(ExampleDataset(Example(row, row) for row in ids), pack_length=14, seed=0)
    batch = collate_packs([dataset[index] for index in range(len(dataset))])
    order = [example["input_ids"] for index in range(len(dataset)) for example in dataset[index]]
    with torch.no_grad():
        alone = [model(input_ids=row.unsqueeze(0), use_cache=False).logits[0] for row in order]
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        mixed = model(input_ids=batch["input_ids"], use_cache=False)
    torch.testing.assert_close(packed.logits[0], torch.cat(alone), atol=1e-5, rtol=0)
    # The comparison can tell: without the positions the examples see each other.
    assert (mixed.logits[0] - torch.cat(alone)).abs().max() > 1e-3
