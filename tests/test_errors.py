from __future__ import annotations

import pickle

import pytest

from pera_lightning import errors


@pytest.mark.parametrize("name", [name for name in vars(errors) if name.endswith("Error")])
def test_every_error_says_got_expected_fix_and_pickles(name: str) -> None:
    cls = getattr(errors, name)
    error = cls("What.", got=1, expected=2, fix="this")
    assert isinstance(error, errors.PeraError)
    assert str(error) == "What.\n  got:      1\n  expected: 2\n  fix:      this"
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is cls
    assert str(twin) == str(error)


def test_an_error_within_another_message_is_one_line_without_its_cure() -> None:
    own = errors.ConfigError("rank cannot have this value.", got=-1, expected="more", fix="use 8")
    assert errors.one_line(own) == "rank cannot have this value (got -1; expected more)"
    library = RuntimeError("Error(s) in loading state_dict:\n\tMissing key(s): weight\n")
    assert errors.one_line(library) == "RuntimeError: Error(s) in loading state_dict: Missing key(s): weight"
    assert errors.one_line(library, kind=False) == "Error(s) in loading state_dict: Missing key(s): weight"
    assert errors.one_line(KeyError()) == errors.one_line(KeyError(), kind=False) == "KeyError"
