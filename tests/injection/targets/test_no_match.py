"""What is said of patterns that match no layer."""

from __future__ import annotations

import re

import pytest
from torch import nn

from pera_lightning import PeraConfig, inject_adapter
from pera_lightning.errors import TargetError


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in ("q", "k", "v", "o", "up", "down"):
            self.add_module(name, nn.Linear(4, 4))


def network() -> nn.Module:
    model = nn.ModuleDict({"blocks": nn.ModuleList(Block() for _ in range(11)), "stem": nn.Conv1d(2, 2, 1)})
    model["attention"] = nn.MultiheadAttention(4, 2)
    model["head"] = nn.Linear(4, 4)
    return model


def said(targets: object) -> str:
    with pytest.raises(TargetError) as caught:
        inject_adapter(network(), PeraConfig(2, target_modules=targets))
    return str(caught.value)


def adapted(targets: object) -> tuple[str, ...]:
    return inject_adapter(network(), PeraConfig(2, target_modules=targets)).adapted


def test_all_layers_of_a_container_are_listed() -> None:
    message = said(["blocks.1"])
    inside = [f"blocks.1.{name}" for name in ("q", "k", "v", "o", "up", "down")]
    assert f"name layers inside it: {', '.join(inside)}; all of them: the one string blocks\\.1\\..*" in message
    assert adapted(r"blocks\.1\..*") == tuple(inside)
    assert ", ... (66 in all)" in said(["blocks"])


@pytest.mark.parametrize(
    ("expression", "cure", "count"),
    [
        (r"locks\.1\.q", r".*locks\.1\.q", 1),
        ("q", r".*\.q", 11),
        ("q|v", r".*\.(q|v)", 22),
        (r"\.1\.", r".*\.1\..*", 6),
    ],
)
def test_an_expression_for_a_part_of_names(expression: str, cure: str, count: int) -> None:
    message = said(expression)
    assert "matches a part of names, and no whole one" in message
    assert f"write it for whole names: {cure} matches {count} of the 68 layers" in message
    assert len(adapted(cure)) == count


@pytest.mark.parametrize("name", ["in_proj", "in_proj_weight"])
def test_a_packed_parameter_is_no_layer(name: str) -> None:
    assert "'attention.in_proj_weight' is a parameter of a MultiheadAttention" in said([name])


def test_the_layer_of_a_weight_is_named() -> None:
    assert "name its layer: blocks.0.q" in said(["blocks.0.q.weight"])


def test_no_near_name_is_better_than_a_bad_one() -> None:
    with pytest.raises(TargetError, match=re.escape("near names in this model: none; there are blocks, 0, q, k")):
        inject_adapter(network(), PeraConfig(2, modules_to_save=["classifier"]))
