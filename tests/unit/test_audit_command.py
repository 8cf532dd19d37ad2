"""``python -m purifiers audit``: own networks, runs and purifiers from the shell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from purifiers.__main__ import main
from purifiers.auditing.command import read_component
from purifiers.auditing.data import load_images
from purifiers.core.errors import UserError

NETWORK = """
from torch import nn

def make(classes):
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(),
                         nn.Linear(392, classes))
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for a small network that is trained on the digits."""
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(NETWORK)
    content: dict[str, Any] = {}
    exec(NETWORK, content)
    train = load_images("digits", 1000, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = content["make"](10)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(60):
            optimizer.zero_grad()
            functional.cross_entropy(network(train.images), train.labels).backward()
            optimizer.step()
    save_file(network.state_dict(), "w.safetensors")
    return ["audit", "--model", "my.py:make", "--weights", "w.safetensors", "--data", "digits"]


def test_an_own_network(model: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    method = ["--method", "random_sign eps=0.2", "--n", "32", "--eps", "0.1", "--out", "out"]
    assert main([*model, *method]) == 0
    out = capsys.readouterr().out
    assert "RandomSign + File: 32 images, linf eps 0.1, quick" in out
    assert "majority of 5" in out and "scikit-learn" in out
    frame = pd.read_csv("out/audit.csv").set_index("attack")
    assert frame["accuracy"]["clean, no purifier"] > 70
    assert frame["accuracy"]["worst case per image"] < frame["accuracy"]["clean"]
    assert Path("out/audit.png").stat().st_size > 10_000
    assert "torch" in Path("out/audit.txt").read_text()


def test_a_method_is_fitted_on_request(
    model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    aid = "aid width=16 eps=0.1 step_size=0.025 iterations=2 train_eps=0.1 train_steps=1 "
    aid += 'taps="[network.0, network.1]" batch_size=50'
    assert main([*model, "--n", "16", "--eps", "0.1", "--method", aid]) == 2
    assert "--fit 10000" in capsys.readouterr().err
    assert main([*model, "--n", "16", "--eps", "0.1", "--method", aid, "--fit", "100"]) == 0
    assert "pgd, second order" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "random_sgn"], "did you mean 'random_sign'"),
        (["--method", "random_sign eps"], "not of the form key=value"),
        (["--method", "aid=nowhere"], "nowhere"),
        (["--n", "9999"], "choose 1 to 397"),
        (["--model", "wide_resnet depth=10 widen_factor=1"], "weights are untrained"),
        (["--model", "mine.py:make"], "mine.py"),
        (["--data", "digitz"], "did you mean 'digits'"),
        (["--device", "tpu"], "device is 'tpu': choose one of auto, cpu, cuda"),
    ],
)
def test_mistakes_are_one_line(
    model: list[str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "--model":
        del model[model.index("--weights") :][:2]
        model = ["audit", "--data", "digits"]
    assert main([*model, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and message in error


def test_components_are_read_as_yaml() -> None:
    name, parameters = read_component('aid taps="[layer1, layer3]" eps=8/255 width=16', "--method")
    assert name == "aid"
    assert parameters == {"taps": ["layer1", "layer3"], "eps": "8/255", "width": 16}
    with pytest.raises(UserError, match="key=value"):
        read_component("aid =3", "--method")


def test_an_unknown_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--scal", "smoke", "--fast"])
    assert "unrecognized arguments" in capsys.readouterr().err
