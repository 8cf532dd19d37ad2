"""A component whose output moved must have a higher version: stored results depend on it."""

from __future__ import annotations

import dataclasses
from functools import partialmethod

import numpy as np
import pytest

from purifiers.attacks.fgsm import Fgsm
from purifiers.core import registry
from purifiers.core.errors import UserError
from purifiers.training.natural import Natural


def test_output_and_version_move_together(component, golden):
    if component.name == "_template":
        pytest.skip("nobody's results depend on a template")
    if golden.has_no_output(component.kind, component.name):
        pytest.skip("its files are not here, or it trains nothing")
    problem = golden.complaint(component.kind, component.name, golden.read())
    assert problem is None, problem


def test_nothing_is_held_of_components_that_are_gone(golden):
    assert golden.stale(golden.read()) == []
    assert golden.stale({"attack.gone": {}}) == ["attack.gone"]


def test_outputs_say_something(golden):
    """A purifier that does nothing, or an attack that finds nothing, would hold nothing."""
    held = golden.read()
    for key, entry in held.items():
        assert len(set(entry["output"])) > 1, key
        if key.startswith("attack."):
            assert np.count_nonzero(entry["output"]) > 0.3 * len(entry["output"]), key
        if key.startswith("method.") and key != "method.identity":
            assert golden.moved(held["method.identity"]["output"], entry["output"]), key


@pytest.mark.parametrize("key", ["attack.fgsm", "training.natural"])
def test_a_moved_output_is_noticed(key, golden, monkeypatch):
    """The test of the test: the guard fails when it must, and only then."""
    kind, name = key.split(".")
    held = golden.read()
    file = f"purifiers/{registry.FOLDERS[kind]}/{name}.py"
    assert golden.complaint(kind, name, held) is None
    monkeypatch.setattr(golden, "subjects", lambda: [(kind, name)])

    perturb, loss = Fgsm.perturb, Natural.loss

    def weaker(self, target, images, *rest):
        return images + 0.999 * (perturb(self, target, images, *rest) - images)

    monkeypatch.setattr(Fgsm, "perturb", weaker)
    monkeypatch.setattr(Natural, "loss", lambda self, *rest: loss(self, *rest) * 1.001)
    assert f"raise version in {file} and run make register, or undo" in golden.complaint(
        kind, name, held
    )
    with pytest.raises(UserError, match=f"raise version in {file}"):
        golden.renewed({key: held[key]})

    described = registry.describe(kind, name)
    traits = described.traits.replace(version=described.version + 1)
    raised = dataclasses.replace(described, traits=traits)
    monkeypatch.setattr(
        registry,
        "describe",
        lambda k, n, real=registry.describe: raised if n == name else real(k, n),
    )
    assert golden.COMMAND in golden.complaint(kind, name, held)
    assert "no golden output yet" in golden.complaint(kind, name, {})
    fresh = golden.renewed({key: held[key]})
    assert fresh[key]["version"] == raised.version
    assert golden.complaint(kind, name, fresh) is None


def test_new_defaults_and_budgets_move_nothing(golden, monkeypatch):
    """They are other runs by their parameters alone."""
    held, real = golden.read(), registry.describe
    monkeypatch.setattr(golden, "small_parameters", None)
    monkeypatch.setattr(Fgsm, "__init__", partialmethod(Fgsm.__init__, eps=0.5))
    assert Fgsm().eps == 0.5
    assert golden.complaint("attack", "fgsm", held) is None
    fewer = dataclasses.replace(real("attack", "fgsm"), parameters={})
    monkeypatch.setattr(registry, "describe", lambda *_: fewer)
    assert "raise version" in golden.complaint("attack", "fgsm", held)


def test_renewing_changes_nothing_when_nothing_moved(golden, monkeypatch, tmp_path):
    copy = tmp_path / "golden.json"
    copy.write_text(golden.GOLDEN.read_text())
    monkeypatch.setattr(golden, "GOLDEN", copy)
    before = copy.read_text()
    assert golden.main() == 0
    assert copy.read_text() == before


def test_renewing_refuses_to_hide_a_change(golden, monkeypatch, tmp_path, capsys):
    copy = tmp_path / "golden.json"
    held = golden.read()
    held["attack.fgsm"]["output"][0] += 0.01
    monkeypatch.setattr(golden, "GOLDEN", copy)
    golden.write(held)
    before = copy.read_text()
    assert golden.main() == 1
    assert "raise version in purifiers/attacks/fgsm.py" in capsys.readouterr().err
    assert copy.read_text() == before
