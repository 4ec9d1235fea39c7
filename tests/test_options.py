"""Each option of each part changes what is trained or logged: none is ignored in silence.

Here each changes something; what it should change is in the tests of the part.
"""

import inspect

import numpy as np
import pytest

from tests.options import CASES, LOSSES, OPTIMIZERS, REGULARIZERS, TRANSFORMS, Where

# They have to be what the data are, and are refused if not.
STRUCTURAL = {"num_classes", "num_groups", "dim"}
# `name` and `dtype` are looked at below, `reduction` by the losses' suite.
COMMON = {"name", "dtype", "reduction", "kwargs", "self"}


def seen(part, arguments):
    made = {k: v() if k == "optimizer" else v for k, v in arguments.items()}
    return CASES[part].seen(part(**made))


def same(found, other):
    return found.keys() == other.keys() and all(np.array_equal(found[key], other[key], equal_nan=True) for key in found)


@pytest.mark.parametrize("part", CASES, ids=lambda part: part.__name__)
def test_all_options_are_here(part):
    common = COMMON - {"reduction"} if part in REGULARIZERS else COMMON
    known = set(inspect.signature(part).parameters) - common - STRUCTURAL
    assert set(CASES[part].options) - {"name"} == known


@pytest.mark.parametrize(
    ("part", "option"),
    [(part, option) for part, case in CASES.items() for option in case.options],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_an_option_changes_something(part, option):
    case = CASES[part]
    value = case.options[option]
    others, value = value if isinstance(value, Where) else ({}, value)
    before = case.arguments | others
    found = seen(part, before)
    assert same(found, seen(part, before)), "the same arguments give the same numbers"
    assert not same(found, seen(part, before | {option: value}))


@pytest.mark.parametrize("part", [*LOSSES, *TRANSFORMS, *OPTIMIZERS], ids=lambda part: part.__name__)
def test_names(part):
    if "name" in inspect.signature(part).parameters:
        arguments = {k: v() if k == "optimizer" else v for k, v in CASES[part].arguments.items()}
        assert part(**arguments, name="mine").name == "mine"
