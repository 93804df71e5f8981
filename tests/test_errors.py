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
