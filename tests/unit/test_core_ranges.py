"""Ranges of numeric parameters: their bounds, their text and the place where they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import purifiers
from purifiers.core import ranges
from purifiers.core.component import Component, build
from purifiers.core.errors import UserError
from purifiers.core.numbers import Length
from purifiers.core.parameters import alternatives, checked, is_numeric, is_ranged
from purifiers.core.ranges import RANGES, Count, Fraction, Positive

NAN, INF = float("nan"), float("inf")
BOUNDS = {
    "Count": ([1, 2, 10**6, np.int64(3)], [0, -1, 1.5]),
    "Whole": ([0, 1], [-1, 0.5]),
    "Severity": ([1, 5], [0, 6, 2.5]),
    "Bits": ([1, 8], [0, 9, 1.5]),
    "Quality": ([1, 100], [0, 101, 75.5]),
    "Odd": ([1, 3, 13.0], [0, -1, 2, 1.5]),
    "Positive": ([1e-9, 1, 300.0, np.float32(0.5)], [0, 0.0, -0.05]),
    "NonNegative": ([0, 0.0, 5.5], [-1e-9, -5]),
    "Fraction": ([0, 0.5, 1], [-0.1, 1.0001, 2]),
    "Share": ([0, 0.9999], [-0.1, 1, 1.0]),
    "Part": ([0.0001, 0.9999], [0, 0.0, 1, 1.0]),
}


def test_every_range_is_documented_and_tested():
    aliases = {name for name in vars(ranges) if vars(ranges)[name] in (int, float)}
    assert aliases == set(RANGES) == set(BOUNDS)
    documented = Path(__file__).parents[2].joinpath("CONTRIBUTING.md").read_text()
    assert all(f"| `{name}` | " in documented for name in RANGES)


@pytest.mark.parametrize("name", RANGES)
def test_bounds(name):
    right, wrong = BOUNDS[name]
    for value in right:
        assert checked((name,), value, "a: b") == value
    for value in (*wrong, NAN, INF, -INF, True, False, None, "1", [1], 1j):
        with pytest.raises(
            UserError, match=r"^a: b is .*, but takes an? (odd )?(whole )?number"
        ) as error:
            checked((name,), value, "a: b")
        assert str(error.value).endswith(RANGES[name].expected)


def test_numbers_are_pythons_and_whole_ones_integers():
    for value, types, expected in (
        (8.0, ("Count",), 8),
        (np.int64(8), ("Count",), 8),
        (np.float32(0.5), ("Positive",), 0.5),
        (8, ("Positive",), 8),
        ((2.0, 3), ("Sequence[Count]",), (2, 3)),
    ):
        result = checked(types, value, "x")
        assert result == expected and repr(result) == repr(expected)


def test_null_only_where_it_is_declared():
    assert checked(("Positive", "None"), None, "x") is None
    with pytest.raises(UserError, match="x is 0, but takes a number above 0 or null"):
        checked(("Positive", "None"), 0, "x")


def test_lists_hold_numbers_in_range():
    for types in (("Sequence[Fraction]",), ("tuple[Fraction, ...]",)):
        assert checked(types, [0.5, 1], "x") == [0.5, 1]
        for wrong in ([0.5, 2], [NAN], ["0.5"], [True], 0.5):
            with pytest.raises(UserError, match=r"a list, each a number in \[0, 1\]$"):
                checked(types, wrong, "x")


def test_annotations_are_read_by_their_alternatives():
    assert alternatives("Positive | None") == ("Positive", "None")
    assert alternatives("Mapping[str, int | str]") == ("Mapping[str, int | str]",)
    assert alternatives(None) == ()
    assert is_ranged(("Sequence[Fraction]",)) and is_ranged(("Length", "None"))
    assert not is_ranged(("Sequence[str]",)) and not is_ranged(("float",))
    assert is_numeric(("float", "None")) and is_numeric(("Sequence[int]",))
    assert not is_numeric(("str",)) and not is_numeric(("Sequence[str]",))


class Base(Component):
    """Takes numbers with ranges."""

    built = 0

    def __init__(
        self, *, steps: Count = 4, eps: Length = "8/255", milestones: Sequence[Fraction] = ()
    ) -> None:
        type(self).built += 1
        self.steps, self.eps, self.milestones = steps, eps, milestones


class Derived(Base):
    """Checks the numbers of its base class too."""

    def __init__(self, *, learning_rate: Positive | None = None, **common: Any) -> None:
        super().__init__(**common)
        self.learning_rate = learning_rate


def test_a_component_is_not_built_from_wrong_numbers():
    for wrong, message in (
        ({"steps": 7.5}, r"^Derived: steps is 7\.5, but takes a whole number of at least 1$"),
        ({"steps": True}, "^Derived: steps is True, but takes a whole number of at least 1$"),
        ({"learning_rate": -0.05}, "^Derived: learning_rate is -0.05, but takes a number above 0"),
        ({"milestones": [3]}, r"^Derived: milestones is \[3\], but takes a list, each a number"),
    ):
        for make in (Derived, lambda **parameters: build(Derived, **parameters)):
            with pytest.raises(UserError, match=message):
                make(**wrong)
    assert Derived.built == 0 and Derived(steps=8.0).steps == 8 and Derived.built == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"confidence": -5},
        {"confidence": NAN},
        {"learning_rate": -0.05},
        {"initial_const": 0},
        {"max_l2": -1},
        {"steps": 7.5},
    ],
)
def test_numbers_that_once_broke_nothing(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"^CwL2: {name} is {value}, but takes a"):
        purifiers.attack("cw_l2", **wrong)


def test_a_network_has_a_shape_and_classes():
    for shape, classes in (((3, 32, 0), 10), ((3, 32, 32), 0), ((3, 32, 32), 2.5)):
        with pytest.raises(UserError, match=r"^Vgg: (shape|classes) is .*whole number of at least"):
            purifiers.classifier("vgg", shape, classes)
