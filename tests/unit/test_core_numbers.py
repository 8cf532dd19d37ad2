"""Lengths as people write them."""

from __future__ import annotations

import pytest

import purifiers
from purifiers.core.component import normalise
from purifiers.core.errors import UserError, did_you_mean
from purifiers.core.numbers import check_linf_length, fraction, is_fraction, is_linf_length


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


def test_is_fraction():
    assert is_fraction("8/255") and is_fraction("1.5 / 2")
    assert not is_fraction("0.5") and not is_fraction(0.5) and not is_fraction("a/b")


@pytest.mark.parametrize(
    "name", ["eps", "step_size", "train_step", "train_eps", "augmentation_step"]
)
def test_lengths_are_known_by_name(name):
    assert is_linf_length(name)


@pytest.mark.parametrize("name", ["steps", "epsilon", "max_l2", "learning_rate", "gamma"])
def test_other_parameters_are_not_lengths(name):
    assert not is_linf_length(name)


def test_grey_levels_are_refused_with_the_mend():
    with pytest.raises(UserError, match=r"pgd: eps is 8.*write 8/255 for 8 grey levels"):
        check_linf_length("eps", 8.0, "pgd")
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="lengths lie in"):
            check_linf_length("eps", wrong, "pgd")
    for right in (0.0, 1.0):
        check_linf_length("eps", right, "pgd")


def test_normalise_reads_lengths_and_leaves_the_rest():
    given = {"eps": "8/255", "steps": 4, "name": "1/2", "step_size": None}
    expected = {"eps": 8 / 255, "steps": 4, "name": "1/2", "step_size": None}
    assert normalise("pgd", given) == expected
    assert given["eps"] == "8/255"


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
