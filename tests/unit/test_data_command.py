"""``python -m purifiers data``: one line per data set, downloads from a server on this machine."""

from __future__ import annotations

import functools
import gzip
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from purifiers.__main__ import main
from purifiers.core import registry
from purifiers.datasets._download import Remote
from purifiers.datasets._template import Template
from purifiers.datasets.mnist import Mnist
from purifiers.plan.plan import make_plan
from purifiers.plan.price import describe_price

from .test_datasets import sha256, tiny_mnist


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files the server has at ``/``."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("PURIFYBENCH_MIRROR", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("PURIFYBENCH_DATA", str(folder))
    return folder


@pytest.fixture
def lines(toy_plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Any:
    """``lines(datasets)``: exit status and output of the command for a scale's data sets."""
    recipes: dict[str, Any] = {
        "classifiers": {"small": {"component": "advae_a", "width": 4}},
        "trainings": {"natural": {"component": "natural"}},
        "attacks": {"snow": {"component": "cifar10_c", "corruption": "snow"}},
    }
    cell = {"classifier": "small", "training": "natural", "methods": []}
    columns = {"clean": {"dataset": "digits", "attack": "none"}}
    toy_plan(recipes, cell, {"row": {}}, columns)

    def lines(datasets: dict[str, Any], corrupted: bool = False) -> tuple[int, list[str]]:
        path = tmp_path / "workflow/scales/tiny.yaml"
        scale = yaml.safe_load(path.read_text())
        scale["datasets"] = {"digits": {"use": "digits"}, **datasets}
        path.write_text(yaml.safe_dump(scale, sort_keys=False))
        if corrupted:
            attacked = {"dataset": "cifar10", "attack": "snow", "threat_model": "oblivious"}
            toy_plan(recipes, cell, {"row": {}}, {"snow": attacked})
        monkeypatch.chdir(tmp_path)
        status = main(["data", "--scale", "tiny"])
        return status, capsys.readouterr().out.splitlines()

    return lines


def serve_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny MNIST under its official names, instead of the real one."""
    tiny, arrays = tiny_mnist(folder / "made", Mnist, compressed=True)
    remotes = {}
    for path in (folder / "made").rglob("*.gz"):
        content = path.read_bytes()
        (folder / path.name).write_bytes(content)
        name = path.name.removesuffix(".gz")
        remotes[name] = Remote(f"https://example.org/{path.name}", len(content), sha256(content))
    assert remotes.keys() == arrays.keys()
    kind = type(tiny)
    monkeypatch.setattr(kind, "remotes", remotes)
    real = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind_, name: kind if name == "mnist" else real(kind_, name)
    )


def test_present_downloaded_and_missing(served, data, lines, monkeypatch):
    serve_mnist(served, monkeypatch)
    own = {"use": "image_folder", "parameters": {"path": "mine", "shape": [1, 8, 8]}}
    datasets = {"svhn": {"use": "svhn"}, "mnist": {"use": "mnist"}, "other": {"use": "mnist"}}
    status, printed = lines({**datasets, "own": own})
    assert status == 1 and [line.split(": ")[:2] for line in printed] == [
        ["digits", "present"],
        ["svhn", "missing or damaged"],
        ["mnist", "downloaded"],
        ["image_folder", "missing or damaged"],
    ]
    assert "housenumbers/train_32x32.mat failed: HTTP 404" in printed[1]
    assert f"put the file at {data / 'svhn' / 'train_32x32.mat'}" in printed[1]
    assert printed[2].endswith("byte-identical to the original; 5 training and 3 test images")

    for split in ("train", "test"):
        (data / "mine" / split / "cat").mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(data / "mine" / split / "cat" / "1.png")
    status, printed = lines({"mnist": {"use": "mnist"}, "own": own})
    assert status == 0 and [line.split(": ")[:2] for line in printed[1:]] == [
        ["mnist", "present"],
        ["image_folder", "present"],
    ]
    path = data / "MNIST/raw/train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"other"))
    status, printed = lines({"mnist": {"use": "mnist"}})
    assert status == 1 and "mnist: missing or damaged: " in printed[1] and path.name in printed[1]


def test_the_files_of_cifar_10_c(data, lines, tmp_path, monkeypatch):
    real = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind, name: Template if name == "cifar10" else real(kind, name)
    )
    cifar = {"cifar10": {"use": "cifar10", "train": 4, "test": 2}}
    status, printed = lines(cifar, corrupted=True)
    missing = (
        f"{data / 'CIFAR-10-C'}: missing: labels.npy, snow.npy; without them cells of toy/table_1 "
        "fail: unpack CIFAR-10-C.tar (https://zenodo.org/records/2535967) into the data folder"
    )
    assert status == 1 and printed[-1] == missing
    assert describe_price(make_plan(tmp_path, "tiny")).splitlines()[-1] == missing
    (data / "CIFAR-10-C").mkdir()
    for name in ("snow", "labels"):
        (data / "CIFAR-10-C" / f"{name}.npy").write_bytes(b"x")
    status, printed = lines(cifar, corrupted=True)
    assert status == 0 and printed[-1] == "CIFAR-10-C: present, without a checksum"
    assert "missing" not in describe_price(make_plan(tmp_path, "tiny"))


def test_an_unreadable_file_does_not_end_the_others(data, lines, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Permission denied", "x.bin")

    monkeypatch.setattr(Template, "read", refuse)
    real = registry.load
    monkeypatch.setattr(
        registry, "load", lambda kind, name: Template if name == "svhn" else real(kind, name)
    )
    status, printed = lines({"svhn": {"use": "svhn"}, "mine": {"use": "image_folder"}})
    assert status == 1 and len(printed) == 3 and "Permission denied: 'x.bin'" in printed[1]
