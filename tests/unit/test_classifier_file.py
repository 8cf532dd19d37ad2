"""A user's own network: it is the one in the file, and whatever does not fit is one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from purifiers.classifiers.file import File
from purifiers.core.errors import UserError

SHAPE, CLASSES = (1, 8, 8), 3
SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Sizes:
    width: int = 4

class Net(nn.Sequential):
    def __init__(self, width, classes):
        super().__init__(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(36 * width, classes),
        )

def make(classes, width=4):
    return Net(Sizes(width).width, classes)

def fixed(): return Net(4, 3)
def number(): return 7
def broken(): raise ZeroDivisionError("no luck")
def features(): return nn.Conv2d(1, 3, 3)
def grey(): return nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten())
constant = 5
"""

Make = Callable[..., File]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(**parameters)``: the component for the network above."""
    path = tmp_path / "net.py"
    path.write_text(SOURCE)
    return lambda **parameters: File(SHAPE, CLASSES, **{"path": str(path)} | parameters)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def trained(make: Make, **parameters: Any) -> nn.Module:
    """A network with statistics that no initialisation has."""
    network = make(**parameters).network
    network(torch.rand(16, *SHAPE))
    return network.eval()


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth"])
def test_the_logits_are_those_of_the_stored_network(
    make: Make, images: Tensor, tmp_path: Path, suffix: str
) -> None:
    network, weights = trained(make), tmp_path / f"net.{suffix}"
    save = save_file if suffix == "safetensors" else torch.save
    save(network.state_dict(), weights)
    assert not torch.equal(make().eval()(images), network(images))
    assert torch.equal(make(weights=str(weights)).eval()(images), network(images))


def test_the_factory_gets_what_it_takes(make: Make) -> None:
    assert make().network[5].weight.shape == (3, 144)
    assert make(options={"width": 2}).network[5].weight.shape == (3, 72)
    assert make(factory="fixed").network[5].weight.shape == (3, 144)


def test_checking_the_logits_leaves_no_trace(make: Make) -> None:
    network = make().network
    assert all(part.training for part in network.modules())
    assert int(network[1].num_batches_tracked) == 0


def test_another_content_is_another_network_within_the_same_second(
    make: Make, tmp_path: Path
) -> None:
    """Of the same size: nothing may take byte code of the earlier content for it."""
    assert make().network[0].out_channels == 4
    path = tmp_path / "net.py"
    path.write_text(path.read_text().replace("width=4", "width=2"))
    assert make().network[0].out_channels == 2


def test_taps_are_outputs_before_later_layers_change_them(make: Make, images: Tensor) -> None:
    made = make(taps=["1", "2"]).eval()
    early, late = made.features(images, ["1", "2"])
    assert early.min() < 0 and torch.equal(functional.relu(early), late)
    assert torch.equal(made.network(images), made(images))  # no hook is left
    with pytest.raises(UserError, match=r"no tap '4': list it|did you mean"):
        made.features(images, ["4"])


def test_gradients_reach_the_images_through_a_tap(make: Make, images: Tensor) -> None:
    made = make(taps=["1", "2"]).eval()
    images.requires_grad_(True)
    made.features(images, ["1", "2"])[0].sum().backward()
    assert images.grad is not None and images.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"path": "gone.py"}, "gone.py: cannot be read (No such file or directory): correct path"),
        ({"factory": "mak"}, "net.py: there is no function 'mak' (did you mean 'make'?)"),
        ({"factory": "constant"}, "net.py: there is no function 'constant'"),
        ({"factory": "number"}, "net.py: number returns a int: return an nn.Module"),
        ({"factory": "broken"}, "net.py: broken fails (ZeroDivisionError: no luck)"),
        ({"options": {"widht": 3}}, "net.py: make fails (TypeError:"),
        ({"factory": "features"}, "returns (1, 3, 6, 6), expected logits of shape (1, 3)"),
        ({"factory": "grey"}, "net.py: grey: the network fails on an image of shape (1, 8, 8)"),
        ({"options": {"classes": 4}}, "returns (1, 4), expected logits of shape (1, 3)"),
        ({"taps": ["7"]}, "net.py: taps: the network has no submodule '7'"),
        ({"weights": "gone.pt"}, "gone.pt: cannot be read as weights (FileNotFoundError"),
    ],
)
def test_what_does_not_fit_is_one_line(
    make: Make, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"^[^\n]*{re.escape(message)}[^\n]*$"):
        make(**parameters)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def make(:", "is not valid Python (SyntaxError"),
        ("import no_such_package", "cannot be imported (ModuleNotFoundError: No module named"),
    ],
)
def test_a_file_that_does_not_run_is_one_line(
    make: Make, tmp_path: Path, source: str, message: str
) -> None:
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(UserError, match=rf"^[^\n]*bad.py: {re.escape(message)}[^\n]*$"):
        make(path=str(tmp_path / "bad.py"))


def test_weights_of_another_network_are_refused(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(make(options={"width": 2}).network.state_dict(), path)
    with pytest.raises(UserError, match=r"^[^\n]*net.pt: does not fit the network of [^\n]*$"):
        make(weights=str(path))


def test_only_a_state_dict_is_read(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save({"model": make().network.state_dict(), "epoch": 3}, path)
    with pytest.raises(UserError, match=r"holds model, epoch, expected tensors by name"):
        make(weights=str(path))
    torch.save(make().network, path)  # a pickled module would run code
    with pytest.raises(UserError, match=r"cannot be read as weights \(UnpicklingError"):
        make(weights=str(path))
    path.write_bytes(b"cut")
    with pytest.raises(UserError, match="cannot be read as weights"):
        make(weights=str(path))
