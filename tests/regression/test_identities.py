"""Moving code must not give any run another identity: hours of finished runs would be repeated."""

from __future__ import annotations

import dataclasses

import pytest

from purifiers.core import registry
from purifiers.plan.plan import make_plan
from purifiers.plan.scale import scale_names

from .identities import COMMAND, ROOT, changed, digests, moved, stored


@pytest.mark.parametrize("scale", scale_names(ROOT))
def test_identities_are_the_stored_ones(scale, plans):
    now, before = digests(plans[scale]), stored()[scale]
    names = moved(now, before)
    assert not names, f"run identities moved at {scale}: {', '.join(names)}; if meant: {COMMAND}"
    assert not changed(now, before), "cells have changed: run make register"


def test_every_scale_has_digests():
    assert stored().keys() == set(scale_names(ROOT))
    assert all(len(documents) > 20 for documents in stored().values())


def test_a_moved_identity_is_noticed(monkeypatch):
    """The test of the test: raising one version moves the documents that use it, and no others."""
    real = registry.describe

    def raised(kind, name):
        described = real(kind, name)
        if (kind, name) != ("method", "aid"):
            return described
        traits = described.traits.replace(version=described.version + 1)
        return dataclasses.replace(described, traits=traits)

    monkeypatch.setattr(registry, "describe", raised)
    now, before = digests(make_plan(ROOT, "smoke", ["aid", "advae"])), stored()["smoke"]
    names = moved(now, before)
    assert "aid/table_3" in names
    assert "advae/table_1" in now and "advae/table_1" not in names


def test_another_cell_is_a_change_and_no_move():
    before = stored()["smoke"]
    name = next(iter(before))
    now = {**before, name: {"cells": "another", "runs": "another"}}
    assert (moved(now, before), changed(now, before)) == ([], [name])
    now = {other: digest for other, digest in before.items() if other != name}
    assert (moved(now, before), changed(now, before)) == ([], [name])
