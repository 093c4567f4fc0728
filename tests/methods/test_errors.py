"""Errors cross processes: they must survive pickling, and keep their place in the tree."""

import pickle

import pytest
from everline.methods import errors

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.EverlineError)]


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
def test_survives_pickling(kind: type[errors.EverlineError]) -> None:
    back = pickle.loads(pickle.dumps(kind("who: what, got that.")))
    assert type(back) is kind
    assert str(back) == "who: what, got that."


@pytest.mark.parametrize("kind", ALL, ids=lambda k: k.__name__)
def test_stands_in_the_drawn_tree(kind: type[errors.EverlineError]) -> None:
    assert kind.__name__ in (errors.__doc__ or "")
