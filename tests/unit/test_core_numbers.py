"""Lengths as people write them."""

from __future__ import annotations

from functools import partial
from inspect import signature
from typing import Any

import pytest

import purifiers
from purifiers.core.component import Component, build
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.numbers import Length, Radius, fraction, length_kind, read_length


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8/255", 8 / 255),
        (" 1.6 / 255 ", 1.6 / 255),
        ("0/255", 0.0),
        ("0.031", 0.031),
        ("1e-3", 0.001),
        (0.5, 0.5),
        (1, 1.0),
    ],
)
def test_fraction(written, value):
    assert fraction(written) == value
    assert type(fraction(written)) is float


@pytest.mark.parametrize(
    "written", ["8/0", "8/", "/255", "8//255", "8/255/2", "eight", "", "-8/255", True, None, [8]]
)
def test_what_is_no_length(written):
    with pytest.raises(UserError, match=r"not a length.*8/255"):
        fraction(written)


class Measured(Component):
    """Takes every kind of length."""

    def __init__(
        self,
        *,
        eps: Length = "8/255",
        radius: Radius | None = None,
        steps: int = 4,
        name: str = "1/2",
    ) -> None:
        self.eps, self.radius, self.steps, self.name = eps, radius, steps, name


class Inherits(Measured):
    """Its lengths are those of its base class."""

    def __init__(self, *, step_size: Length = "1/4", **common: Any) -> None:
        super().__init__(**common)
        self.step_size = step_size


def test_lengths_are_known_by_their_annotation():
    assert length_kind(("Length", "None")) == "Length" and length_kind(("Radius",)) == "Radius"
    for types in ((), ("float",), ("Lengths",), ("int", "str")):
        assert length_kind(types) == ""


def test_grey_levels_are_refused_with_the_mend():
    with pytest.raises(UserError, match=r"^pgd: eps is 8, but .*write 8/255 for 8 grey levels$"):
        read_length("Length", 8.0, "pgd: eps")
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="lengths lie in"):
            read_length("Length", wrong, "pgd: eps")
    for right in (0.0, 1.0):
        assert read_length("Length", right, "pgd: eps") == right


def test_a_radius_is_above_0():
    for wrong in (0.0, -1.0, "0/255", float("nan"), float("inf"), "inf"):
        with pytest.raises(UserError, match=r"^pgd_l2: radius is .*a length above 0 is needed$"):
            read_length("Radius", wrong, "pgd_l2: radius")
    assert read_length("Radius", "128/255", "pgd_l2: radius") == 128 / 255
    assert read_length("Radius", 3, "pgd_l2: radius") == 3.0


def test_a_constructor_receives_lengths_as_numbers_and_the_rest_as_it_is():
    made = Measured(radius="512/255")
    assert (made.eps, made.radius) == (8 / 255, 512 / 255)
    assert (made.steps, made.name) == (4, "1/2")
    assert Measured().radius is None and Measured(eps=0).eps == 0.0
    assert signature(Measured).parameters["eps"].default == "8/255"


class Positional(Component):
    """Takes its length by position too."""

    def __init__(self, shape: tuple[int, ...], eps: Length = "8/255") -> None:
        self.shape, self.eps = shape, eps


def test_a_length_is_converted_by_position_too():
    assert Positional((1, 2)).eps == 8 / 255
    assert Positional((1, 2), "1/2").eps == Positional((1, 2), eps="1/2").eps == 0.5
    with pytest.raises(UserError, match=r"^Positional: eps is 8, "):
        Positional((1, 2), 8)


def test_inherited_lengths_are_converted_too():
    made = Inherits(eps="2/255")
    assert (made.step_size, made.eps) == (0.25, 2 / 255)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"eps": 8}, r"^Measured: eps is 8, but lengths lie in \[0, 1\]; write 8/255"),
        ({"eps": "8 of 255"}, r"^Measured: eps is '8 of 255', not a length"),
        ({"radius": 0}, "^Measured: radius is 0, but a length above 0 is needed$"),
    ],
)
@pytest.mark.parametrize("construct", [Measured, partial(build, Measured)])
def test_a_length_out_of_range_constructs_nothing(construct, parameters, message):
    with pytest.raises(UserError, match=message):
        construct(**parameters)


def test_lengths_are_checked_at_the_public_door():
    assert purifiers.attack("pgd", eps="4/255").eps == 4 / 255
    with pytest.raises(UserError, match="write 8/255"):
        purifiers.attack("pgd", eps=8)
    with pytest.raises(UserError, match="not a length"):
        purifiers.attack("pgd", eps="8 of 255")


def test_did_you_mean():
    assert did_you_mean("pdg", ["pgd", "fgsm"]) == " (did you mean 'pgd'?)"
    assert did_you_mean("zzz", ["pgd", "fgsm"]) == ""
    assert did_you_mean("x", []) == ""
    assert did_you_mean(3, ["pgd"]) == ""
