"""API.md lists exactly the public names, their parameters and the budgets."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import purifiers
from purifiers.auditing.protocol import BUDGETS
from purifiers.core.errors import UserError

PAGE = (Path(__file__).resolve().parents[2] / "API.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)(.*?)` \|", PAGE, flags=re.MULTILINE))


def test_the_page_lists_all_public_names() -> None:
    listed = [name for name in ROWS if name not in BUDGETS]
    assert sorted(listed) == sorted(purifiers.__all__)


@pytest.mark.parametrize("name", [n for n, text in ROWS.items() if text])
def test_parameters_are_those_of_the_function(name: str) -> None:
    function = getattr(purifiers, name)
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parameters:
            parameters.append("*")
        parameters.append(star + parameter.name)
    assert ROWS[name] == f"({', '.join(parameters)})"


def test_public_names_are_documented() -> None:
    for name in purifiers.__all__:
        if name != "__version__":
            assert inspect.getdoc(getattr(purifiers, name)), name


def test_the_table_of_budgets_is_up_to_date() -> None:
    for name, b in BUDGETS.items():
        numbers = f"{b.pgd_steps} | {b.apgd_steps} | {b.restarts} | {b.square_queries}"
        autoattack = "yes" if b.autoattack else "no"
        assert f"| `{name}` | {numbers} | {autoattack} | {b.eot_samples} | {b.draws} |" in PAGE


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    attack, defend, fit, load = blocks
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        names = {"layer1": nn.Conv2d(3, 4, 3), "layer2": nn.ReLU(), "layer3": nn.Conv2d(4, 4, 3)}
        head = {"flat": nn.Flatten(), "head": nn.Linear(64, 3)}
        model = nn.Sequential()
        for name, part in (names | head).items():
            model.add_module(name, part)
        images = torch.rand(4, 3, 8, 8)
        labels = torch.tensor([0, 1, 2, 0])
    given = {"model": model.eval(), "images": images, "labels": labels, "purifiers": purifiers}
    given |= {"train_images": images, "train_labels": labels}
    exec(attack + defend, given)
    assert (tmp_path / "pgd.npz").exists()
    exec(fit.replace('"standard"', '"quick"'), given)
    assert given["report"].n == 4
    with pytest.raises(UserError, match="there is no run"):
        exec(load, given)
