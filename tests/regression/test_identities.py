"""Moving code must not give any run another identity: hours of finished runs would be repeated."""

from __future__ import annotations

import dataclasses

import pytest

from purifiers.core import registry
from purifiers.plan.plan import make_plan
from purifiers.plan.scale import scale_names

from .identities import COMMAND, ROOT, digests, stored


@pytest.mark.parametrize("scale", scale_names(ROOT))
def test_identities_are_the_stored_ones(scale):
    now, before = digests(make_plan(ROOT, scale)), stored()[scale]
    moved = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
    assert not moved, f"run identities moved at {scale}: {', '.join(moved)}; if meant: {COMMAND}"


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
        return dataclasses.replace(described, version=described.version + 1)

    monkeypatch.setattr(registry, "describe", raised)
    now, before = digests(make_plan(ROOT, "smoke", ["aid", "advae"])), stored()["smoke"]
    moved = {name for name in now if now[name] != before[name]}
    assert "aid/table_3" in moved
    assert "advae/table_1" in now and "advae/table_1" not in moved
