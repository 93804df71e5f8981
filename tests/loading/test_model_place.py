"""The hub is asked at most once, and what it says is told at once."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from pera_lightning.errors import ConfigError
from pera_lightning.loading.model_place import check_model_place


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the hub is asked for; it is there, and knows those that begin with "known"."""
    questions: list[str] = []

    def model_info(name: str, timeout: float) -> None:
        questions.append(name)
        assert timeout <= 10
        if not name.startswith("known"):
            raise OSError("no network")

    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "knwon").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    return questions


@pytest.mark.parametrize(("name", "meant"), [("models/tinny", "models/tiny"), ("model", "models")])
def test_a_misspelt_folder(asked: list[str], name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)the hub cannot be reached.*did you mean {meant}"):
        check_model_place(name)
    assert asked == [name]


def test_what_the_hub_knows_may_have_near_names(asked: list[str]) -> None:
    check_model_place("known")
    assert asked == ["known"]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("models/something", "name a folder there: models/tiny"),
        ("knwon/something", "bring the model: knwon holds no folder"),
        ("org/something", "correct the name, or the connection"),
        ("something", "correct the name, or the connection"),
    ],
)
def test_without_near_names_the_hub_is_asked_once_too(asked: list[str], name: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){name}: no folder.*the hub cannot be reached.*{fix}"):
        check_model_place(name)
    assert asked == [name]


def test_models_that_were_not_brought(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match="`make models`"):
        check_model_place("models/tiny")


def test_a_copy_of_any_revision_will_do(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache" / "models--org--something" / "snapshots").mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    check_model_place("org/something")
    check_model_place("models/tiny")
    assert not asked


def test_an_odd_answer_of_the_hub_is_left_to_the_loading(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy(HfHubHTTPError):
        def __init__(self) -> None:
            Exception.__init__(self, "busy")

    def busy(name: str, timeout: float) -> None:
        raise Busy

    monkeypatch.setattr(huggingface_hub, "model_info", busy)
    check_model_place("org/something")
    with pytest.raises(ConfigError, match=r"(?s)the hub answers: .*busy.*did you mean models/tiny"):
        check_model_place("models/tinny")


def test_offline_nobody_is_asked(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="may not be asked"):
        check_model_place("models/tinny")
    check_model_place("org/something")
    assert not asked


def test_a_path_is_no_name_of_the_hub(asked: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)does not exist.*did you mean models/tiny\?"):
        check_model_place("./models/tinny")
    assert not asked
