"""Finds the other libraries, and says which are missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
# behind the environment's own packages, which it must not replace
sys.path.append(str(HERE.parents[1] / ".peers"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="where to measure")
    parser.addoption("--rounds", type=int, help="fewer or more rounds than settings.ROUNDS")
    parser.addoption("--images", type=int, help="fewer images, for a quick look")


def pytest_report_header() -> str:
    import peers

    absent = peers.missing()
    if not absent:
        return "peers: all there"
    return f"peers missing: {', '.join(absent)} (`make .peers/.ready` installs them)"


@pytest.fixture
def device(pytestconfig: pytest.Config) -> str:
    """What is timed; a processor's single thread."""
    named: str = pytestconfig.getoption("--device")
    if named == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    torch.set_num_threads(1)
    return named
