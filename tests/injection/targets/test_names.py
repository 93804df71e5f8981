from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from pera_lightning import PeraConfig, inject_adapter, load_adapter, save_adapter
from pera_lightning.errors import AdapterFileError
from pera_lightning.injection.targets.names import listed, near_names


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))


@pytest.fixture
def module() -> Mine:
    return Mine()


def saved(model: nn.Module, folder: Path) -> Path:
    inject_adapter(model, PeraConfig(2, target_modules=["0", "2"]))
    return Path(save_adapter(model, folder))


def test_an_adapter_of_the_module_above(module: Mine, tmp_path: Path) -> None:
    folder = saved(Mine(), tmp_path)
    with pytest.raises(AdapterFileError, match=r"fix: +load the adapter into .* has this one as its 'net'") as caught:
        load_adapter(module.net, folder)
    assert "near names" not in str(caught.value)


def test_an_adapter_of_a_module_below(module: Mine, tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"fix: +load the adapter into model\.net, where"):
        load_adapter(module, saved(Mine().net, tmp_path))


def test_all_parts_that_fit_are_named(tmp_path: Path) -> None:
    several = nn.ModuleDict({"teacher": Mine().net, "other": nn.Linear(4, 4), "student": Mine().net})
    with pytest.raises(AdapterFileError, match=r"load the adapter into model\.student or model\.teacher, where"):
        load_adapter(several, saved(Mine().net, tmp_path))


def test_another_model_has_near_names(module: Mine, tmp_path: Path) -> None:
    folder = saved(Mine(), tmp_path)
    other = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(AdapterFileError, match=r"near names in this model: none; there are 0, 0\.0;"):
        load_adapter(other, folder)


def test_near_names_have_no_empty_one() -> None:
    assert near_names("net.0", ["", "0", "1"]) == "none; there are 0, 1"
    assert near_names("net.0", [""]) == "none; there are none"


def test_a_list_that_is_cut_says_so() -> None:
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b, ... (3 in all)"
